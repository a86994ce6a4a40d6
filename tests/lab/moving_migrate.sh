# shellcheck shell=bash
# A volume that is hammered moves from one site to the other, over a slow line, with accidents. /dev/ubda is for LVM.
. "$LAB/moving.sh"

moving_sites
make_vg vg /dev/ubda
lvcreate -q -y -L 220m --poolmetadatasize 4m --poolmetadataspare n -c 64k -T vg/pool
lvcreate -q -y -V 48m -T vg/pool -n guest
mkfs.ext4 -q /dev/vg/guest
mkdir /run/here /run/guest

# The guest's life. A stop command of ours notes when it begins, a start command when it has ended.
cat >/run/guest/start <<'END'
set -e
mount /dev/vg/guest /run/here
run "$LAB/migrate_writer.py" /run/here /run/writer.log 32768 0.2 </dev/null >/run/writer.out 2>&1 &
echo $! >/run/guest/number
until [[ -e /run/forks/$!.pid ]]; do sleep 0.02; done
END
cat >/run/guest/stop <<'END'
set -e
date +%s.%N >/run/guest/stopped_at
number=$(cat /run/guest/number)
kill -TERM "$(cat "/run/forks/$number.pid")"
while [[ -e /run/forks/$number.pid ]]; do sleep 0.02; done
umount /run/here
if [[ -e /run/guest/accident ]]; then . /run/guest/accident; fi
END
cat >/run/guest/there <<'END'
set -e
blockdev --getsize64 /dev/vg/copy
date +%s.%N >/run/guest/started_at
END

# migrate [OPTION...]: in the background.
migrate() {
    rm -f /run/guest/*_at
    begin lvmsync migrate vg/guest siteb:vg/copy --json --stop-cmd 'bash /run/guest/stop' \
        --restart-cmd 'bash /run/guest/start' --start-cmd 'bash /run/guest/there' "$@"
}

# runs: the guest runs here, and writes.
runs() {
    local lines
    mountpoint -q /run/here || wrong 'the file system is not mounted'
    [[ -e /run/forks/$(cat /run/guest/number).pid ]] || wrong 'the writer does not run'
    lines=$(wc -l </run/writer.log)
    until_true new_lines "$lines"
    is "$(lvs --noheadings -o lv_permissions vg/guest | tr -d ' ')" writeable 'the source'
}
new_lines() { (($(wc -l </run/writer.log) > $1)); }

bash /run/guest/start
head -c 4M /dev/urandom >/run/here/noise
slow delay 10ms rate 50mbit

it "leaves the guest running when the line fails in the downtime, and says what was left"
echo 'ip link set vetha down' >/run/guest/accident
migrate --max-downtime 200s --max-stops 1 --create --thin-pool vg/pool
until_true test -e /run/guest/stopped_at
ended 7 'vg/guest'
ip link set vetha up
rm /run/guest/accident
runs

it "can be taken back after the migration was killed in the downtime"
# shellcheck disable=SC2016
echo 'kill -KILL "$(cat /run/guest/migration)"' >/run/guest/accident
migrate --max-downtime 200s
until_true test -e "/run/forks/$RUN.pid"
cp "/run/forks/$RUN.pid" /run/guest/migration
ended 137 ''
rm /run/guest/accident
migrate --max-downtime 200s
ended 8 '--(abort|finish)'
expect 0 '' lvmsync migrate --abort vg/guest siteb:vg/copy --restart-cmd 'bash /run/guest/start'
cat "$ERR"
if ! mountpoint -q /run/here; then bash /run/guest/start; fi
runs

it "moves the guest within its downtime, as predicted"
migrate --max-downtime 100s --verify
ended 0 'predicted'
cat "$ERR"
seen=$(paste -d' ' /run/guest/started_at /run/guest/stopped_at | awk '{ printf "%.3f", $1 - $2 }')
told=$(of_receipt predicted_downtime)
echo "downtime seen $seen, predicted $told"
awk -v seen="$seen" 'BEGIN { exit !(seen > 0 && seen <= 100) }' || wrong "the downtime was $seen s"
awk -v seen="$seen" -v told="$told" 'BEGIN { exit !(told >= seen / 2 && told <= seen * 2) }' || wrong "$told s were predicted, and it took $seen s"
is "$(sum /dev/vg/guest)" "$(sum /dev/vg/copy)" 'the sha256 of the source'
remember_files
whole_files vg/copy

it "leaves nothing but what the way back needs"
lvs -a -o+tags vg
cleaned
is "$(dmsetup info -c --noheadings -o name,suspended | grep ':Suspended$')" '' 'the suspended devices'
is "$(unlocked)" '' 'the locks that are held'
is "$(lvs --noheadings -o full_name @lvmsync.role=back | wc -l)" 1 'the snapshots for the way back'
is "$(lvs --noheadings -o full_name @lvmsync | wc -l)" 1 'the snapshots'

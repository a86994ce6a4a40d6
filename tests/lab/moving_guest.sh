# shellcheck shell=bash
# A guest that is moved from one site to the other:  . "$LAB/moving_guest.sh"
#
# It is a file system on vg/guest with a writer on it, and goes to vg/copy on siteb. /dev/ubda is for LVM. KIND is classic
# or thin: what both volumes are. What is in these files is run by the commands that migrate is given, if they are there:
#
#   /run/guest/before_stop     while the guest runs still
#   /run/guest/flush           when it has stopped, and its file system is mounted still
#   /run/guest/accident        at the end of the stop command
#   /run/guest/before_start    on the other site, before anything is done there
#   /run/guest/started         on the other site, at the end of the start command
#   /run/guest/at_restart      before the guest is started again here
. "$LAB/moving.sh"

moving_sites
make_vg vg /dev/ubda
if [[ ${KIND:=thin} == thin ]]; then
    lvcreate -q -y -L 220m --poolmetadatasize 4m --poolmetadataspare n -c 64k -T vg/pool
    VOLUMES=(pool guest copy)
    CREATE=(--create --thin-pool vg/pool)
else
    VOLUMES=(guest copy)
    CREATE=(--create)
fi
mkdir -p /run/here /run/there /run/guest
echo 0.2 >/run/guest/pause

cat >/run/guest/start <<'END'
set -e
if [[ -e /run/guest/at_restart ]]; then . /run/guest/at_restart; fi
if mountpoint -q /run/here && [[ -e /run/forks/$(cat /run/guest/number).pid ]]; then exit; fi
mount /dev/vg/guest /run/here
run "$LAB/migrate_writer.py" /run/here /run/writer.log 32768 "$(cat /run/guest/pause)" </dev/null >/run/writer.out 2>&1 &
echo $! >/run/guest/number
until [[ -e /run/forks/$!.pid ]]; do sleep 0.02; done
END
cat >/run/guest/stop <<'END'
set -e
date +%s.%N >/run/guest/stopped_at
if [[ -e /run/guest/before_stop ]]; then . /run/guest/before_stop; fi
number=$(cat /run/guest/number)
kill -TERM "$(cat "/run/forks/$number.pid")"
while [[ -e /run/forks/$number.pid ]]; do sleep 0.02; done
if [[ -e /run/guest/flush ]]; then . /run/guest/flush; fi
umount /run/here
if [[ -e /run/guest/accident ]]; then . /run/guest/accident; fi
cat /sys/class/net/vetha/statistics/[rt]x_bytes >/run/guest/stop_ended
END
cat >/run/guest/there <<'END'
set -e
if [[ -e /run/guest/before_start ]]; then . /run/guest/before_start; fi
blockdev --getsize64 /dev/vg/copy
date +%s.%N >/run/guest/started_at
if [[ -e /run/guest/started ]]; then . /run/guest/started; fi
END
RESTART='bash /run/guest/start'

# a_guest MIB: it runs, its writer is at work, and there is no copy.
a_guest() {
    if [[ $KIND == thin ]]; then
        lvcreate -q -y -V "$1m" -T vg/pool -n guest
    else
        lvcreate -q -y -W n -L "$1m" -n guest vg
    fi
    mkfs.ext4 -q /dev/vg/guest
    $RESTART
    until_true some_files
    head -c 4M /dev/urandom >/run/here/noise
}

# no_accident: from now on.
no_accident() { rm -f /run/guest/{before_stop,flush,accident,before_start,started,at_restart}; }

# migrate [OPTION...]: in the background.
migrate() {
    rm -f /run/guest/*_at /run/guest/stop_ended
    begin lvmsync migrate vg/guest siteb:vg/copy --json --stop-cmd 'bash /run/guest/stop' \
        --restart-cmd "$RESTART" --start-cmd 'bash /run/guest/there' "$@"
    until [[ -e /run/forks/$RUN.pid || ! -d /proc/$RUN ]]; do sleep 0.02; done
    echo "/run/forks/$RUN.pid" >/run/guest/migration
}

# in_last_pass BYTES: wait until the stop command has ended, and so much has gone over the line since.
in_last_pass() {
    until [[ -e /run/guest/stop_ended ]]; do
        [[ -d /proc/$RUN ]] || wrong "it ended before the stop: $(tail -n 5 "$ERR")"
        [[ -d /proc/$RUN ]] || return 0
        sleep 0.05
    done
    until_true test -s /run/guest/stop_ended
    sent_before=$(awk '{ sum += $1 } END { print sum }' /run/guest/stop_ended)
    on_line "$1"
}

# there COMMAND...: on the other site.
there() { at_siteb env "PATH=/run/forks-b:$PATH" "$@"; }

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

# moved LIMIT: the guest was moved within its downtime, as predicted, whole; what is left is what the way back needs.
moved() {
    local seen told
    seen=$(paste -d' ' /run/guest/started_at /run/guest/stopped_at | awk '{ printf "%.3f", $1 - $2 }')
    told=$(of_receipt predicted_downtime)
    echo "downtime seen $seen, predicted $told, allowed $1, passes $(grep -o '"kind"' "$OUT" | wc -l)"
    awk -v seen="$seen" -v most="$1" 'BEGIN { exit !(seen > 0 && seen <= most) }' || wrong "the downtime was $seen s, of $1 s"
    PREDICTED=$told SEEN=$seen
    is "$(sum /dev/vg/guest)" "$(sum /dev/vg/copy)" 'the sha256 of the source'
    remember_files
    whole_files vg/copy
    is "$(lvs --noheadings -o lv_permissions vg/guest | tr -d ' ')" read-only 'the source'
    is "$(lvs --noheadings -o full_name @lvmsync.role=back | wc -l)" 1 'the snapshots for the way back'
    is "$(lvs --noheadings -o full_name @lvmsync | wc -l)" 1 'the snapshots'
    all_at_rest
}

# as_predicted: the last downtime that was seen is within a factor of 2 of what was predicted.
as_predicted() {
    awk -v seen="$SEEN" -v told="$PREDICTED" 'BEGIN { exit !(told >= seen / 2 && told <= seen * 2) }' ||
        wrong "$PREDICTED s were predicted, and it took $SEEN s"
}

# all_at_rest: no journal, lock, suspended device, metadata snapshot, agent or migration.
all_at_rest() {
    is "$(find /var/lib/lvmsync/migrations /run/siteb/state -name journal.json 2>/dev/null)" '' 'the journals that are left'
    is "$(dmsetup info -c --noheadings -o name,suspended | grep ':Suspended$')" '' 'the suspended devices'
    until_true no_agent
    is "$(unlocked)" '' 'the locks that are held'
    is "$(dmsetup status --target thin-pool | awk '$8 != "-"')" '' 'the pools with a metadata snapshot'
}

# nothing_left: after cleanup, and with the copy given up, there is nothing of lvmsync's besides the two volumes.
nothing_left() {
    local replica
    all_at_rest
    is "$(lvs --noheadings -o full_name @lvmsync.role=back)" '' 'the snapshots for a way back'
    expect 0 '' lvmsync cleanup --remove
    for replica in $(lvs --noheadings -o lv_tags @lvmsync | grep -o 'lvmsync.replica=[0-9a-f]*' | sort -u); do
        expect 0 '' lvmsync cleanup --replica "${replica#*=}"
    done
    if grep -qs '"transaction": {' /run/siteb/state/targets/*/record.json; then expect 0 '' there lvmsync recover vg/copy; fi
    expect 0 '' there lvmsync cleanup --remove
    is "$(lvs --noheadings -o full_name @lvmsync)" '' 'the snapshots of lvmsync'
    FILES_WRITER=$(cat /run/guest/number) REPLICAS=0 tidy "${VOLUMES[@]}"
    lvmsync doctor >"$OUT" 2>&1 || true
    is "$(grep -v 'tmpfs\|LVMSYNC_STATE' "$OUT")" '' 'what doctor finds'
    echo "nothing left: $(lvs --noheadings -o lv_name vg | tr -d ' ' | tr '\n' ' ')"
}

# home: what was moved runs here again, as if it never had been moved.
home() {
    local one
    for one in $(lvs --noheadings -o full_name @lvmsync) vg/copy; do lvremove -q -y "$one" >/dev/null; done
    lvchange -q -y -prw vg/guest
    rm -rf /var/lib/lvmsync/* /run/siteb/state/*
    no_accident
    $RESTART
}

# shellcheck shell=bash
# Everything that can fail while a guest stands still for its migration. /dev/ubda is for LVM. KIND is classic or thin.
#
# After each failure the guest runs and writes, or waits for --abort or --finish; and with its copy given up, there is no
# snapshot, journal, lock, suspended device, metadata snapshot or process of lvmsync's.
. "$LAB/moving_guest.sh"

a_guest 24
SLOW='tc qdisc replace dev vetha root netem limit 10000 rate 6mbit'
ABORT=(lvmsync migrate --abort vg/guest siteb:vg/copy)

# again: there is no copy, no accident, and the line is fast.
again() {
    no_accident
    slow
    mountpoint -q /run/here || $RESTART
    if lvs vg/copy >/dev/null 2>&1; then lvremove -q -y vg/copy >/dev/null; fi
}

# long_pass: the last pass brings 3 MiB over a line that has become slow: 4 s.
long_pass() {
    echo 'head -c 3M /dev/urandom >/run/here/noise; sync /run/here/noise' >/run/guest/flush
    echo "$SLOW" >/run/guest/accident
}

it "starts the guest again when the stop command fails before it has stopped it"
echo 'echo cannot stop it >&2; exit 5' >/run/guest/before_stop
migrate --max-downtime 200s "${CREATE[@]}"
ended 3 'status 5'
cat "$ERR"
says 'the source was started again' "$ERR"
runs
no_accident
nothing_left

it "starts the guest again when the stop command fails after it has stopped it"
again
echo 'exit 6' >/run/guest/accident
migrate --max-downtime 200s "${CREATE[@]}"
ended 3 'status 6'
cat "$ERR"
says 'the source was started again' "$ERR"
runs
no_accident
nothing_left

it "says that the guest is stopped when it cannot be started again, and --abort starts it"
again
echo 'exit 7' >/run/guest/at_restart
echo 'exit 6' >/run/guest/accident
migrate --max-downtime 200s "${CREATE[@]}"
ended 3 'THE SOURCE MAY BE STOPPED: '
cat "$ERR"
mountpoint -q /run/here && wrong 'it is mounted'
expect 3 'run this again' "${ABORT[@]}"
cat "$ERR"
no_accident
expect 0 'its user was started again' "${ABORT[@]}"
cat "$ERR"
runs
nothing_left

it "starts the guest again when the line is cut in the last pass"
again
long_pass
migrate --max-downtime 200s "${CREATE[@]}"
in_last_pass 500000
for one in $(pgrep -f '^sshd: root@notty'); do kill -KILL "$one"; done
slow
ended 7 'the source was started again'
cat "$ERR"
runs
no_accident
nothing_left

it "starts the guest again when the other side's lvmsync is killed in the last pass"
again
long_pass
migrate --max-downtime 200s "${CREATE[@]}"
in_last_pass 500000
kill_agent
slow
ended 7 'the source was started again'
cat "$ERR"
runs
no_accident
nothing_left

it "starts the guest again at Ctrl-C in the last pass, and at SIGTERM"
for one in 'INT 130' 'TERM 130'; do
    again
    long_pass
    migrate --max-downtime 200s "${CREATE[@]}"
    in_last_pass 500000
    kill -"${one% *}" "$(cat "/run/forks/$RUN.pid")"
    ended "${one#* }" 'the source was started again'
    slow
    cat "$ERR"
    runs
    no_accident
    nothing_left
done

it "is brought back by --abort when it was killed in the last pass"
again
long_pass
migrate --max-downtime 200s "${CREATE[@]}"
in_last_pass 500000
kill_source
ended 137 ''
slow
expect 3 '' lvmsync doctor
says 'lvmsync migrate --abort' "$OUT"
mountpoint -q /run/here && wrong 'it is mounted'
is "$(lvs --noheadings -o lv_permissions vg/guest | tr -d ' ')" read-only 'the source'
expect 8 'nothing runs on the target' lvmsync migrate --finish vg/guest siteb:vg/copy
no_accident
expect 0 'is writable again and its user was started again' "${ABORT[@]}"
cat "$ERR"
runs
nothing_left

it "starts the guest again when the start command fails before it has used the target"
again
echo 'echo no such guest >&2; exit 4' >/run/guest/before_start
migrate --max-downtime 200s "${CREATE[@]}"
ended 3 'the start command failed with status 4: no such guest'
cat "$ERR"
says 'the source was started again' "$ERR"
runs
no_accident
nothing_left

it "leaves the guest stopped when the start command fails after it has mounted the target, and --abort --force starts it"
again
echo 'mount /dev/vg/copy /run/there; exit 4' >/run/guest/before_start
migrate --max-downtime 200s "${CREATE[@]}"
ended 3 'the target may be in use now, so the source stays stopped and read-only'
cat "$ERR"
mountpoint -q /run/here && wrong 'it is mounted'
at_siteb umount /run/there
expect 8 'look there' "${ABORT[@]}"
no_accident
expect 0 'is writable again and its user was started again' "${ABORT[@]}" --force
cat "$ERR"
runs
nothing_left

it "leaves the guest stopped when it was killed while the start command ran, and --abort --force starts it"
again
# shellcheck disable=SC2016
echo 'kill -KILL "$(cat "$(cat /run/guest/migration)")"' >/run/guest/started
migrate --max-downtime 200s "${CREATE[@]}"
ended 137 ''
mountpoint -q /run/here && wrong 'it is mounted'
expect 8 'may have run' "${ABORT[@]}"
no_accident
expect 0 'is writable again and its user was started again' "${ABORT[@]}" --force
cat "$ERR"
runs
nothing_left

it "starts the guest again when something writes to the target, which is no copy then"
again
# One block of a file is written anew where it is; the target's block of that place is spoilt all the time from then on.
head -c 64k /dev/urandom >/run/here/fixed
sync /run/here/fixed
block=$(debugfs -R 'bmap fixed 3' /dev/vg/guest 2>/dev/null)
size=$(stat -f -c %S /run/here)
echo 'dd if=/dev/urandom of=/run/here/fixed bs=1k count=64 conv=notrunc,fsync status=none' >/run/guest/flush
cat >/run/guest/accident <<END
(while sleep 0.05; do dd if=/dev/urandom of=/dev/vg/copy bs=$size seek=$block count=1 oflag=direct status=none; done) </dev/null >/dev/null 2>&1 &
echo \$! >/run/guest/spoiler
END
migrate --max-downtime 200s --verify "${CREATE[@]}"
found=0
wait "$RUN" || found=$?
kill "$(cat /run/guest/spoiler)"
cat "$ERR"
[[ $found == [89] ]] || wrong "status $found"
says 'the source was started again' "$ERR"
says 'vg/copy (differs|was written to)' "$ERR"
runs
no_accident
migrate --max-downtime 200s
ended 8 'written to by something else'
runs
nothing_left

# below BLOCK: where a block of 4 KiB of the copy is on the disk of its group, in such blocks.
below() {
    local first start
    first=$(lvs --noheadings -o seg_pe_ranges vg/copy | tr -d ' ')
    first=${first#*:}
    start=$(pvs --noheadings --nosuffix --units b -o pe_start /dev/ubda | tr -d ' ')
    echo $((start / 4096 + ${first%-*} + $1))
}

if [[ $KIND == classic ]]; then
    it "does not stop the guest when --verify finds what changed below the target, where no counter tells"
    again
    expect 0 '' lvmsync sync vg/guest siteb:vg/copy "${CREATE[@]}"
    dd if=/dev/urandom of=/dev/ubda bs=4k seek="$(below 6100)" count=1 oflag=direct status=none
    migrate --max-downtime 200s --verify
    found=0
    wait "$RUN" || found=$?
    cat "$ERR"
    [[ $found == 9 || $found == 8 ]] || wrong "status $found" # 8: one of the samples of its base was of that block
    says 'vg/copy.* differs? |vg/copy was written to in between' "$ERR"
    says 'the source was never stopped, and runs on' "$ERR"
    runs
    nothing_left

    it "starts the guest again when --verify finds in the downtime what changed below the target"
    again
    head -c 64k /dev/urandom >/run/here/fixed
    sync /run/here/fixed
    size=$(stat -f -c %S /run/here)
    block=$(($(debugfs -R 'bmap fixed 8' /dev/vg/guest 2>/dev/null) * size / 4096))
    expect 0 '' lvmsync sync vg/guest siteb:vg/copy "${CREATE[@]}"
    echo 'dd if=/dev/urandom of=/run/here/fixed bs=1k count=64 conv=notrunc,fsync status=none' >/run/guest/flush
    cat >/run/guest/spoil.py <<END
import mmap, os, pathlib, time
disk, block = os.open("/dev/ubda", os.O_RDWR | os.O_DIRECT), mmap.mmap(-1, 4096)
block.write(os.urandom(4096))
while True:
    os.pwrite(disk, block, $(below "$block") * 4096)
    pathlib.Path("/run/guest/spoiling").touch()
    time.sleep(0.001)
END
    cat >/run/guest/accident <<'END'
rm -f /run/guest/spoiling
python3 /run/guest/spoil.py </dev/null >/dev/null 2>&1 &
echo $! >/run/guest/spoiler
until [[ -e /run/guest/spoiling ]]; do sleep 0.02; done
END
    migrate --max-downtime 200s --verify
    found=0
    wait "$RUN" || found=$?
    kill "$(cat /run/guest/spoiler)"
    cat "$ERR"
    [[ $found == 9 ]] || wrong "status $found"
    says 'differs from vg/guest in .* do not use it' "$ERR"
    says 'the source was started again' "$ERR"
    runs
    no_accident
    nothing_left
fi

if [[ $KIND == classic ]]; then
    it "refuses a target without room for the snapshot of the way back before anything is sent"
    again
    lvcreate -q -y -W n -L 24m -n copy vg
    lvcreate -q -y -W n -L "$(vgs --noheadings --units k --nosuffix -o vg_free vg | awk '{ print int($1) - 8192 }')k" -n fill vg
    migrate --max-downtime 200s
    ended 3 "has 8.0 MiB free, and a snapshot of vg/copy .* needs .* for the way back; --no-way-back"
    cat "$ERR"
    is "$(lvs --noheadings -o full_name @lvmsync)" '' 'the snapshots of lvmsync'
    runs
    lvremove -q -y vg/fill vg/copy >/dev/null
    migrate --max-downtime 200s "${CREATE[@]}"
    ended 0 ''
    home
fi

it "moves the guest after all that, and --finish closes a migration that was killed when the guest ran on the other site"
again
# shellcheck disable=SC2016
echo 'kill -KILL "$(cat "$(cat /run/guest/migration)")"' >/run/guest/started
migrate --max-downtime 200s --verify "${CREATE[@]}"
ended 137 ''
no_accident
is "$(sum /dev/vg/guest)" "$(sum /dev/vg/copy)" 'the sha256 of the source'
remember_files
expect 0 'vg/copy is in use now, and vg/guest stays read-only$' lvmsync migrate --finish vg/guest siteb:vg/copy
cat "$ERR"
is "$(lvs --noheadings -o full_name @lvmsync.role=back | wc -l)" 1 'the snapshots for the way back'
is "$(lvs --noheadings -o full_name @lvmsync | wc -l)" 1 'the snapshots'
whole_files vg/copy
all_at_rest
cleaned

it "brings the guest home after that with the changes only, and then nothing is left"
put vg/copy 4000 # behind the file system, perhaps; it is checked all the same
expect 0 '' lvmsync migrate --back vg/guest siteb:vg/copy --max-downtime 200s --stop-cmd true --start-cmd true --json
cat "$ERR" "$OUT"
is "$(sed 's/.*"passes": \[{"kind": "\([a-z]*\)".*/\1/' "$OUT")" delta 'the first pass'
is "$(sum /dev/vg/guest)" "$(sum /dev/vg/copy)" 'the sha256 of the copy'
$RESTART
runs
nothing_left

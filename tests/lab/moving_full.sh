# shellcheck shell=bash
# Pools, stores and folders that become full in the middle of a copy, on both sides; not in CI. /dev/ubda is for LVM.
# Each time: made larger in time by the user's command; or stopped before anything is lost, and gone on with.
. "$LAB/moving.sh"

moving_sites
make_vg vg /dev/ubda
two_volumes 16

# pool NAME SIZE [METADATA]
pool() { lvcreate -q -q -y -L "$2" --poolmetadatasize "${3:-4m}" --poolmetadataspare n -c 64k -T "vg/$1"; }
fill_of() { lvs --noheadings -o "${2:-data}_percent" "vg/$1" | tr -d ' ' | cut -d. -f1; }
# well POOL: it was not full, and takes writes.
well() {
    local data metadata
    data=$(fill_of "$1") metadata=$(fill_of "$1" metadata)
    echo "--- the pool $1: data $data %, metadata $metadata %"
    if ((data >= 99 || metadata >= 99)); then wrong "the pool is full: $data %, $metadata %"; fi
    dmsetup status "vg-$1-tpool" | grep -q ' rw ' || wrong "the pool is not writable: $(dmsetup status "vg-$1-tpool")"
}
change_all() { dd if=/dev/urandom of=/dev/vg/guest bs=1M count="${1:-16}" oflag=direct status=none; }
gone_vols() { lvremove -q -q -y "$@" >/dev/null; }
forgotten() { # no snapshot of lvmsync is left, and nothing is known of any copy
    while read -r name; do gone_vols "$name"; done < <(lvs --noheadings -o full_name @lvmsync | tr -d ' ')
    rm -rf /var/lib/lvmsync/replicas /run/siteb/state/targets
}
kind_is() { is "$(of_receipt kind)" "$1" 'the kind of the copy'; }

cat >/run/extend <<'MORE'
echo "$LVMSYNC_VOLUME $LVMSYNC_PERCENT" >>/run/extended
if [[ ${1:-} ]]; then exec lvextend -q -q --poolmetadatasize "+$1" "$LVMSYNC_VOLUME"; fi
exec lvextend -q -q -L +8m "$LVMSYNC_VOLUME"
MORE
extended() {
    local count
    count=$(grep -c "^$1 " /run/extended) || true
    echo "--- extended $count times: $(tr '\n' ';' </run/extended)"
    rm -f /run/extended
    if ((!count)); then wrong "$1 was not extended"; fi
}

it "extends the pool of a copy in the middle of the first one"
pool pool 8m
expect 0 '' lvmsync sync vg/guest siteb:vg/thin --create --thin-pool vg/pool --target-extend-cmd 'bash /run/extend' --json
kind_is first
same /dev/vg/guest /dev/vg/thin
extended vg/pool
well pool
says 'extended it' "$OUT"

it "extends the pool of a copy in the middle of a delta, each write of which needs a new chunk"
lvcreate -q -q -y -s -n pin vg/thin
sum_before=$(sum /dev/vg/thin)
change_all
expect 0 '' lvmsync sync vg/guest siteb:vg/thin --target-extend-cmd 'bash /run/extend' --json
kind_is delta
as_snapshot vg/guest vg/thin
extended vg/pool
lvchange -q -ay -K vg/pin
is "$(sum /dev/vg/pin)" "$sum_before" "what another snapshot of the copy holds"
gone_vols vg/thin vg/pool
forgotten

it "stops a first copy before its pool is full, which somebody else fills, and goes on after lvextend"
pool pool 24m
lvcreate -q -q -y -V 40m -T vg/pool -n greedy
begin lvmsync sync vg/guest siteb:vg/thin --create --thin-pool vg/pool --retries 0 --bwlimit 2M
on_line 4000000
dd if=/dev/urandom of=/dev/vg/greedy bs=1M count=12 oflag=direct status=none
ended 3 'thin pool vg/pool.*lvextend'
well pool
lvextend -q -q -L +24m vg/pool
expect 0 '' lvmsync sync vg/guest siteb:vg/thin --json
kind_is resume
as_snapshot vg/guest vg/thin

it "stops a delta before its pool is full, which somebody else fills, and goes on after lvextend"
lvcreate -q -q -y -s -n pin vg/thin
sum_before=$(sum /dev/vg/thin)
change_all
begin lvmsync sync vg/guest siteb:vg/thin --retries 0 --bwlimit 2M
on_line 3000000
dd if=/dev/urandom of=/dev/vg/greedy bs=1M count=12 seek=12 oflag=direct status=none
ended 3 'thin pool vg/pool.*lvextend'
well pool
lvchange -q -ay -K vg/pin
is "$(sum /dev/vg/pin)" "$sum_before" "what another snapshot of the copy holds"
expect 3 'thin pool vg/pool.*lvextend' lvmsync sync vg/guest siteb:vg/thin --retries 0
well pool
lvextend -q -q -L +24m vg/pool
expect 0 '' lvmsync sync vg/guest siteb:vg/thin --json
kind_is resume
as_snapshot vg/guest vg/thin
gone_vols vg/pin vg/greedy

# Thin volumes cost metadata alone: a block for the tree of each.
thins=100
crowd() { # PERCENT
    local used total
    read -r _ _ _ _ used _ < <(dmsetup status vg-pool-tpool)
    total=${used#*/} used=${used%/*}
    for ((; used * 100 < total * $1; used++)); do
        thins=$((thins + 1))
        dmsetup message vg-pool-tpool 0 "create_thin $thins"
    done
    dmsetup status vg-pool-tpool
}

it "stops before the metadata of the pool is full, and goes on when it is extended by the command"
gone_vols vg/thin vg/pool
pool pool 40m 2m
lvcreate -q -q -y -V 4m -T vg/pool -n keep # a pool of nothing is called otherwise
expect 0 '' lvmsync sync vg/guest siteb:vg/thin --create --thin-pool vg/pool --full --json
change_all
crowd 92
begin lvmsync sync vg/guest siteb:vg/thin --retries 0 --bwlimit 400K
on_line 1000000
crowd 97
ended 3 'the metadata of thin pool vg/pool.*poolmetadatasize'
well pool
expect 0 '' lvmsync sync vg/guest siteb:vg/thin --json --target-extend-cmd 'bash /run/extend 4m'
as_snapshot vg/guest vg/thin
extended vg/pool
well pool
gone_vols vg/thin vg/keep vg/pool
forgotten

it "stops before the store of a snapshot that somebody keeps of the copy overflows, and goes on after lvextend"
anew
sum_before=$(sum /dev/vg/copy)
lvcreate -q -q -y -s -L 8m -c 4k -n nightly vg/copy
change_all
expect 3 'the store of vg/nightly.*lvextend -L .SIZE vg/nightly' lvmsync sync vg/guest siteb:vg/copy --retries 0
tail -n 3 "$ERR"
is "$(sum /dev/vg/nightly)" "$sum_before" 'what the snapshot of the copy holds'
lvs -o lv_name,lv_attr,snap_percent vg/nightly
lvextend -q -q -L +12m vg/nightly
expect 0 '' lvmsync sync vg/guest siteb:vg/copy --json
kind_is resume
as_snapshot vg/guest vg/copy
is "$(sum /dev/vg/nightly)" "$sum_before" 'what the snapshot of the copy holds'

it "extends the store of a snapshot that somebody keeps of the copy"
gone_vols vg/nightly
sum_before=$(sum /dev/vg/copy)
lvcreate -q -q -y -s -L 6m -c 4k -n nightly vg/copy # 6, 14, and then all that it needs
change_all
expect 0 '' lvmsync sync vg/guest siteb:vg/copy --json --target-extend-cmd 'bash /run/extend'
as_snapshot vg/guest vg/copy
extended vg/nightly
is "$(sum /dev/vg/nightly)" "$sum_before" 'what the snapshot of the copy holds'

it "does not mind that a snapshot of the copy is removed or was lost meanwhile"
gone_vols vg/nightly
lvcreate -q -q -y -s -L 4m -c 4k -n nightly vg/copy
lvcreate -q -q -y -s -L 1m -c 4k -n lost vg/copy
gone_vols vg/nightly
lvcreate -q -q -y -s -L 12m -c 4k -n nightly vg/copy
change_all
begin lvmsync sync vg/guest siteb:vg/copy --retries 0 --bwlimit 2M --pool-limit 100
on_line 4000000
ended 0 ''
lvs -o lv_name,lv_attr,snap_percent vg
change_all
gone_vols vg/nightly
lvcreate -q -q -y -s -L 12m -c 4k -n nightly vg/copy
begin lvmsync sync vg/guest siteb:vg/copy --retries 0 --bwlimit 2M
on_line 4000000
gone_vols vg/nightly
ended 0 ''
as_snapshot vg/guest vg/copy
gone_vols vg/lost

it "stops when the state folder of the copy is full, and goes on when there is room"
at_siteb mount -t tmpfs -o size=8m tmpfs /var/lib/lvmsync
expect 3 'room' lvmsync sync vg/guest siteb:vg/copy --full --retries 0
tail -n 3 "$ERR"
expect 0 '' lvmsync sync vg/guest siteb:vg/copy --full --no-undo --retries 0
as_snapshot vg/guest vg/copy
sum_before=$(sum /dev/vg/copy)
put vg/guest 0 1500
begin lvmsync sync vg/guest siteb:vg/copy --retries 0 --bwlimit 1M
on_line 2000000
at_siteb dd if=/dev/zero of=/var/lib/lvmsync/other bs=64k status=none 2>/run/dd.err || true
ended 3 ''
at_siteb df /var/lib/lvmsync
expect 3 '' lvmsync sync vg/guest siteb:vg/copy --retries 0
tail -n 3 "$ERR"
at_siteb rm /var/lib/lvmsync/other
expect 0 '' lvmsync sync vg/guest siteb:vg/copy --json
as_snapshot vg/guest vg/copy
at_siteb umount /var/lib/lvmsync

it "brings a copy back whose state folder is full"
at_siteb mount -t tmpfs -o size=8m tmpfs /var/lib/lvmsync
expect 0 '' lvmsync sync vg/guest siteb:vg/copy --full --no-undo --retries 0
sum_before=$(sum /dev/vg/copy)
put vg/guest 0 1500
begin lvmsync sync vg/guest siteb:vg/copy --retries 0 --bwlimit 1M
on_line 2000000
at_siteb dd if=/dev/zero of=/var/lib/lvmsync/other bs=64k status=none 2>/run/dd.err || true
ended 3 ''
expect 0 '' at_siteb /run/forks-b/lvmsync recover vg/copy
is "$(sum /dev/vg/copy)" "$sum_before" 'the copy'
at_siteb rm /var/lib/lvmsync/other
expect 0 '' lvmsync sync vg/guest siteb:vg/copy --json
as_snapshot vg/guest vg/copy
at_siteb umount /var/lib/lvmsync

it "stops when the state folder of the source is full, and goes on when there is room"
anew
change_all
mount -o remount,size=2m /var/lib/lvmsync
begin lvmsync sync vg/guest siteb:vg/copy --retries 0 --bwlimit 4M
on_line 2000000
dd if=/dev/zero of=/var/lib/lvmsync/other bs=64k status=none 2>/run/dd.err || true
found=0
wait "$RUN" || found=$?
echo "--- it ended with $found: $(tail -n 4 "$ERR")"
found=0
lvmsync sync vg/guest siteb:vg/copy --retries 0 >"$OUT" 2>"$ERR" || found=$?
echo "--- the next one ended with $found: $(tail -n 4 "$ERR")"
if grep -q Traceback "$ERR"; then wrong 'a traceback'; fi
rm /var/lib/lvmsync/other
expect 0 '' lvmsync sync vg/guest siteb:vg/copy --json
as_snapshot vg/guest vg/copy
tidy guest copy

# write_slowly VG/LV FROM: 64 KiB of noise at a time, over and over, from the megabyte FROM on; until /run/enough is there.
write_slowly() {
    rm -f /run/enough /run/writer.failed
    (
        at=$(($2 * 16))
        until [[ -e /run/enough ]]; do
            dd if=/dev/urandom of="/dev/$1" bs=64k count=1 seek="$at" oflag=direct status=none || touch /run/writer.failed
            at=$(((at + 1) % 256))
            read -rt 0.02 <>/run/never || true
        done
    ) &
    WRITER=$!
}
written() { # MIB: so much more, and all of it well
    local before now
    before=$(awk '{ print $7 }' "/sys/dev/block/$(lsblk -dno MAJ:MIN /dev/vg/busy | tr -d ' ')/stat")
    until now=$(awk '{ print $7 }' "/sys/dev/block/$(lsblk -dno MAJ:MIN /dev/vg/busy | tr -d ' ')/stat"); ((now - before >= $1 * 2048)); do
        [[ ! -e /run/writer.failed ]] || break
        sleep 0.2
    done
    if [[ -e /run/writer.failed ]]; then wrong 'the volume in use could not be written to'; fi
}
enough() {
    touch /run/enough
    wait "$WRITER"
}

it "stops a first copy before the pool of the volume is full, and gives back what the copy held there"
gone_vols vg/copy
forgotten
pool own 24m
lvcreate -q -q -y -V 16m -T vg/own -n busy
lvcreate -q -q -y -W n -L 16m -n copy vg
dd if=/dev/urandom of=/dev/vg/busy bs=1M count=16 oflag=direct status=none
begin lvmsync sync vg/busy siteb:vg/copy --no-undo --retries 0 --bwlimit 500K
on_line 500000
write_slowly vg/busy 0
ended 3 'thin pool vg/own.*lvextend'
well own
written 14
well own
enough
lvs -a -o lv_name,data_percent,lv_tags vg

it "goes on when there is room in the pool of the volume"
lvextend -q -q -L +16m vg/own
expect 0 '' lvmsync sync vg/busy siteb:vg/copy --json
as_snapshot vg/busy vg/copy

it "extends the pool of the volume while a delta is made"
write_slowly vg/busy 0
begin lvmsync sync vg/busy siteb:vg/copy --retries 0 --bwlimit 500K --extend-cmd 'bash /run/extend' --extend-at 50
on_line 500000
written 8
ended 0 ''
enough
extended vg/own
as_snapshot vg/busy vg/copy
well own

it "stops a delta before the pool of the volume is full, and the volume in use goes on"
lvcreate -q -q -y -V 40m -T vg/own -n greedy
while (($(fill_of own) < 78)); do
    dd if=/dev/urandom of=/dev/vg/greedy bs=64k count=4 seek=$((at = ${at:-0} + 4)) oflag=direct status=none
done
dd if=/dev/urandom of=/dev/vg/busy bs=64k count=16 oflag=direct status=none
begin lvmsync sync vg/busy siteb:vg/copy --retries 0 --bwlimit 100K
on_line 200000
write_slowly vg/busy 2
ended 3 'thin pool vg/own.*lvextend'
enough
well own
is "$(lvs --noheadings -o lv_name @lvmsync.role=head | wc -l)" 0 'the number of heads'
expect 0 '' lvmsync sync vg/busy siteb:vg/copy --json
as_snapshot vg/busy vg/copy
tidy guest copy own busy greedy

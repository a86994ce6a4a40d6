# shellcheck shell=bash
# The stores of a volume's snapshots become full while it is copied.
# /dev/ubda is for LVM.
. "$LAB/moving.sh"

moving_sites
make_vg vg /dev/ubda
lvcreate -q -y -W n -L 32m -n guest vg
lvcreate -q -y -W n -L 32m -n copy vg
dd if=/dev/urandom of=/dev/vg/guest bs=1M count=32 oflag=direct status=none
slow rate 16mbit

it "never says that all is well when the store of a snapshot has overflowed"
begin lvmsync sync vg/guest siteb:vg/copy --cow-size 4M --chunk-size 4K
on_line 2000000
dd if=/dev/urandom of=/dev/vg/guest bs=1M count=8 seek=16 oflag=direct status=none
if wait "$RUN"; then wrong "it ended well: $(tail -n 3 "$ERR")"; fi
tail -n 4 "$ERR"
says 'store|overflow|full|COW' "$ERR"
expect 0 '' lvmsync sync vg/guest siteb:vg/copy --json
as_snapshot vg/guest vg/copy
tidy guest copy

it "stops before the store of a snapshot overflows, and says what to do"
slow
expect 0 '' lvmsync sync vg/guest siteb:vg/copy --full --cow-size 6M --chunk-size 4K
dd if=/dev/urandom of=/dev/vg/guest bs=64k seek=400 count=84 oflag=direct status=none # 88 % of the base's store
begin lvmsync sync vg/guest siteb:vg/copy --cow-size 6M --chunk-size 4K --retries 0 --bwlimit 200K
on_line 300000
dd if=/dev/urandom of=/dev/vg/guest bs=64k count=8 oflag=direct status=none # 97 %
ended 3 'full'
says 'lvextend|--extend-cmd|--cow-size' "$ERR"

it "goes on when the extend command makes room"
cat >/run/extend <<'MORE'
echo "$LVMSYNC_VOLUME $LVMSYNC_PERCENT" >>/run/extended
exec lvextend -q -L +8m "$LVMSYNC_VOLUME"
MORE
slow
expect 0 '' lvmsync sync vg/guest siteb:vg/copy --full --cow-size 6M --chunk-size 4K
dd if=/dev/urandom of=/dev/vg/guest bs=64k seek=400 count=64 oflag=direct status=none
begin lvmsync sync vg/guest siteb:vg/copy --cow-size 6M --chunk-size 4K --extend-cmd 'bash /run/extend' --bwlimit 300K
on_line 300000
dd if=/dev/urandom of=/dev/vg/guest bs=64k count=8 oflag=direct status=none # 76 %
ended 0 ''
cat /run/extended
as_snapshot vg/guest vg/copy
tidy guest copy

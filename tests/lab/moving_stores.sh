# shellcheck shell=bash
# The stores of a volume's snapshots, and the pool of its copy, become full while it is copied. /dev/ubda is for LVM.
. "$LAB/moving.sh"

moving_sites
make_vg vg /dev/ubda
two_volumes 16

it "never says that all is well when the store of a snapshot has overflowed"
slow rate 16mbit
begin lvmsync sync vg/guest siteb:vg/copy --cow-size 2M --chunk-size 4K
on_line 1000000
dd if=/dev/urandom of=/dev/vg/guest bs=1M count=4 seek=8 oflag=direct status=none
if wait "$RUN"; then wrong "it ended well: $(tail -n 3 "$ERR")"; fi
tail -n 4 "$ERR"
says 'store|overflow|full|COW' "$ERR"

it "stops before the store of a snapshot overflows, and says what to do"
slow
expect 0 '' lvmsync sync vg/guest siteb:vg/copy --full --cow-size 6M --chunk-size 4K
as_snapshot vg/guest vg/copy
tidy guest copy
dd if=/dev/urandom of=/dev/vg/guest bs=64k seek=150 count=84 oflag=direct status=none # 88 % of the base's store
begin lvmsync sync vg/guest siteb:vg/copy --cow-size 6M --chunk-size 4K --retries 0 --bwlimit 400K
on_line 300000
dd if=/dev/urandom of=/dev/vg/guest bs=64k count=8 oflag=direct status=none # 97 %
ended 3 'full'
says 'lvextend|--extend-cmd|--cow-size' "$ERR"

it "stops before the pool of the copy is full, and goes on when that was extended"
lvcreate -q -y -L 8m --poolmetadatasize 4m --poolmetadataspare n -c 64k -T vg/pool
expect 3 'vg.pool.*lvextend' lvmsync sync vg/guest siteb:vg/thin --create --thin-pool vg/pool
tail -n 3 "$ERR"
full=$(lvs --noheadings -o data_percent vg/pool | tr -d ' ' | cut -d. -f1)
if ((full >= 98)); then wrong "the pool is full: $full %"; fi
lvextend -q -L 32m vg/pool
expect 0 '' lvmsync sync vg/guest siteb:vg/thin --create --thin-pool vg/pool --json
same /dev/vg/guest /dev/vg/thin

# shellcheck shell=bash
# The pool of a copy becomes full while a volume in use is copied to it. /dev/ubda is for LVM.
. "$LAB/moving.sh"

moving_sites
make_vg vg /dev/ubda
lvcreate -q -y -W n -L 24m -n guest vg
dd if=/dev/urandom of=/dev/vg/guest bs=1M count=24 oflag=direct status=none
lvcreate -q -y -L 16m --poolmetadatasize 4m --poolmetadataspare n -c 64k -T vg/pool

# filled: how full the pool is, in whole percent.
filled() { lvs --noheadings -o data_percent vg/pool | tr -d ' ' | cut -d. -f1; }

it "stops before the pool of the copy is full, and goes on when that was extended"
expect 3 'vg.pool.*lvextend' lvmsync sync vg/guest siteb:vg/copy --create --thin-pool vg/pool
tail -n 3 "$ERR"
full=$(filled)
if ((full >= 98)); then wrong "the pool is full: $full %"; fi
lvextend -q -L 64m vg/pool
expect 0 '' lvmsync sync vg/guest siteb:vg/copy --create --thin-pool vg/pool --json
as_snapshot vg/guest vg/copy
tidy guest copy pool

it "stops when something else fills the pool meanwhile"
lvcreate -q -y -V 64m -T vg/pool -n greedy
lvcreate -q -y -s -n pin vg/copy # each write to the copy needs a chunk of its own now
dd if=/dev/urandom of=/dev/vg/guest bs=1M count=12 seek=4 oflag=direct status=none
begin lvmsync sync vg/guest siteb:vg/copy --retries 0 --bwlimit 400K
on_line 500000
dd if=/dev/urandom of=/dev/vg/greedy bs=1M count=30 oflag=direct status=none
ended 3 'vg.pool.*lvextend'
full=$(filled)
if ((full >= 99)); then wrong "the pool is full: $full %"; fi
lvremove -q -y vg/greedy vg/pin
expect 0 '' lvmsync sync vg/guest siteb:vg/copy --json
as_snapshot vg/guest vg/copy
tidy guest copy pool

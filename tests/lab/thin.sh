# shellcheck shell=bash
# Thin snapshots of real pools: every kind of delta. /dev/ubda is for LVM, /dev/ubdb is noise.
. "$LAB/sites.sh"
. "$LAB/cases.sh"
. "$LAB/pools.sh"

### The main job

make_pool pool 64k 96
make_thin pool data 16m
put /dev/vg/data 0 0 2048 # half of it; the rest is not mapped
make_thick copy 16m
make_thin pool thincopy 16m
fill /dev/vg/data /dev/vg/copy
fill /dev/vg/data /dev/vg/thincopy # all of it is mapped, zeros too
snapshot data one
put /dev/vg/data 33 5000 1                                  # 4 KiB in a block
put /dev/vg/data 160 5000 100                               # several blocks and parts of them
put /dev/vg/data 640 640 16                                 # the same bytes once more
put /dev/vg/data 4000 6000 96                               # what was not mapped, to the end
blkdiscard -o $((20 * 65536)) -l $((5 * 65536)) /dev/vg/data
blkdiscard -o $((60 * 65536 + 4096)) -l $((3 * 65536)) /dev/vg/data # 2 whole blocks of it
blkdiscard -o $((3 * 65536)) -l 4096 /dev/vg/data                   # none
blkdiscard -o $((40 * 65536)) -l 131072 /dev/vg/data
put /dev/vg/data 640 7000 3 # discarded, and written again in part
differ /dev/vg/data /dev/vg/copy

it "sends a thin snapshot through a pipe to a thick copy"
expect 0 '' through vg/one -- vg/copy --snapback /run/one.back
same /dev/vg/data /dev/vg/copy
free
is "$(active one)" inactive 'the snapshot that was not needed'

it "brings the copy back with the snapback"
lvchange -q -ay -K vg/one
differ /dev/vg/one /dev/vg/copy
expect 0 '' lvmsync apply -q /run/one.back vg/copy
same /dev/vg/one /dev/vg/copy
lvchange -q -an vg/one

it "syncs to a thin copy, and what is not mapped in the head is not mapped there"
before=$(dmsetup status vg-thincopy | cut -d' ' -f4)
expect 0 'confirmed and durable there' lvmsync sync vg/one vg/thincopy
same /dev/vg/data /dev/vg/thincopy
after=$(dmsetup status vg-thincopy | cut -d' ' -f4)
((before - after >= 8 * 128)) || wrong "mapped sectors of the copy: $before before, $after after"
free

it "says the same as thin_delta"
agrees pool "$(thin_id one)" "$(thin_id data)" 16m

it "reads data from a later snapshot, which is activated and deactivated again, while the origin goes on"
snapshot data two
put /dev/vg/data 0 9000 300
exec 5<>/dev/vg/data
expect 0 '' through vg/one -r vg/two -- vg/copy
exec 5>&-
is "$(active two)" inactive 'the later snapshot'
lvchange -q -ay -K vg/two
same /dev/vg/two /dev/vg/copy
differ /dev/vg/data /dev/vg/copy
free

it "takes an origin against its oldest snapshot, and a later one as the base"
expect 0 '"holes": \[\[' bash -c 'lvmsync changes --json vg/data >&2'
expect 0 '' through vg/two -- vg/copy
same /dev/vg/data /dev/vg/copy
lvchange -q -an vg/two

it "takes the numbers of the pool's own devices"
put /dev/vg/data 2000 9500 50
snapshot data three
put /dev/vg/data 2020 9900 50
lvchange -q -ay -K vg/three
three=$(thin_id three)
expect 0 '' through "thin:$tmeta,id=$three,base=$(thin_id two)" -- vg/copy
same /dev/vg/three /dev/vg/copy
expect 2 'there is no thin device 77 in this pool; it has 1, 2, ' lvmsync changes "thin:/dev/mapper/$tpool,id=77,base=1,size=16m"
free

it "takes a snapshot of a snapshot, which was written to"
snapshot three clone -kn
put /dev/vg/three 100 100 1
lvchange -q -ay vg/clone
put /dev/vg/clone 3000 8000 30
blkdiscard -o 0 -l 131072 /dev/vg/clone
fill /dev/vg/clone /dev/vg/copy
expect 0 'note: vg/clone was written to after it was made' \
    bash -o pipefail -c 'lvmsync send vg/clone | lvmsync receive -q vg/copy'
same /dev/vg/three /dev/vg/copy

### Refusals

it "refuses a base that is newer, a foreign volume, and a volume without a snapshot"
expect 2 '-r vg/one was made at .*, before vg/two' lvmsync changes -r vg/one vg/two
expect 2 '-r vg/copy is no volume of the thin pool vg/pool' lvmsync changes -r vg/copy vg/one
expect 2 'vg/thincopy is a thin volume without a snapshot' lvmsync changes vg/thincopy

it "refuses an origin that is open and not said to be frozen"
exec 5<>/dev/vg/data
expect 3 '/dev/vg/data is open: .*--frozen' lvmsync send -o /run/refused vg/three
gone /run/refused
exec 5>&-
free

it "does not commit when the origin is written to while it is read"
fill /dev/vg/three /dev/vg/copy
put /dev/vg/data 1000 7777 1000 # more than the gate and the pipes hold
sender=(env "PATH=$real_path" lvmsync send --frozen vg/three)
receiver=(lvmsync receive vg/copy)
start_gated 1048576
free # it was given back before the data is read
put /dev/vg/data 0 1 1
end_gated 3 6
says '/dev/vg/data was written to while it was read' /run/gate/sender.err
same /dev/vg/three /dev/vg/copy
is "$(open_transactions)" 0 'number of open transactions'

it "refuses a snapshot whose origin was removed until it is told the newer state"
make_thin pool parent 4m
put /dev/vg/parent 0 0 500
snapshot parent first
put /dev/vg/parent 16 3000 40
snapshot parent second
lvremove -q -q -y vg/parent
expect 2 'vg/first is a thin volume without a snapshot, and without an origin .*name the newer state with -r' \
    lvmsync changes vg/first
make_thick small 4m
dd if=/dev/ubdb of=/dev/vg/small bs=4k count=500 oflag=direct status=none
blkdiscard -z -o $((500 * 4096)) -l $((4194304 - 500 * 4096)) /dev/vg/small
expect 0 '' through vg/first -r vg/second -- vg/small
lvchange -q -ay -K vg/second
same /dev/vg/second /dev/vg/small
is "$(active first)" inactive 'the base'
lvremove -q -q -y vg/first vg/second vg/small

it "reads through to an external origin: what is not mapped is no hole there"
make_thick outer 4m
put /dev/vg/outer 0 2000 1024
lvchange -q -an -pr vg/outer
lvcreate -q -q -y -s --thinpool pool -n inner vg/outer
put /dev/vg/inner 100 4000 100
snapshot inner innersnap
make_thick small 4m
fill /dev/vg/inner /dev/vg/small
put /dev/vg/inner 300 4000 30
blkdiscard -o $((7 * 65536)) -l 131072 /dev/vg/inner # shows the external origin again
expect 0 '' through vg/innersnap -- vg/small
same /dev/vg/inner /dev/vg/small
put /dev/vg/small 0 6000 1024
expect 0 '' lvmsync sync -q full:/dev/vg/inner vg/small
same /dev/vg/inner /dev/vg/small
lvremove -q -q -y vg/innersnap vg/inner vg/outer vg/small

### Geometry

# odd_case POOL CHUNK KIB: a volume whose end is odd, in a pool with that chunk; copies follow it while it grows.
odd_case() {
    local odd=$1odd
    make_pool "$1" "$2" 48
    make_thin "$1" "$odd" "$3k"
    put "/dev/vg/$odd" 0 300 1100
    put "/dev/vg/$odd" $(($3 / 4 - 1)) 9 1 # its last 4 KiB
    snapshot "$odd" "$1base"
    make_thick "$1copy" "$(($3 + 1024))k"
    dd if="/dev/vg/$odd" of="/dev/vg/$1copy" bs=4k oflag=direct conv=notrunc status=none
    dd if=/dev/ubdb of="/dev/vg/$1copy" bs=4k seek=$(($3 / 4)) count=256 oflag=direct conv=notrunc status=none
    put "/dev/vg/$odd" $(($3 / 4 - 1)) 77 1
    put "/dev/vg/$odd" 500 2000 77
    blkdiscard -o 786432 -l 1179648 "/dev/vg/$odd"
    agrees "$1" 2 1 "$3k"
    lvextend -q -q -L +1024k "vg/$odd"
    put "/dev/vg/$odd" $(($3 / 4 + 200)) 88 9 # behind the old end; most of what is new is not mapped
    expect 0 '' through "vg/$1base" -- "vg/$1copy"
    same "/dev/vg/$odd" "/dev/vg/$1copy"
}

it "takes chunks of 192 KiB, an odd end, and an origin that has grown"
odd_case p192 192k 8196

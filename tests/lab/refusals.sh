# shellcheck shell=bash
# What send and receive refuse, and what they do when things change on the way.
# /dev/ubda is for LVM, /dev/ubdb is 64 MiB of noise, /dev/ubdc is for the device mapper alone.
. "$LAB/sites.sh"
. "$LAB/cases.sh"

make_vg vg /dev/ubda
noise=/dev/ubdb

# put DEVICE SEEK SKIP COUNT: COUNT blocks of 64 KiB of the noise, from SKIP on, to a device at SEEK.
put() { dd if="$noise" of="$1" bs=64k seek="$2" skip="$3" count="$4" oflag=direct conv=notrunc status=none; }

sum() { dd if="$1" bs=1M iflag=direct status=none | sha256sum; }

# make_origin NAME MIB: a volume of noise.
make_origin() {
    lvcreate -q -y -W n -L "$2m" -n "$1" vg
    dd if="$noise" of="/dev/vg/$1" bs=1M count="$2" oflag=direct status=none
}

refuse_send() { # STATUS PATTERN SOURCE [OPTIONS...]
    local status=$1 pattern=$2
    shift 2
    expect "$status" "$pattern" lvmsync send -o /run/refused.stream "$@"
    gone /run/refused.stream
}

make_origin data 16
make_origin copy 16
lvcreate -q -y -s -c 4k -L 12m -n snap vg/data
put /dev/vg/data 10 500 8
lvmsync send -q -o /run/small.stream vg/snap

### Targets

it "refuses a mounted target"
copy=$(sum /dev/vg/copy)
lvcreate -q -y -W n -L 32m -n used vg
mkfs.ext4 -q /dev/vg/used
mkdir /run/mnt
mount /dev/vg/used /run/mnt
expect 3 'cannot open /dev/vg/used: it is mounted' lvmsync receive -i /run/small.stream vg/used
umount /run/mnt

it "refuses a target that another device is made of"
dmsetup create holder --table "0 32768 linear /dev/vg/used 0"
used=$(sum /dev/vg/used)
expect 3 'cannot open /dev/vg/used: it is mounted, or held' lvmsync receive -i /run/small.stream /dev/vg/used
is "$(sum /dev/vg/used)" "$used" 'the sum of the target'
dmsetup remove holder

it "refuses a target that a program has open, or that a loop device uses"
exec 7<>/dev/vg/used
expect 3 '/dev/vg/used is open for writing in process' lvmsync receive -i /run/small.stream vg/used
exec 7>&-
loop=$(losetup -f --show /dev/vg/used)
expect 3 '/dev/vg/used is open for writing in /dev/loop' lvmsync receive -i /run/small.stream vg/used
losetup -d "$loop"
is "$(sum /dev/vg/used)" "$used" 'the sum of the target'

it "refuses a target that is too small, and does not touch it"
lvcreate -q -y -W n -L 12m -n small vg
put /dev/vg/small 0 0 192
small=$(sum /dev/vg/small)
expect 3 'has 12582912 bytes and the source has 16777216: too small' lvmsync receive -i /run/small.stream vg/small
is "$(sum /dev/vg/small)" "$small" 'the sum of the target'

it "refuses a target that is set read-only"
lvchange -q -pr vg/small
expect 3 '/dev/vg/small.*read-only' lvmsync receive -i /run/small.stream vg/small --allow-smaller-target
is "$(sum /dev/vg/small)" "$small" 'the sum of the target'

### Names

it "refuses an origin where a snapshot is needed, and lists its snapshots"
refuse_send 2 'vg/data is a plain volume, not a snapshot; its snapshots: vg/snap$' vg/data

it "refuses a volume and a group that are not there"
refuse_send 3 "no volume 'nothing' in group 'vg'; it has: .*snap" vg/nothing
refuse_send 3 "'lvs' failed .*is there a volume group 'nowhere'" nowhere/snap

it "refuses the hidden parts of a snapshot"
refuse_send 2 'vg-snap-cow is a part of a volume .*name the snapshot' /dev/mapper/vg-snap-cow

it "refuses a thin pool, and a thin volume without a snapshot"
lvcreate -q -y --poolmetadataspare n -L 8m -V 16m --thinpool pool -n thin vg 2>/run/lvcreate.err
refuse_send 2 'vg/pool is a thin pool; name a thin snapshot in it' vg/pool
refuse_send 2 'vg/thin is a thin volume without a snapshot' vg/thin
lvremove -q -y vg/pool

### Origins that are alive

it "refuses an origin that is open for writing, or mounted"
exec 5<>/dev/vg/data
refuse_send 3 'the origin /dev/mapper/vg-data is open: .*--frozen' vg/snap
exec 5>&-
lvcreate -q -y -s -c 4k -L 8m -n usedsnap vg/used
mount /dev/vg/used /run/mnt
refuse_send 3 'the origin /dev/mapper/vg-used is open: unmount it' vg/usedsnap
umount /run/mnt

it "takes an origin that is open with --frozen, while nothing is written"
exec 5<>/dev/vg/data
expect 0 '' bash -o pipefail -c 'lvmsync send --frozen vg/snap | lvmsync receive vg/copy --snapback /run/frozen.back'
exec 5>&-
same /dev/vg/data /dev/vg/copy
expect 0 '' lvmsync apply /run/frozen.back vg/copy
is "$(sum /dev/vg/copy)" "$copy" 'the sum of the copy'
same /dev/vg/snap /dev/vg/copy

is_begun() { (($(open_transactions) == 1)); }

# with_gate BYTES ORIGIN OPTIONS OF SEND...: a send to a copy of ORIGIN that is held up behind so many bytes.
with_gate() {
    sender=(lvmsync send "${@:3}")
    receiver=(lvmsync receive "vg/$2copy" --snapback /run/gated.back)
    start_gated "$1"
    until_true is_begun # what has passed the gate may still be on its way
    is "$(open_transactions)" 1 'number of open transactions'
}

# as_before ORIGIN SUM: the receiver has gone back to where it was.
as_before() {
    is "$(sum "/dev/vg/$1copy")" "$2" 'the sum of the target'
    is "$(open_transactions)" 0 'number of open transactions'
    gone /run/gated.back /var/lib/lvmsync/targets/*/*.undo*
}

make_origin mid 16
make_origin midcopy 16
midcopy=$(sum /dev/vg/midcopy)
lvcreate -q -y -s -c 4k -L 12m -n midsnap vg/mid
put /dev/vg/mid 100 0 128

it "does not commit when a chunk that had changed before changes again during a send with --frozen"
with_gate 2097152 mid --frozen vg/midsnap
put /dev/vg/mid 130 300 1
end_gated 3 6
says 'origin /dev/mapper/vg-mid was written to while it was read' /run/gate/sender.err
as_before mid "$midcopy"

it "does not commit when the sender is killed"
with_gate 2097152 mid vg/midsnap
pkill -KILL -n -f 'lvmsync send'
end_gated 137 6
says 'stream is cut' /run/gate/receiver.err
as_before mid "$midcopy"

it "keeps others from the origin while it is read, without --frozen"
with_gate 2097152 mid vg/midsnap
expect 32 '' mount /dev/vg/mid /run/mnt
expect 1 'Device or resource busy' python3 -c 'import os; os.open("/dev/vg/mid", os.O_RDWR | os.O_EXCL)'
end_gated 0 0
same /dev/vg/mid /dev/vg/midcopy
rm /run/gated.back
lvremove -q -y vg/mid vg/midcopy 2>/run/lvremove.err

# More changes than a receiver saves together (32 MiB): here it has written to the target when the gate closes.
make_origin big 48
make_origin bigcopy 48
bigcopy=$(sum /dev/vg/bigcopy)
lvcreate -q -y -s -c 64k -L 42m -n bigsnap vg/big
put /dev/vg/big 100 0 640
has_changed() { ! cmp -s -n 65536 -i 6553600 /dev/vg/bigsnap /dev/vg/bigcopy; }

it "does not commit when the origin is written to during a send with --frozen"
with_gate 35651584 big --frozen vg/bigsnap
until_true has_changed
put /dev/vg/big 0 300 1
end_gated 3 6
says 'origin /dev/mapper/vg-big was written to while it was read' /run/gate/sender.err
says 'the sender gave up: .*was written to' /run/gate/receiver.err
as_before big "$bigcopy"

it "does not commit when the store overflows during a send"
with_gate 35651584 big --frozen vg/bigsnap
until_true has_changed
put /dev/vg/big 0 600 50
is "$(dmsetup status vg-bigsnap)" '0 98304 snapshot Invalid' 'the status of the snapshot'
end_gated 5 6
says 'bigsnap is invalid' /run/gate/sender.err
says 'the sender gave up: .*is invalid' /run/gate/receiver.err
as_before big "$bigcopy"

it "refuses an invalid snapshot, by its name and by its store"
refuse_send 5 'vg/bigsnap.*invalid' vg/bigsnap
refuse_send 5 'invalid' snapshot:/dev/mapper/vg-bigsnap-cow,origin=/dev/vg/big
lvremove -q -y vg/big vg/bigcopy 2>/run/lvremove.err

### Later snapshots

it "sends a later snapshot while the origin is written to all the time"
(
    trap exit TERM
    for ((i = 0; ; i++)); do put /dev/vg/data "$((i * 37 % 256))" "$((i * 59 % 1000))" 1; done
) &
writer=$!
lvcreate -q -y -s -c 64k -L 20m -n snap2 vg/data
expect 0 '' bash -o pipefail -c \
    'lvmsync send -r vg/snap2 vg/snap | lvmsync receive vg/copy --snapback /run/later.back'
is "$(kill -0 "$writer" && echo alive)" alive 'the writer'
kill "$writer"
wait "$writer" || true
same /dev/vg/snap2 /dev/vg/copy
differ /dev/vg/data /dev/vg/copy
# That the origin went on changes nothing.
expect 0 '' lvmsync apply /run/later.back vg/copy
is "$(sum /dev/vg/copy)" "$copy" 'the sum of the copy'

it "refuses -r with a snapshot of another origin, with the same one, and with an earlier one"
refuse_send 2 'is a snapshot of another origin than' -r vg/usedsnap vg/snap
refuse_send 2 'is the snapshot itself' -r vg/snap vg/snap
refuse_send 2 'was made at .*, before vg/snap2' -r vg/snap vg/snap2

it "does not commit when the later snapshot overflows during the send"
lvcreate -q -y -s -c 4k -L 64k -n tiny vg/data
sender=(lvmsync send -r vg/tiny vg/snap)
receiver=(lvmsync receive vg/copy)
start_gated 1048576
put /dev/vg/data 100 0 4
is "$(dmsetup status vg-tiny)" '0 32768 snapshot Invalid' 'the status of the later snapshot'
end_gated 5 6
says 'tiny is invalid' /run/gate/sender.err
is "$(sum /dev/vg/copy)" "$copy" 'the sum of the copy'
refuse_send 5 'vg/tiny.*invalid' -r vg/tiny vg/snap
lvremove -q -y vg/tiny vg/snap2 vg/usedsnap 2>/run/lvremove.err

### The snapshot itself

it "sends a snapshot that was written to: the copy becomes what the origin is"
put /dev/vg/snap 3 777 2   # a chunk that only the snapshot has changed
put /dev/vg/snap 11 777 1  # one that the origin has changed, too
expect 0 '' bash -o pipefail -c 'lvmsync send vg/snap | lvmsync receive vg/copy --snapback /run/written.back'
same /dev/vg/data /dev/vg/copy
expect 0 '' lvmsync apply /run/written.back vg/copy
is "$(sum /dev/vg/copy)" "$copy" 'the sum of the copy'

it "takes the store's device by its path"
expect 0 '' bash -o pipefail -c \
    'lvmsync send snapshot:/dev/mapper/vg-snap-cow,origin=/dev/vg/data | lvmsync receive vg/copy'
same /dev/vg/data /dev/vg/copy
refuse_send 2 'is the store of a snapshot of /dev/mapper/vg-data, not of /dev/vg/used' \
    snapshot:/dev/mapper/vg-snap-cow,origin=/dev/vg/used

it "refuses a snapshot that is not active"
lvchange -q -an vg/data
refuse_send 3 "vg/snap is not active; run 'lvchange -ay vg/data'" vg/snap
refuse_send 3 "vg/snap is not active; run 'lvchange -ay vg/data'" /dev/vg/snap
lvchange -q -ay vg/data

it "sends a snapshot that was deactivated in between"
put /dev/vg/data 60 333 3
expect 0 '' bash -o pipefail -c 'lvmsync send vg/snap | lvmsync receive vg/copy'
same /dev/vg/data /dev/vg/copy

it "refuses a snapshot whose merge waits for its origin to be closed"
exec 5<>/dev/vg/data
lvconvert -q --merge vg/snap
exec 5>&-
refuse_send 5 'vg/snap is being merged into vg/data, or will be' vg/snap
refuse_send 5 'vg/snap is being merged into vg/data, or will be' /dev/vg/snap

it "refuses a snapshot that is being merged"
lvcreate -q -y -s -c 4k -L 28m -n slow vg/used
# From the end to the beginning, so that no two chunks are merged together, which makes it slow.
python3 - <<'END'
import mmap, os
fd = os.open("/dev/vg/used", os.O_RDWR | os.O_DIRECT)
block = mmap.mmap(-1, 4096)
for at in reversed(range(6500)):
    os.pwrite(fd, block, at * 4096)
END
lvconvert -q -b -i 600 --merge vg/slow # LVM looks at it again in ten minutes only
read -r _ _ kind use metadata < <(dmsetup status vg-used)
is "$kind" snapshot-merge 'the target of the origin'
((${use%/*} > metadata)) || wrong "the merge is over already: $use"
refuse_send 5 'vg/slow is being merged into vg/used' vg/slow
refuse_send 5 'is being merged' snapshot:/dev/mapper/vg-slow-cow,origin=/dev/vg/used
is "$(dmsetup table vg-used | cut -d' ' -f3)" snapshot-merge 'the target of the origin, still'

### Without LVM

# make_raw SECTORS MODE: origin, snapshot and store by dmsetup alone; the size is no multiple of anything.
make_raw() {
    dmsetup create raw-real --table "0 20483 linear /dev/ubdc 0"
    dmsetup create raw-cow --table "0 $1 linear /dev/ubdc 40960"
    dd if=/dev/zero of=/dev/mapper/raw-cow bs=64k count=1 oflag=direct status=none
    dmsetup create raw-snap --table "0 20483 snapshot /dev/mapper/raw-real /dev/mapper/raw-cow $2 8"
    dmsetup create raw --table "0 20483 snapshot-origin /dev/mapper/raw-real"
}
remove_raw() { dmsetup remove raw && dmsetup remove raw-snap && dmsetup remove raw-cow && dmsetup remove raw-real; }

it "sends a snapshot that dmsetup made, down to its last odd sector"
make_raw 8192 P
dd if=/dev/mapper/raw-snap of=/run/raw.copy bs=1M status=none
put /dev/mapper/raw 5 200 6
dd if=$noise of=/dev/mapper/raw bs=512 seek=20480 count=3 oflag=direct conv=notrunc status=none
differ /dev/mapper/raw /run/raw.copy
expect 0 '' bash -o pipefail -c 'lvmsync send /dev/mapper/raw-snap | lvmsync receive /run/raw.copy'
same /dev/mapper/raw /run/raw.copy
remove_raw

it "refuses a store that overflowed by writes to its snapshot: only the status tells"
make_raw 1024 PO
put /dev/mapper/raw 5 200 1
dd if=$noise of=/dev/mapper/raw-snap bs=64k seek=20 count=12 oflag=direct conv=notrunc status=none || true
is "$(dmsetup status raw-snap | cut -d' ' -f4)" Overflow 'the status of the snapshot'
is "$(dd if=/dev/mapper/raw-cow bs=4k count=1 iflag=direct status=none | od -An -t u4 -j 4 -N 4 | tr -d ' ')" 1 \
    'the store calls itself valid'
refuse_send 5 'overflowed' /dev/mapper/raw-snap
refuse_send 5 'overflowed' snapshot:/dev/mapper/raw-cow,origin=/dev/mapper/raw
remove_raw

it "refuses a transient snapshot"
make_raw 1024 N
refuse_send 5 'is a transient snapshot' /dev/mapper/raw-snap
remove_raw

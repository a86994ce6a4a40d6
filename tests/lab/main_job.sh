# shellcheck shell=bash
# The main job between two sites: a snapshot's changes to a copy, and back. /dev/ubda is for LVM, /dev/ubdb is noise.
. "$LAB/sites.sh"
. "$LAB/cases.sh"

two_sites
make_vg my-vg /dev/ubda

# make_pair ORIGIN COPY SNAPSHOT CHUNK: 16 MiB of noise and a copy of it; then a snapshot, and changes.
make_pair() {
    local origin=/dev/my-vg/$1 at
    lvcreate -q -y -W n -L 16m -n "$1" my-vg
    lvcreate -q -y -W n -L 16m -n "$2" my-vg
    dd if=/dev/ubdb of="$origin" bs=1M count=16 oflag=direct status=none
    dd if=/dev/ubdb of="/dev/my-vg/$2" bs=1M count=16 oflag=direct status=none
    lvcreate -q -y -s -c "$4" -L 12m -n "$3" "my-vg/$1"
    dd if=/dev/ubdb of="$origin" bs=64k skip=401 seek=17 count=33 oflag=direct status=none
    for at in 0 3 5 900 901 1500 1999 3000 4095; do # blocks of 4 KiB: the first and the last too
        dd if=/dev/ubdb of="$origin" bs=4k skip="$((8000 + at))" seek="$at" count=1 oflag=direct status=none
    done
    dd if=/dev/zero of="$origin" bs=64k seek=200 count=20 oflag=direct status=none
}
make_pair my-data--x copy-1 snap-1 4k
make_pair data.64 copy.64 snap_64 64k

# back FILE NAME SNAPSHOT: bring a far copy back with a snapback; it must be what the snapshot is.
back() {
    expect 0 'durable' at_siteb lvmsync --apply "$1" "/dev/my-vg/$2"
    same "/dev/my-vg/$3" "/dev/my-vg/$2"
}

through_ssh() { # OPTIONS OF SEND... -- OPTIONS OF RECEIVE...
    local send=()
    while [[ $1 != -- ]]; do send+=("$1") && shift; done
    shift
    lvmsync --send "${send[@]}" | ssh siteb lvmsync --receive "$@"
}

it "sends 4 KiB chunks through a pipe to ssh, and brings the copy back"
differ /dev/my-vg/my-data--x /dev/my-vg/copy-1
same /dev/my-vg/snap-1 /dev/my-vg/copy-1
expect 0 'written, not confirmed' \
    through_ssh my-vg/snap-1 -- /dev/my-vg/copy-1 --snapback /run/siteb/pipe.back
says '/dev/my-vg/copy-1: applied .* durable; snapback /run/siteb/pipe.back' "$ERR"
same /dev/my-vg/my-data--x /dev/my-vg/copy-1
back /run/siteb/pipe.back copy-1 snap-1

it "takes the original's form over the ssh that is built in, and believes the receipt"
expect 0 '' lvmsync my-vg/snap-1 siteb:/dev/my-vg/copy-1 --snapback /run/siteb/sync.back --json
same /dev/my-vg/my-data--x /dev/my-vg/copy-1
python3 - "$OUT" <<'END' || wrong "the receipt: $(cat "$OUT")"
import json, sys
receipt = json.load(open(sys.argv[1]))
assert receipt["confirmed"] is True and receipt["durable"] is True
assert receipt["snapback"] == "/run/siteb/sync.back" and receipt["size"] == 16 << 20
changed = 33 * 65536 + 20 * 65536 + 9 * 4096
assert receipt["bytes"] == changed, changed
END
gone /var/lib/lvmsync/targets # the ledger is kept by the site that receives
back /run/siteb/sync.back copy-1 snap-1

it "sends 64 KiB chunks with -e ssh"
same /dev/my-vg/snap_64 /dev/my-vg/copy.64
expect 0 'confirmed and durable there' \
    lvmsync -e ssh my-vg/snap_64 siteb:my-vg/copy.64 --snapback /run/siteb/rsh.back
same /dev/my-vg/data.64 /dev/my-vg/copy.64
back /run/siteb/rsh.back copy.64 snap_64

it "sends the original's format through a pipe, and takes its snapback"
expect 0 'written, not confirmed' \
    through_ssh --format 3 my-vg/snap_64 -- my-vg/copy.64 --snapback /run/siteb/three.back
says 'whether it is whole cannot be known' "$ERR"
same /dev/my-vg/data.64 /dev/my-vg/copy.64
is "$(head -n 1 /run/siteb/three.back)" 'lvmsync PROTO[3]' 'the first line of the snapback'
back /run/siteb/three.back copy.64 snap_64

it "takes names under /dev/mapper and reaches a copy on this machine"
expect 0 'confirmed and durable there' \
    lvmsync /dev/mapper/my--vg-snap--1 /dev/mapper/my--vg-copy--1 --compress zstd --snapback /run/local.back
same /dev/my-vg/my-data--x /dev/my-vg/copy-1
expect 0 'durable' lvmsync apply /run/local.back my-vg/copy-1
same /dev/my-vg/snap-1 /dev/my-vg/copy-1

it "says what the far side says when that refuses, with its status"
mkdir /run/mnt
mkfs.ext4 -q /dev/my-vg/copy.64
at_siteb mount /dev/my-vg/copy.64 /run/mnt # in the other site's mount namespace only
expect 3 'siteb:.*cannot open /dev/my-vg/copy.64: it is mounted' lvmsync my-vg/snap_64 siteb:/dev/my-vg/copy.64

it "says that lvmsync is not there on the far side"
expect 7 'lvmsync was not found there' \
    lvmsync my-vg/snap_64 siteb:/dev/my-vg/copy-1 --remote-command /nowhere/lvmsync
same /dev/my-vg/snap-1 /dev/my-vg/copy-1

# shellcheck shell=bash
# After era.sh, whose era device was never shut down; the same disks.
. "$LAB/cases.sh"

python3 "$LAB/forks.py" /run/forks & # a second less for each call
until_true test -p /run/forks/calls
export PATH=/run/forks:$PATH

mount /dev/ubde /var/lib/lvmsync
dmsetup create meta --table '0 8192 linear /dev/ubdb 0'
fresh() { # same|differ: origin and copy; not the page cache of the origin, which dm-era writes below
    blockdev --flushbufs /dev/ubda /dev/ubdc
    "$1" /dev/ubda /dev/ubdc
}
era=$(cat /var/lib/lvmsync/last-era)

it "finds the writes of the last era, which only the live superblock knows"
expect 0 'was not shut down' lvmsync changes --json "era:/dev/mapper/meta,since=$era,size=$(blockdev --getsize64 /dev/ubda)"
says '"changed_bytes": [1-9]' "$OUT"
says '\[33570816, 4096\]' "$OUT" # the short block

it "starts again with its history, and copies what was written before the power went"
expect 0 '' lvmsync era start era
says "era: era $((era + 1))," "$OUT"
fresh differ
expect 0 'is at era' lvmsync sync era:/dev/mapper/era /dev/ubdc
fresh same

it "refuses a copy whose era is not of this history"
dmsetup remove era
dd if=/dev/zero of=/dev/mapper/meta bs=4k count=1 oflag=direct status=none
dmsetup create foreign --table "0 $(blockdev --getsz /dev/ubda) era /dev/mapper/meta /dev/ubda 32"
expect 8 'was at era .* of another era device' lvmsync sync era:/dev/mapper/foreign /dev/ubdc
expect 0 'is at era' lvmsync sync era:/dev/mapper/foreign,since=0 /dev/ubdc
dd if=/dev/ubdd of=/dev/mapper/foreign bs=16k seek=100 count=30 oflag=direct conv=notrunc status=none
expect 0 '' lvmsync sync era:/dev/mapper/foreign /dev/ubdc
fresh same
dmsetup remove foreign # made anew behind our back, with as many eras
dd if=/dev/zero of=/dev/mapper/meta bs=4k count=1 oflag=direct status=none
dmsetup create foreign --table "0 $(blockdev --getsz /dev/ubda) era /dev/mapper/meta /dev/ubda 32"
for _ in 1 2 3 4 5 6; do dmsetup message foreign 0 checkpoint; done
expect 5 'does not go on from there' lvmsync sync era:/dev/mapper/foreign /dev/ubdc

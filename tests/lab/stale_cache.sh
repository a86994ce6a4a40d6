# shellcheck shell=bash
# Page caches that are out of date: of the store, of the origin, and of the target.
# /dev/ubda is for LVM, /dev/ubdb is noise.
. "$LAB/sites.sh"
. "$LAB/cases.sh"

make_vg vg /dev/ubda
for name in data copy; do
    lvcreate -q -y -W n -L 16m -n "$name" vg
    dd if=/dev/ubdb of="/dev/vg/$name" bs=1M count=16 oflag=direct status=none
done
lvcreate -q -y -s -c 4k -L 12m -n snap vg/data
sectors=$(blockdev --getsz /dev/vg/data)

# A cache lives as long as somebody has the device open.
exec 5</dev/mapper/vg-snap-cow 6</dev/vg/data 7</dev/vg/copy
cache() { cat /dev/mapper/vg-snap-cow /dev/vg/data /dev/vg/copy >/dev/null; }

# The other way in: a device on top, as a guest or a file system has its own cache. (A snapshot's origin
# cannot be had by two, so only while nothing of ours runs.)
beside() { # NAME COMMAND...
    dmsetup create beside --table "0 $sectors linear /dev/vg/$1 0"
    "${@:2}"
    dmsetup remove beside
}
change() { # SEEK SKIP COUNT, in blocks of 64 KiB
    dd if=/dev/ubdb of=/dev/mapper/beside bs=64k seek="$1" skip="$2" count="$3" oflag=direct conv=notrunc status=none
}
read_beside() { dd if=/dev/mapper/beside of="$1" bs=1M iflag=direct status=none; }

changed_bytes() { python3 -c 'import json, sys; print(json.load(sys.stdin)["changed_bytes"])' <"$OUT"; }

it "reads the store as it is, not as a cache remembers it"
cache
sha256sum </dev/mapper/vg-snap-cow >/run/cow.before
expect 0 '' lvmsync changes --json vg/snap
is "$(changed_bytes)" 0 'bytes changed before'
beside data change 20 300 5
sha256sum </dev/mapper/vg-snap-cow >/run/cow.after
same /run/cow.before /run/cow.after # the cache is out of date, or this proves nothing
expect 0 '' lvmsync changes --json vg/snap
is "$(changed_bytes)" 327680 'bytes changed'

it "reads the origin as it is"
dd if=/dev/vg/data bs=64k skip=20 count=5 status=none of=/run/stale
dd if=/dev/ubdb bs=64k skip=20 count=5 status=none | cmp - /run/stale || wrong "the origin's cache is not out of date"
expect 0 '' bash -o pipefail -c 'lvmsync send --frozen vg/snap | lvmsync receive vg/copy --snapback /run/a.back'
beside data read_beside /run/data.now
beside copy read_beside /run/copy.now
same /run/data.now /run/copy.now

it "saves what the target holds, not what a cache remembers of it"
cache
beside copy change 20 900 5 # as if another host had written to it
beside copy change 100 950 1
beside copy read_beside /run/copy.before
dd if=/dev/vg/copy of=/run/stale bs=64k skip=20 count=5 status=none
dd if=/run/copy.now bs=64k skip=20 count=5 status=none | cmp - /run/stale ||
    wrong "the target's cache is not out of date"
lvmsync send -q --frozen -o /run/odd.stream --format 3 vg/snap
# A record that is no multiple of a page: what is around it comes from the device, too.
printf 'lvmsync PROTO[3]\n\0\0\0\0\0\144\0\5\0\0\0\3abc' >>/run/odd.records
tail -c +18 /run/odd.stream >>/run/odd.records
expect 0 '' lvmsync receive -i /run/odd.records vg/copy --snapback /run/b.back
beside copy read_beside /run/copy.after
cp /run/data.now /run/wanted
dd if=/run/copy.before of=/run/wanted bs=64k seek=100 skip=100 count=1 conv=notrunc status=none
printf abc | dd of=/run/wanted bs=1 seek=$((100 * 65536 + 5)) conv=notrunc status=none
same /run/wanted /run/copy.after
expect 0 '' lvmsync apply /run/b.back vg/copy
beside copy read_beside /run/copy.after
same /run/copy.before /run/copy.after

# shellcheck shell=bash
# A stream with HOLE and ZERO frames that begin and end anywhere, on every kind of target.
# $SHARE has the stream, old.img and new.img of the same size; /dev/ubda is for LVM.
. "$LAB/sites.sh"
. "$LAB/cases.sh"

make_vg vg /dev/ubda
size=$(stat -c %s "$SHARE/old.img")
lvcreate -q -y -W n -L "${size}b" -n plain vg
lvcreate -q -y --poolmetadataspare n -L 24m -V "${size}b" --thinpool pool -n thin vg 2>/run/lvcreate.err
for name in loop file; do cp "$SHARE/old.img" "/run/$name.img"; done
loop=$(losetup -f --show /run/loop.img)

# over_and_back TARGET: it has the old state; the stream makes it new, and the snapback old again.
over_and_back() {
    rm -f /run/holes.back
    same "$SHARE/old.img" "$1"
    expect 0 '' lvmsync receive -i "$SHARE/stream" "$1" --snapback /run/holes.back
    same "$SHARE/new.img" "$1"
    expect 0 '' lvmsync apply /run/holes.back "$1"
    same "$SHARE/old.img" "$1"
}

it "makes holes of a volume read as zeros"
dd if="$SHARE/old.img" of=/dev/vg/plain bs=1M oflag=direct status=none
over_and_back /dev/vg/plain

it "makes holes of a thin volume read as zeros"
dd if="$SHARE/old.img" of=/dev/vg/thin bs=1M oflag=direct status=none
over_and_back /dev/vg/thin
before=$(dmsetup status vg-thin | cut -d' ' -f4)
expect 0 '' lvmsync receive -i "$SHARE/stream" /dev/vg/thin
same "$SHARE/new.img" /dev/vg/thin
after=$(dmsetup status vg-thin | cut -d' ' -f4)
((after < before)) || wrong "the thin volume has $after sectors mapped, $before before"

it "makes holes of a loop device read as zeros, and its file smaller"
over_and_back "$loop"
before=$(stat -c %b /run/loop.img)
expect 0 '' lvmsync receive -i "$SHARE/stream" "$loop"
losetup -d "$loop"
same "$SHARE/new.img" /run/loop.img
after=$(stat -c %b /run/loop.img)
((after < before)) || wrong "the file of the loop device has $after blocks, $before before"

it "makes holes of an image file read as zeros, and it smaller"
over_and_back /run/file.img
before=$(stat -c %b /run/file.img)
expect 0 '' lvmsync receive -i "$SHARE/stream" /run/file.img
same "$SHARE/new.img" /run/file.img
after=$(stat -c %b /run/file.img)
((after < before)) || wrong "the file has $after blocks, $before before"

it "refuses an image file that a loop device has"
loop=$(losetup -f --show /run/file.img)
expect 3 "/run/file.img is (open in another program or a loop device|in use by) .*$loop" \
    lvmsync receive -i "$SHARE/stream" /run/file.img
losetup -d "$loop"

# shellcheck shell=bash
# Past states as block devices: over plain, thin and file mirrors, while syncs go on, killed at each step, after a reboot.
# /dev/ubda is for LVM, /dev/ubdb is noise.
. "$LAB/moving.sh"
moving_sites
mkdir -p /run/mnt /run/past /run/bin
make_vg vg /dev/ubda
lvcreate -qq -y -W n -L 8m -n guest vg
mkfs.ext4 -q -F -b 1k /dev/vg/guest 4096 # half of it; the other is for noise
mount /dev/vg/guest /run/mnt
echo old >/run/mnt/file
umount /run/mnt
debugfs -w -R 'feature needs_recovery' /dev/vg/guest >/dev/null 2>&1 # as of one that was cut off while it was mounted
lvcreate -qq -y -W n -L 8m -n copy vg
lvcreate -qq -y -L 32m --poolmetadatasize 4m --poolmetadataspare n -c 64k -T vg/pool
for name in thin back; do lvcreate -qq -y -V 9m -T vg/pool -n $name; done
mounts=/var/lib/lvmsync/mounts

# A program that ends who called it, right before or after it does its work: see killed.
for name in dmsetup mount lvcreate; do
    cat >/run/bin/$name <<END
#!/bin/bash
read -r when pattern 2>/dev/null </run/killer
[[ "$name \$*" == \$pattern ]] || when=
if [[ \$when ]]; then rm /run/killer; fi
if [[ \$when == before ]]; then kill -KILL \$PPID; exit 9; fi
$(type -P $name) "\$@"
status=\$?
if [[ \$when == after ]]; then kill -KILL \$PPID; fi
exit \$status
END
    chmod +x /run/bin/$name
done

# advance SOURCE MIRROR NAME: what the mirror holds is kept as /run/past/NAME, and in the archive; then it moves on.
advance() {
    dd if="/dev/vg/$2" of="/run/past/$3" bs=1M iflag=direct status=none
    expect 0 '' lvmsync sync "vg/$1" "vg/$2" --snapback "/run/past/$3.back"
    expect 0 '' lvmsync archive import "/run/$2" "/run/past/$3.back"
}

# shown [OPTION...]: archive mount; sets DEVICE.
shown() {
    expect 0 '' lvmsync archive mount "$@"
    DEVICE=$(tail -n 1 "$OUT")
}

# tidied: nothing is left of any mount.
tidied() {
    is "$(dmsetup info -c --noheadings -o name | grep ^lvmsync)" '' 'the devices'
    is "$(losetup -a)" '' 'the loop devices'
    is "$(ls $mounts)" '' 'the records and stores'
    is "$(lvs --noheadings -o lv_name vg | grep -e lvmsync-mount -e lvmsync-store)" '' 'the volumes'
    is "$(grep -c ' /run/mnt ' /proc/mounts)" 0 'the mounts'
}
as_past() { same "$DEVICE" "/run/past/$1"; }

it "shows every point of a plain and a thin mirror, and the mirror stays as it is"
noise() { for place in 1024 $((1024 + RANDOM % 900)) 2047; do put "vg/$1" $place; done; }
lvmsync archive init /run/copy 2>/dev/null
lvmsync archive init /run/back 2>/dev/null
expect 0 '' lvmsync sync vg/guest vg/copy
expect 0 '' lvmsync sync vg/thin vg/back
mount /dev/vg/guest /run/mnt
echo new >/run/mnt/file
umount /run/mnt
noise guest
advance guest copy copy1
noise guest
advance guest copy copy2
noise thin
blkdiscard -o 2M -l 1M /dev/vg/thin
advance thin back back1
before=$(sum /dev/vg/copy)$(sum /dev/vg/back)
for point in copy:1 copy:2 back:1; do
    mirror=${point%:*} number=${point#*:}
    shown /run/$mirror --at $number --mirror vg/$mirror
    as_past $mirror$number
    is "$(blockdev --getro "$DEVICE")" 1 "whether $DEVICE is read-only"
    is "$(blockdev --getsize64 "$DEVICE")" "$(blockdev --getsize64 /dev/vg/$mirror)" "the size of $DEVICE"
    expect 0 'is gone' lvmsync archive umount "$DEVICE"
done
is "$(sum /dev/vg/copy)$(sum /dev/vg/back)" "$before" 'the sha256 of the mirrors'
tidied

it "refuses to change a mirror below, and shows several points of it at once"
shown /run/copy --at 1 --mirror vg/copy
first=$DEVICE
expect 3 "lvmsync archive umount $first" lvmsync sync vg/guest vg/copy
shown /run/copy --at 2 --mirror vg/copy
as_past copy2
DEVICE=$first
as_past copy1

lvmsync archive list /run/copy >"$OUT"
says "point #1 is mounted: $first" "$OUT"
expect 0 'that was a dry run' lvmsync archive mount /run/copy --at 3 --mirror vg/copy --dry-run
expect 0 'is gone' lvmsync archive umount /run/copy
expect 2 'give --all' lvmsync archive umount
expect 0 'no past state' lvmsync archive umount --all
expect 0 '' lvmsync sync vg/guest vg/copy --dry-run
tidied

it "mounts the file system, past a journal that cannot be replayed, and does not let go of what is in use"
shown /run/copy /run/mnt --at 1 --mirror vg/copy
says 'noload.*--writable' "$ERR"
is "$(cat /run/mnt/file)" old 'the file'
is "$(touch /run/mnt/x 2>&1 | grep -c 'Read-only')" 1 'whether it is read-only'
(cd /run/mnt && exec sleep 60) &
sleeper=$!
until_true test "$(readlink /proc/$sleeper/cwd)" == /run/mnt
expect 3 "in use by process $sleeper .sleep." lvmsync archive umount /run/mnt
is "$(cat /run/mnt/file)" old 'the file'
kill $sleeper
wait $sleeper || true
exec 7<"$DEVICE"
umount /run/mnt
expect 3 'has it open' lvmsync archive umount "$DEVICE"
exec 7<&-
expect 0 'is gone' lvmsync archive umount "$DEVICE"
tidied

it "can be written to, and neither the mirror nor the archive knows of it"
before=$(sum /dev/vg/copy)$(cat /run/copy/* | sha256sum)
shown /run/copy /run/mnt --at 1 --mirror vg/copy --writable --room 4M
says '^point #.*writable' "$ERR"
echo changed >/run/mnt/file
dd if=/dev/urandom of=/run/mnt/more bs=64k count=20 status=none
umount /run/mnt
e2fsck -fn "$DEVICE" >"$OUT" 2>&1 || wrong "the file system: $(head -n 5 "$OUT")"
mount "$DEVICE" /run/mnt
is "$(cat /run/mnt/file)" changed 'the file'
is "$(stat -c %a $mounts/*.cow)" 600 'the mode of the store'
expect 0 'is gone' lvmsync archive umount /run/mnt
is "$(sum /dev/vg/copy)$(cat /run/copy/* | sha256sum)" "$before" 'the sha256 of the mirror and the archive'
tidied

it "says that a store is full"
shown /run/copy --at 1 --mirror vg/copy --writable --room 64K
dd if=/dev/urandom of="$DEVICE" bs=1M count=4 oflag=direct status=none 2>/dev/null || true
expect 3 '' lvmsync doctor
says "$DEVICE: its store ran full" "$OUT"
expect 0 'ran full.*not to be trusted' lvmsync archive umount "$DEVICE"
mkdir -p /run/few
mount -t tmpfs -o size=4m tmpfs /run/few
expect 3 'free, and the store of that state may need' \
    lvmsync archive mount /run/copy --at 1 --mirror vg/copy --writable --store /run/few --room 8G
umount /run/few
tidied

it "keeps the store in a volume, or in another folder"
shown /run/copy --at 1 --mirror vg/copy --store vg
as_past copy1
is "$(lvs --noheadings -o lv_name vg | grep -c lvmsync-store)" 1 'the stores'
shown /run/copy --at 2 --mirror vg/copy --store /run/past
as_past copy2
is "$(find /run/past -name 'lvmsync-*.cow' | wc -l)" 1 'the stores in the folder'
expect 0 'is gone' lvmsync archive umount --all
is "$(find /run/past -name 'lvmsync-*.cow')" '' 'the stores in the folder'
tidied

it "lets syncs go on over a snapshot of the mirror"
shown /run/back --at 1 --mirror vg/back --snapshot
as_past back1
noise thin
before=$(sum /dev/vg/back)
expect 0 '' lvmsync sync vg/thin vg/back
if [[ $(sum /dev/vg/back) == "$before" ]]; then wrong "the sync changed nothing"; fi
blockdev --flushbufs "$DEVICE"
as_past back1
lvmsync cleanup >"$OUT"
is "$(grep lvmsync-mount "$OUT")" '' 'what cleanup says of the snapshot'
expect 0 'is gone' lvmsync archive umount "$DEVICE"
tidied

it "leaves what can be taken down, wherever it is killed"
PATH=/run/bin:$PATH
while read -r when pattern; do
    echo "$when $pattern" >/run/killer
    options=''
    if [[ $pattern == lvcreate*mount* ]]; then options=--snapshot; fi
    if [[ $pattern == lvcreate*store* ]]; then options='--store vg'; fi
    # shellcheck disable=SC2086
    lvmsync archive mount /run/copy /run/mnt --at 1 --mirror vg/copy $options >"$OUT" 2>"$ERR" && wrong "it was not killed"
    is "$(ls /run/killer 2>/dev/null)" '' "whether it was killed $when $pattern"
    is "$(find $mounts -name '*.json' | wc -l)" 1 'the records'
    expect 0 '' lvmsync cleanup --remove
    says 'was cut off.*and was removed' "$OUT"
    tidied
done <<'END'
after lvcreate * lvmsync-mount-*
after lvcreate * lvmsync-store-*
after dmsetup create *-origin *
after mount *
END
shown /run/copy --at 1 --mirror vg/copy
as_past copy1
expect 0 'is gone' lvmsync archive umount "$DEVICE"

it "tells after a reboot what is left, and holds nothing"
shown /run/copy --at 1 --mirror vg/copy --snapshot
sed -i 's/"boot": "[^"]*"/"boot": "another"/' $mounts/*.json
dmsetup remove "${DEVICE##*/}" "${DEVICE##*/}-origin"
put vg/guest 1500
expect 0 '' lvmsync sync vg/guest vg/copy
expect 3 '' lvmsync doctor
says "$DEVICE: point #1 .*before the machine was started" "$OUT"
lvmsync cleanup >"$OUT"
says "$DEVICE.*lvmsync cleanup --remove" "$OUT"
expect 0 'is gone' lvmsync archive umount "$DEVICE"
tidied

it "shows the points of random histories: from fulls, from a mirror that is a file, and from both"
run "$LAB/archive_mounts.py" /run/histories
tidied

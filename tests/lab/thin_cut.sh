# shellcheck shell=bash
# A pool in the middle of work, whose metadata snapshot lvmsync holds when the power goes. /dev/ubda is for LVM,
# /dev/ubdb is noise, /dev/ubdc is for the state folder.
. "$LAB/sites.sh"

mkfs.ext4 -q /dev/ubdc
mount /dev/ubdc /var/lib/lvmsync
make_vg vg /dev/ubda
lvcreate -q -q -y --type thin-pool --poolmetadataspare n -c 64k -L 64m --poolmetadatasize 4m -n pool vg 2>/run/lvm.err
lvcreate -q -q -y -V 16m --thinpool pool -n data vg
lvcreate -q -q -y -W n -L 16m -n copy vg
for volume in data copy; do dd if=/dev/ubdb of=/dev/vg/$volume bs=1M count=16 oflag=direct status=none; done
lvcreate -q -q -y -s -n one vg/data
sync

# Changes go on all the time.
(for ((i = 0; ; i++)); do
    dd if=/dev/ubdb of=/dev/vg/data bs=64k seek=$((i * 37 % 256)) skip=$((i * 59 % 1000)) count=1 oflag=direct \
        conv=notrunc status=none
    if ((i % 5 == 0)); then blkdiscard -o $((i * 91 % 256 * 65536)) -l 65536 /dev/vg/data; fi
done) &

# It stops when the metadata snapshot is to be given back.
mkdir /run/wrapped
cat >/run/wrapped/dmsetup <<'END'
#!/bin/bash
if [[ ${*: -1} == release_metadata_snap ]]; then
    touch "$SHARE/held"
    sleep 1000
fi
PATH=${PATH#*:} exec dmsetup "$@"
END
chmod +x /run/wrapped/dmsetup
PATH=/run/wrapped:$PATH lvmsync changes vg/one

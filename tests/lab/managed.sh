# shellcheck shell=bash
# Volumes whose snapshots lvmsync takes by itself: pushed to another site, cut off, refused, and pulled.
# /dev/ubda is for LVM, /dev/ubdb is noise.
. "$LAB/moving.sh"
moving_sites
make_vg my-vg /dev/ubda

# make_volume NAME: 12 MiB of noise.
make_volume() {
    lvcreate -qq -y -W n -L 12m -n "$1" my-vg
    dd if=/dev/ubdb of="/dev/my-vg/$1" bs=1M count=12 oflag=direct status=none
}
make_volume plain-vol
for name in copy near; do lvcreate -qq -y -W n -L 12m -n $name my-vg; done
lvcreate -qq -y -L 40m --poolmetadatasize 4m --poolmetadataspare n -c 64k -T my-vg/pool
lvcreate -qq -y -V 16m -T my-vg/pool -n thin-vol
dd if=/dev/ubdb of=/dev/my-vg/thin-vol bs=1M seek=4 count=4 oflag=direct status=none

# write_some VOLUME SEED: scattered changes.
write_some() {
    local at
    for at in 1 40 700 "$((1000 + $2))" 2999; do
        dd if=/dev/ubdb of="/dev/my-vg/$1" bs=4k skip="$((4000 + at + 17 * $2))" seek="$at" count=1 oflag=direct status=none
    done
}

# ours [SELECTION]: how many snapshots with our tag there are.
ours() { lvs --noheadings -o lv_name -S "tags=lvmsync ${1:+&& $1}" my-vg | wc -l; }

# way SCRIPT: a command for -e.
way() {
    printf '#!/bin/bash\n%s\n' "$1" >/run/way
    chmod +x /run/way
}

# brings KIND VOLUME TARGET [OPTION...]: a run of that kind, after which both are the same.
brings() {
    local kind=$1
    shift
    expect 0 '' lvmsync sync --json "my-vg/$1" "$2" "${@:3}"
    is "$(of_receipt kind)" "$kind" "the kind of $*"
    same "/dev/my-vg/$1" "/dev/my-vg/${2#*my-vg/}"
}

it "copies a plain volume the first time, and keeps one snapshot"
brings first plain-vol siteb:my-vg/copy
is "$(ours)" 1 'the number of snapshots'
gone /var/lib/lvmsync/targets # the ledger is on the other side

it "sends what changed the second time, and then says that nothing did, for less than 64 KiB over the line"
write_some plain-vol 1
differ /dev/my-vg/plain-vol /dev/my-vg/copy
brings delta plain-vol siteb:my-vg/copy
sent_before=$(line_bytes)
expect 0 'nothing had changed' lvmsync sync my-vg/plain-vol siteb:my-vg/copy
(($(line_bytes) - sent_before < 65536)) || wrong "$(($(line_bytes) - sent_before)) bytes went over the line"
is "$(ours)" 1 'the number of snapshots'

it "makes a thin target and copies a thin volume to it, then what changed"
brings first thin-vol siteb:my-vg/thin-copy --create --thin-pool my-vg/pool
is "$(lvs --noheadings -o data_percent my-vg/thin-copy | tr -d ' ')" 25.00 'what is mapped of the copy'
write_some thin-vol 2
blkdiscard -o 6M -l 1M /dev/my-vg/thin-vol
brings delta thin-vol siteb:my-vg/thin-copy
is "$(ours origin=thin-vol)" 1 'the number of snapshots'

it "goes on in the middle of a delta whose sender was killed, also when its state folder is lost"
dd if=/dev/ubdb of=/dev/my-vg/plain-vol bs=1M skip=30 seek=2 count=8 oflag=direct status=none
way 'dd bs=64k iflag=count_bytes count=3000000 2>/run/passed | ssh "$@"; kill -KILL $PPID'
expect 137 '' lvmsync sync my-vg/plain-vol siteb:my-vg/copy -e /run/way --compress none
rm -rf /var/lib/lvmsync/replicas
way 'tee /run/sent | ssh "$@"'
brings resume plain-vol siteb:my-vg/copy -e /run/way --compress none
# of what had gone (dd counts short reads as whole ones), a window of 1 MiB at most was not applied yet
passed=$(awk '/copied/ { print $1 }' /run/passed)
((passed > 1500000)) || wrong "only $passed bytes had gone"
(($(wc -c </run/sent) < 8400000 - passed + 1250000)) || wrong "$passed bytes had gone, and it sent $(wc -c </run/sent)"

it "refuses a target that was written to, and a volume whose base was removed"
printf x | dd of=/dev/my-vg/copy bs=1 seek=5000000 conv=notrunc,fsync status=none
expect 8 'siteb:my-vg/copy was written to by something else.*lvmsync repair' lvmsync sync my-vg/plain-vol siteb:my-vg/copy
lvremove -qq -y "$(base_of my-vg/thin-vol)"
expect 8 'the snapshot that held this state was removed' lvmsync sync my-vg/thin-vol siteb:my-vg/thin-copy
is "$(ours tags=lvmsync.role=head)" 0 'the number of heads'

it "says of a target that is not active how it becomes so"
lvchange -qq -an my-vg/near
expect 3 "my-vg/near is not active: activate it with 'lvchange -ay my-vg/near'" lvmsync sync my-vg/thin-vol siteb:my-vg/near --create
lvchange -qq -ay my-vg/near

it "pulls"
lvcreate -qq -y -W n -L 16m -n pulled my-vg
for kind in first delta; do
    expect 0 '' lvmsync sync siteb:my-vg/thin-vol my-vg/pulled --json
    is "$(of_receipt kind)" $kind kind
    same /dev/my-vg/thin-vol /dev/my-vg/pulled
    write_some thin-vol 21
done

it "notices a base that was written to with what the volume got"
expect 0 '' lvmsync sync siteb:my-vg/thin-vol my-vg/pulled
base=$(base_of my-vg/thin-vol)
before=$(sum /dev/my-vg/pulled)
lvchange -qq -ay -K "$base"
lvchange -qq -prw "$base"
for device in "$base" my-vg/thin-vol; do
    dd if=/dev/ubdb of="/dev/$device" bs=4k skip=3000 seek=2000 count=1 oflag=direct status=none
done
lvchange -qq -pr "$base"
lvchange -qq -an "$base"
expect 8 'written to in between.*was it the base' lvmsync sync siteb:my-vg/thin-vol my-vg/pulled
is "$(sum /dev/my-vg/pulled)" "$before" 'the sha256 of the target'

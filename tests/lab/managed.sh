# shellcheck shell=bash
# Volumes whose snapshots lvmsync takes by itself, pushed and pulled between two sites, cut off at every step.
# /dev/ubda is for LVM, /dev/ubdb is noise.
. "$LAB/sites.sh"
. "$LAB/cases.sh"

two_sites
make_vg my-vg /dev/ubda
lvcreate -q -y -W n -L 24m -n plain my-vg
lvcreate -q -y -W n -L 24m -n copy my-vg
dd if=/dev/ubdb of=/dev/my-vg/plain bs=1M count=24 oflag=direct status=none
lvcreate -q -y -L 64m --poolmetadatasize 4m --poolmetadataspare n -c 64k -T my-vg/pool
lvcreate -q -y -V 32m -T my-vg/pool -n thin-vol
dd if=/dev/ubdb of=/dev/my-vg/thin-vol bs=1M seek=4 count=8 oflag=direct status=none

# write_some VOLUME SEED: scattered changes.
write_some() {
    local at
    for at in 1 40 41 700 "$((1000 + $2))" 2999; do
        dd if=/dev/ubdb of="/dev/my-vg/$1" bs=4k skip="$((4000 + at + 17 * $2))" seek="$at" count=1 oflag=direct status=none
    done
}

# ours: how many snapshots with our tag there are.
ours() { lvs --noheadings -o lv_name @lvmsync | wc -l; }

# kept VOLUME: the snapshot that is the base of its replica, as a device that can be read.
kept() {
    local name
    name=$(lvs --noheadings -o lv_name -S "origin=$1 && lv_tags=lvmsync.role=base" my-vg | tr -d ' ')
    lvchange -ay -K "my-vg/$name" || true
    echo "/dev/my-vg/$name"
}

# kind: what the last receipt says was done.
kind() { python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))["kind"])' "$OUT"; }

it "copies a plain volume the first time, and keeps one snapshot"
expect 0 '' lvmsync sync my-vg/plain siteb:my-vg/copy --json
is "$(kind)" first kind
same /dev/my-vg/plain /dev/my-vg/copy
is "$(ours)" 1 'the number of snapshots'
cat "$OUT"

it "sends what changed the second time"
write_some plain 1
differ /dev/my-vg/plain /dev/my-vg/copy
expect 0 '' lvmsync sync my-vg/plain siteb:my-vg/copy --json
is "$(kind)" delta kind
same /dev/my-vg/plain /dev/my-vg/copy
is "$(ours)" 1 'the number of snapshots'

it "says that nothing changed"
expect 0 'nothing had changed' lvmsync sync my-vg/plain siteb:my-vg/copy
is "$(ours)" 1 'the number of snapshots'

it "makes a thin target and copies a thin volume, allocated ranges only"
expect 0 '' lvmsync sync my-vg/thin-vol siteb:my-vg/thin-copy --create --thin-pool my-vg/pool --json
is "$(kind)" first kind
same /dev/my-vg/thin-vol /dev/my-vg/thin-copy
write_some thin-vol 2
expect 0 '' lvmsync sync my-vg/thin-vol siteb:my-vg/thin-copy --json
is "$(kind)" delta kind
same /dev/my-vg/thin-vol /dev/my-vg/thin-copy
expect 0 'nothing had changed' lvmsync sync my-vg/thin-vol siteb:my-vg/thin-copy
is "$(ours)" 2 'the number of snapshots'
lvs -a -o+tags my-vg

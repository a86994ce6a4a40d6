# shellcheck shell=bash
# Volumes of my-vg on /dev/ubda, with content from /dev/ubdb, and functions about the snapshots that lvmsync takes of them.

make_vg my-vg /dev/ubda

# make_volume NAME: 24 MiB of noise.
make_volume() {
    lvcreate -q -y -W n -L 24m -n "$1" my-vg
    dd if=/dev/ubdb of="/dev/my-vg/$1" bs=1M count=24 oflag=direct status=none
}
make_volume plain-vol
lvcreate -q -y -W n -L 24m -n copy my-vg
lvcreate -q -y -W n -L 24m -n near my-vg
lvcreate -q -y -L 80m --poolmetadatasize 4m --poolmetadataspare n -c 64k -T my-vg/pool
lvcreate -q -y -V 32m -T my-vg/pool -n thin-vol
dd if=/dev/ubdb of=/dev/my-vg/thin-vol bs=1M seek=4 count=8 oflag=direct status=none

# write_some VOLUME SEED: scattered changes.
write_some() {
    local at
    for at in 1 40 41 700 "$((1000 + $2))" 2999; do
        dd if=/dev/ubdb of="/dev/my-vg/$1" bs=4k skip="$((4000 + at + 17 * $2))" seek="$at" count=1 oflag=direct status=none
    done
}

# ours [SELECTION]: how many snapshots with our tag there are.
ours() { lvs --noheadings -o lv_name -S "tags=lvmsync ${1:+&& $1}" my-vg | wc -l; }

# base_of VOLUME: its one base.
base_of() { lvs --noheadings -o lv_full_name -S "origin=$1 && tags=lvmsync.role=base" my-vg | tr -d ' '; }

# kind: what the last receipt says was done.
kind() { python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))["kind"])' "$OUT"; }

# way SCRIPT: a command for -e.
way() {
    printf '#!/bin/bash\n%s\n' "$1" >/run/way
    chmod +x /run/way
}


# shellcheck shell=bash
# A key that is served, with real volumes. /dev/ubda holds both sites' volumes, /dev/ubdb is noise.
. "$LAB/moving.sh"

moving_sites
make_vg vg /dev/ubda
make_vg copies /dev/ubdc
noise=/dev/ubdb
lvcreate -q -y -W n -L 16m -n my-data vg
lvcreate -q -y -W n -L 16m -n secret vg
dd if="$noise" of=/dev/vg/my-data bs=1M count=16 oflag=direct status=none
dd if="$noise" of=/dev/vg/secret bs=1M count=16 skip=16 oflag=direct status=none
lvcreate -q -y --type thin-pool -L 24m --poolmetadataspare n -n pool copies
cp /run/siteb/authorized_keys /run/siteb/key

# served OPTIONS: all that our key can do at siteb.
served() { echo "restrict,command=\"lvmsync serve $* --state /var/lib/lvmsync\" $(cat /run/siteb/key)" >/run/siteb/authorized_keys; }

change() { dd if="$noise" of=/dev/vg/my-data bs=64k seek="$1" skip="$2" count=4 oflag=direct status=none; }

it "writes volumes that are allowed, and makes them where it may"
served "--allow 'copies/*' --allow-create"
expect 0 '' lvmsync sync vg/my-data siteb:copies/my-data --create --thin-pool copies/pool
same /dev/vg/my-data /dev/copies/my-data
change 5 300
expect 0 '' lvmsync sync vg/my-data siteb:copies/my-data
same /dev/vg/my-data /dev/copies/my-data
is "$(lvs --noheadings -o lv_name copies | tr -d ' ' | sort | xargs)" "my-data pool" 'what is in copies'

it "takes each name of a volume for that volume, and refuses LVM's own and other groups by whatever name"
served "--allow 'copies/*'"
ln -s ../vg/secret /dev/copies/evil
# ask NAME...: ask in one session how each of them stands; prints "code name" or "size name".
ask() {
    local name
    for name; do printf 'lvmsync REQUEST {"verb": "standing", "target": "%s"}\n' "$name"; done | ssh siteb whatever |
        sed -n 's/.*REFUSAL {"code": \([0-9]*\).*/\1/p; s/.*ANSWER.*"kind": "[a-z]*", "size": \([0-9]*\),.*/\1/p'
}
is "$(ask copies/my-data /dev/copies/my-data /dev/mapper/copies-my--data "$(realpath /dev/copies/my-data)" | xargs)" \
    "16777216 16777216 16777216 16777216" 'what is said of the names of one volume'
pool=$(dmsetup ls | sed -n 's/^\(copies-pool[^\t]*\|vg-secret\)\t*(\([0-9]*\):\([0-9]*\))$/\/dev\/dm-\3/p')
is "$(wc -w <<<"$pool")" 5 "the number of the pool's devices, and the secret"
# shellcheck disable=SC2086
is "$(ask copies/evil /dev/copies/evil vg/secret /dev/mapper/vg-secret /dev/copies/../vg/secret copies/pool_tdata \
    /dev/mapper/copies-pool /dev/mapper/copies-pool-tpool /dev/mapper/copies-pool_tmeta $pool | xargs)" \
    "2 2 2 2 2 2 2 2 2 2 2 2 2 2" 'what is said of all others'
secret=$(sha256sum </dev/vg/secret)
expect 2 'leads to another device, vg/secret' lvmsync sync full:/dev/vg/my-data siteb:copies/evil
is "$(sha256sum </dev/vg/secret)" "$secret" 'the sum of the secret'
rm /dev/copies/evil

it "lets volumes be pulled that it may give away, and no others"
served "--allow-pull vg/my-data --most-copies 1"
lvcreate -q -y -W n -L 16m -n pulled copies
expect 0 '' lvmsync sync siteb:vg/my-data copies/pulled
same /dev/vg/my-data /dev/copies/pulled
change 50 400
expect 0 '' lvmsync sync siteb:/dev/vg/my-data copies/pulled
same /dev/vg/my-data /dev/copies/pulled
# push SOURCE OPTIONS: ask for it by hand.
push() { printf 'lvmsync REQUEST {"verb": "push", "source": "%s", "target": "x", "options": %s}\n' "$@" | ssh siteb x; }
expect 2 'no source that this server allows' push vg/secret '{}'
expect 2 'chooses the size' push vg/my-data '{"store": 8388608}'
expect 2 'has 1 copies already' push vg/my-data '{"place": "another"}'
expect 2 "has no 'extend_cmd'" push vg/my-data '{"extend_cmd": "touch /run/other"}'
gone /run/other

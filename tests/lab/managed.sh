# shellcheck shell=bash
# Volumes whose snapshots lvmsync takes by itself, pushed and pulled between two sites, cut off at every step.
# /dev/ubda is for LVM, /dev/ubdb is noise.
. "$LAB/sites.sh"
. "$LAB/cases.sh"

two_sites
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

it "copies a plain volume the first time, and keeps one snapshot"
expect 0 '' lvmsync sync my-vg/plain-vol siteb:my-vg/copy --json
is "$(kind)" first kind
same /dev/my-vg/plain-vol /dev/my-vg/copy
is "$(ours)" 1 'the number of snapshots'
gone /var/lib/lvmsync/targets # the ledger is on the other side

it "sends what changed the second time, and then says that nothing did, for less than 64 KiB over the line"
write_some plain-vol 1
differ /dev/my-vg/plain-vol /dev/my-vg/copy
expect 0 '' lvmsync sync my-vg/plain-vol siteb:my-vg/copy --json
is "$(kind)" delta kind
same /dev/my-vg/plain-vol /dev/my-vg/copy
way 'tee /run/sent | ssh "$@" | tee /run/came'
expect 0 'nothing had changed' lvmsync sync my-vg/plain-vol siteb:my-vg/copy -e /run/way
(($(cat /run/sent /run/came | wc -c) < 65536)) || wrong "$(wc -c /run/sent /run/came)"
is "$(ours)" 1 'the number of snapshots'

it "makes a thin target and copies a thin volume to it, then what changed"
expect 0 '' lvmsync sync my-vg/thin-vol siteb:my-vg/thin-copy --create --thin-pool my-vg/pool --json
is "$(kind)" first kind
same /dev/my-vg/thin-vol /dev/my-vg/thin-copy
is "$(lvs --noheadings -o data_percent my-vg/thin-copy | tr -d ' ')" 25.00 'what is mapped of the copy'
write_some thin-vol 2
blkdiscard -o 8M -l 1M /dev/my-vg/thin-vol
expect 0 '' lvmsync sync my-vg/thin-vol siteb:my-vg/thin-copy --json
is "$(kind)" delta kind
same /dev/my-vg/thin-vol /dev/my-vg/thin-copy
is "$(ours origin=thin-vol)" 1 'the number of snapshots'

it "goes on by itself where the line was cut"
lvcreate -q -y -W n -L 24m -n cut-copy my-vg
rm -f /run/tries
way 'echo x >>/run/tries; n=$(wc -l </run/tries)
if ((n < 3)); then dd bs=64k iflag=count_bytes count=9000000 status=none | tee /run/sent.$n | ssh "$@"; else tee /run/sent.$n | ssh "$@"; fi'
write_some plain-vol 3
expect 0 '' lvmsync sync my-vg/plain-vol siteb:my-vg/cut-copy -e /run/way --compress none --json
is "$(kind)" resume kind
is "$(wc -l </run/tries)" 3 'the number of lines'
same /dev/my-vg/plain-vol /dev/my-vg/cut-copy
(($(cat /run/sent.* | wc -c) < 25000000 * 106 / 100)) || wrong "$(wc -c /run/sent.*)"
is "$(ours origin=plain-vol)" 2 'the number of snapshots, one a target'

# killed "PROGRAM WHEN" VOLUME TARGET: a run whose process is killed when it runs an LVM command, before or after that.
killed() {
    local program=${1% *} real
    real=$(command -v "$program")
    mkdir -p /run/killers
    cat >"/run/killers/$program" <<END
#!/bin/sh
if [ "${1#* }" = after ]; then "$real" "\$@" >/dev/null 2>&1; fi
kill -KILL \$PPID
END
    chmod +x "/run/killers/$program"
    expect 137 '' env PATH="/run/killers:$PATH" lvmsync sync "$2" "$3"
    rm -r /run/killers
}

it "is mended by the next run, when it was killed at any step"
expect 0 '' lvmsync sync my-vg/plain-vol my-vg/near
for step in 'lvcreate before' 'lvcreate after' 'lvchange before' 'lvchange after' 'lvremove before'; do
    write_some plain-vol "${#step}"
    killed "$step" my-vg/plain-vol my-vg/near
    expect 0 '' lvmsync sync my-vg/plain-vol my-vg/near --json
    same /dev/my-vg/plain-vol /dev/my-vg/near
    is "$(ours origin=plain-vol)" 3 "the number of snapshots after '$step'"
    is "$(ours tags=lvmsync.role=head)" 0 "the number of heads after '$step'"
    is "$(open_transactions)" 0 'the number of open transactions'
done

it "goes on in the middle of a delta whose sender was killed"
dd if=/dev/ubdb of=/dev/my-vg/plain-vol bs=1M skip=30 seek=2 count=16 oflag=direct status=none
way 'dd bs=64k iflag=count_bytes count=6000000 status=none | ssh "$@"; kill -KILL $PPID'
expect 137 '' lvmsync sync my-vg/plain-vol siteb:my-vg/copy -e /run/way --compress none
write_some plain-vol 9
way 'tee /run/sent | ssh "$@"'
expect 0 '' lvmsync sync my-vg/plain-vol siteb:my-vg/copy -e /run/way --compress none --json
is "$(kind)" resume kind
same /dev/my-vg/plain-vol /dev/my-vg/copy
(($(wc -c </run/sent) < 12000000)) || wrong "it sent $(wc -c </run/sent) bytes"

it "finds its snapshots again when its state folder is lost"
rm -rf /var/lib/lvmsync/replicas
write_some plain-vol 11
expect 0 '' lvmsync sync my-vg/plain-vol siteb:/dev/my-vg/copy --json
is "$(kind)" delta kind
same /dev/my-vg/plain-vol /dev/my-vg/copy

it "refuses a target that was written to, that is mounted, or is another one of the same name"
printf x | dd of=/dev/my-vg/copy bs=1 seek=5000000 conv=notrunc status=none
sync
expect 8 'siteb:my-vg/copy was written to by something else.*lvmsync repair' lvmsync sync my-vg/plain-vol siteb:my-vg/copy
mkfs.ext4 -q -F /dev/my-vg/near
mkdir -p /run/mounted
mount /dev/my-vg/near /run/mounted
expect 3 'my-vg/near is in use' lvmsync sync my-vg/plain-vol my-vg/near
umount /run/mounted
lvremove -q -y my-vg/near
lvcreate -q -y -W n -L 24m -n near my-vg
expect 8 'another device .* than the one that held the copy' lvmsync sync my-vg/plain-vol my-vg/near
is "$(ours tags=lvmsync.role=head)" 0 'the number of heads'

it "refuses when the base was removed or has overflowed, and copies anew with --full"
lvremove -q -y "$(base_of thin-vol)"
expect 8 'the snapshot that held this state was removed' lvmsync sync my-vg/thin-vol siteb:my-vg/thin-copy
expect 0 '' lvmsync sync my-vg/thin-vol siteb:my-vg/thin-copy --full --json
is "$(kind)" first kind
same /dev/my-vg/thin-vol /dev/my-vg/thin-copy
make_volume small
expect 0 '' lvmsync sync my-vg/small my-vg/near --full --cow-size 512k
dd if=/dev/ubdb of=/dev/my-vg/small bs=1M skip=30 count=4 oflag=direct status=none
expect 5 'not known any more.*lvmsync repair' lvmsync sync my-vg/small my-vg/near
expect 0 '' lvmsync sync my-vg/small my-vg/near --full
same /dev/my-vg/small /dev/my-vg/near
is "$(ours origin=small)" 1 'the number of snapshots'

it "pulls"
lvcreate -q -y -W n -L 24m -n pulled my-vg
expect 0 '' lvmsync sync siteb:my-vg/small my-vg/pulled --json
is "$(kind)" first kind
same /dev/my-vg/small /dev/my-vg/pulled
write_some small 21
expect 0 '' lvmsync sync siteb:my-vg/small my-vg/pulled --json
is "$(kind)" delta kind
same /dev/my-vg/small /dev/my-vg/pulled
expect 0 'nothing had changed' lvmsync sync siteb:my-vg/small my-vg/pulled

# shellcheck shell=bash
# Volumes whose snapshots lvmsync takes by itself, refused where the copy is not what it was, and pulled.
. "$LAB/sites.sh"
. "$LAB/cases.sh"
two_sites
. "$LAB/managed_setup.sh"

expect_copies() {
    expect 0 '' lvmsync sync my-vg/plain-vol siteb:my-vg/copy
    expect 0 '' lvmsync sync my-vg/plain-vol my-vg/near
    expect 0 '' lvmsync sync my-vg/thin-vol siteb:my-vg/thin-copy --create --thin-pool my-vg/pool
}

it "finds its snapshots again when its state folder is lost"
expect_copies
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
expect 8 'nothing is known there of my-vg/near.*made anew.*lvmsync repair' lvmsync sync my-vg/plain-vol my-vg/near
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

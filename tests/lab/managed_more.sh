# shellcheck shell=bash
# What managed.sh does, and more of it than CI has time for (scripts/moving managed).
dd if=/dev/urandom of=/dev/ubdb bs=1M count=64 oflag=direct status=none
. "$LAB/managed.sh"

it "goes on by itself where the line was cut"
lvcreate -qq -y -W n -L 12m -n cut-copy my-vg
way 'echo x >>/run/tries; n=$(wc -l </run/tries)
if ((n < 3)); then dd bs=64k iflag=count_bytes count=4500000 status=none | tee /run/sent.$n | ssh "$@"; else tee /run/sent.$n | ssh "$@"; fi'
brings resume plain-vol siteb:my-vg/cut-copy -e /run/way --compress none
is "$(wc -l </run/tries)" 3 'the number of lines'
(($(cat /run/sent.* | wc -c) < 12582912 * 106 / 100)) || wrong "$(wc -c /run/sent.*)"
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
brings first plain-vol my-vg/near
for step in 'lvcreate before' 'lvcreate after' 'lvchange before' 'lvchange after' 'lvremove before'; do
    write_some plain-vol "${#step}"
    killed "$step" my-vg/plain-vol my-vg/near
    expect 0 '' lvmsync sync my-vg/plain-vol my-vg/near
    same /dev/my-vg/plain-vol /dev/my-vg/near
    is "$(ours 'origin=plain-vol && tags=lvmsync.role=base') $(ours origin=plain-vol)" '3 3' "the snapshots after '$step'"
    is "$(open_transactions)" 0 'the number of open transactions'
done

it "refuses a target that is mounted, or is another one of the same name"
mkfs.ext4 -q -F /dev/my-vg/near
mkdir -p /run/mounted
mount /dev/my-vg/near /run/mounted
expect 3 'my-vg/near is in use' lvmsync sync my-vg/plain-vol my-vg/near
umount /run/mounted
lvremove -qq -y my-vg/near
lvcreate -qq -y -W n -L 12m -n near my-vg
expect 8 'nothing is known there of my-vg/near.*made anew.*lvmsync repair' lvmsync sync my-vg/plain-vol my-vg/near
is "$(ours tags=lvmsync.role=head)" 0 'the number of heads'

it "copies anew with --full when the base was removed or has overflowed"
brings first thin-vol siteb:my-vg/thin-copy --full
make_volume small
expect 0 '' lvmsync sync my-vg/small my-vg/near --full --cow-size 512k
dd if=/dev/ubdb of=/dev/my-vg/small bs=1M skip=30 count=4 oflag=direct status=none
expect 5 'not known any more.*lvmsync repair' lvmsync sync my-vg/small my-vg/near
brings first small my-vg/near --full
is "$(ours origin=small)" 1 'the number of snapshots'

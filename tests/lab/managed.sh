# shellcheck shell=bash
# Volumes whose snapshots lvmsync takes by itself, pushed to another site, cut off at every step.
. "$LAB/sites.sh"
. "$LAB/cases.sh"
two_sites
. "$LAB/managed_setup.sh"

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

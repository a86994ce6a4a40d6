# shellcheck shell=bash
# Mirrors whose syncs keep their past in an archive by themselves: a plain volume here, a thin one on the other site.
# /dev/ubda is for LVM, /dev/ubdb is noise.
. "$LAB/moving.sh"
moving_sites
make_vg vg /dev/ubda
lvcreate -qq -y -W n -L 12m -n plain vg
dd if=/dev/ubdb of=/dev/vg/plain bs=1M count=12 oflag=direct status=none
lvcreate -qq -y -L 64m --poolmetadatasize 4m --poolmetadataspare n -c 64k -T vg/pool
lvcreate -qq -y -V 16m -T vg/pool -n thin
dd if=/dev/ubdb of=/dev/vg/thin bs=1M skip=16 seek=3 count=8 oflag=direct status=none
lvcreate -qq -y -W n -L 12m -n back vg
for name in copy restored; do lvcreate -qq -y -W n -L 16m -n $name vg; done
declare -A target=([plain]=vg/back [thin]=siteb:vg/copy) mirror=([plain]=vg/back [thin]=vg/copy)
declare -A state=([plain]=/var/lib/lvmsync [thin]=/run/siteb/state)

# write_some VOLUME: scattered changes, and of a thin volume discards.
write_some() {
    local at
    for at in 1 40 $((RANDOM % 2500)) $((RANDOM % 2500)) $((RANDOM % 2500)); do put "vg/$1" $at; done
    if [[ $1 == thin ]]; then blkdiscard -o $((4 + RANDOM % 6))M -l 512K /dev/vg/thin; fi
}

# synced VOLUME NUMBER: one more run, which makes that point; what the mirror holds then is remembered.
declare -A past=()
synced() {
    expect 0 '' lvmsync sync "vg/$1" "${target[$1]}" --archive "/run/$1"
    same "/dev/vg/$1" "/dev/${mirror[$1]}"
    past[$1$2]=$(sum "/dev/${mirror[$1]}")
}

# restores VOLUME NUMBER: that point is what was remembered.
restores() {
    expect 0 '' lvmsync archive restore "/run/$1" --at "$2" --to vg/restored --mirror "${mirror[$1]}" --state "${state[$1]}"
    is "$(sum /dev/vg/restored "$(blockdev --getsize64 "/dev/vg/$1")")" "${past[$1$2]}" "the sha256 of point $2 of $1"
}

it "keeps what each sync overwrites, here and on the other site"
for volume in plain thin; do
    lvmsync archive init "/run/$volume" 2>/dev/null
    for number in 1 2 3; do
        write_some $volume
        synced $volume $number
    done
    is "$(find /run/$volume -name '*.stream' | wc -l)" 2 "the snapbacks in the archive"
done
is "$(find /var/lib/lvmsync /run/siteb/state -name '*.undo*' | wc -l)" 0 "the undo files that are left"

it "adds nothing when nothing has changed"
expect 0 '' lvmsync sync vg/plain vg/back --archive /run/plain
is "$(find /run/plain -name '*.stream' | wc -l)" 2 "the snapbacks in the archive"

it "restores every past state from the mirror"
for number in 1 2; do restores plain $number; done
restores thin 1

it "goes on behind a receiver that was killed, with one member for all of it"
slow rate 8mbit
write_some thin
dd if=/dev/ubdb of=/dev/vg/thin bs=1M skip=20 seek=2 count=6 oflag=direct status=none
begin lvmsync sync vg/thin siteb:vg/copy --archive /run/thin --retries 0
on_line 2000000
kill_agent
slow
if wait "$RUN"; then wrong "the sync ended well, though its receiver was killed"; fi
is "$(find /run/thin -name '*.stream' | wc -l)" 2 "the snapbacks behind a kill"
synced thin 4
is "$(find /run/thin -name '*.stream' | wc -l)" 3 "the snapbacks in the archive"

it "restores behind a prune as before, and is whole"
write_some plain
synced plain 4
expect 0 '' lvmsync archive prune /run/plain --keep-last 2
restores plain 3
for number in 2 3; do restores thin $number; done
expect 0 '4 points rebuilt' lvmsync archive verify /run/thin --restore-test --mirror vg/copy --state /run/siteb/state

it "refuses before a byte is written what the archive could not lead back to"
before=$(sum /dev/vg/back)
write_some plain
expect 8 'does not have' lvmsync sync vg/plain vg/back --archive /run/thin
is "$(sum /dev/vg/back)" "$before" "the sha256 of the mirror"

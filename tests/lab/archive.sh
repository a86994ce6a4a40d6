# shellcheck shell=bash
# Volumes whose past states go into an archive: by snapshots that lvmsync takes, and by the snapbacks of a mirror.
# /dev/ubda is for LVM, /dev/ubdb is noise.
. "$LAB/moving.sh"
moving_sites
make_vg vg /dev/ubda
lvcreate -qq -y -W n -L 16m -n plain vg
dd if=/dev/ubdb of=/dev/vg/plain bs=1M count=16 oflag=direct status=none
lvcreate -qq -y -L 64m --poolmetadatasize 4m --poolmetadataspare n -c 64k -T vg/pool
lvcreate -qq -y -V 24m -T vg/pool -n thin
dd if=/dev/ubdb of=/dev/vg/thin bs=1M skip=16 seek=3 count=8 oflag=direct status=none
for name in back restored; do lvcreate -qq -y -W n -L 24m -n $name vg; done

# write_some VOLUME: scattered changes, and of a thin volume a discard.
write_some() {
    local at
    for at in 1 40 $((RANDOM % 3000)) $((RANDOM % 3000)) $((RANDOM % 3000)); do put "vg/$1" $at; done
    if [[ $1 == thin ]]; then blkdiscard -o $((4 + RANDOM % 6))M -l 512K /dev/vg/thin; fi
}

# remember NAME VOLUME: what the volume holds now.
declare -A past=()
remember() { past[$1]=$(sum "/dev/vg/$2"); }

# restores ARCHIVE POINT NAME [OPTION...]: that point is what was remembered under a name.
restores() {
    expect 0 '' lvmsync archive restore "$1" --at "$2" --to vg/restored "${@:4}"
    is "$(sum /dev/vg/restored "$(of_receipt_size "$1" "$2")")" "${past[$3]}" "the sha256 of point $2 of $1"
}
of_receipt_size() { lvmsync archive show "$1" "$2" --json | sed -n 's/.*"size": \([0-9]*\).*/\1/p'; }

it "takes the changes of a plain and a thin volume, and keeps one snapshot of each"
for volume in plain thin; do
    lvmsync archive init "/run/$volume" 2>/dev/null
    for number in 1 2 3 4; do
        remember "$volume$number" $volume
        expect 0 '' lvmsync archive take "/run/$volume" "vg/$volume" --label "$volume$number"
        write_some $volume
    done
    is "$(lvs --noheadings -o lv_name -S "origin=$volume && lv_tags=lvmsync" vg | wc -l)" 1 "the snapshots of $volume"
done

it "restores each of them"
for volume in plain thin; do
    for number in 1 2 3 4; do restores "/run/$volume" "$volume$number" "$volume$number"; done
    expect 0 '4 points rebuilt' lvmsync archive verify "/run/$volume" --restore-test
done

it "goes on after a kill in the middle, and after pruning"
for volume in plain thin; do
    begin lvmsync archive take "/run/$volume" "vg/$volume"
    read -rt 0.$((RANDOM % 9 + 1)) <>/run/never || true
    kill_source 2>/dev/null || true
    wait "$RUN" || true
    expect 0 'point' lvmsync archive prune "/run/$volume" --keep-last 2
    remember now $volume
    expect 0 '' lvmsync archive take "/run/$volume" "vg/$volume" --label now
    restores "/run/$volume" now now
    expect 0 'is whole' lvmsync archive verify "/run/$volume" --repair
    is "$(lvs --noheadings -o lv_name -S "origin=$volume && lv_tags=lvmsync" vg | wc -l)" 1 "the snapshots of $volume"
done

it "is run as cron runs it: LVM is found, old points go, and the metrics tell how far the volume has gone on since"
mkdir -p /run/metrics
of_metric() { sed -n "s/^lvmsync_archive_$1{.*source=\"vg\/$2\"} \([0-9]*\).*/\1/p" /run/metrics/*.prom; }
as_cron() { env -i ${LVMSYNC_STATE:+"LVMSYNC_STATE=$LVMSYNC_STATE"} PATH="/usr/bin:/bin" "$(command -v lvmsync)" "$@"; }
for volume in plain thin; do
    remember run $volume
    expect 0 'gone' as_cron archive run "/run/$volume" "vg/$volume" --keep-last 1 --metrics /run/metrics
    restores "/run/$volume" latest run
    is "$(of_metric last_status $volume) $(of_metric points $volume)" "0 1" "status and points of $volume"
    is "$(lvs --noheadings -o lv_name -S "origin=$volume && lv_tags=lvmsync" vg | wc -l)" 1 "the snapshots of $volume"
done
expect 0 'ok [0-9]+ s ago' sh -c 'lvmsync archive list /run/plain >&2'
lag=$(of_metric lag_bytes plain)
is "$(of_metric lag_bytes thin)" "" "what nobody knows of a thin volume"
put vg/plain 100
put vg/plain 2000
mount --bind /run/plain /run/plain
mount -o remount,bind,ro /run/plain
expect 3 'Read-only' as_cron archive run /run/plain vg/plain --keep-last 1 --metrics /run/metrics
umount /run/plain
is "$(of_metric last_status plain) $(of_metric points plain)" "3 1" "status and points after a failure"
(($(of_metric lag_bytes plain) >= lag + 8192)) || wrong "$(of_metric lag_bytes plain) bytes of lag, and $lag before two writes"
expect 3 'last run FAILED.*Read-only' sh -c 'lvmsync doctor >&2'
expect 0 '' as_cron archive run /run/plain vg/plain --metrics /run/metrics
expect 0 'is whole' lvmsync archive verify /run/plain

it "leads back from a mirror by the snapbacks of its syncs"
lvmsync archive init /run/mirror 2>/dev/null
expect 0 '' lvmsync sync vg/thin vg/back
for number in 1 2 3; do
    remember "back$number" back
    write_some thin
    expect 0 '' lvmsync sync vg/thin vg/back --snapback "/run/$number.back"
    expect 0 '' lvmsync archive import /run/mirror "/run/$number.back"
done
for number in 1 2 3; do restores /run/mirror "$number" "back$number" --mirror vg/back; done
expect 0 '4 points rebuilt' lvmsync archive verify /run/mirror --restore-test --mirror vg/back
expect 0 '1 point gone|2 points gone' lvmsync archive combine /run/mirror 1 3
restores /run/mirror 1 back1 --mirror vg/back
write_some thin
expect 0 '' lvmsync sync vg/thin vg/back

it "refuses a mirror that has moved on, is mounted, or was written to"
expect 8 'does not have that point' lvmsync archive verify /run/mirror --mirror vg/back
mkfs.ext4 -q -F /dev/vg/back
expect 8 'was written to by something else' lvmsync archive verify /run/mirror --mirror vg/back
mkdir -p /run/mnt
mount /dev/vg/back /run/mnt
expect 3 'mounted' lvmsync archive verify /run/mirror --mirror vg/back
umount /run/mnt

it "names a full copy of a read-only snapshot as deltas do"
lvmsync archive init /run/named 2>/dev/null
lvcreate -qq -y -s -pr --setactivationskip n -n one vg/thin
expect 0 '' lvmsync archive take /run/named full:vg/one --label one
write_some thin
lvcreate -qq -y -s -pr --setactivationskip n -n two vg/thin
expect 0 '' lvmsync archive take /run/named vg/one -r vg/two --label two
for name in one two; do
    remember $name $name
    restores /run/named $name $name
done

it "encrypts what it takes of a volume, and opens it with what the environment says"
sealed=/run/sealed/archive
expect 0 'keep a copy of both elsewhere' lvmsync archive init $sealed --encrypt --key-file /run/sealed.key
is "$(stat -c %a /run/sealed.key)" 600 "the mode of the key file"
expect 2 'is encrypted: say what opens it' lvmsync archive take $sealed vg/thin --label one
export LVMSYNC_ARCHIVE_KEY_FILE=/run/sealed.key
for number in 1 2 3; do
    remember "sealed$number" thin
    expect 0 '' lvmsync archive take $sealed vg/thin --label "sealed$number"
    write_some thin
done
for number in 1 2 3; do restores $sealed "sealed$number" "sealed$number"; done
expect 0 '1 point gone' lvmsync archive combine $sealed 1 3
restores $sealed sealed3 sealed3
expect 0 '2 points rebuilt' lvmsync archive verify $sealed --restore-test
is "$(grep -rl 'sealed1\|thin' $sealed | wc -l)" 0 "the objects in which a label or a name is"
expect 2 'is not encrypted' lvmsync archive list /run/named
unset LVMSYNC_ARCHIVE_KEY_FILE

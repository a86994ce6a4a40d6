# shellcheck shell=bash
# What a first copy would destroy, who else uses a target, and merges between two runs; not in CI. /dev/ubda is for LVM.
. "$LAB/moving.sh"

moving_sites
make_vg vg /dev/ubda
two_volumes 4
gone_vols() { lvremove -q -q -y "$@" >/dev/null; }

# signed KIND: vg/copy is new and has that on it.
signed() {
    gone_vols vg/copy
    lvcreate -q -q -y -W n -L 8m -n copy vg
    dd if=/dev/urandom of=/dev/vg/copy bs=1M count=8 oflag=direct status=none
    case $1 in
        noise) ;;
        ext4) mkfs.ext4 -qF /dev/vg/copy ;;
        xfs | btrfs)
            printf '%s' "$([[ $1 == xfs ]] && echo XFSB || echo _BHRfS_M)" |
                dd of=/dev/vg/copy bs=1 seek="$([[ $1 == xfs ]] && echo 0 || echo $((0x10040)))" conv=notrunc status=none
            ;;
        swap) mkswap -q /dev/vg/copy >/dev/null ;;
        pv) pvcreate -q -q -y -ff --config 'devices { scan_lvs=1 }' /dev/vg/copy >/dev/null ;;
        *) run "$LAB/moving_signs.py" "$1" /dev/vg/copy ;;
    esac
    sync
    echo "--- $1: blkid says $(blkid -p -o value -s TYPE -s PTTYPE /dev/vg/copy | tr '\n' ' ')"
}
# left_alone COMMAND...: not a byte of the target is changed by that.
left_alone() {
    local before
    before=$(sum /dev/vg/copy)
    "$@"
    is "$(sum /dev/vg/copy)" "$before" 'the sha256 of the target'
}
first() { expect "$1" "$2" lvmsync sync vg/guest siteb:vg/copy --retries 0; }
# undone: there is no copy, and no snapshot of one.
undone() {
    while read -r name; do gone_vols "$name"; done < <(lvs --noheadings -o full_name @lvmsync | tr -d ' ')
    rm -rf /var/lib/lvmsync/replicas /run/siteb/state/targets
}

for kind in luks1 luks2 gpt dos md1.2 md1.1 md1.0 md0.90 swap pv; do
    it "refuses a first copy onto $kind, and takes --full for a yes"
    undone
    signed $kind
    left_alone first 8 'siteb:vg/copy is no copy yet, and it is (an|a|swap) ?.*--full'
    tail -n 1 "$ERR"
    is "$(lvs --noheadings @lvmsync | wc -l)" 0 'the number of snapshots'
    expect 0 '' lvmsync sync vg/guest siteb:vg/copy --full
    as_snapshot vg/guest vg/copy
done

for kind in noise ext4 xfs btrfs; do
    it "makes a first copy onto what holds $kind"
    undone
    signed $kind
    first 0 ''
    as_snapshot vg/guest vg/copy
done

it "makes a volume where an old file system shows, and is not asked by LVM"
undone
lvmsync cleanup --remove >/dev/null 2>&1 || true
for create in '' '--thin-pool vg/pool'; do
    gone_vols vg/copy
    lvcreate -q -q -y -W n -L 4m -n copy vg
    dd if=/dev/urandom of=/dev/vg/copy bs=1M count=4 oflag=direct status=none
    mkfs.ext4 -qF /dev/vg/copy
    run "$LAB/moving_signs.py" gpt /dev/vg/copy
    at=$(lvs --noheadings -o seg_pe_ranges vg/copy | tr -d ' ')
    gone_vols vg/copy
    if [[ $create ]]; then lvcreate -q -q -y -L 12m --poolmetadatasize 4m --poolmetadataspare n -c 64k -T vg/pool; fi
    dd if=/dev/zero of=/dev/vg/guest bs=1M seek=1 count=2 oflag=direct status=none
    # shellcheck disable=SC2086
    expect 0 '' lvmsync sync vg/guest siteb:vg/copy --create $create --full
    echo "--- it was at $at and is at $(lvs --noheadings -o seg_pe_ranges vg/copy | tr -d ' ')"
    same /dev/vg/guest /dev/vg/copy
done
undone
gone_vols vg/copy vg/pool

it "refuses a target that is in use, whoever uses it"
lvcreate -q -q -y -W n -L 8m -n copy vg
dd if=/dev/urandom of=/dev/vg/copy bs=1M count=8 oflag=direct status=none
busy() { left_alone first 3 "vg/copy is in use: .*($1)" && tail -n 1 "$ERR" && left_alone full_is_refused "$1"; }
full_is_refused() { expect 3 "in use" lvmsync sync vg/guest siteb:vg/copy --full --retries 0; }

it "refuses a target that is mounted, also read-only, and in another namespace"
mkfs.ext4 -qF /dev/vg/copy
mkdir -p /run/mnt
mount -o ro,noload /dev/vg/copy /run/mnt
busy 'mounted'
umount /run/mnt
unshare -m bash -c 'mount -o ro,noload /dev/vg/copy /run/mnt && : >/run/ns && read -r _ <>/run/never' &
holder=$!
until_true test -e /run/ns
if grep -q /run/mnt /proc/mounts; then wrong 'it is mounted here, too'; fi
busy 'mounted|held'
kill "$holder"
wait "$holder" || true

it "refuses a target that another mapped device lies on"
dmsetup create upper --table "0 16384 linear /dev/vg/copy 0"
busy 'held'
dmsetup remove upper
dmsetup create upper --table "0 16384 crypt capi:ecb(cipher_null)-cipher_null - 0 /dev/vg/copy 0" 2>/run/crypt.err &&
    { busy 'held' && dmsetup remove upper; } || echo "no dm-crypt here: $(cat /run/crypt.err)"

it "refuses a target that a loop device lies on, also a read-only one"
for mode in '' -r; do
    # shellcheck disable=SC2086
    loop=$(losetup -f --show $mode /dev/vg/copy)
    busy 'loop'
    losetup -d "$loop"
done

it "refuses a target that a guest or server has open for writing"
exec 9<>/dev/vg/copy
busy 'process'
exec 9>&-

it "refuses a target whose volume group is in use, and one that is swap in use"
pvcreate -q -q -y -ff --config 'devices { scan_lvs=1 }' /dev/vg/copy >/dev/null
vgcreate -q -q --config 'devices { scan_lvs=1 }' inner /dev/vg/copy >/dev/null
lvcreate -q -q -y -W n --config 'devices { scan_lvs=1 }' -l 1 -n lv inner
busy 'held'
vgchange -q -q -an --config 'devices { scan_lvs=1 }' inner >/dev/null
left_alone first 8 'physical volume'
mkswap -q -f /dev/vg/copy >/dev/null
if swapon /dev/vg/copy; then
    busy 'held|mounted'
    swapoff /dev/vg/copy
fi

it "makes the copy when nobody uses the target any more, though somebody reads it"
exec 9</dev/vg/copy
expect 0 '' lvmsync sync vg/guest siteb:vg/copy --full
exec 9<&-
as_snapshot vg/guest vg/copy

# --- Merges

undone
gone_vols vg/copy
lvcreate -q -q -y -W n -L 4m -n copy vg
anew

it "refuses a copy that a snapshot was merged into"
lvcreate -q -q -y -s -L 8m -n old vg/copy
change
expect 0 '' lvmsync sync vg/guest siteb:vg/copy
merged vg/old
refused 8 'siteb:vg/copy.*lv:.*(repair|--full)'
expect 0 '' lvmsync repair vg/guest siteb:vg/copy
as_snapshot vg/guest vg/copy

hold() { # a file that is open
    exec 8<"$1"
}

it "refuses a copy that a snapshot is to be merged into as soon as it is activated"
lvcreate -q -q -y -s -L 8m -n old vg/copy
hold /dev/vg/copy
lvconvert -q -y --merge vg/old >/run/merge.out 2>&1
exec 8<&-
cat /run/merge.out
lvs -a -o lv_name,lv_attr,lv_merging vg
found=0
change
lvmsync sync vg/guest siteb:vg/copy --retries 0 >"$OUT" 2>"$ERR" || found=$?
echo "--- it ended with $found: $(tail -n 3 "$ERR")"
lvchange -q -an vg/copy
lvchange -q -ay vg/copy
until_true no_volume vg/old
if [[ $found == 0 ]]; then
    cmp -s "/dev/$(base_of vg/guest)" /dev/vg/copy || wrong "it was in order, and is none any more"
else
    says 'merge' "$ERR"
fi
lvmsync sync vg/guest siteb:vg/copy --retries 0 >"$OUT" 2>"$ERR" && as_snapshot vg/guest vg/copy
tail -n 3 "$ERR"
expect 0 '' lvmsync repair vg/guest siteb:vg/copy
as_snapshot vg/guest vg/copy

it "waits for a snapshot of the volume to be merged"
lvcreate -q -q -y -s -L 8m -n old vg/guest
change
hold /dev/vg/guest
lvconvert -q -y --merge vg/old >/run/merge.out 2>&1
cat /run/merge.out
lvs -a -o lv_name,lv_attr,lv_merging vg
left_alone expect 2 'merged' lvmsync sync vg/guest siteb:vg/copy --retries 0
tail -n 2 "$ERR"
exec 8<&-
lvchange -q -an vg/guest
lvchange -q -ay vg/guest
until_true no_volume vg/old
found=0
lvmsync sync vg/guest siteb:vg/copy --retries 0 --json >"$OUT" 2>"$ERR" || found=$?
echo "--- after the merge it ended with $found: $(tail -n 3 "$ERR") $(of_receipt kind)"
if [[ $found == 0 ]]; then same /dev/vg/guest /dev/vg/copy; else expect 0 '' lvmsync repair vg/guest siteb:vg/copy; fi
same /dev/vg/guest /dev/vg/copy

it "goes on with a delta after the volume was rolled back by a merge"
lvcreate -q -q -y -s -L 8m -n old vg/guest
change
expect 0 '' lvmsync sync vg/guest siteb:vg/copy
change
merged vg/old
expect 0 '' lvmsync sync vg/guest siteb:vg/copy --json
echo "--- $(of_receipt kind)"
same /dev/vg/guest /dev/vg/copy

undone
gone_vols vg/copy vg/guest
lvcreate -q -q -y -L 40m --poolmetadatasize 4m --poolmetadataspare n -c 64k -T vg/pool
lvcreate -q -q -y -V 4m -T vg/pool -n guest
dd if=/dev/urandom of=/dev/vg/guest bs=1M oflag=direct status=none count=4
thin_first() { expect 0 '' lvmsync sync vg/guest siteb:vg/copy --create --thin-pool vg/pool; }

it "refuses a thin copy that was rolled back to a snapshot of it"
thin_first
lvcreate -q -q -y -s -n old vg/copy
change
expect 0 '' lvmsync sync vg/guest siteb:vg/copy
lvchange -q -an vg/copy
merged vg/old
lvchange -q -ay -K vg/copy
refused 8 'siteb:vg/copy.*(lv:|another device).*(repair|--full)'
expect 0 '' lvmsync repair vg/guest siteb:vg/copy
as_snapshot vg/guest vg/copy

it "refuses a thin copy that was rolled back to what it was, and holds the same"
lvcreate -q -q -y -s -n old vg/copy
lvchange -q -an vg/copy
merged vg/old
lvchange -q -ay -K vg/copy
change
found=0
lvmsync sync vg/guest siteb:vg/copy --retries 0 --json >"$OUT" 2>"$ERR" || found=$?
echo "--- it ended with $found: $(tail -n 3 "$ERR") $(of_receipt kind)"
if [[ $found != 0 ]]; then expect 0 '' lvmsync repair vg/guest siteb:vg/copy; fi
as_snapshot vg/guest vg/copy

it "refuses a thin copy that is to be rolled back as soon as it is activated"
lvcreate -q -q -y -s -n old vg/copy
change
expect 0 '' lvmsync sync vg/guest siteb:vg/copy
hold /dev/vg/copy
lvconvert -q -y --merge vg/old >/run/merge.out 2>&1
exec 8<&-
cat /run/merge.out
lvs -a -o lv_name,lv_attr,lv_merging vg
found=0
change
lvmsync sync vg/guest siteb:vg/copy --retries 0 >"$OUT" 2>"$ERR" || found=$?
echo "--- it ended with $found: $(tail -n 3 "$ERR")"
lvchange -q -an vg/copy
lvchange -q -ay -K vg/copy
until_true no_volume vg/old
if [[ $found == 0 ]]; then
    as_snapshot vg/guest vg/copy
else
    says 'merge' "$ERR"
fi
refused 8 'siteb:vg/copy.*(lv:|another device).*(repair|--full)'
expect 0 '' lvmsync repair vg/guest siteb:vg/copy
as_snapshot vg/guest vg/copy

it "goes on with a delta after a thin volume was rolled back"
lvcreate -q -q -y -s -n old vg/guest
change
expect 0 '' lvmsync sync vg/guest siteb:vg/copy
change
lvchange -q -an vg/guest
merged vg/old
lvchange -q -ay -K vg/guest
found=0
lvmsync sync vg/guest siteb:vg/copy --json --retries 0 >"$OUT" 2>"$ERR" || found=$?
echo "--- it ended with $found: $(tail -n 3 "$ERR") $(of_receipt kind)"
is "$found" 0 'the status'
same /dev/vg/guest /dev/vg/copy

it "waits for a thin volume to be rolled back"
lvcreate -q -q -y -s -n old vg/guest
change
hold /dev/vg/guest
lvconvert -q -y --merge vg/old >/run/merge.out 2>&1
lvs -a -o lv_name,lv_attr,lv_merging vg
left_alone expect 2 'merged' lvmsync sync vg/guest siteb:vg/copy --retries 0
tail -n 2 "$ERR"
exec 8<&-
lvchange -q -an vg/guest
lvchange -q -ay -K vg/guest
until_true no_volume vg/old
expect 0 '' lvmsync sync vg/guest siteb:vg/copy --json --retries 0
same /dev/vg/guest /dev/vg/copy
tidy guest copy pool

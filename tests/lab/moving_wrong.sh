# shellcheck shell=bash
# Copies that are not what they were, and trackers that fail without a word. /dev/ubda is for LVM.
# Refused each time: with both sides shown, the way out named, and not a byte of the copy changed.
. "$LAB/moving.sh"

moving_sites
make_vg vg /dev/ubda
two_volumes

it "refuses a copy that its owner put back to an older state"
anew
lvcreate -q -y -s -L 4m -n before vg/copy
change
expect 0 '' lvmsync sync vg/guest siteb:vg/copy
as_snapshot vg/guest vg/copy
merged vg/before
refused 8 'siteb:vg/copy.*lv:.*(repair|--full)'

it "never says that all is well when the map lies"
anew
base=$(base_of vg/guest)
cow=/dev/mapper/vg-$(sed 's/-/--/g' <<<"${base#vg/}")-cow
change
change
before=$(sum /dev/vg/copy)
# The store's exceptions begin in the second chunk; the kernel has them in memory, and reads no more.
chunk=$(lvs --noheadings --units b --nosuffix -o chunk_size "$base" | tr -d ' ')
dd if=/dev/zero of="$cow" bs=512 seek=$((chunk / 512)) count=$((chunk / 512)) oflag=direct conv=notrunc status=none
expect 4 'the store has . exceptions, the kernel says' lvmsync sync vg/guest siteb:vg/copy --retries 0
is "$(sum /dev/vg/copy)" "$before" 'the sha256 of the copy'
tidy guest copy

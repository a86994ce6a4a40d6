# shellcheck shell=bash
# Copies that are not what they were, and trackers that fail without a word. /dev/ubda is for LVM.
# Refused each time: with both sides shown, the way out named, and not a byte of the copy changed.
. "$LAB/moving.sh"

moving_sites
make_vg vg /dev/ubda
lvcreate -q -y -W n -L 8m -n guest vg
lvcreate -q -y -W n -L 8m -n copy vg
dd if=/dev/urandom of=/dev/vg/guest bs=1M count=8 oflag=direct status=none

# refused STATUS PATTERN: the next run is, and the copy is left alone.
refused() {
    local before
    before=$(sum /dev/vg/copy)
    change
    expect "$1" "$2" lvmsync sync vg/guest siteb:vg/copy --retries 0
    is "$(sum /dev/vg/copy)" "$before" 'the sha256 of the copy'
    tail -n 3 "$ERR"
}

# change: a block of the volume.
change() { dd if=/dev/urandom of=/dev/vg/guest bs=4k seek=$((RANDOM % 2048)) count=1 oflag=direct status=none; }

# anew: the way out that copies everything.
anew() {
    expect 0 '' lvmsync sync vg/guest siteb:vg/copy --full
    as_snapshot vg/guest vg/copy
}

it "refuses a copy that was written to"
anew
dd if=/dev/urandom of=/dev/vg/copy bs=4k seek=77 count=1 oflag=direct status=none
refused 8 'siteb:vg/copy.*written to.*lv:.*(repair|--full)'

it "refuses a copy that was written to after the counters were reset"
anew
lvchange -q -an vg/copy
lvchange -q -ay vg/copy
dd if=/dev/urandom of=/dev/vg/copy bs=64k count=1 oflag=direct status=none
refused 8 'siteb:vg/copy.*(written to|does not hold it any more).*(repair|--full|compare)'

it "goes on with a copy that was only read, or had a snapshot meanwhile, or another name"
anew
lvcreate -q -y -s -L 4m -n look vg/copy
cmp /dev/vg/look /dev/vg/copy
lvremove -q -y vg/look
lvrename -q vg/copy vg/other
lvrename -q vg/other vg/copy
change
lvrename -q vg/guest vg/renamed
expect 0 '' lvmsync sync vg/renamed siteb:vg/copy --json
is "$(of_receipt kind)" delta kind
as_snapshot vg/renamed vg/copy
lvrename -q vg/renamed vg/guest

it "refuses another volume of the copy's name"
lvremove -q -y vg/copy
lvcreate -q -y -W n -L 8m -n copy vg
refused 8 'siteb:vg/copy.*(another|other).*(repair|--full)'

it "refuses a copy whose own history was put back to an older one"
anew
cp -a /run/siteb/state /run/old-target
change
expect 0 '' lvmsync sync vg/guest siteb:vg/copy
rm -rf /run/siteb/state/targets
cp -a /run/old-target/targets /run/siteb/state/
refused 8 'siteb:vg/copy.*lv:'

it "refuses an increment that skips another, one that leads back, and a copy that came from elsewhere"
anew
base=$(base_of vg/guest)
sleep 1.1 # LVM tells the times of snapshots in seconds
lvcreate -q -y -s -L 8m -n s1 vg/guest
change
sleep 1.1
lvcreate -q -y -s -L 8m -n s2 vg/guest
change
expect 0 '' lvmsync send "$base" -r vg/s1 -o /run/one
expect 0 '' lvmsync send vg/s1 -r vg/s2 -o /run/two
take() { expect "$1" "$2" at_siteb /run/forks-b/lvmsync receive -i "$3" vg/copy; }
take 8 'lv:.*lv:' /run/two
take 0 '' /run/one
take 0 '' /run/one # the same once more changes nothing
take 0 '' /run/two
take 8 'lv:.*lv:' /run/one
same /dev/vg/s2 /dev/vg/copy
lvremove -q -y vg/s1 vg/s2
refused 8 'siteb:vg/copy.*lv:.*lv:.*(repair|--full)'

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

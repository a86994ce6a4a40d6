# shellcheck shell=bash
# More copies and histories that are not what they were; not in CI. /dev/ubda is for LVM.
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

it "refuses to skip what another machine's history holds"
anew
cp -a /var/lib/lvmsync /run/old-source
old=$(base_of vg/guest)
change
expect 0 '' lvmsync sync vg/guest siteb:vg/copy
rm -rf /var/lib/lvmsync/replicas
cp -a /run/old-source/replicas /var/lib/lvmsync/
change
expect 0 '' lvmsync sync vg/guest siteb:vg/copy --json # what the tags say counts, not an old record
is "$(of_receipt kind)" delta kind
as_snapshot vg/guest vg/copy
if [[ $old == "$(base_of vg/guest)" ]]; then wrong 'the base is still the first one'; fi

it "refuses a copy that was put back to an older state, history and all"
anew
cp -a /run/siteb/state /run/old-target2
dd if=/dev/vg/copy of=/run/old-copy bs=1M status=none
change
expect 0 '' lvmsync sync vg/guest siteb:vg/copy
dd if=/run/old-copy of=/dev/vg/copy bs=1M oflag=direct status=none
refused 8 'siteb:vg/copy.*written to'


# shellcheck shell=bash
# For scripts that move volumes in use from one site to the other:  . "$LAB/moving.sh"
#
# What is checked is seen from outside lvmsync: sha256sum, e2fsck, the kernel's counters, lvs and dmsetup.
. "$LAB/sites.sh"
. "$LAB/cases.sh"

PYTHON=$LAB_ROOT/.venv/bin/python

# moving_sites: two sites; lvmsync is forked on both, so that a run takes 3 s and not 18. A script that comes after another
# in the same guest finds them as they were, and without what that one has left.
moving_sites() {
    local path=$PATH
    if [[ -p /run/never ]]; then
        slow
        vgremove -q -y -f vg >/dev/null
        rm -rf /var/lib/lvmsync/* /run/siteb/state/*
        return
    fi
    mkfifo /run/never
    PATH=/run/forks-b:$PATH two_sites
    until_true test -s /run/siteb/sshd.pid
    "$PYTHON" -P "$LAB/forks.py" /run/forks:/run/forks-b asyncssh </dev/null &
    until_true test -p /run/forks/calls
    export PATH=/run/forks:$path
}

# --- The writers

# some_files: the writer has written so many that a copy that is begun now must have some.
some_files() { [[ -s /run/writer.log ]] && (($(wc -l </run/writer.log) > 5)); }

# write_files FOLDER: files with their checksums as names, all the time; see migrate_writer.py.
write_files() {
    run "$LAB/migrate_writer.py" "$1" /run/writer.log 32768 "${2:-0.1}" </dev/null >/run/writer.out 2>&1 &
    FILES_WRITER=$!
    until_true some_files
}

# write_blocks DEVICE [SECONDS [BLOCKS]]: 4 KiB of noise at random places of the first BLOCKS, all the time.
write_blocks() {
    run "$LAB/moving_blocks.py" "$1" "${2:-0.02}" "${3:-0}" </dev/null >/run/blocks.out 2>&1 &
    BLOCKS_WRITER=$!
}

# stop_writer NUMBER: as a user's stop command does.
stop_writer() {
    kill -TERM "$(cat "/run/forks/$1.pid")"
    wait "$1" || wrong "a writer ended with $?: $(tail -n 3 /run/writer.out /run/blocks.out)"
}

# --- A run in the background, and accidents

# begin COMMAND...: start it; RUN is its number.
begin() {
    sent_before=$(line_bytes)
    "$@" >"$OUT" 2>"$ERR" </dev/null &
    RUN=$!
}

# ended STATUS PATTERN: wait for it, and check how it ended.
ended() {
    local found=0
    wait "$RUN" || found=$?
    echo "--- $SECONDS s: it ended with $found, and $(($(line_bytes) - sent_before)) bytes went over the line: $(tail -n 5 "$ERR")"
    if [[ $found != "$1" ]]; then wrong "status $found, not $1: $(tail -n 5 "$ERR")"; fi
    says "$2" "$ERR"
}

# line_bytes: all bytes that have gone over the line between the sites, both ways.
line_bytes() {
    look_at_line
    echo "$line_now"
}
look_at_line() { # without a fork: it is asked often
    local sent received
    read -r sent </sys/class/net/vetha/statistics/tx_bytes
    read -r received </sys/class/net/vetha/statistics/rx_bytes
    line_now=$((sent + received))
}

# is_on_line BYTES: wait until so much has gone over the line since the run began; fails if that has ended before.
is_on_line() {
    look_at_line
    until ((line_now - sent_before >= $1)); do
        [[ -d /proc/$RUN ]] || return
        read -rt 0.01 <>/run/never || true # a sleep without a process
        look_at_line
    done
}
on_line() { is_on_line "$1" || wrong "the run ended before $1 bytes had gone over the line: $(tail -n 5 "$ERR")"; }

# kill_source, kill_agent: SIGKILL to the lvmsync that sends, and to those on the other site.
kill_source() { kill -KILL "$(cat "/run/forks/$RUN.pid")"; }
kill_agent() {
    local killed=0 file
    for file in /run/forks-b/*.pid; do
        if [[ -e $file ]] && kill -KILL "$(cat "$file")"; then killed=1; fi
    done
    is "$killed" 1 'the number of agents that were killed'
}

# no_agent: the other site has noticed that the line is gone.
no_agent() { ! compgen -G '/run/forks-b/*.pid' >/dev/null; }

# slow [NETEM...]: what the line is like from now on; nothing: as fast as it can be.
slow() {
    tc qdisc del dev vetha root 2>/dev/null || true
    if (($#)); then tc qdisc add dev vetha root netem limit 10000 "$@"; fi
}

# --- Copies that are spoilt between two runs: vg/guest, and vg/copy on the other site

# two_volumes [MIB]: both, the first full of noise.
two_volumes() {
    lvcreate -q -y -W n -L "${1:-4}m" -n guest vg >/dev/null
    lvcreate -q -y -W n -L "${1:-4}m" -n copy vg >/dev/null
    dd if=/dev/urandom of=/dev/vg/guest bs=1M oflag=direct status=none count="${1:-4}"
}

# put VG/LV PLACE [BLOCKS]: noise into blocks of 4 KiB.
put() { dd if=/dev/urandom of="/dev/$1" bs=4k seek="$2" count="${3:-1}" oflag=direct status=none; }

# change: a block of the volume, in its first MiB.
change() { put vg/guest $((RANDOM % 256)); }

# anew: the way out that copies everything.
anew() {
    expect 0 '' lvmsync sync vg/guest siteb:vg/copy --full
    as_snapshot vg/guest vg/copy
}

# refused STATUS PATTERN: the next run is, with words that match, and not a byte of the copy is changed.
refused() {
    local before
    before=$(sum /dev/vg/copy)
    change
    expect "$1" "$2" lvmsync sync vg/guest siteb:vg/copy --retries 0
    is "$(sum /dev/vg/copy)" "$before" 'the sha256 of the copy'
    tail -n 3 "$ERR"
}

# merged VG/SNAPSHOT: its origin is what it was; returns when LVM has done that.
merged() {
    lvconvert -q -y --merge "$1" >/dev/null
    until_true no_volume "$1"
}
no_volume() { ! lvs "$1" >/dev/null 2>&1; }

# --- What must be so afterwards

# base_of VG/LV: the one snapshot of lvmsync's of a volume, which has to be a base.
base_of() {
    local found
    found=$(lvs --noheadings -o full_name,lv_tags -S "origin=${1#*/} && lv_tags=lvmsync" "${1%/*}")
    if [[ $found != *lvmsync.role=base* || $(wc -l <<<"$found") != 1 ]]; then wrong "$1 has not one base but: $found" >&2; fi
    awk '{ print $1; exit }' <<<"$found"
}

# sum DEVICE [BYTES]: sha256 of it, past no cache.
sum() { dd if="$1" bs=1M iflag=direct status=none | head -c "${2:-999G}" | sha256sum | cut -d' ' -f1; }

# as_snapshot VG/LV TARGET: the target is, byte for byte, what the kept snapshot of the volume is.
as_snapshot() {
    local base bytes pool
    base=$(base_of "$1")
    bytes=$(blockdev --getsize64 "/dev/$1")
    pool=$(lvs --noheadings -o pool_lv "$base" | tr -d ' ')
    if [[ $pool ]]; then lvchange -q -ay -K "$base"; fi
    is "$(sum "/dev/$2" "$bytes")" "$(sum "/dev/$base" "$bytes")" "the sha256 of $2"
    if [[ $pool ]]; then lvchange -q -an "$base"; fi
}

# remember_files: which files have to be in a copy that is begun now.
remember_files() { awk '/^-/ { delete at[substr($0, 2)]; next } { at[$0] = 1 } END { for (name in at) print name }' /run/writer.log >/run/wanted; }

# whole_files VG/LV: the target's file system is clean, and every file in it is whole; those that were remembered are
# there, but for what the writer has removed since. Looked at in a snapshot, since the target must not be written to.
whole_files() {
    local name count=0
    lvcreate -q -y -s -L 8m -n look "$1" >/dev/null
    e2fsck -p "/dev/${1%/*}/look" >"$OUT" 2>&1 || (($? == 1)) || wrong "the journal of $1: $(cat "$OUT")"
    e2fsck -fn "/dev/${1%/*}/look" >"$OUT" 2>&1 || wrong "the file system of $1: $(cat "$OUT")"
    mkdir -p /run/look
    mount -o ro "/dev/${1%/*}/look" /run/look
    while read -r name; do # of what is not there, the writer has to have removed it
        grep -qx -- "-$name" /run/writer.log || wrong "$name is not there"
    done < <(ls /run/look | sort - /run/wanted /run/wanted | uniq -c | awk '$1 == 2 { print $2 }')
    for name in /run/look/*-*; do
        echo "${name##*-}  $name"
        count=$((count + 1))
    done >/run/sums
    sha256sum --check --quiet /run/sums >"$OUT" 2>&1 || wrong "files are not whole: $(cat "$OUT")"
    umount /run/look
    lvremove -q -y "${1%/*}/look" >/dev/null
    if ((count < 5)); then wrong "only $count files are there"; fi
}

# unlocked: the locks in the state folders that somebody holds.
unlocked() {
    local file
    while read -r file; do
        flock -n "$file" true || echo "$file"
    done < <(find /var/lib/lvmsync /run/siteb/state /run/lvmsync /run/lock -name '*lock*' -type f 2>/dev/null)
}

# tidy NAME...: these volumes are all there are besides one base for each of REPLICAS (1); nothing is suspended, frozen,
# locked, mounted, attached or half done, and no process is left.
tidy() {
    local found file
    found=$(lvs --noheadings -o lv_name -S 'lv_tags!=lvmsync' vg | tr -d ' ' | sort | tr '\n' ' ')
    is "$found" "$(printf '%s\n' "$@" | sort | tr '\n' ' ')" 'the volumes'
    is "$(lvs --noheadings -o lv_name @lvmsync | wc -l)" "${REPLICAS:-1}" 'the number of snapshots of lvmsync'
    is "$(lvs --noheadings -o lv_name @lvmsync.role=base | wc -l)" "${REPLICAS:-1}" 'the number of bases'
    is "$(dmsetup info -c --noheadings -o name,suspended | grep ':Suspended$')" '' 'the suspended devices'
    is "$(dmsetup info -c --noheadings -o name,uuid | grep -v -e ':LVM-' -e ^over-)" '' 'the devices that are not of LVM, nor of the script'
    is "$(losetup -a)" '' 'the loop devices'
    is "$(unlocked)" '' 'the locks that are held'
    for found in $(awk '$3 == "ext4" { print $2 }' /proc/mounts); do
        timeout 20 sh -c "echo x >$found/not-frozen && sync $found/not-frozen && rm $found/not-frozen" || wrong "$found is frozen"
    done
    is "$(find /run/lvmsync -type f ! -name '*lock*' 2>/dev/null)" '' 'the notes of what is held'
    is "$(find /var/lib/lvmsync /run/siteb/state -name '*.undo' -o -name '*.progress' -o -name '*.spool' -o -name '*-check')" '' 'the undo files'
    is "$(grep -l '"transaction": {' /run/siteb/state/targets/*/record.json)" '' 'the open transactions'
    until_true no_agent
    found=''
    for file in /run/forks/*.pid; do
        [[ ! -e $file || $file == /run/forks/"${FILES_WRITER:-}".pid || $file == /run/forks/"${BLOCKS_WRITER:-}".pid ]] || found+=" $file"
    done
    is "$found" '' 'the processes that are left'
}

# cleaned: cleanup finds nothing but bases that are needed, and removes nothing.
cleaned() {
    expect 0 '' lvmsync cleanup --remove
    says 'nothing was left' "$OUT"
}

# of_receipt KEY: a value of the last receipt.
of_receipt() { sed -n 's/.*"'"$1"'": \("\([^"]*\)"\|\([^,}]*\)\).*/\2\3/p' "$OUT"; }

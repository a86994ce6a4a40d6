# shellcheck shell=bash
# Both sites lose their power while a volume is copied, and come back. /dev/ubda is for LVM, /dev/ubdb has both
# state folders. KIND is classic or thin; STEP is begin (until the cut), again (a run that is cut as well), next (what was
# cut is finished, and another copy is cut) or finish; CUT is first or delta.
. "$LAB/moving.sh"

mkdir /run/disk
mount /dev/ubdb /run/disk
mkdir -p /run/disk/a /run/disk/b /run/siteb/state
mount --bind /run/disk/a /var/lib/lvmsync
mount --bind /run/disk/b /run/siteb/state
moving_sites

# files FIRST LAST: durable files with their checksums as names.
files() {
    local number name
    for ((number = $1; number <= $2; number++)); do
        head -c 200000 /dev/urandom >/run/file
        name=$(sha256sum </run/file)
        cp /run/file "/run/here/$(printf %04d "$number")-${name%% *}"
    done
    sync -f /run/here
}

# until_cut: a run that the host will cut; it says when so many BYTES have gone over the line, and when it has ended.
until_cut() {
    begin lvmsync sync vg/guest siteb:vg/copy "$@"
    on_line "$BYTES"
    touch "$SHARE/moving"
    wait "$RUN" || true
    cat "$ERR"
    touch "$SHARE/ended"
    sleep 1000
}

create=(--create) # of the target, which may have been lost with the power
if [[ $KIND == thin ]]; then create+=(--thin-pool vg/pool); fi
case $STEP in
    begin)
        make_vg vg /dev/ubda
        if [[ $KIND == thin ]]; then
            lvcreate -q -y -L 80m --poolmetadatasize 4m --poolmetadataspare n -c 64k -T vg/pool
            lvcreate -q -y -V 24m -T vg/pool -n guest
        else
            lvcreate -q -y -W n -L 24m -n guest vg
        fi
        mkfs.ext4 -q /dev/vg/guest
        mkdir /run/here
        mount /dev/vg/guest /run/here
        files 1 20
        slow rate 16mbit
        if [[ $CUT == first ]]; then until_cut "${create[@]}"; fi
        lvmsync sync vg/guest siteb:vg/copy "${create[@]}"
        files 21 40
        until_cut
        ;;
    again)
        vgchange -q -ay vg
        mkdir /run/here
        mount /dev/vg/guest /run/here
        files 41 45
        slow rate 16mbit
        until_cut "${create[@]}"
        ;;
    next | finish)
        vgchange -q -ay vg
        mkdir /run/here
        mount /dev/vg/guest /run/here
        it "is as it should be after a power cut"
        lvs -a -o+tags vg
        files 46 50
        ls /run/here | grep -e - >/run/wanted
        : >/run/writer.log
        expect 0 '' lvmsync sync vg/guest siteb:vg/copy "${create[@]}" --json
        cat "$OUT" "$ERR"
        as_snapshot vg/guest vg/copy
        whole_files vg/copy
        if [[ $KIND == thin ]]; then tidy pool guest copy; else tidy guest copy; fi
        cleaned
        if [[ $STEP == finish ]]; then exit 0; fi
        rm /run/here/*-*
        files 51 60
        if [[ $CUT == first ]]; then
            expect 0 '' lvmsync cleanup --replica "$(basename /var/lib/lvmsync/replicas/????????????????)"
            lvremove -q -y vg/copy
            files 61 70
        fi
        slow rate 16mbit
        until_cut "${create[@]}"
        ;;
esac

# shellcheck shell=bash
# A file system in use is copied over a line that is slow, lossy and cut, by an lvmsync that is killed on either site.
# /dev/ubda is for LVM. KIND is classic or thin: what the volume and its copy are.
. "$LAB/moving.sh"

moving_sites
make_vg vg /dev/ubda
if [[ $KIND == thin ]]; then
    lvcreate -q -y -L 100m --poolmetadatasize 4m --poolmetadataspare n -c 64k -T vg/pool
    lvcreate -q -y -V 20m -T vg/pool -n guest
    volumes=(pool guest copy)
    create=(--create --thin-pool vg/pool)
else
    lvcreate -q -y -W n -L 20m -n guest vg
    volumes=(guest copy)
    create=(--create)
fi
mkfs.ext4 -q /dev/vg/guest
mkdir -p /run/here
mount /dev/vg/guest /run/here
write_files /run/here 0.5

# noisy: 3 MiB that cannot be compressed have changed.
noisy() {
    head -c 3M /dev/urandom >/run/here/noise
    sync /run/here/noise
    remember_files
}

it "copies a volume in use for the first time over a slow and lossy line that is cut in the middle"
noisy
slow delay 20ms 5ms loss 0.1% rate 20mbit
begin lvmsync sync vg/guest siteb:vg/copy "${create[@]}" --stall-timeout 5 --json
on_line 1000000
ip link set vetha down
until_true grep -q 'opened again\|trying again' "$ERR"
ip link set vetha up
ended 0 ''
as_snapshot vg/guest vg/copy
whole_files vg/copy

it "goes on in the next run when the source was killed"
noisy
slow rate 20mbit
begin lvmsync sync vg/guest siteb:vg/copy
on_line 1500000
kill_source
ended 137 ''
slow
begin lvmsync sync vg/guest siteb:vg/copy --json
ended 0 ''
is "$(of_receipt kind)" resume kind
as_snapshot vg/guest vg/copy
tidy "${volumes[@]}"

it "goes on by itself when the other site's lvmsync was killed"
noisy
slow rate 20mbit
begin lvmsync sync vg/guest siteb:vg/copy --json
on_line 1500000
kill_agent
slow
ended 0 ''
as_snapshot vg/guest vg/copy
whole_files vg/copy
tidy "${volumes[@]}"

it "moves next to nothing when nothing has changed, and says so"
stop_writer "$FILES_WRITER"
umount /run/here
expect 0 '' lvmsync sync vg/guest siteb:vg/copy
same /dev/vg/guest /dev/vg/copy
begin lvmsync sync vg/guest siteb:vg/copy
ended 0 'nothing had changed'
sent=$(($(line_bytes) - sent_before))
if ((sent >= 65536)); then wrong "$sent bytes went over the line"; fi
same /dev/vg/guest /dev/vg/copy
tidy "${volumes[@]}"
cleaned

it "refuses the copy once somebody else has written to it"
put vg/guest 100
put vg/copy 2000
expect 8 'siteb:vg/copy.*written to.*lv:.*(repair|--full)' lvmsync sync vg/guest siteb:vg/copy --json
differ /dev/vg/guest /dev/vg/copy

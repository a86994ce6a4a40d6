# shellcheck shell=bash
# Two receivers of one target. /dev/ubda is for LVM, /dev/ubdb is noise, /dev/ubdc is for the state folder.
. "$LAB/sites.sh"
. "$LAB/cases.sh"

mkfs.ext4 -q /dev/ubdc
mount /dev/ubdc /var/lib/lvmsync

make_vg vg /dev/ubda
for name in data copy; do
    lvcreate -q -y -W n -L 16m -n "$name" vg
    dd if=/dev/ubdb of="/dev/vg/$name" bs=1M count=16 oflag=direct status=none
done
lvcreate -q -y -s -c 4k -L 12m -n snap vg/data
dd if=/dev/vg/copy of=/run/copy.img bs=1M status=none
change() { dd if=/dev/ubdb of=/dev/vg/data bs=64k seek="$1" skip="$2" count="$3" oflag=direct status=none; }

change 5 300 20
lvmsync send -q -o /run/first.stream vg/snap

it "refuses a second receiver of one volume, whatever it calls that"
sender=(cat /run/first.stream)
receiver=(lvmsync receive vg/copy --snapback /var/lib/lvmsync/first.back)
start_gated 1000
has_begun() { [[ $(open_transactions) == 1 ]]; }
until_true has_begun
expect 3 'cannot open /dev/vg/copy: it is mounted, or held by another program' \
    lvmsync receive -i /run/first.stream vg/copy
expect 3 'cannot open /dev/mapper/vg-copy: it is mounted, or held by another program' \
    lvmsync recover /dev/mapper/vg-copy
end_gated 0 0
same /dev/vg/data /dev/vg/copy

it "refuses a second receiver of one image file"
receiver=(lvmsync receive /run/copy.img)
start_gated 1000
until_true has_begun
ln -s copy.img /run/link.img
expect 3 '/run/link.img is locked by another program, perhaps another receive' \
    lvmsync receive -i /run/first.stream /run/link.img
end_gated 0 0
same /dev/vg/data /run/copy.img

it "leaves what a killed receiver began alone until recover is told to undo it"
receiver=(lvmsync receive vg/copy --snapback /run/killed.back)
start_gated 1000
until_true has_begun
pkill -KILL -n -f 'lvmsync receive'
end_gated 141 137 # its reader is gone
expect 8 "has an unfinished transaction of .*: run 'lvmsync recover vg/copy' first$|run 'lvmsync recover /dev/vg/copy' first$" \
    lvmsync receive -i /run/first.stream vg/copy
is "$(open_transactions)" 1 'number of open transactions'
is "$(stat -c %n /run/killed.back)" /run/killed.back 'the undo'
expect 0 'rolled back: the target is as it was' lvmsync recover vg/copy
is "$(open_transactions)" 0 'number of open transactions'
gone /run/killed.back
same /dev/vg/data /dev/vg/copy

it "takes the next change of the same snapshot"
change 40 500 8
expect 0 '' bash -o pipefail -c \
    'lvmsync send vg/snap | lvmsync receive vg/copy --snapback /var/lib/lvmsync/second.back'
same /dev/vg/data /dev/vg/copy
sync

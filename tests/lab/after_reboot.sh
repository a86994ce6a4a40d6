# shellcheck shell=bash
# The same disks after a reboot: what the ledger knows counts still.
. "$LAB/sites.sh"
. "$LAB/cases.sh"

mount /dev/ubdc /var/lib/lvmsync
vgchange -q -ay vg

it "knows after a reboot that a newer change comes first"
expect 8 'this snapback undoes another change; apply the newer snapbacks first' \
    lvmsync apply /var/lib/lvmsync/first.back vg/copy
same /dev/vg/data /dev/vg/copy

it "takes the snapbacks in their order, and ends at the snapshot"
expect 0 '' lvmsync apply /var/lib/lvmsync/second.back vg/copy
differ /dev/vg/snap /dev/vg/copy
expect 0 '' lvmsync apply /var/lib/lvmsync/first.back vg/copy
same /dev/vg/snap /dev/vg/copy

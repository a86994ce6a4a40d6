# shellcheck shell=bash
# The same disks as thin_cut.sh had, after the power came back.
. "$LAB/cases.sh"

mount /dev/ubdc /var/lib/lvmsync
vgchange -q -ay vg 2>/run/lvm.err

it "still has the metadata snapshot taken after the power cut, and knows whose it is"
root=$(dmsetup status vg-pool-tpool | cut -d' ' -f7)
[[ $root != - ]] || wrong "none is taken: $(dmsetup status vg-pool-tpool)"
expect 0 "block $root. was taken by lvmsync process [0-9]+ .*cleanup --release" bash -c 'lvmsync cleanup >&2'

it "gives it back in the next run, says so, and the copy is right"
expect 0 "block $root. was taken by lvmsync process [0-9]+ .*ended without giving it back: it was given back now" \
    bash -c 'lvmsync send vg/one | lvmsync receive -q vg/copy'
is "$(dmsetup status vg-pool-tpool | cut -d' ' -f7)" - 'the metadata snapshot'
same /dev/vg/data /dev/vg/copy

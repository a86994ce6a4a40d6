"""The README's examples of volumes in use, run in their order on two real sites."""

from __future__ import annotations

from tests.lab.conftest import Lab
from tests.lab.test_readme import checked, examples, sections

_SETUP = """
. "$LAB/moving.sh"
make_vg vg /dev/ubda
make_vg vg2 /dev/ubdb
lvcreate -qq -y -L 24M -n web vg
mkfs.ext4 -q /dev/vg/web
moving_sites  # before the mount, which would live on in the other site's mounts
mount /dev/vg/web /srv
head -c 3M /dev/urandom > /srv/page
lvcreate -qq -y -L 8M -n db vg
lvcreate -qq -y -L 8M -n log vg
dd if=/dev/urandom of=/dev/vg/db bs=1M count=6 oflag=direct status=none
dd if=/dev/urandom of=/dev/vg/log bs=1M count=2 oflag=direct status=none
sync
is_not_there() { ! lvs vg/webcopy 2>/dev/null || { echo "something was made by: $1"; exit 1; }; }
holds_base() {
    base=$(lvs --noheadings -o lv_full_name -S 'origin=web && lv_tags=lvmsync.role=base' | tr -d ' ')
    cmp "/dev/$base" /dev/vg/webcopy || { echo "copy is not its base after: $1"; exit 1; }
    head -c 1M /dev/urandom > /srv/another
    sync
}
holds_group() {
    cmp /dev/vg/db /dev/vg2/db && cmp /dev/vg/log /dev/vg2/log || { echo "not the same after: $1"; exit 1; }
}
is_moved() {
    blockdev --flushbufs /dev/vg/webcopy
    cmp /dev/vg/web /dev/vg/webcopy && ! grep -q ' /srv ' /proc/mounts || { echo "not moved after: $1"; exit 1; }
}
"""
_AFTER = {
    "lvmsync plan ": "is_not_there",
    "lvmsync sync vg/web ": "holds_base",
    "lvmsync sync --group ": "holds_group",
    "lvmsync migrate ": "is_moved",
    "lvmsync repair ": "holds_group",
}


def test_every_example_of_volumes_in_use_works(lab: Lab) -> None:
    lines = [f"{line} || [ $? = 3 ]" if line.startswith("lvmsync doctor") else line for line in examples(sections()[1])]
    script = [_SETUP, *checked(lines, _AFTER)]
    lab.run("\n".join(script), disks=[lab.disk(size=192 << 20), lab.disk("other", 64 << 20)])

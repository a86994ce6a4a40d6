"""The lab itself: real LVM, two sites, and a power cut that loses what it should."""

from __future__ import annotations

import sys

from tests.lab.conftest import Lab

SNAPSHOT = r"""
. "$LAB/sites.sh"
make_vg vg /dev/ubda
lvcreate -q -y -W n -L 16m -n data vg
lvcreate -q -y -s -c 4k -L 4m -n snap vg/data
new=$(mktemp)
head -c 65536 /dev/urandom >"$new"
dd if="$new" of=/dev/vg/data bs=64k seek=3 oflag=direct status=none
cmp -n 65536 -i 196608:0 /dev/vg/data "$new"
cmp -n 65536 -i 196608:0 /dev/vg/snap /dev/zero
dmsetup status vg-snap >"$SHARE/snap"
command -v lvmsync python
"""

TWO_SITES = r"""
. "$LAB/sites.sh"
two_sites
mkdir -p /var/lib/lvmsync && touch /var/lib/lvmsync/ours
ssh siteb 'hostname; ls -A /var/lib/lvmsync; command -v python; cat; exit 7' <<<'over the line' >"$SHARE/far" ||
    echo $? >"$SHARE/status"
at_siteb hostname >"$SHARE/name"
hostname >>"$SHARE/name"
! ssh -o UserKnownHostsFile=/dev/null -o GlobalKnownHostsFile=/dev/null siteb true
"""

CUT = r"""
printf synced | dd of=/dev/ubda bs=512 conv=sync,fsync,notrunc status=none
exec 5<>/dev/ubdb  # open until the end, as the last close writes everything out
printf cached >&5
echo done >"$SHARE/ready"
sleep 1000
"""


def test_a_snapshot_keeps_what_its_origin_had(lab: Lab) -> None:
    lab.run(SNAPSHOT, disks=[lab.disk()])
    start, length, kind, use, *_ = (lab.share / "snap").read_text().split()
    assert (start, length, kind) == ("0", "32768", "snapshot")
    allocated, total = use.split("/")
    assert int(total) == 8192
    assert int(allocated) >= 128 + 8  # 64 KiB of data, and a chunk of exceptions


def test_two_sites_talk_over_ssh(lab: Lab) -> None:
    lab.run(TWO_SITES)
    assert (lab.share / "far").read_text().splitlines() == ["siteb", sys.executable, "over the line"]
    assert (lab.share / "status").read_text() == "7\n"
    assert (lab.share / "name").read_text() == "siteb\nsitea\n"


def test_a_power_cut_keeps_what_was_synced_and_loses_the_rest(lab: Lab) -> None:
    synced, cached = lab.disk("synced", 1 << 20), lab.disk("cached", 1 << 20)
    with lab.start(CUT, disks=[synced, cached]) as guest:
        guest.wait_for("ready")
        guest.cut()
        assert guest.result().status is None
    assert (lab.share / "ready").read_text() == "done\n"
    assert synced.read_bytes().startswith(b"synced\0")
    assert not any(cached.read_bytes())

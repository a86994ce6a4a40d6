"""Every example of the README, run in its order on two real sites."""

from __future__ import annotations

import json
import re
from pathlib import Path

import zstandard

from tests.fixture_files import FIXTURES
from tests.lab import guest
from tests.lab.conftest import Lab

_SETUP = """
. "$LAB/sites.sh"
make_vg vg /dev/ubda
lvcreate -qq -y -L 16M -n data vg
lvcreate -qq -y -L 16M -n copy vg
dd if=/dev/urandom of=/dev/vg/data bs=1M count=16 status=none
lvcreate -qq -y -L 8M -n big vg
lvcreate -qq -y -L 8M -n bigcopy vg
lvcreate -qq -y -s -L 8M -n snap vg/data
cp /dev/vg/snap /dev/vg/copy
dd if=/dev/urandom of=/dev/vg/data bs=64k count=9 seek=17 conv=notrunc status=none
make_vg tvg /dev/ubdb
lvcreate -qq -y --type thin-pool --poolmetadataspare n -L 48M -n pool tvg
lvcreate -qq -y -V 16M --thinpool pool -n data tvg
lvcreate -qq -y -L 16M -n thincopy vg
dd if=/dev/urandom of=/dev/tvg/data bs=1M count=12 oflag=direct status=none
lvcreate -qq -y -s -n monday tvg/data
cp /dev/tvg/data /dev/vg/thincopy
dd if=/dev/urandom of=/dev/tvg/data bs=64k count=5 seek=30 oflag=direct status=none
blkdiscard -o 1M -l 512K /dev/tvg/data
sync
two_sites
mkdir -p /var/snapbacks /var/copies /root/work
cd /root/work
for file in cow.1 snapshot.2 vda.map image.2 expected; do cp --sparse=always "$SHARE/$file" .; done
cp --sparse=always "$SHARE/disk.img" "$SHARE/vda.img" /var/copies
before=$(sha256sum < /dev/vg/snap)
same_direct() { blockdev --flushbufs "$1" "$2"; cmp "$1" "$2"; }
write_thin() { dd if=/dev/urandom of=/dev/tvg/data bs=64k count=7 seek=40 oflag=direct status=none; }
write_era() { dd if=/dev/urandom of=/dev/mapper/big-era bs=64k count=4 seek=99 oflag=direct status=none; }
is_old() { [ "$(sha256sum < /dev/vg/copy)" = "$before" ] || { echo "copy is not old after: $1"; exit 1; }; }
is_new() { cmp /dev/vg/data /dev/vg/copy || { echo "copy is not new after: $1"; exit 1; }; }
"""
_AFTER = {  # what must hold once an example has run
    "lvmsync --send": "is_new",
    "ssh backup lvmsync --apply": "is_old",
    "lvmsync vg/snap": "is_new",
    "lvmsync sync vg/": "is_new",
    "lvmsync sync compare:": "is_new",
    "lvmsync sync era:": "same_direct /dev/vg/big /dev/vg/bigcopy; write_era",
    "lvmsync dattobd update": "cmp expected /var/copies/disk.img && true",
    "lvmsync sync blksnap:": "cmp image.2 /var/copies/vda.img && true",
    "lvmsync archive take /var/archives/data full:": "write_thin",
    "lvmsync archive restore": "cmp /dev/tvg/sunday sunday.img && true",
    "lvmsync sync tvg/": "cmp /dev/tvg/data /dev/vg/thincopy && true",
    "ssh backup lvmsync apply /var/snapbacks/changes.lvmsync /dev/vg/copy\n": "is_new",
}


_FILES = {  # what the examples find in their folder: the file, and the fixture that it is
    "cow.1": "dattobd/dattobd-64m/cow.seq1.incremental.zst",
    "snapshot.2": "dattobd/dattobd-64m/snapshot.seq2.img.zst",
    "disk.img": "dattobd/dattobd-64m/base.img.zst",
    "vda.map": "blksnap/up-cycle/cbt2.map",
    "image.2": "blksnap/up-cycle/image2.img.zst",
    "vda.img": "blksnap/up-cycle/image1.img.zst",
}


def make_files(share: Path) -> None:
    """Put the fixtures of the examples into a guest's share, and what one of them leads to."""
    found = {}
    for name, path in _FILES.items():
        data = (FIXTURES / path).read_bytes()
        found[name] = zstandard.ZstdDecompressor().decompressobj().decompress(data) if path.endswith("zst") else data
        (share / name).write_bytes(found[name])
    manifest = json.loads((FIXTURES / "dattobd/manifest.json").read_text())
    case = next(one for one in manifest["cases"] if one["name"] == "dattobd-64m")
    expected = bytearray(found["disk.img"])
    for first, count in case["passes"][0]["changed_ranges"]:
        offset, end = first * 4096, (first + count) * 4096
        expected[offset:end] = found["snapshot.2"][offset:end]
    (share / "expected").write_bytes(expected)


VOLUMES = "Copy a volume that is in use"
"""The section whose examples have sites of their own, so that both may run side by side."""


def examples(readme: str) -> list[str]:
    """Return the lines of all examples in a part of the README."""
    return [line for example in re.findall(r"^```sh\n(.*?)^```$", readme, re.M | re.S) for line in example.splitlines()]


def sections() -> tuple[str, str]:
    """Return the README without the section about volumes in use, and that section."""
    readme = (guest.ROOT / "README.md").read_text()
    before, heading, rest = readme.partition(f"## {VOLUMES}\n")
    assert heading
    section, heading, after = rest.partition("\n## ")
    assert heading
    return before + after, section


def checked(lines: list[str], checks: dict[str, str]) -> list[str]:
    """Return the lines with what must hold behind them; each check is used."""
    script = []
    used = set()
    for line in lines:
        script.append(line)
        for start, check in checks.items():
            if f"{line}\n".startswith(start) and "--dry-run" not in line:
                script.append(f"{check} '{line.split(' --')[0]}'")
                used.add(start)
    assert used == set(checks)
    return script


def test_every_example_of_the_readme_works(lab: Lab) -> None:
    lines = examples(sections()[0])
    assert len(lines) >= 12
    lab.share.mkdir(exist_ok=True)
    make_files(lab.share)
    script = [_SETUP, *checked(lines, _AFTER), 'cp changes.json changes.svg "$SHARE/"']
    lab.run("\n".join(script), disks=[lab.disk(size=128 << 20), lab.disk("thin", 128 << 20)])
    changes = json.loads((lab.share / "changes.json").read_text())
    assert changes["extents"] == [[17 * 65536, 9 * 65536]]
    assert "<svg" in (lab.share / "changes.svg").read_text()

"""HOLE and ZERO frames on real targets: whatever their edges, the device reads as it should, and goes back."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from lvmsync.extents import as_table
from lvmsync.stream.frames import Data, End, Frame, Header, Hole, Zero
from lvmsync.stream.v4 import Encoder
from tests.lab import guest
from tests.lab.cases import Outcome, cases_of, run_cases
from tests.lab.conftest import Lab

SCRIPT = guest.LAB / "holes.sh"
SIZE = 8 << 20
MIB = 1 << 20

# Kind, and (offset, length) of its extents: whole blocks, odd edges, less than a sector, and the very end.
FRAMES: list[tuple[type[Data] | type[Zero] | type[Hole], list[tuple[int, int]]]] = [
    (Hole, [(0, 4096), (8192 + 512, 1024), (20_000, 10), (20_990, 20)]),
    (Data, [(32_768, 12_345), (65_537, 70_001)]),
    (Hole, [(MIB + 100, MIB - 177), (2 * MIB, 3)]),
    (Zero, [(2 * MIB + 5, 300_000)]),
    (Hole, [(3 * MIB, MIB + 65_536), (4 * MIB + 65_536 + 512, 65_536)]),
    (Data, [(4 * MIB + 200_000, 1)]),
    (Zero, [(5 * MIB, 65_536), (5 * MIB + 70_000, 600)]),
    (Hole, [(6 * MIB + 511, 514), (SIZE - MIB - 4096, 4097), (SIZE - 70_001, 70_001)]),
]


def make_material(share: Path) -> None:
    """Put old state, new state and the stream between them into the share."""
    rng = random.Random(6)
    old = rng.randbytes(SIZE)
    new = bytearray(old)
    frames: list[Frame] = []
    for kind, extents in FRAMES:
        table = as_table([offset for offset, _ in extents], [length for _, length in extents])
        if kind is Data:
            payload = rng.randbytes(sum(length for _, length in extents))
            frames.append(Data(table, memoryview(payload)))
        else:
            payload = bytes(sum(length for _, length in extents))
            frames.append(Zero(table) if kind is Zero else Hole(table))
        at = 0
        for offset, length in extents:
            new[offset : offset + length] = payload[at : at + length]
            at += length
    count = sum(len(extents) for _, extents in FRAMES)
    changed = sum(length for _, extents in FRAMES for _, length in extents)
    encoder = Encoder()
    with (share / "stream").open("wb") as file:
        for frame in (Header(size=SIZE, extents=count, changed_bytes=changed), *frames, End(count, changed)):
            file.writelines(encoder.encode(frame))
    (share / "old.img").write_bytes(old)
    (share / "new.img").write_bytes(new)


@pytest.fixture(scope="module")
def outcome(lab_machine: None, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    lab = Lab(tmp_path_factory.mktemp("holes"))
    lab.share.mkdir()
    make_material(lab.share)
    return run_cases(lab, SCRIPT, disks=[lab.disk("lvm", 64 << 20)])


@pytest.mark.parametrize("case", cases_of(SCRIPT))
def test_lvmsync(outcome: Outcome, case: str) -> None:
    outcome.check(case)

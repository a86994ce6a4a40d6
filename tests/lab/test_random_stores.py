"""Snapshots with random geometry and writes: copies are exact, the way back is exact, and so is the map."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from lvmsync.extents import ChangeMap
from lvmsync.jobs.receive import read_stream
from lvmsync.stream.frames import Data, Hole, Zero
from lvmsync.stream.session import Receiver
from tests.lab.cases import noise
from tests.lab.conftest import Lab

SEED = 6
ROUNDS = 6


@pytest.fixture(scope="module")
def share(lab_machine: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run the rounds; the guest itself compares origin, copy, and what was before."""
    lab = Lab(tmp_path_factory.mktemp("random_stores"))
    disks = [lab.disk("dm", 256 << 20), noise(lab.folder / "noise.img", 64 << 20)]
    lab.run(f'python3 "$LAB/random_stores.py" {SEED} {ROUNDS}', disks=disks)
    return lab.share


def sent(stream: Path) -> ChangeMap:
    """Return what a stream carries."""
    tables = []
    with stream.open("rb", buffering=0) as file:
        for frame in read_stream(file.readinto, Receiver()):
            if isinstance(frame, (Data, Zero, Hole)):
                tables.append(np.array(frame.table))
    table = np.concatenate(tables)
    return ChangeMap.from_arrays(table[:, 0], table[:, 1])


@pytest.mark.parametrize("number", range(ROUNDS))
def test_exactly_the_chunks_that_were_written_to_are_sent(share: Path, number: int) -> None:
    done = json.loads((share / f"{number}.json").read_text())
    if done["status"] == "Invalid":
        assert not (share / f"{number}.stream").read_bytes()
        return
    chunks = np.array(done["chunks"], np.uint64)
    assert sent(share / f"{number}.stream") == ChangeMap.from_chunks(chunks, done["chunk_size"], done["size"])


def test_the_rounds_are_of_more_than_one_kind(share: Path) -> None:
    rounds = [json.loads(path.read_text()) for path in share.glob("*.json")]
    assert len(rounds) == ROUNDS
    assert {one["status"] == "Invalid" for one in rounds} == {True, False}
    assert any(one["reactivated"] for one in rounds)
    assert any(one["size"] % one["chunk_size"] for one in rounds)
    assert len({one["chunk_size"] for one in rounds}) > 2

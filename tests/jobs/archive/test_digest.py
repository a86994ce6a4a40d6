"""The digest of a state that is made while it is read."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import xxhash

from lvmsync.chain.catalogue import Catalogue
from lvmsync.errors import VerifyError
from lvmsync.extents import ChangeMap
from lvmsync.jobs.archive import digest
from lvmsync.jobs.archive.digest import Digested, digest_state
from lvmsync.jobs.archive.restore import open_restored
from lvmsync.jobs.archive.shelf import Shelf, new_commit
from lvmsync.jobs.archive.verify import verify
from lvmsync.jobs.progress import ignore
from lvmsync.jobs.send import StreamOptions, cut_batches
from tests.archive_history import Forward, History
from tests.fakes import Memory, make_source, send


@pytest.mark.parametrize("seed", range(30))
def test_it_is_that_of_the_state_whatever_the_order_of_the_reads(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digest, "PIECE", 4096)
    monkeypatch.setattr(digest, "_EMPTY", xxhash.xxh3_128_digest(bytes(4096)))
    chance = random.Random(seed)
    size = chance.choice((0, 1, 4096, 4097, 50000, 81920))
    data = bytearray(chance.randbytes(size))
    holes = ChangeMap.empty()
    for _ in range(chance.randrange(6) if size else 0):
        at = chance.randrange(size)
        holes |= ChangeMap.from_extents([(at, chance.choice((1, 512, 9000)))])
    holes = holes.clip(size)
    for offset, length in holes:
        data[offset : offset + length] = bytes(length)
    wanted = digest_state(Memory(bytes(data)), size, ChangeMap.empty())
    assert digest_state(Memory(bytes(data)), size, holes) == wanted

    read = Digested(Memory(bytes(data)), holes)
    source = replace(make_source(bytes(data), [(0, size)] if size else []), holes=holes)
    batches = [one for one in cut_batches(source, chance.choice((512, 3000, 4096, 20000))) if isinstance(one, tuple)]
    chance.shuffle(batches)

    def work(batch: tuple[list[int], list[int]]) -> None:
        out = memoryview(bytearray(sum(batch[1])))
        read.read(*batch, out)
        assert out == b"".join(data[at : at + length] for at, length in zip(*batch, strict=True))

    last = batches.pop() if batches else None
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(work, batches))
    if last:
        assert read.finish() is None
        work(last)
    assert read.finish() == wanted


@pytest.mark.parametrize("level", [0, 1])
def test_a_restore_of_another_state_than_the_one_that_was_is_no_whole_stream(level: int, tmp_path: Path) -> None:
    archive = Forward(tmp_path, History.make(6, 3, 3 << 20, may_resize=False))
    assert verify(archive.shelf, ignore, is_restoring=True).restored == [1, 2, 3]
    shelf = Shelf.open(archive.shelf.store)
    for point in shelf.catalogue.points:
        with open_restored(shelf, point) as source:
            send(source, StreamOptions(level=level))

    def edit(now: Catalogue) -> Catalogue:
        points = (replace(now.points[0], digest="0" * 32), *now.points[1:])
        return now.successor(new_commit(), points=points)

    shelf.change(edit)
    with (
        open_restored(shelf, shelf.catalogue.points[0]) as source,
        pytest.raises(VerifyError, match=r"point #1 has the digest .* now, and had 0000"),
    ):
        send(source, StreamOptions(level=level))

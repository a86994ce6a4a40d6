"""Minimal deltas and audits, against what a plain loop finds and against real stores in files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lvmsync.errors import DeviceError, UsageError, VerifyError
from lvmsync.extents import ChangeMap
from lvmsync.jobs.progress import Progress, ignore
from lvmsync.jobs.refine import audit, choose_sample, minimize, refine
from lvmsync.names import Comparison, SnapshotStore, Volume, WholeDevice
from lvmsync.sources import Reading, Source, open_source
from lvmsync.system.device import open_device
from tests.cow_store import build_store
from tests.fakes import Memory, make_source, send
from tests.sources.loops import sparse

BLOCK = 4096
CHUNK = 65536
MIB = 1 << 20


def random_bytes(size: int, seed: int = 1) -> bytes:
    return np.random.default_rng(seed).bytes(size)


def extents(changes: ChangeMap) -> list[tuple[int, int]]:
    return [(offset, length) for offset, length in changes]


def delta(
    head: bytes, base: bytes, changes: Sequence[tuple[int, int]], holes: Sequence[tuple[int, int]] = ()
) -> Source:
    return replace(
        make_source(head, changes, granularity=CHUNK), base_data=Memory(base), holes=ChangeMap.from_extents(holes)
    )


def flip(data: bytes, *places: int) -> bytes:
    changed = bytearray(data)
    for place in places:
        changed[place] ^= 1
    return bytes(changed)


@settings(max_examples=100, deadline=None)
@given(
    size=st.integers(1, 6 * BLOCK),
    cut=st.integers(-2 * BLOCK, BLOCK),
    places=st.lists(st.integers(0, 6 * BLOCK), max_size=5),
    zeros=st.lists(st.tuples(st.integers(0, 5), st.integers(1, 3)), max_size=3),
    changed=st.lists(st.tuples(st.integers(0, 5), st.integers(1, 3)), max_size=4),
    unmapped=st.lists(st.tuples(st.integers(0, 5), st.integers(1, 3)), max_size=3),
)
def test_a_minimal_map_is_the_difference_within_the_map(
    size: int,
    cut: int,
    places: Sequence[int],
    zeros: Sequence[tuple[int, int]],
    changed: Sequence[tuple[int, int]],
    unmapped: Sequence[tuple[int, int]],
) -> None:
    def blocks(ranges: Sequence[tuple[int, int]]) -> ChangeMap:
        return ChangeMap.from_extents((first * BLOCK, count * BLOCK) for first, count in ranges).clip(size)

    base = bytearray(random_bytes(max(0, size + cut)))
    for offset, length in blocks(zeros).clip(len(base)):
        base[offset : offset + length] = bytes(length)
    changes = blocks(changed)
    holes = changes & blocks(unmapped)
    head = bytearray(flip((bytes(base) + random_bytes(size, 2))[:size], *[place for place in places if place < size]))
    for offset, length in holes:
        head[offset : offset + length] = bytes(length)
    found = minimize(replace(delta(bytes(head), bytes(base), []), changes=changes, holes=holes), ignore)
    end = size if len(base) >= size else len(base) // BLOCK * BLOCK
    differs = {at for at in range(0, size, BLOCK)
               if at >= end or head[at : at + BLOCK][: end - at] != base[at : at + BLOCK][: size - at]}  # fmt: skip
    wanted = changes & ChangeMap.from_extents((at, BLOCK) for at in differs).clip(size)
    assert found.changes == wanted
    assert found.holes == holes & wanted


def test_a_hole_that_is_zeros_in_the_base_is_dropped_without_reading_it_where_it_is_a_hole(tmp_path: Path) -> None:
    path = sparse(tmp_path / "base", 384 * MIB, (MIB, b"data"), (4 * MIB, bytes(MIB)))
    source = make_source(Memory(b""), [(0, 384 * MIB)])
    with open_device(str(path)) as base:
        wide = replace(source, size=384 * MIB, holes=source.changes, base_data=base)
        found = minimize(wide, ignore)
    assert extents(found.changes) == extents(found.holes) == [(MIB, BLOCK)]


def test_of_holes_that_are_more_than_can_be_proved_the_rest_stays(tmp_path: Path) -> None:
    path = sparse(tmp_path / "base", 1 << 42, (MIB, b"data"))
    source = make_source(Memory(b""), [(0, 1 << 42)])
    with open_device(str(path)) as base:
        found = minimize(replace(source, size=1 << 42, holes=source.changes, base_data=base), ignore)
    assert 383 * MIB < (1 << 42) - found.changes.total_bytes <= 384 * MIB
    assert found.holes == found.changes
    assert "too scattered to be proved" in found.notes[-1]


def test_without_a_readable_base_the_next_step_is_told() -> None:
    source = make_source(b"x" * BLOCK, [(0, BLOCK)])
    for job in (minimize, lambda source, report: audit(source, 100, report)):
        with pytest.raises(UsageError, match="with --base-data PATH"):
            job(source, ignore)
        with pytest.raises(UsageError, match=r"has no (base|tracker)"):
            job(replace(source, is_full=True, base_data=Memory(b"")), ignore)
    compared = replace(source, kind="compare", base_data=Memory(b""))
    assert minimize(compared, ignore) is compared
    with pytest.raises(UsageError, match="'compare:' source has no tracker"):
        audit(compared, 1, ignore)
    for percent in (0, -1, 100.5, float("nan")):
        with pytest.raises(UsageError, match="out of range"):
            audit(delta(b"", b"", []), percent, ignore)


# Stores in files


class Place:
    """A folder with a COW store of 64 KiB chunks, and its origin."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.old = random_bytes(64 * CHUNK)
        self.new = self.old

    def write(self, chunks: Sequence[int], new: bytes) -> SnapshotStore:
        """Make the store that keeps these chunks, in this order."""
        self.new = new
        kept = {chunk: 2 + index for index, chunk in enumerate(chunks)}
        store = build_store(list(kept.items()), chunk_sectors=CHUNK // 512, chunks=1)
        # The writer's chunks are of 4 KiB: the header and the first area belong at the start of larger ones.
        image = bytearray(store[:4096].ljust(CHUNK, b"\0") + store[4096:8192].ljust(CHUNK, b"\0"))
        for chunk in chunks:
            image += self.old[chunk * CHUNK : (chunk + 1) * CHUNK]
        (self.folder / "store").write_bytes(image)
        (self.folder / "origin").write_bytes(new)
        return SnapshotStore(Volume(str(self.folder / "store")), Volume(str(self.folder / "origin")), None)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


BASE = Reading(with_base=True)


def test_the_base_of_a_store_is_read_from_the_store_and_the_origin(place: Place) -> None:
    chunks = [40, 41, 3, 63, 0]
    name = place.write(chunks, flip(place.old, *[chunk * CHUNK + 5 for chunk in chunks]))
    with open_source(name, BASE) as source:
        assert source.base_data
        for pieces in ([(0, 64 * CHUNK)], [(CHUNK - 7, 20), (3 * CHUNK + 1, CHUNK), (40 * CHUNK + 512, 3 * CHUNK)]):
            out = memoryview(bytearray(sum(length for _, length in pieces)))
            source.base_data.read([offset for offset, _ in pieces], [length for _, length in pieces], out)
            assert out == b"".join(place.old[offset : offset + length] for offset, length in pieces)
    with open_source(name) as source:
        assert source.base_data is None


def test_small_writes_into_large_chunks_send_a_twelfth_at_the_most(place: Place) -> None:
    chunks = list(range(0, 64, 2))
    name = place.write(chunks, flip(place.old, *[chunk * CHUNK + 5 * BLOCK + 1 for chunk in chunks]))
    with open_source(name, BASE) as source:
        whole = send(source)
        small = minimize(source, ignore)
        assert extents(small.changes) == [(chunk * CHUNK + 5 * BLOCK, BLOCK) for chunk in chunks]
        assert small.granularity == BLOCK
        assert "of 2097152 changed bytes, 131072 differ" in small.notes[-1]
        assert len(send(small)) * 12 <= len(whole)


def test_a_chunk_that_was_written_with_the_same_bytes_is_not_sent(place: Place) -> None:
    with open_source(place.write([5, 6, 7], place.old), BASE) as source:
        assert source.changes.total_bytes == 3 * CHUNK
        assert not len(minimize(source, ignore).changes)


def test_an_honest_map_passes_every_audit(place: Place) -> None:
    name = place.write([5, 6], flip(place.old, 5 * CHUNK, 6 * CHUNK))
    with open_source(name, BASE) as source:
        told: list[Progress] = []
        audited = audit(source, 100, told.append)
        assert audited.changes is source.changes
        assert f"--audit: {62 * CHUNK} bytes that the tracker calls unchanged are the same" in audited.notes[-1]
        assert told[-1] == Progress("auditing", 62 * CHUNK, 62 * CHUNK)


@pytest.mark.parametrize("at", [0, 63 * CHUNK + CHUNK - 1, 4 * CHUNK + CHUNK - 1, 7 * CHUNK, 30 * CHUNK + 12345])
def test_one_byte_that_the_tracker_missed_is_found_and_named(place: Place, at: int) -> None:
    name = place.write([5, 6], flip(place.old, 5 * CHUNK, 6 * CHUNK, at))
    (place.folder / "base").write_bytes(place.old)
    with open_source(name, Reading(with_base=True, base_source=str(place.folder / "base"))) as source:
        with pytest.raises(VerifyError, match="the tracker missed a change") as caught:
            audit(source, 100, ignore)
        block = at // BLOCK * BLOCK
        assert f"{name.word}: {BLOCK} bytes at {block} differ from {place.folder / 'base'}" in str(caught.value)
        assert caught.value.offset == block
        assert caught.value.exit_code == 9


def test_a_source_that_was_written_meanwhile_is_no_fault_of_the_tracker() -> None:
    def confirm() -> None:
        raise DeviceError("written meanwhile")

    source = replace(delta(flip(bytes(MIB), 5), bytes(MIB), []), confirm=confirm)
    with pytest.raises(DeviceError, match="written meanwhile"):
        audit(source, 100, ignore)


@settings(max_examples=50, deadline=None)
@given(
    percent=st.floats(0.01, 100),
    changed=st.lists(st.tuples(st.integers(0, 100 * MIB), st.integers(1, 20 * MIB)), max_size=8),
    seed=st.integers(0, 9),
)
def test_a_sample_is_outside_the_map_and_about_as_large_as_asked(
    percent: float, changed: Sequence[tuple[int, int]], seed: int
) -> None:
    changes = ChangeMap.from_extents(changed).clip(100 * MIB + 77)
    source = replace(make_source(b"", []), size=100 * MIB + 77, changes=changes)
    sample = choose_sample(source, percent, seed)
    outside = changes.complement(source.size)
    assert not len(sample & changes)
    assert sample.end <= source.size
    if len(outside):
        assert len(sample)
    if percent == 100:
        assert sample == outside
    touched = {piece for offset, length in outside for piece in range(offset // MIB, (offset + length - 1) // MIB + 1)}
    chosen = {piece for offset, length in sample for piece in range(offset // MIB, (offset + length - 1) // MIB + 1)}
    assert len(chosen) == (min(len(touched), max(1, round(len(touched) * percent / 100))))
    assert choose_sample(source, percent, seed) == sample


def test_the_sample_of_a_huge_device_costs_little() -> None:
    source = replace(make_source(b"", []), size=1 << 60)
    assert 0.009 < choose_sample(source, 1).total_bytes / (1 << 60) < 0.011


def test_the_base_is_let_go_before_anything_is_sent(place: Place) -> None:
    name = place.write([5], flip(place.old, 5 * CHUNK))
    base = place.folder / "base"
    base.write_bytes(place.old)
    with open_source(name, Reading(with_base=True, base_source=str(base))) as source:
        done = refine(source, ignore, minimal=True, audit_percent=50)
        assert extents(done.changes) == [(5 * CHUNK, BLOCK)]
        assert done.base_data is None
        assert not any(fd.resolve() == base for fd in Path("/proc/self/fd").iterdir())
        assert [note.split(":")[0] for note in done.notes[-2:]] == ["--audit", "--minimal"]


@pytest.mark.parametrize("make", [WholeDevice, Comparison])
def test_a_source_that_tracks_nothing_has_nothing_to_audit(make: Callable[..., Comparison], place: Place) -> None:
    place.write([], place.old)
    volume = Volume(str(place.folder / "origin"))
    name = make(volume, volume) if make is Comparison else make(volume)
    with open_source(name, BASE) as source, pytest.raises(UsageError, match="has no tracker"):
        audit(source, 10, ignore)

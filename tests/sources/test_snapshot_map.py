from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from lvmsync.errors import FormatError
from lvmsync.formats.snapshot import DiskHeader, Layout, SnapshotTable, Usage
from lvmsync.sources import snapshot_map
from lvmsync.sources.snapshot_map import Watch, read_exceptions
from lvmsync.system import dm
from lvmsync.system.device import open_device
from tests.fixture_files import find_case

FEW = find_case("snapshot", "c4k-few")
MAPPED = dm.Mapped("vg-snap", "", (254, 3), 0)


class KernelWithUsage(dm.Snapshot):
    """A snapshot whose status is a list of numbers of sectors, one for each time it is asked."""

    allocated: Iterator[int]

    def read_usage(self) -> Usage:
        return Usage(next(self.allocated), 2048, 16)


def kernel(*allocated: int) -> KernelWithUsage:
    line = dm.Line(MAPPED, 0, 16 << 20, "snapshot", "")
    made = KernelWithUsage(line, SnapshotTable((254, 1), (254, 2), "P"), None, None, False)
    object.__setattr__(made, "allocated", iter(allocated))
    return made


def write_store(path: Path, old: np.ndarray[tuple[int], np.dtype[np.uint64]], chunk_size: int, areas: int) -> None:
    """Write a store with exceptions of the given chunks, and stale entries behind the terminator."""
    per_area = chunk_size // 16
    table = np.full((areas * per_area, 2), 5, "<u8")
    table[: len(old), 0] = old
    table[: len(old), 1] = np.arange(len(old)) + 2 + np.arange(len(old)) // per_area
    table[len(old) : len(old) + 1] = 0
    with path.open("wb") as store:
        store.write(np.array([0x70416E53, 1, 1, chunk_size // 512], "<u4").tobytes())
        for area in range(areas):
            store.seek((1 + area * (per_area + 1)) * chunk_size)
            store.write(table[area * per_area : (area + 1) * per_area].tobytes())
        store.truncate((1 + areas * (per_area + 1)) * chunk_size)


@pytest.mark.parametrize("chunk_size", [512, 4096, 65536])
@pytest.mark.parametrize("count", [0, 1, 31, 32, 33, 255, 256, 257, 4095, 4096, 4097, 9000])
def test_as_many_exceptions_are_read_as_there_are_whatever_is_read_at_a_time(
    tmp_path: Path, chunk_size: int, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = np.random.default_rng(count).permutation(10_000)[:count].astype(np.uint64)
    write_store(tmp_path / "cow", old, chunk_size, count // (chunk_size // 16) + 2)
    with open_device(str(tmp_path / "cow")) as store:
        layout = Layout.of(DiskHeader.parse(store.read_bytes(0, 16)), store.size)
        for expected in (None, 0, count, count + 1, 5 * count):
            for group in (4096, 1 << 20):
                monkeypatch.setattr(snapshot_map, "_GROUP", group)
                monkeypatch.setattr(snapshot_map, "_FIRST_GROUP", 4096)
                found = read_exceptions(store, layout, 10_000 * chunk_size, expected)
                assert np.array_equal(found, old)


def test_little_is_read_past_the_terminator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_store(tmp_path / "cow", np.arange(3, dtype=np.uint64), 4096, 20)
    asked: list[int] = []
    with open_device(str(tmp_path / "cow")) as store:
        layout = Layout.of(DiskHeader.parse(store.read_bytes(0, 16)), store.size)
        monkeypatch.setattr(store, "prefetch", lambda offsets, lengths: asked.append(sum(lengths)))
        read_exceptions(store, layout, 1 << 30, 3)
        read_exceptions(store, layout, 1 << 30)
    assert asked == [4096, 65536]


def test_more_exceptions_than_the_origin_has_chunks_are_refused(tmp_path: Path) -> None:
    write_store(tmp_path / "cow", np.zeros(300, np.uint64), 4096, 3)
    with open_device(str(tmp_path / "cow")) as store:
        layout = Layout.of(DiskHeader.parse(store.read_bytes(0, 16)), store.size)
        with pytest.raises(FormatError, match="but the origin has only 299 chunks"):
            read_exceptions(store, layout, 299 * 4096)


@pytest.mark.parametrize(
    ("allocated", "tries"),
    [
        ([96, 96], 1),
        ([96, 104], 1),  # grew while it was read: all that were there at the start are in
        ([104, 96], 1),
        ([104, 104, 96], 2),
        ([104, 112, 112, 96], 3),  # in flight at the start, in the table only later
        ([88, 88, 96], 2),  # more in the table than the kernel knows: stale, read too early
    ],
)
def test_a_map_is_read_until_it_has_all_that_there_were_at_the_start(
    tmp_path: Path, allocated: list[int], tries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshot_map, "MAP_WAIT", 0)
    with open_device(str(FEW.image("cow", tmp_path))) as store:
        watch = Watch(store, 16 << 20, kept=kernel(*allocated), later=None, data=store, is_live=False)
        assert [[one.offset, one.end] for one in watch.read_map()] == FEW.facts["changed_ranges"]
        assert len(allocated) == tries + 1


def test_damage_that_stays_is_told_after_the_last_try(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot_map, "MAP_WAIT", 0)
    path = FEW.image("cow", tmp_path)
    data = bytearray(path.read_bytes())
    data[4096 : 4096 + 16] = data[4096 + 16 : 4096 + 32]
    path.write_bytes(data)
    with open_device(str(path)) as store:
        asked = kernel(*[96] * (snapshot_map.MAP_TRIES + 1))
        with pytest.raises(FormatError, match=r"cow.img: COW store: chunk 3 of the origin has two"):
            Watch(store, 16 << 20, kept=asked, later=None, data=store, is_live=False).read_map()
        assert list(asked.allocated) == []
        with pytest.raises(FormatError, match="has two"):  # no kernel to wait for
            Watch(store, 16 << 20, kept=None, later=None, data=store, is_live=False).read_map()

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lvmsync.errors import DeviceError, UsageError
from lvmsync.extents import ChangeMap
from lvmsync.names import Comparison, Volume
from lvmsync.sources import Reading, open_source
from lvmsync.sources.difference import BLOCK, Zeros, common_size, find_differences, split_at_blocks
from lvmsync.system.device import open_device
from lvmsync.system.holes import find_holes
from tests.fakes import Memory
from tests.sources.loops import loop_of, sparse

MIB = 1 << 20


def random_bytes(size: int, seed: int = 1) -> bytes:
    return np.random.default_rng(seed).bytes(size)


def files(folder: Path, new: bytes, old: bytes) -> Comparison:
    (folder / "new").write_bytes(new)
    (folder / "old").write_bytes(old)
    return Comparison(Volume(str(folder / "new")), Volume(str(folder / "old")))


def extents(changes: ChangeMap) -> list[tuple[int, int]]:
    return [(offset, length) for offset, length in changes]


def flip(data: bytes, *places: int) -> bytes:
    changed = bytearray(data)
    for place in places:
        changed[place] ^= 1
    return bytes(changed)


def naive(new: bytes, old: bytes, ranges: ChangeMap) -> list[tuple[int, int]]:
    """Return what `find_differences` should: each range cut at blocks, and one piece after another compared."""
    end = common_size(ranges.end, len(old))
    pieces = []
    for offset, length in ranges:
        stop = offset + length
        while offset < stop:
            to = min((offset // BLOCK + 1) * BLOCK, stop)
            if to > end or new[offset:to] != old[offset:to]:
                pieces.append((offset, to - offset))
            offset = to
    return extents(ChangeMap.from_extents(pieces))


def test_the_blocks_that_differ_are_the_changes(tmp_path: Path) -> None:
    old = random_bytes(5 * MIB + 1000)
    new = flip(old, 0, BLOCK + 5, 2 * MIB - 1, 2 * MIB, 5 * MIB + 999)
    with open_source(files(tmp_path, new, old)) as source:
        assert extents(source.changes) == [
            (0, 2 * BLOCK), (2 * MIB - BLOCK, 2 * BLOCK), (5 * MIB, 1000),
        ]  # fmt: skip
        assert (source.kind, source.size, source.granularity, source.base) == ("compare", len(new), BLOCK, None)
        assert source.base_data is None
        assert source.head
        assert not len(source.holes)
        source.confirm()


def test_what_is_the_same_has_no_changes(tmp_path: Path) -> None:
    data = random_bytes(3 * MIB + 7)
    with open_source(files(tmp_path, data, data)) as source:
        assert not len(source.changes)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 99),
    size=st.integers(0, 5 * BLOCK),
    cut=st.integers(-2 * BLOCK, 2 * BLOCK),
    places=st.lists(st.integers(0, 5 * BLOCK), max_size=6),
    pieces=st.lists(st.tuples(st.integers(0, 5 * BLOCK), st.integers(0, 2 * BLOCK)), max_size=5),
)
def test_differences_are_those_that_a_plain_loop_finds(
    seed: int, size: int, cut: int, places: Sequence[int], pieces: Sequence[tuple[int, int]]
) -> None:
    old = random_bytes(max(0, size + cut), seed)
    new = (old + random_bytes(size, seed + 1))[:size]
    new = flip(new, *[place for place in places if place < size])
    ranges = ChangeMap.from_extents(pieces).clip(size)
    for where in (ranges, ChangeMap.whole(size)):
        assert extents(find_differences(Memory(new), Memory(old), where)) == naive(new, old, where)


def test_ranges_are_cut_at_multiples_of_a_block() -> None:
    starts, stops = split_at_blocks(np.array([3, 20], np.uint64), np.array([9, 24], np.uint64), 4)
    assert list(zip(starts.tolist(), stops.tolist(), strict=True)) == [(3, 4), (4, 8), (8, 9), (20, 24)]


def test_of_a_larger_new_side_what_is_past_the_old_end_is_changed(tmp_path: Path) -> None:
    data = random_bytes(MIB)
    with open_source(files(tmp_path, data, data[: 100 * BLOCK + 1])) as source:
        assert extents(source.changes) == [(100 * BLOCK, 156 * BLOCK)]


def test_of_a_smaller_new_side_all_is_compared_and_the_rest_is_told(tmp_path: Path) -> None:
    data = random_bytes(MIB)
    with open_source(files(tmp_path, flip(data[: MIB // 2], 5), data)) as source:
        assert extents(source.changes) == [(0, BLOCK)]
        assert f"has {MIB} bytes; what is past {MIB // 2} was not compared" in source.notes[0]


def test_a_size_holds_the_comparison(tmp_path: Path) -> None:
    data = random_bytes(MIB)
    name = files(tmp_path, flip(data, 5, MIB - 1), data)
    with open_source(Comparison(name.new, name.old, 8 * BLOCK)) as source:
        assert (source.size, extents(source.changes)) == (8 * BLOCK, [(0, BLOCK)])
    with pytest.raises(UsageError, match="has only 1048576 bytes"):
        open_source(Comparison(name.new, name.old, MIB + 1)).__enter__()


def test_without_an_old_side_the_next_step_is_told(tmp_path: Path) -> None:
    name = files(tmp_path, b"", b"")
    with pytest.raises(UsageError, match="new,old=PATH, or use sync, where it is the target"):
        open_source(Comparison(name.new)).__enter__()
    with pytest.raises(UsageError, match="is read itself"):
        open_source(name, Reading(data_source=str(tmp_path / "old"))).__enter__()


def test_holes_of_a_sparse_new_side_are_told_where_the_old_side_has_data(tmp_path: Path) -> None:
    data = random_bytes(MIB)
    sparse(tmp_path / "new", 8 * MIB, (2 * MIB, data))
    sparse(tmp_path / "old", 8 * MIB, (2 * MIB, flip(data, 0)), (5 * MIB, data))
    with open_source(Comparison(Volume(str(tmp_path / "new")), Volume(str(tmp_path / "old")))) as source:
        assert extents(source.changes) == [(2 * MIB, BLOCK), (5 * MIB, MIB)]
        assert extents(source.holes) == [(5 * MIB, MIB)]


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.tuples(st.integers(0, 9 * BLOCK), st.integers(0, 9 * BLOCK)),
    pieces=st.tuples(*[st.lists(st.tuples(st.integers(0, 8), st.sampled_from((b"", b"a", b"b"))), max_size=6)] * 2),
)
def test_sparse_files_differ_where_their_bytes_do(
    tmp_path_factory: pytest.TempPathFactory,
    sizes: tuple[int, int],
    pieces: tuple[Sequence[tuple[int, bytes]], Sequence[tuple[int, bytes]]],
) -> None:
    folder = tmp_path_factory.mktemp("sparse")
    for name, size, parts in zip(("new", "old"), sizes, pieces, strict=True):
        sparse(folder / name, size, *[(block * BLOCK, (word or b"\0") * BLOCK) for block, word in parts])
        os.truncate(folder / name, size)
    new, old = (folder / "new").read_bytes(), (folder / "old").read_bytes()
    with open_source(Comparison(Volume(str(folder / "new")), Volume(str(folder / "old")))) as source:
        assert extents(source.changes) == naive(new, old, ChangeMap.whole(len(new)))
        assert not any(new[offset : offset + length].strip(b"\0") for offset, length in source.holes)


def test_a_sparse_tebibyte_takes_a_moment(tmp_path: Path) -> None:
    sparse(tmp_path / "new", 1 << 40, (1 << 39, b"new"))
    sparse(tmp_path / "old", 1 << 40, (1 << 38, b"old"))
    began = time.monotonic()
    with open_source(Comparison(Volume(str(tmp_path / "new")), Volume(str(tmp_path / "old")))) as source:
        assert extents(source.changes) == [(1 << 38, BLOCK), (1 << 39, BLOCK)]
        assert extents(source.holes) == [(1 << 38, BLOCK)]
    assert time.monotonic() - began < 30


def test_a_file_that_is_written_meanwhile_is_noticed(tmp_path: Path) -> None:
    name = files(tmp_path, random_bytes(MIB), random_bytes(MIB, 2))
    with open_source(name) as source:
        source.confirm()
        with Path(name.new.path).open("r+b") as file:
            file.write(b"x")
        os.utime(name.new.path, ns=(1, 1))  # the clock of a file system may be coarse
        with pytest.raises(DeviceError, match="was written to while it was read"):
            source.confirm()


def test_the_old_side_is_kept_open_only_if_it_is_wanted(tmp_path: Path) -> None:
    name = files(tmp_path, random_bytes(MIB), random_bytes(MIB, 2))

    def is_open() -> bool:
        return any(fd.resolve() == tmp_path / "old" for fd in Path("/proc/self/fd").iterdir())

    with open_source(name) as source:
        assert not is_open()
    with open_source(name, Reading(with_base=True)) as source:
        assert source.base_data
        assert is_open()
    assert not is_open()


def test_devices_are_compared_and_writes_to_them_noticed(tmp_path: Path) -> None:
    old = random_bytes(4 * MIB)
    name = files(tmp_path, flip(old, 3 * MIB), old)
    with loop_of(tmp_path / "new") as new, loop_of(tmp_path / "old") as base:
        devices = Comparison(Volume(str(new)), Volume(str(base)))
        with open_source(devices) as source:
            assert extents(source.changes) == [(3 * MIB, BLOCK)]
            source.confirm()
            with pytest.raises(DeviceError, match="mounted, or held by another program"):
                open_device(str(new), exclusive=True)  # it is ours
            # In the page cache of the device only, until it is asked for.
            with new.open("r+b", buffering=0) as file:
                file.write(b"changed")
                with pytest.raises(DeviceError, match="was written to while it was read"):
                    source.confirm()
        holder = os.open(new, os.O_RDONLY | os.O_EXCL)
        try:
            with pytest.raises(DeviceError, match="--frozen"):
                open_source(devices).__enter__()
            for reading in (Reading(frozen=True), Reading(with_data=False)):
                with open_source(devices, reading) as source:
                    assert extents(source.changes) == [(0, BLOCK), (3 * MIB, BLOCK)]
        finally:
            os.close(holder)
    assert name.new.path


def test_a_device_against_a_sparse_file_reads_its_zeros(tmp_path: Path) -> None:
    sparse(tmp_path / "new", 4 * MIB, (MIB, b"x"))
    sparse(tmp_path / "old", 4 * MIB, (2 * MIB, b"y"))
    with (
        loop_of(tmp_path / "new") as new,
        open_source(Comparison(Volume(str(new)), Volume(str(tmp_path / "old")))) as source,
    ):
        assert extents(source.changes) == [(MIB, BLOCK), (2 * MIB, BLOCK)]
        assert not len(source.holes)


def test_the_holes_of_a_file_are_what_its_file_system_says(tmp_path: Path) -> None:
    path = sparse(tmp_path / "file", 4 * MIB + 5, (MIB, b"x" * MIB), (3 * MIB, b"x"))
    with open_device(str(path)) as device:
        assert extents(find_holes(device, device.size)) == [
            (0, MIB), (2 * MIB, MIB), (3 * MIB + BLOCK, MIB + 5 - BLOCK),
        ]  # fmt: skip
        assert extents(find_holes(device, 2 * MIB + 512)) == [(0, MIB), (2 * MIB, 512)]
        assert extents(find_holes(device, 1 << 50)) == extents(find_holes(device, device.size))
    path.write_bytes(b"")
    with open_device(str(path)) as device:
        assert not len(find_holes(device, 0))
    with open_device(str(sparse(tmp_path / "all", MIB))) as device:
        assert extents(find_holes(device, MIB)) == [(0, MIB)]


def test_zeros_are_zeros() -> None:
    out = memoryview(bytearray(b"xyz"))
    Zeros(3).read([0], [3], out)
    assert out == bytes(3)


def test_a_read_error_of_one_side_is_raised(tmp_path: Path) -> None:
    name = files(tmp_path, random_bytes(4 * MIB), random_bytes(4 * MIB, 2))
    subprocess.run(["truncate", "-s", "4M", name.new.path], check=True)
    with open_device(name.new.path) as new, open_device(str(tmp_path / "old")) as old:
        os.truncate(tmp_path / "old", MIB)
        with pytest.raises(DeviceError, match="did it shrink"):
            find_differences(new, old, ChangeMap.whole(4 * MIB))

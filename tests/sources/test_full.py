from __future__ import annotations

import os
from pathlib import Path

import pytest

from lvmsync.errors import DeviceError, UsageError
from lvmsync.names import Volume, WholeDevice
from lvmsync.sources import Reading, open_source
from tests.sources.loops import loop_of, sparse

MIB = 1 << 20


def test_a_file_is_everything_and_its_holes(tmp_path: Path) -> None:
    path = sparse(tmp_path / "file", 8 * MIB + 100, (MIB, b"x" * MIB), (8 * MIB, b"end"))
    with open_source(WholeDevice(Volume(str(path)))) as source:
        assert (source.kind, source.size, source.granularity, source.base) == ("full", 8 * MIB + 100, 4096, None)
        assert [tuple(extent) for extent in source.changes] == [(0, 8 * MIB + 100)]
        assert [tuple(extent) for extent in source.holes] == [(0, MIB), (2 * MIB, 6 * MIB)]
        assert source.head
        source.confirm()
        os.utime(path, ns=(1, 1))
        with pytest.raises(DeviceError, match="was written to while it was read"):
            source.confirm()


def test_a_size_holds_it_and_an_empty_file_has_nothing(tmp_path: Path) -> None:
    path = sparse(tmp_path / "file", MIB)
    with open_source(WholeDevice(Volume(str(path)), 4096)) as source:
        assert source.changes.end == source.holes.end == source.size == 4096
    with pytest.raises(UsageError, match="has only 1048576 bytes"):
        open_source(WholeDevice(Volume(str(path)), MIB + 1)).__enter__()
    with open_source(WholeDevice(Volume(str(sparse(tmp_path / "empty", 0))))) as source:
        assert not len(source.changes)
        assert not len(source.holes)


def test_a_device_tells_no_holes_and_is_ours_unless_it_is_frozen(tmp_path: Path) -> None:
    path = sparse(tmp_path / "file", 4 * MIB)
    with loop_of(path) as device:
        name = WholeDevice(Volume(str(device)))
        with open_source(name) as source:
            assert not len(source.holes)
            with pytest.raises(DeviceError, match="name a snapshot of it, or say --frozen"):
                open_source(name).__enter__()
            with open_source(name, Reading(frozen=True)):
                pass
            with device.open("r+b", buffering=0) as file:
                file.write(b"x")
            with pytest.raises(DeviceError, match="was written to"):
                source.confirm()


def test_a_file_that_was_written_to_and_given_its_time_back_is_no_one_state(tmp_path: Path) -> None:
    path = sparse(tmp_path / "file", MIB)
    with open_source(WholeDevice(Volume(str(path)))) as source:
        times = path.stat()
        with path.open("r+b", buffering=0) as file:
            file.write(b"x")
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
        with pytest.raises(DeviceError, match="was written to"):
            source.confirm()

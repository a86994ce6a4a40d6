"""Where a file lies on its device: what the kernel answers is read, and a real file's bytes are found there."""

from __future__ import annotations

import errno
import os
import struct
import subprocess
from pathlib import Path

import pytest

from lvmsync.errors import DeviceError
from lvmsync.extents import ChangeMap
from lvmsync.system.fiemap import find_file_extents

LAST, UNWRITTEN, SHARED, MERGED = 1, 0x800, 0x2000, 0x1000


class FakeSystem:
    """Answers requests as a file system does that keeps a file in these places: logical, physical, length, flags."""

    def __init__(self, *places: tuple[int, int, int, int], room: int = 1 << 30) -> None:
        self.places = places
        self.room = room
        self.asked: list[tuple[int, ...]] = []

    def __call__(self, fd: int, number: int, buffer: bytearray) -> int:
        os.fstat(fd)
        assert number == 0xC020660B
        start, length, flags, mapped, count, reserved = struct.unpack_from("=QQIIII", buffer)
        assert (mapped, reserved, len(buffer)) == (0, 0, 32 + 56 * count)
        assert start + length == (1 << 64) - 1
        self.asked.append((start, flags))
        told = [one for one in self.places if one[0] + one[2] > start][: min(count, self.room)]
        struct.pack_into("=I", buffer, 20, len(told))
        for at, (logical, physical, size, kind) in enumerate(told):
            struct.pack_into("=QQQQQIIII", buffer, 32 + 56 * at, logical, physical, size, 0, 0, kind, 0, 0, 0)
        return 0


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "file"
    path.write_bytes(b"x" * 10)
    return str(path)


def test_the_places_of_a_file_are_its_extents_in_order_of_the_device(file: str) -> None:
    system = FakeSystem(
        (0, 81920, 8192, 0), (8192, 4096, 4096, UNWRITTEN), (40960, 90112, 4096, LAST | SHARED | MERGED)
    )
    assert find_file_extents(file, system) == ChangeMap.from_extents([(4096, 4096), (81920, 12288)])
    assert system.asked == [(0, 1)]  # with SYNC


def test_more_extents_than_there_is_room_for_are_asked_for_again(file: str) -> None:
    places = [(at * 8192, at * 16384, 4096, 0) for at in range(1500)]
    everything = ChangeMap.from_extents([(at * 16384, 4096) for at in range(1500)])
    assert find_file_extents(file, FakeSystem(*places)) == everything  # none is called the last
    slow = FakeSystem(*places[:-1], (*places[-1][:3], LAST), room=7)
    assert find_file_extents(file, slow) == everything
    assert len(slow.asked) == 215


def test_an_empty_file_lies_nowhere(file: str) -> None:
    assert find_file_extents(file, FakeSystem()) == ChangeMap.empty()


@pytest.mark.parametrize("flag", [0x2, 0x2 | 0x4, 0x8, 0x80 | 0x8, 0x100, 0x100 | 0x200, 0x100 | 0x400])
def test_a_file_of_which_one_extent_is_in_no_known_place_is_not_told(file: str, flag: int) -> None:
    assert find_file_extents(file, FakeSystem((0, 4096, 4096, 0), (4096, 0, 4096, flag | LAST))) is None


def test_a_file_system_that_repeats_itself_is_not_believed(file: str) -> None:
    def stuck(fd: int, number: int, buffer: bytearray) -> int:
        struct.pack_into("=I", buffer, 20, 1)
        struct.pack_into("=QQQQQIIII", buffer, 32, 0, 4096, 0, 0, 0, 0, 0, 0, 0)
        return 0

    assert find_file_extents(file, stuck) is None


@pytest.mark.parametrize("code", [errno.EOPNOTSUPP, errno.ENOTTY, errno.EINVAL, errno.EBADR])
def test_a_file_system_that_cannot_tell_is_no_error(file: str, code: int) -> None:
    def refuse(fd: int, number: int, buffer: bytearray) -> int:
        raise OSError(code, os.strerror(code))

    assert find_file_extents(file, refuse) is None


def test_other_failures_are_errors(file: str, tmp_path: Path) -> None:
    def fail(fd: int, number: int, buffer: bytearray) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with pytest.raises(DeviceError, match=f"cannot ask where {file} lies: Input/output error"):
        find_file_extents(file, fail)
    with pytest.raises(DeviceError, match=r"cannot open .*/none: No such file"):
        find_file_extents(str(tmp_path / "none"))
    (tmp_path / "link").symlink_to(file)
    with pytest.raises(DeviceError, match=r"cannot open .*/link"):
        find_file_extents(str(tmp_path / "link"))


def test_a_real_file_system_tells_or_says_that_it_does_not(tmp_path: Path) -> None:
    path = tmp_path / "real"
    path.write_bytes(os.urandom(3 * 4096))
    found = find_file_extents(str(path))
    kind = subprocess.run(["stat", "-f", "-c", "%T", path], capture_output=True, text=True, check=True).stdout.strip()
    if kind in ("ext2/ext3", "xfs"):
        assert found is not None
        assert found.total_bytes >= 3 * 4096
    elif kind == "tmpfs":
        assert found is None

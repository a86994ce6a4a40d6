"""blksnap asked what was not recorded: which node it has, and answers that were not seen. A replay does the rest."""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from lvmsync.errors import ChangesLost, DeviceError, FormatError, UsageError
from lvmsync.formats.blksnap import Tracking
from lvmsync.formats.blksnap_abi import Abi, Event
from lvmsync.system import blksnap_requests
from lvmsync.system.blksnap import Control, DeviceName, errno_of, name_device, open_control
from lvmsync.system.blksnap_requests import call_ioctl, check_number
from tests.blksnap_replay import (
    MAJORS,
    NODES,
    PROBE,
    Replay,
    list_recordings,
    read_text,
)

RECORDINGS = list_recordings()
DISK = DeviceName("/dev/vda", (254, 0))
NOBODY = "00112233-4455-6677-8899-aabbccddeeff"


# Finding the nodes


class Nodes:
    """Control nodes in a folder, which answer VERSION and note all that is asked."""

    def __init__(self, root: Path, **majors: int) -> None:
        self.root = root
        self.majors = {name.replace("_", "-"): major for name, major in majors.items()}
        self.asked: list[tuple[str, int]] = []
        (root / "dev").mkdir()
        for name in self.majors:
            (root / "dev" / name).touch()

    def __call__(self, fd: int, number: int, argument: bytearray) -> int:
        name = Path(f"/proc/self/fd/{fd}").readlink().name
        self.asked.append((name, number))
        if self.majors[name] < 0:
            raise OSError(errno.ENOTTY, os.strerror(errno.ENOTTY))
        argument[:] = struct.pack("<4H", self.majors[name], 2, 3, 4)
        return 0

    def open(self) -> Control:
        return open_control(self.root, self)


@pytest.mark.parametrize(
    ("majors", "abi", "node"),
    [
        ({"blksnap_control": 2}, Abi.UP, "blksnap-control"),
        ({"veeamblksnap": 7, "bdevfilter": 0}, Abi.V7, "veeamblksnap"),
        ({"veeamblksnap": 1}, Abi.V1, "veeamblksnap"),
        ({"blksnap": 1}, Abi.V1, "blksnap"),
    ],
)
def test_the_abi_is_known_by_the_one_request_that_all_answer(
    majors: dict[str, int], abi: Abi, node: str, tmp_path: Path
) -> None:
    nodes = Nodes(tmp_path, **majors)
    with nodes.open() as control:
        assert (control.abi, str(control.version), control.node) == (abi, f"{abi.value}.2.3.4", tmp_path / "dev" / node)
        assert control.notes == ()
    assert nodes.asked == [(node, PROBE)]


@pytest.mark.parametrize(
    ("majors", "words"),
    [
        ({"veeamblksnap": 3}, "blksnap 3.2.3.4; expected major version 1 or 7"),
        ({"veeamblksnap": 2}, "blksnap 2.2.3.4; expected major version 1 or 7"),
        ({"blksnap_control": 1}, "blksnap 1.2.3.4; expected major version 2"),
        ({"blksnap": 7}, "blksnap 7.2.3.4; expected major version 1"),
        ({"blksnap": -1}, "does not tell its version"),
        ({"veeamblksnap": 7}, "modprobe bdevfilter"),
        ({}, "modprobe"),
    ],
)
def test_what_is_not_known_is_refused_and_sent_nothing_more(majors: dict[str, int], words: str, tmp_path: Path) -> None:
    nodes = Nodes(tmp_path, **majors)
    with pytest.raises(DeviceError, match=words):
        nodes.open()
    assert [number for _, number in nodes.asked] == [PROBE] * len(majors)
    assert not [one for one in Path("/proc/self/fd").iterdir() if is_open_in(tmp_path, one)]


def is_open_in(folder: Path, fd: Path) -> bool:
    try:
        return fd.readlink().is_relative_to(folder)
    except OSError:
        return False


def test_of_two_nodes_the_one_that_answers_is_taken_and_said(tmp_path: Path) -> None:
    with Nodes(tmp_path, blksnap_control=-1, veeamblksnap=1).open() as control:
        assert control.abi is Abi.V1
        assert control.notes == (
            f"There are control nodes {tmp_path}/dev/blksnap-control and {tmp_path}/dev/veeamblksnap;"
            f" {tmp_path}/dev/veeamblksnap is used.",
        )


def test_a_node_that_may_not_be_opened_says_so(tmp_path: Path) -> None:
    nodes = Nodes(tmp_path, blksnap_control=2)

    def refuse(path: str, flags: int) -> int:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    with pytest.raises(DeviceError, match="run as root"):
        open_control(tmp_path, nodes, refuse)
    assert nodes.asked == []


def test_the_real_ioctl_is_called_where_none_is_given(tmp_path: Path) -> None:
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/blksnap-control").touch()
    with pytest.raises(DeviceError, match="does not tell its version"):
        open_control(tmp_path)
    with (tmp_path / "dev/blksnap-control").open() as file, pytest.raises(OSError, match="ioctl"):
        call_ioctl(file.fileno(), PROBE, bytearray(8))


# Devices


def test_a_device_is_named_by_its_real_path_and_number(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DeviceError, match="no block device"):
        name_device(str(tmp_path / "file"))
    with pytest.raises(DeviceError, match="no such device"):
        name_device(str(tmp_path / "nothing"))
    for node in Path("/dev").iterdir():
        if node.is_block_device() and not node.is_symlink():
            (tmp_path / "link").symlink_to(node)
            number = node.stat().st_rdev
            assert name_device(str(tmp_path / "link")) == DeviceName(str(node), (os.major(number), os.minor(number)))
            return


def test_a_path_that_leads_to_another_device_by_now_is_refused() -> None:
    state = os.stat_result((stat.S_IFBLK, *[0] * 9), {"st_rdev": os.makedev(254, 16)})
    check_number(DeviceName("/dev/vda", (254, 16)), state)
    with pytest.raises(DeviceError, match="254:16 now, and was 254:0"):
        check_number(DISK, state)


@pytest.mark.parametrize("abi", ["v7", "up"])
def test_each_request_to_the_filter_looks_first_where_the_path_leads(
    abi: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def is_another(device: DeviceName, state: os.stat_result) -> None:
        raise DeviceError(f"{device.path} is another device")

    monkeypatch.setattr(blksnap_requests, "check_number", is_another)
    kernel = Scripted(abi, tmp_path)
    with kernel.open() as control, pytest.raises(DeviceError, match="/dev/vda is another device"):
        control.mark_dirty(DISK, [(0, 512)])
    assert kernel.numbers == []


# What was not recorded


class Scripted:
    """A kernel of which a test says what it answers to each request; each answer is an errno or what is done."""

    def __init__(self, abi: str, root: Path) -> None:
        self.abi = abi
        self.root = root
        self.answers: list[int | Callable[[bytearray], int]] = []
        self.numbers: list[int] = []
        for name in NODES[abi].values():
            (root / name).parent.mkdir(exist_ok=True)
            (root / name).touch()

    def __call__(self, fd: int, number: int, argument: bytearray) -> int:
        if number == PROBE and not self.numbers:
            argument[:] = struct.pack("<4H", MAJORS[self.abi], 0, 0, 0)
            return 0
        self.numbers.append(number)
        answer = self.answers.pop(0) if self.answers else 0
        if isinstance(answer, int) and answer:
            raise OSError(answer, os.strerror(answer))
        return answer(argument) if callable(answer) else 0

    def open(self) -> Control:
        return open_control(self.root, self, Replay(self.abi, [], self.root).open_path)


def filling(values: bytes, result: int = 0) -> Callable[[bytearray], int]:
    """Return an answer that fills the struct that a CTL points at."""

    def answer(argument: bytearray) -> int:
        (address,) = struct.unpack_from("<Q", argument, 40 if len(argument) == 48 else 48)
        ctypes.memmove(address, values, len(values))
        return result

    return answer


def counting(count: int) -> Callable[[bytearray], int]:
    def answer(argument: bytearray) -> int:
        argument[:4] = struct.pack("<I", count)
        return 0

    return answer


@pytest.mark.parametrize("abi", MAJORS)
def test_a_signal_or_no_event_is_no_error_when_waiting(abi: str, tmp_path: Path) -> None:
    kernel = Scripted(abi, tmp_path)
    with kernel.open() as control:
        kernel.answers = [errno.EINTR, errno.ENOENT, errno.EIO]
        assert control.wait_event(NOBODY, 10) is None
        assert control.wait_event(NOBODY, 10) is None
        with pytest.raises(DeviceError, match="wait for events"):
            control.wait_event(NOBODY, 10)


def test_the_codes_of_events_are_swapped_between_the_first_generation_and_the_others(tmp_path: Path) -> None:
    def answer(argument: bytearray) -> int:
        argument[20:44] = struct.pack("<Iq", 0, 77) + struct.pack("<IIi", 8, 16, 28)
        return 0

    found = {}
    for abi in MAJORS:
        kernel = Scripted(abi, tmp_path)
        with kernel.open() as control:
            kernel.answers = [answer]
            found[abi] = control.wait_event(NOBODY, 1)
    corrupted = Event("corrupted", 77, device=(8, 16), errno=28)
    assert found == {"v1": Event("low_space", 77, sectors=16 << 32 | 8), "v7": corrupted, "up": corrupted}


@pytest.mark.parametrize("abi", MAJORS)
def test_a_list_that_grows_while_it_is_read_is_read_again(abi: str, tmp_path: Path) -> None:
    kernel = Scripted(abi, tmp_path)

    def fill(argument: bytearray) -> int:
        count, address = struct.unpack("<I4xQ", argument)
        assert count == 3
        ctypes.memmove(address, bytes(range(48)), 48)
        argument[:4] = struct.pack("<I", 2)  # one is gone by now
        return 0

    with kernel.open() as control:
        kernel.answers = [counting(1), errno.ENODATA, counting(3), fill]
        assert control.list_snapshots() == [
            "00010203-0405-0607-0809-0a0b0c0d0e0f",
            "10111213-1415-1617-1819-1a1b1c1d1e1f",
        ]


@pytest.mark.parametrize("abi", ["v7", "up"])
def test_a_snapshot_that_a_device_cannot_join_is_given_up(abi: str, tmp_path: Path) -> None:
    kernel = Scripted(abi, tmp_path)
    with kernel.open() as control:
        kernel.answers = [0, 0, errno.EALREADY, 0]
        with pytest.raises(DeviceError, match="in a snapshot already"):
            control.create([DISK, DeviceName("/dev/vdb", (254, 16))], "/var/tmp", 1 << 30)
    assert kernel.numbers[-1] == 0x40105602
    assert len(kernel.numbers) == 4


@pytest.mark.parametrize("abi", ["v7", "up"])
def test_ctrl_c_while_devices_are_added_gives_the_snapshot_up(abi: str, tmp_path: Path) -> None:
    kernel = Scripted(abi, tmp_path)

    def interrupt(argument: bytearray) -> int:
        raise KeyboardInterrupt

    with kernel.open() as control:
        kernel.answers = [0, interrupt, errno.ENODEV]
        with pytest.raises(KeyboardInterrupt):
            control.create([DISK], "/var/tmp", 1 << 30)
    assert kernel.numbers[-1] == 0x40105602


def test_what_a_generation_does_not_have_is_never_sent(tmp_path: Path) -> None:
    kernel = Scripted("v1", tmp_path)
    with kernel.open() as control:
        control.attach(DISK)  # nothing: a snapshot does it
        with pytest.raises(UsageError, match="no such request"):
            control.add(NOBODY, DISK)
    assert kernel.numbers == []
    kernel = Scripted("up", tmp_path)
    with kernel.open() as control:
        with pytest.raises(UsageError, match="no such request"):
            control.append_storage(NOBODY, DISK, [(0, 4096)])
        with pytest.raises(UsageError, match="no such request"):
            control.read_modification()
        with pytest.raises(UsageError, match="no such request"):
            control.list_trackers()
    assert kernel.numbers == []


@pytest.mark.parametrize("abi", MAJORS)
def test_ranges_to_mark_are_rounded_outward_and_ranges_to_use_inward(abi: str, tmp_path: Path) -> None:
    kernel = Scripted(abi, tmp_path)
    seen: list[tuple[int, ...]] = []

    def keep(argument: bytearray) -> int:
        if len(argument) == 24:  # mark dirty, v1
            count, address = struct.unpack_from("<I4xQ", argument, 8)
        elif len(argument) == 40:
            count, address = struct.unpack_from("<I4xQ", argument, 24)
        else:
            (option,) = struct.unpack_from("<Q", argument, 40 if len(argument) == 48 else 48)
            count, address = struct.unpack("<I4xQ", ctypes.string_at(option, 16))
        seen.extend(struct.iter_unpack("<QQ", ctypes.string_at(address, 16 * count)))
        return 0

    with kernel.open() as control:
        kernel.answers = [keep, keep]
        control.mark_dirty(DISK, [(1000, 100), (0, 512), (511, 2)])
        assert seen == [(1, 2), (0, 1), (0, 2)]
        seen.clear()
        if abi != "up":
            control.append_storage(NOBODY, DISK, [(1000, 100), (511, 1026), (1024, 2048)])
            assert seen == [(1, 2), (2, 4)]
            with pytest.raises(DeviceError, match="no whole sector"):
                control.append_storage(NOBODY, DISK, [(1, 1000)])
        made = len(kernel.numbers)
        control.mark_dirty(DISK, [(1024, 0)])
        control.mark_dirty(DISK, [])
        assert len(kernel.numbers) == made


@pytest.mark.parametrize("abi", ["v7", "up"])
def test_an_image_of_a_lost_snapshot_is_named_and_its_loss_is_told(abi: str, tmp_path: Path) -> None:
    kernel = Scripted(abi, tmp_path)
    with kernel.open() as control:
        kernel.answers = [filling(struct.pack("<i32s", -28, b"blksnap-8-0"))] * 2
        assert control.images(NOBODY, [DISK]) == {DISK: str(tmp_path / "dev/blksnap-8-0")}
        assert control.read_error(DISK) == errno.ENOSPC


@pytest.mark.parametrize("abi", ["v7", "up"])
def test_a_name_of_an_image_that_is_a_path_is_refused(abi: str, tmp_path: Path) -> None:
    kernel = Scripted(abi, tmp_path)
    with kernel.open() as control:
        kernel.answers = [filling(struct.pack("<i32s", 0, b"../x"))]
        with pytest.raises(FormatError, match="no name in /dev"):
            control.images(NOBODY, [DISK])


@pytest.mark.parametrize("abi", ["v7", "up"])
def test_an_answer_that_does_not_fit_together_is_refused_with_the_devices_name(abi: str, tmp_path: Path) -> None:
    kernel = Scripted(abi, tmp_path)
    with kernel.open() as control:
        kernel.answers = [filling(struct.pack("<QII16sB7x", 1 << 20, 65536, 17, b"g", 1)), errno.EIO]
        with pytest.raises(FormatError, match="/dev/vda: blksnap says 17 blocks"):
            control.read_tracking(DISK)
        with pytest.raises(DeviceError, match="Input/output error"):
            control.read_tracking(DISK)


def test_a_map_that_is_shorter_than_told_is_lost_and_a_longer_one_is_nonsense(tmp_path: Path) -> None:
    kernel = Scripted("v1", tmp_path)
    tracking = Tracking(NOBODY, 1, 65536, 100, 6553600)
    with kernel.open() as control:
        kernel.answers = [lambda _: 64, lambda _: 10]
        with pytest.raises(ChangesLost, match="ends at 74, not at 100"):
            control.read_map(DISK, tracking, piece=64)
        kernel.answers = [lambda _: 101]
        with pytest.raises(FormatError, match="read 101 bytes of its map, of 100"):
            control.read_map(DISK, tracking)


def test_an_image_of_v1_is_found_in_sysfs_or_refused(tmp_path: Path) -> None:
    kernel = Scripted("v1", tmp_path)

    def fill(argument: bytearray) -> int:
        (address,) = struct.unpack_from("<Q", argument, 24)
        ctypes.memmove(address, struct.pack("<4I", 254, 0, 252, 3), 16)
        return 0

    def count(argument: bytearray) -> int:
        argument[16:20] = struct.pack("<I", 1)
        return 0

    with kernel.open() as control:
        kernel.answers = [count, fill, count, fill]
        with pytest.raises(DeviceError, match="252:3"):
            control.images(NOBODY, [DISK])
        with pytest.raises(DeviceError, match="is not of /dev/vdb"):
            control.images(NOBODY, [DeviceName("/dev/vdb", (254, 16))])


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.EPERM, "run as root"),
        (errno.EACCES, "run as root"),
        (errno.ENOTTY, "another version"),
        (errno.ENODEV, "no such block device"),
        (errno.EIO, "Input/output error"),
    ],
)
def test_errors_that_were_not_seen_have_their_reason_too(number: int, words: str, tmp_path: Path) -> None:
    kernel = Scripted("up", tmp_path)
    with kernel.open() as control:
        kernel.answers = [number]
        with pytest.raises(DeviceError, match=words) as caught:
            control.attach(DISK)
    assert errno_of(caught.value) == number
    assert caught.value.device == "/dev/vda"


def test_what_an_errno_means_is_a_matter_of_the_generation(tmp_path: Path) -> None:
    for abi, words in (("v1", "not tracked"), ("up", "map does not hold")):
        kernel = Scripted(abi, tmp_path)
        with kernel.open() as control:
            kernel.answers = [errno.ENODATA]
            with pytest.raises(ChangesLost if abi == "up" else DeviceError, match=words):
                control.read_map_piece(DISK, 0, 16)
    kernel = Scripted("v1", tmp_path)
    with kernel.open() as control:
        kernel.answers = [errno.EPERM, errno.EPERM]
        with pytest.raises(DeviceError, match="no snapshot of it is held"):
            control.read_map_piece(DISK, 0, 16)
        with pytest.raises(DeviceError, match="run as root"):
            control.detach(DISK)


def test_a_device_that_is_gone_is_said_to_be(tmp_path: Path) -> None:
    for abi in ("v7", "up"):
        kernel = Scripted(abi, tmp_path)
        with open_control(tmp_path, kernel) as control, pytest.raises(DeviceError, match="no such device"):
            control.attach(DeviceName(str(tmp_path / "gone"), (254, 0)))
        with open_control(tmp_path, kernel) as control, pytest.raises(DeviceError, match="no such device"):
            control.read_tracking(DeviceName(str(tmp_path / "gone"), (254, 0)))  # which is not: not tracked
        assert kernel.numbers == []


def test_paths_are_sent_as_they_are_with_a_zero_byte_behind(tmp_path: Path) -> None:
    kernel = Scripted("v7", tmp_path)
    seen = []

    def keep(argument: bytearray) -> int:
        seen.append(read_text(ctypes.string_at(struct.unpack_from("<Q", argument)[0])))
        return 0

    with kernel.open() as control:
        kernel.answers = [keep]
        control.attach(DeviceName("/dev/mapper/a b,c", (253, 1)))
    assert seen == ["/dev/mapper/a b,c"]

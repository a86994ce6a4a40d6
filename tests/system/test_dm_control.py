"""The control node, played by a function that answers as drivers/md/dm-ioctl.c does."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from pathlib import Path

import pytest

from lvmsync.errors import CommandError
from lvmsync.formats import dm_ioctl
from lvmsync.formats.dm_ioctl import HEADER_SIZE, Target
from lvmsync.system import dm, dm_control
from tests.formats.test_dm_ioctl import names, targets


class Kernel:
    """Devices with their tables, by number; one without a table has None.

    Attributes:
        version: of the interface.
        failure: errno of every request but VERSION.
    """

    def __init__(self) -> None:
        self.devices: dict[int, tuple[str, list[Target] | None]] = {}
        self.version = 4
        self.failure = 0
        self.gone: set[int] = set()
        self.flags: list[int] = []

    def __call__(self, fd: int, request: int, buffer: bytearray) -> int:
        if request == dm_ioctl.VERSION:
            struct.pack_into("=I", buffer, 0, self.version)
            return 0
        if self.failure:
            raise OSError(self.failure, os.strerror(self.failure))
        if request == dm_ioctl.LIST_DEVICES:
            self._answer(buffer, names(*((254 << 8 | minor, name) for minor, (name, _) in self.devices.items())))
            return 0
        minor = buffer[40]
        if minor not in self.devices or minor in self.gone:
            raise OSError(errno.ENXIO, os.strerror(errno.ENXIO))
        name, table = self.devices[minor]
        self.flags.append(struct.unpack_from("=I", buffer, 28)[0])
        buffer[48 : 48 + len(name)] = name.encode()
        flags = 0 if table is None else dm_ioctl.ACTIVE_PRESENT_FLAG
        struct.pack_into("=IiI", buffer, 20, len(table or ()), 1, flags)
        if request == dm_ioctl.TABLE_STATUS:
            self._answer(buffer, targets(*(table or ())), flags)
        return 0

    def _answer(self, buffer: bytearray, data: bytes, flags: int = 0) -> None:
        if HEADER_SIZE + len(data) > len(buffer):
            struct.pack_into("=I", buffer, 28, flags | dm_ioctl.BUFFER_FULL_FLAG)
            return
        buffer[HEADER_SIZE : HEADER_SIZE + len(data)] = data
        struct.pack_into("=I", buffer, 12, HEADER_SIZE + len(data))


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kernel:
    played = Kernel()
    (tmp_path / "control").touch()
    (tmp_path / "misc").write_text("236 device-mapper\n")
    monkeypatch.setattr(dm_control, "CONTROL", tmp_path / "control")
    monkeypatch.setattr(dm, "MISC_DEVICES", tmp_path / "misc")
    monkeypatch.setattr(fcntl, "ioctl", played)
    monkeypatch.setenv("PATH", str(tmp_path))  # no dmsetup
    played.devices = {
        0: ("vg-lv", [Target(0, 8, "linear", "8:0 384"), Target(8, 8, "zero", "")]),
        1: ("empty", None),
        7: ("snap", [Target(0, 16, "snapshot", "254:0 254:1 P 8")]),
    }
    return played


def test_devices_and_tables_are_had_without_a_program(kernel: Kernel) -> None:
    assert dm.list_devices() == [dm.Mapped(name, "", (254, minor), 1) for minor, (name, _) in kernel.devices.items()]
    lines = dm.list_tables()
    assert [(line.device.name, line.start, line.length, line.kind, line.text) for line in lines] == [
        ("vg-lv", 0, 4096, "linear", "8:0 384"),
        ("vg-lv", 4096, 4096, "zero", ""),
        ("snap", 0, 8192, "snapshot", "254:0 254:1 P 8"),
    ]
    assert dm.find_device((254, 7)) == dm.Mapped("snap", "", (254, 7), 1)
    assert dm.find_device((254, 8)) is None
    assert dm.find_device(None) is None


def test_a_status_is_asked_for_without_flags_and_a_table_with_its_own(kernel: Kernel) -> None:
    device = dm.find_device((254, 7))
    assert device
    kernel.flags.clear()
    assert [line.kind for line in dm.read_status(device)] == ["snapshot"]
    dm.list_tables()
    table = dm_ioctl.STATUS_TABLE_FLAG | dm_ioctl.SECURE_DATA_FLAG
    assert kernel.flags == [0, table, table, table]


def test_a_device_that_goes_between_two_requests_is_left_out(kernel: Kernel) -> None:
    kernel.gone = {0}
    assert [device.name for device in dm.list_devices()] == ["empty", "snap"]
    assert [line.device.name for line in dm.list_tables()] == ["snap"]


def test_the_status_of_a_device_that_is_gone_or_another_one_is_an_error(kernel: Kernel) -> None:
    device = dm.find_device((254, 7))
    assert device
    kernel.devices[7] = ("other", kernel.devices[7][1])
    with pytest.raises(CommandError, match="/dev/mapper/snap is gone"):
        dm.read_status(device)
    kernel.gone = {7}
    with pytest.raises(CommandError, match="/dev/mapper/snap is gone"):
        dm.read_status(device)


def test_long_answers_are_asked_for_again_with_more_room(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel.devices = {minor: (f"{minor:0100d}", [Target(0, 8, "linear", "x" * 40000)]) for minor in range(200)}
    assert len(dm.list_devices()) == len(dm.list_tables()) == 200
    monkeypatch.setattr(dm_control, "_MOST", 16 << 10)
    with pytest.raises(CommandError, match="is longer than"):
        dm.list_tables()


def test_an_answer_that_makes_no_sense_is_an_error(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    def lie(fd: int, request: int, buffer: bytearray) -> int:
        kernel(fd, request, buffer)
        if request == dm_ioctl.TABLE_STATUS:
            struct.pack_into("=I", buffer, 20, 99)
        return 0

    monkeypatch.setattr(fcntl, "ioctl", lie)
    with pytest.raises(CommandError, match="cannot read what the kernel says"):
        dm.list_tables()


def test_a_failure_of_the_kernel_is_told(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(fd: int, request: int, buffer: bytearray) -> int:
        if request == dm_ioctl.DEV_STATUS:
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
        return kernel(fd, request, buffer)

    monkeypatch.setattr(fcntl, "ioctl", fail)
    with pytest.raises(CommandError, match="does not tell of device 254:0: Cannot allocate memory"):
        dm.list_devices()


@pytest.mark.parametrize("lack", ["node", "version", "permission", "ioctl"])
def test_without_a_control_node_for_us_dmsetup_is_asked(kernel: Kernel, lack: str) -> None:
    match lack:
        case "node":
            dm_control.CONTROL.unlink()
        case "version":
            kernel.version = 5
        case "permission":
            kernel.failure = errno.EACCES
        case "ioctl":
            kernel.failure = errno.ENOTTY
    for ask in (dm.list_devices, dm.list_tables, lambda: dm.find_device((254, 0))):
        with pytest.raises(CommandError, match="cannot run 'dmsetup'"):
            ask()

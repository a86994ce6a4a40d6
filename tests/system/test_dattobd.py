"""The control node of dattobd: what is asked, byte for byte, and what its refusals are told as."""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path
from typing import Any

import pytest

from lvmsync.errors import DeviceError, FormatError
from lvmsync.formats.dattobd_control import REQUESTS
from lvmsync.system import dattobd
from lvmsync.system.dattobd import DATTOBD, ELASTIO, Control, list_tracked
from tests.dattobd_store import FOLDER, find_case


class Node:
    """A control node that answers from a recording, and keeps what it was asked."""

    def __init__(self, answer: bytes | int = b"") -> None:
        self.answer = answer
        self.asked: list[tuple[int, dict[str, Any]]] = []

    def __call__(self, fd: int, number: int, argument: bytearray) -> int:
        assert os.fstat(fd)
        request = next(one for one in REQUESTS.values() if one.nr == number & 0xFF)
        values = request.decode(bytes(argument))
        if number & 0xFF < 8:
            for name in ("bdev", "cow"):
                if name in values:
                    values[name] = ctypes.string_at(values[name])
        self.asked.append((number, values))
        if isinstance(self.answer, int):
            raise OSError(self.answer, os.strerror(self.answer))
        argument[: len(self.answer)] = self.answer
        return 0


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(dattobd, "ROOT", tmp_path)
    for name in ("dev", "proc"):
        (tmp_path / name).mkdir()
    for driver in (DATTOBD, ELASTIO):
        driver.control.touch()
    return tmp_path


CALLS: list[tuple[str, tuple[Any, ...], dict[str, Any], int, dict[str, Any]]] = [
    ("setup", ("/dev/vda", "/mnt/é", 3), {"space_mib": 8, "cache_size": 9}, 1,
     {"bdev": b"/dev/vda", "cow": "/mnt/é".encode(), "fallocated_space": 8, "cache_size": 9, "minor": 3}),
    ("reload_snapshot", ("/dev/vda", "/.datto", 1), {}, 2,
     {"bdev": b"/dev/vda", "cow": b"/.datto", "cache_size": 0, "minor": 1}),
    ("reload_incremental", ("/dev/vda", "/.datto", 1), {"cache_size": 5}, 3,
     {"bdev": b"/dev/vda", "cow": b"/.datto", "cache_size": 5, "minor": 1}),
    ("destroy", (4,), {}, 4, {"minor": 4}),
    ("to_incremental", (4,), {}, 5, {"minor": 4}),
    ("to_snapshot", (4, "/mnt/.new"), {"space_mib": 7}, 6, {"cow": b"/mnt/.new", "fallocated_space": 7, "minor": 4}),
    ("reconfigure", (4, 100), {}, 7, {"cache_size": 100, "minor": 4}),
    ("expand", (4, 100), {}, 10, {"size": 100, "minor": 4}),
    ("auto_expand", (4, 2, 1), {}, 11, {"step_size": 2, "reserved_space": 1, "minor": 4}),
]  # fmt: skip


@pytest.mark.parametrize("driver", [DATTOBD, ELASTIO], ids=lambda one: one.name)
@pytest.mark.parametrize(("name", "words", "options", "nr", "values"), CALLS, ids=[one[0] for one in CALLS])
def test_each_request_is_made_as_the_driver_takes_it(
    driver: dattobd.Driver, name: str, words: Any, options: Any, nr: int, values: dict[str, Any]
) -> None:
    node = Node()
    with Control(driver, node) as control:
        if nr >= 10 and driver is ELASTIO:
            with pytest.raises(DeviceError, match="cannot let a COW file grow"):
                getattr(control, name)(*words, **options)
            assert not node.asked
            return
        getattr(control, name)(*words, **options)
    ((number, asked),) = node.asked
    assert (number & 0xFF, number >> 8 & 0xFF, asked) == (nr, driver.magic, values)


def test_an_info_is_asked_for_by_its_minor_and_decoded() -> None:
    node = Node(find_case("dattobd-64m").bytes("info.snap2.bin"))
    with Control(DATTOBD, node) as control:
        info = control.read_info(0)
    assert (info.state, info.seqid, info.bdev) == (3, 2, "/dev/vda")
    assert node.asked[0][0] == 0xA0509108
    assert node.asked[0][1]["minor"] == 0


def test_a_free_minor_is_found_or_there_is_none() -> None:
    with Control(DATTOBD, Node(b"\x05\0\0\0")) as control:
        assert control.find_free_minor() == 5
    with Control(DATTOBD, Node(b"\xff\xff\xff\xff")) as control, pytest.raises(DeviceError, match="no free minor"):
        control.find_free_minor()


@pytest.mark.parametrize(
    ("name", "words", "code", "message"),
    [
        ("setup", ("/dev/vda", "/c", 1), errno.EINVAL, "not mounted for writing, or is tracked already"),
        ("setup", ("/dev/vda", "/c", 1), errno.EBUSY, "the minor is taken"),
        ("setup", ("/dev/vda", "/c", 1), errno.ENOENT, "no such device, or no such folder"),
        ("setup", ("/dev/vda", "/c", 1), errno.ENOSPC, "no room for the COW file; make room"),
        ("setup", ("/dev/vda", "/c", 1), errno.EPERM, "run as root"),
        ("setup", ("/dev/vda", "/c", 1), errno.ENOTTY, "does not know this request"),
        ("setup", ("/dev/vda", "/c", 1), errno.EIO, "Input/output error"),
        ("reload_incremental", ("/dev/vda", "/c", 1), errno.EINVAL, "the device is mounted"),
        ("destroy", (1,), errno.EBUSY, "its snapshot device is open"),
        ("destroy", (1,), errno.EINVAL, "the minor is out of range"),
        ("destroy", (1,), errno.ENOENT, "there is no such minor"),
        ("to_incremental", (1,), errno.EINVAL, "it is not an active snapshot, or has failed"),
        ("to_incremental", (1,), errno.EBUSY, "its snapshot device is open"),
        ("to_snapshot", (1, "/c"), errno.EINVAL, "not actively tracking in incremental mode"),
        ("to_snapshot", (1, "/c"), errno.ENOSPC, "tracking goes on as it was; make room"),
        ("reconfigure", (1, 5), errno.EBUSY, "its snapshot device is open"),
    ],
)
def test_each_refusal_says_what_to_do(name: str, words: Any, code: int, message: str) -> None:
    with Control(DATTOBD, Node(code)) as control, pytest.raises(DeviceError, match=message) as caught:
        getattr(control, name)(*words)
    assert str(caught.value).startswith("dattobd: cannot ")


def test_a_module_that_is_not_loaded_is_told_of() -> None:
    DATTOBD.control.unlink()
    with pytest.raises(DeviceError, match="the module is not loaded; run 'modprobe dattobd'"):
        Control(DATTOBD)
    assert list_tracked() == []
    assert not DATTOBD.is_loaded


def test_both_drivers_are_listed_with_their_snapshot_devices(root: Path) -> None:
    for driver, name, key in (
        (DATTOBD, "dattobd-64m", "proc.snap2.json"),
        (ELASTIO, "elastio-64m-1k", "proc.snap2.json"),
    ):
        case = find_case(name)
        driver.proc.write_bytes((FOLDER / case.facts["files"][key]["path"]).read_bytes())
    one, other = list_tracked()
    assert (one.driver, other.driver) == (DATTOBD, ELASTIO)
    assert (one.snapshot_path, other.snapshot_path) == (str(root / "dev/datto0"), str(root / "dev/elastio-snap0"))
    assert one.device.seqid == other.device.seqid == 2


def test_a_proc_file_that_is_not_understood_is_named() -> None:
    DATTOBD.proc.write_text("{}")
    with pytest.raises(FormatError, match="datto-info: not what the driver writes"):
        list_tracked()
    DATTOBD.proc.unlink()
    DATTOBD.proc.mkdir()
    with pytest.raises(DeviceError, match="cannot read"):
        list_tracked()

"""Runs in the guest: the device mapper says the same through its control node as through dmsetup."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from lvmsync.errors import CommandError
from lvmsync.system import dm, dm_control
from tests.lab.in_guest import Cases, sh

case = Cases()

ZOO = """
make_vg vg /dev/ubda
lvcreate -q -y -W n -L 16m -n data vg
lvcreate -q -y -s -L 4m -n snap vg/data
lvcreate -q -q -y --type thin-pool --poolmetadataspare n -L 16m -n pool vg
lvcreate -q -y -V 32m --thinpool vg/pool -n thin
dd if=/dev/urandom of=/dev/vg/thin bs=1M count=3 oflag=direct status=none
dd if=/dev/urandom of=/dev/vg/data bs=1M count=2 oflag=direct status=none
lvcreate -q -y -W n -L 4m -n meta vg
lvcreate -q -y -W n -L 8m -n base vg
dd if=/dev/zero of=/dev/vg/meta bs=4k count=1 oflag=direct status=none
dmsetup create era --table '0 16384 era /dev/vg/meta /dev/vg/base 128'
printf '%s\\n' '0 8 error' '8 16 linear /dev/vg/base 0' '24 8 error' | dmsetup create two
dmsetup create odd:name#+-.=@_ --uuid odd-uuid-1 --table '0 8 error'
dmsetup create empty --notable
dmsetup create still --table '0 8 error'
dmsetup suspend still
"""


@case("tells of the same devices, tables and states")
def same() -> None:
    asked = dm.list_devices(), dm.list_tables()
    states = {device.name: dm.read_status(device) for device in asked[0]}
    node, dm_control.CONTROL = dm_control.CONTROL, Path("/nonexistent")
    try:
        devices, tables = dm.list_devices(), dm.list_tables()
        assert by_name(asked[0]) == by_name(devices), (asked[0], devices)
        assert sorted(map(repr, asked[1])) == sorted(map(repr, tables)), (asked[1], tables)
        for device in devices:
            told = dm.read_status(device)
            assert states[device.name] == told, (states[device.name], told)
    finally:
        dm_control.CONTROL = node
    kinds = {line.kind for line in asked[1]}
    assert kinds >= {"linear", "error", "snapshot", "snapshot-origin", "thin-pool", "thin", "era"}, kinds
    assert {"empty", "still", "two"} <= set(states), states
    assert by_name(asked[0])["odd:name#+-.=@_"].uuid == "odd-uuid-1"
    assert len(states["two"]) == 3
    assert not states["empty"]


@case("calls a device with letters that dmsetup does not take as its node is called")
def odd() -> None:
    sh("dmsetup create 'odd |%$ä' --table '0 8 linear /dev/vg/base 0'")
    device = next(device for device in dm.list_devices() if device.name.startswith("odd\\"))
    with dm.open_number(device.number) as opened:
        assert opened.name == device.path
    sh(f"dmsetup remove -j {device.number[0]} -m {device.number[1]}")


@case("was not asked through dmsetup just now")
def alone() -> None:
    with dm_control.control() as kernel:
        assert kernel
        number = dm.list_devices()[0].number
        assert dm.find_device(number)
        assert kernel.describe((number[0], 9999)) is None
        assert dm.find_device((98, 0)) is None  # /dev/ubda
        with pytest.raises(CommandError, match="is gone"):
            dm.read_status(dm.Mapped("x", "", (number[0], 9999), 0))


@case("tells of a table of a thousand lines, and of all devices while others come and go")
def many() -> None:
    lines = "\n".join(f"{8 * at} 8 linear /dev/vg/base {8 * (at % 7)}" for at in range(1000))
    Path("/run/table").write_text(lines + "\n")
    sh("dmsetup create long /run/table")
    long = next(device for device in dm.list_devices() if device.name == "long")
    assert len([line for line in dm.list_tables() if line.device == long]) == len(dm.read_status(long)) == 1000
    is_over = threading.Event()

    def come_and_go() -> None:
        while not is_over.is_set():
            sh("dmsetup create brief --table '0 8 error'; dmsetup remove brief")

    thread = threading.Thread(target=come_and_go)
    thread.start()
    try:
        for _ in range(40):
            assert long in dm.list_devices()
            assert {line.kind for line in dm.list_tables() if line.device.name == "brief"} <= {"error"}
    finally:
        is_over.set()
        thread.join()


def by_name(devices: list[dm.Mapped]) -> dict[str, dm.Mapped]:
    return {device.name: device for device in devices}


def prepare() -> None:
    sh(ZOO)

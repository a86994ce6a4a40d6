"""The device mapper: which devices there are, their tables and states, and snapshots.

It is asked through its control node, and through dmsetup where that is not to be had: both say the same.
Devices are told apart by number and uuid, and found by no name: names are for people, and to see that a link is none
of an old device (`lvm.name_of_device`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lvmsync.errors import CommandError, DeviceError
from lvmsync.formats import dm_ioctl
from lvmsync.formats.dm_ioctl import Answer, Target
from lvmsync.formats.snapshot import SECTOR, SnapshotTable, Usage, parse_status, parse_table
from lvmsync.system.command import run
from lvmsync.system.device import Device, open_device
from lvmsync.system.dm_control import control

NODES = Path("/dev/mapper")
MISC_DEVICES = Path("/proc/misc")
SYSFS_BLOCK = Path("/sys/dev/block")

CLOSE_TRIES, CLOSE_WAIT = 11, 0.1
"""How often, and how many seconds apart, an open device is looked at: udev opens devices for a moment."""

Number = dm_ioctl.Number
"""Major and minor number of a block device."""

_FIELDS = "name,uuid,major,minor,open"
_NONE = "No devices found"


@dataclass(frozen=True)
class Mapped:
    """A device that the device mapper runs.

    Attributes:
        name: as /dev/mapper shows it.
        uuid: of LVM's devices ``LVM-``, the ids of group and volume, and perhaps a suffix; may be empty.
        number: major and minor.
        open_count: how many times it is open now, other devices' use of it included.
    """

    name: str
    uuid: str
    number: Number
    open_count: int

    @property
    def path(self) -> str:
        """The path to open it by."""
        return str(NODES / self.name)


@dataclass(frozen=True)
class Line:
    """One target of a device: a line of its table or of its status.

    Attributes:
        device: it belongs to.
        start: first byte of the device that it maps.
        length: bytes that it maps.
        kind: of target: "linear", "snapshot".
        text: what follows, in the words of that kind.
    """

    device: Mapped
    start: int
    length: int
    kind: str
    text: str


@dataclass(frozen=True)
class Snapshot:
    """A snapshot that the kernel runs.

    Attributes:
        line: of its table; ``kind`` is snapshot, or snapshot-merge while it is merged into its origin.
        table: what that line says.
        store: its COW store, where that is a mapped device.
        origin: what users of the origin open: the device whose writes are tracked; None if there is none.
        is_virtual: whether the origin is no more than zeros, and all data is in the snapshot.
    """

    line: Line
    table: SnapshotTable
    store: Mapped | None
    origin: Mapped | None
    is_virtual: bool

    @property
    def device(self) -> Mapped:
        """The snapshot's own device; while it is merged, the origin's."""
        return self.line.device

    @property
    def size(self) -> int:
        """Bytes of the origin when the snapshot was made."""
        return self.line.length

    @property
    def chunk(self) -> int:
        """Bytes that it keeps at a time.

        Source: Linux v6.1, Documentation/admin-guide/device-mapper/snapshot.rst: ORIGIN STORE P|N CHUNK (sectors).
        """
        return int(self.line.text.split()[3]) * SECTOR

    def read_usage(self) -> Usage:
        """Ask for its status.

        Raises:
            ChangesLost: it is invalid, overflowed or failed to merge.
            CommandError: it is gone.
        """
        lines = read_status(self.device)
        if [line.kind for line in lines] != [self.line.kind]:
            raise CommandError(
                f"{self.device.path}: its target was '{self.line.kind}' and is "
                f"'{' '.join(line.kind for line in lines)}': it was changed or removed meanwhile"
            )
        return parse_status(lines[0].text, self.device.path)


def is_in_kernel() -> bool:
    """Tell whether the running kernel has the device mapper; without it there is nothing to ask."""
    try:
        text = MISC_DEVICES.read_text()
    except OSError:
        return True  # not known: asking will tell
    return "device-mapper" in text.split()


def list_devices() -> list[Mapped]:
    """Return all mapped devices; none without a device mapper.

    Raises:
        CommandError: the kernel does not tell, and dmsetup is missing or failed.
    """
    if not is_in_kernel():
        return []
    with control() as kernel:
        if kernel:
            found = [kernel.describe(number) for number in kernel.list_numbers()]
            return [_mapped(answer) for answer in found if answer]  # the others are gone meanwhile
    # dmsetup escapes '|' in names, as it does blanks; a ':' it leaves alone.
    text = run(["dmsetup", "info", "-c", "--noheadings", "--separator", "|", "-o", _FIELDS])
    return [_parse_device(line) for line in text.splitlines() if line and line != _NONE]


def _mapped(answer: Answer) -> Mapped:
    return Mapped(answer.name, answer.uuid, answer.number, answer.open_count)


def _parse_device(line: str) -> Mapped:
    try:
        name, uuid, major, minor, count = line.split("|")
        return Mapped(name, uuid, (int(major), int(minor)), int(count))
    except ValueError as error:
        raise CommandError(f"dmsetup info: cannot read '{line}'; expected {_FIELDS} with '|' between") from error


def is_mapped(number: Number) -> bool:
    """Tell, by sysfs, whether a block device is one of the device mapper's."""
    return (SYSFS_BLOCK / f"{number[0]}:{number[1]}" / "dm").exists()


def find_device(number: Number | None) -> Mapped | None:
    """Return the mapped device with this number."""
    if number is None or not is_in_kernel():
        return None
    with control() as kernel:
        if kernel:
            answer = kernel.describe(number)
            return _mapped(answer) if answer else None
    return next((device for device in list_devices() if device.number == number), None)


def list_below(number: Number) -> list[Number]:
    """Return the block devices that one lies on directly, by sysfs: of a mapped device those in its table."""
    found = []
    for path in (SYSFS_BLOCK / f"{number[0]}:{number[1]}" / "slaves").glob("*/dev"):
        major, _, minor = path.read_text().strip().partition(":")
        found.append((int(major), int(minor)))
    return found


def list_tables() -> list[Line]:
    """Return the tables of all mapped devices."""
    if not is_in_kernel():
        return []
    with control() as kernel:
        if kernel:
            tables = [kernel.read_table(number) for number in kernel.list_numbers()]
            return [line for table in tables if table for line in _lines(_mapped(table[0]), table[1])]
    devices = {device.name: device for device in list_devices()}
    if not devices:
        return []
    lines = []
    for text in run(["dmsetup", "table"]).splitlines():
        name, _, rest = text.partition(": ")
        if name in devices and rest:  # not made meanwhile, and not without a table
            lines.append(_parse_line(devices[name], rest))
    return lines


def read_status(device: Mapped) -> list[Line]:
    """Return the status of each target of a device.

    Raises:
        CommandError: it is gone.
    """
    with control() as kernel:
        if kernel:
            status = kernel.read_status(device.number)
            if status is None or (status[0].uuid or status[0].name) != (device.uuid or device.name):
                raise CommandError(f"{device.path} is gone: it was removed meanwhile")
            return _lines(device, status[1])
    major, minor = map(str, device.number)
    text = run(["dmsetup", "status", "-j", major, "-m", minor])
    return [_parse_line(device, line.removeprefix(f"{device.name}: ")) for line in text.splitlines() if line]


def _lines(device: Mapped, targets: Iterable[Target]) -> list[Line]:
    return [Line(device, one.start * SECTOR, one.length * SECTOR, one.kind, one.text) for one in targets]


def _parse_line(device: Mapped, text: str) -> Line:
    try:
        start, length, kind, *rest = text.split(" ", 3)
        return Line(device, int(start) * SECTOR, int(length) * SECTOR, kind, rest[0].strip() if rest else "")
    except ValueError as error:
        raise CommandError(f"dmsetup: {device.name}: cannot read '{text}'; expected START LENGTH KIND") from error


def send_message(device: Mapped, text: str) -> None:
    """Send a message to the target at the start of a device.

    Raises:
        CommandError: the kernel did not take it.
    """
    run(["dmsetup", "message", device.name, "0", text])  # what changes something is for all to see


def find_snapshot(number: Number | None) -> Snapshot | None:
    """Return the snapshot whose own device has this number."""
    return _find_snapshot(lambda one: one.line.kind == "snapshot" and one.device.number == number) if number else None


def find_snapshot_of_store(number: Number | None) -> Snapshot | None:
    """Return the snapshot that keeps old chunks on this device, one that is being merged included."""
    return _find_snapshot(lambda one: one.table.store == number) if number else None


def list_snapshots_of(number: Number | None) -> list[Snapshot]:
    """Return the snapshots that keep what is overwritten on the device with this number."""
    lines = list_tables() if number else []
    if not any(line.kind == "snapshot-origin" and line.device.number == number for line in lines):
        return []
    found = (one for one in _snapshots(lines) if one.line.kind == "snapshot")
    return [one for one in found if one.origin and one.origin.number == number]


def _find_snapshot(is_wanted: Callable[[Snapshot], bool]) -> Snapshot | None:
    return next(filter(is_wanted, _snapshots(list_tables())), None)


def _snapshots(lines: Sequence[Line]) -> Iterator[Snapshot]:
    for line in lines:
        if line.kind not in ("snapshot", "snapshot-merge"):
            continue
        table = parse_table(line.text, line.device.path)
        below = f"{table.origin[0]}:{table.origin[1]}"
        yield Snapshot(
            line,
            table,
            next((other.device for other in lines if other.device.number == table.store), None),
            next((other.device for other in lines if other.kind == "snapshot-origin" and other.text == below), None),
            any(other.kind == "zero" for other in lines if other.device.number == table.origin),
        )


def open_number(number: Number, *, exclusive: bool = False) -> Device:
    """Open the block device with this number for reading, and make sure that it is that one.

    Raises:
        DeviceError: as `open_device` does, or the node found belongs to another device.
    """
    mapped = find_device(number)
    major, minor = number
    path = mapped.path if mapped else f"/dev/{(SYSFS_BLOCK / f'{major}:{minor}').resolve().name}"
    device = open_device(path, exclusive=exclusive)
    if device.number != number:
        device.close()
        raise DeviceError(
            f"{path} is not device {major}:{minor}, as the kernel says: a stale node; run 'dmsetup mknodes'",
            device=path,
        )
    return device


def wait_until_closed(number: Number) -> bool:
    """Wait a second at most for a mapped device to be closed by all; a device of another kind is not looked at.

    Returns:
        Whether nobody has it open now.
    """
    for tries_left in reversed(range(CLOSE_TRIES)):
        device = find_device(number)
        if device is None or not device.open_count:
            return True
        if tries_left:
            time.sleep(CLOSE_WAIT)
    return False


def count_writes(number: Number) -> tuple[int, int] | None:
    """Return how many writes and discards a block device has done; None where the kernel does not count.

    Source: Linux v6.1, Documentation/block/stat.rst.
    """
    try:
        fields = (SYSFS_BLOCK / f"{number[0]}:{number[1]}" / "stat").read_text().split()
        return int(fields[4]), int(fields[11]) if len(fields) > 11 else 0
    except (OSError, ValueError, IndexError):
        return None

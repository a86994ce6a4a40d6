"""The ioctl requests of blksnap and their structs, of the three generations of its ABI.

Source: the public headers of blksnap as shipped with Veeam Agent 6.3.1 (`Abi.V1`) and 7.0 (`Abi.V7`), and as
proposed for Linux 6.15 (`Abi.UP`); run on x86-64, see fixtures/blksnap/FORMAT.md. Little-endian.
Request numbers are literal: those of V1 have odd directions. V1 looks at the lowest byte of a number only, and one
that it does not know may crash it (its range check is off by one): numbers come from `REQUESTS` and nowhere else.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import Enum
from typing import Any, NamedTuple

from lvmsync.errors import FormatError
from lvmsync.formats.blksnap import Tracking

SECTOR = 512
FILTER_NAME = b"blksnap"
PROBE = 0x80085600
"""VERSION as V7 and UP have it, which V1 answers, too: the only request that may be sent before the ABI is known."""


class Abi(Enum):
    """A generation of the ABI; the value is the major version that it answers."""

    V1 = 1
    V7 = 7
    UP = 2


class Layout(NamedTuple):
    """One struct: how it is packed, and what its values are called. Addresses are values like others.

    Attributes:
        codec: the packing, padding included.
        fields: names of the values.
    """

    codec: struct.Struct
    fields: tuple[str, ...]

    @property
    def size(self) -> int:
        """Bytes of the struct."""
        return self.codec.size

    def encode(self, **values: int | bytes) -> bytes:
        """Return the struct with these values; the others are zero."""
        unknown = set(values) - set(self.fields)
        if unknown:
            raise KeyError(f"no such field: {', '.join(sorted(unknown))}")
        return self.codec.pack(*(values.get(name, 0 if name not in _BYTES else b"") for name in self.fields))

    def decode(self, data: bytes | bytearray | memoryview) -> dict[str, Any]:
        """Return the values by their names.

        Raises:
            FormatError: the struct has another length.
        """
        if len(data) != self.codec.size:
            raise FormatError(f"blksnap answered {len(data)} bytes, not {self.codec.size}")
        return dict(zip(self.fields, self.codec.unpack(data), strict=True))


class Request(NamedTuple):
    """One request: its number, and its struct."""

    number: int
    layout: Layout


class Command(NamedTuple):
    """What the filter request CTL carries: its number, and the struct that its ``opt`` points at."""

    number: int
    layout: Layout


_BYTES = {"id", "generation", "name", "filter", "data", "image"}


def _layout(codec: str, fields: str) -> Layout:
    return Layout(struct.Struct(codec), tuple(fields.split()))


ID = _layout("<16s", "id")
DEVICE = _layout("<II", "major minor")
_COLLECT = _layout("<I4xQ", "count address")
_EVENT = _layout("<16sIIq4064s", "id timeout code time data")

VERSION = _layout("<4H", "major minor revision build")
RANGE = _layout("<QQ", "first_sector sector_count")
CBT_INFO = _layout("<III4xQI16sB3x", "major minor block_size capacity block_count generation number")
"""``blk_snap_cbt_info`` of V1: a `Tracking` and whose it is."""
IMAGE_INFO = _layout("<4I", "major minor image_major image_minor")
MODIFICATION = _layout("<Q32s", "flags name")
REQUESTED = _layout("<Q", "sectors")
CORRUPTED = _layout("<IIi", "major minor errno")

REQUESTS: dict[Abi, dict[str, Request]] = {
    Abi.V1: {
        "version": Request(0x40085600, VERSION),
        "detach": Request(0x40085601, DEVICE),  # TRACKER_REMOVE
        "list_trackers": Request(0x40105602, _COLLECT),
        "read_map": Request(0x80185603, _layout("<4IQ", "major minor offset length address")),
        "mark_dirty": Request(0x80185604, _layout("<III4xQ", "major minor count address")),
        "create": Request(0x40205605, _layout("<I4xQ16s", "count address id")),
        "destroy": Request(0x80105606, ID),
        "append_storage": Request(0x40285607, _layout("<16sIII4xQ", "id major minor count address")),
        "take": Request(0x80105608, ID),
        "list_snapshots": Request(0x40105609, _COLLECT),
        "list_images": Request(0x4020560A, _layout("<16sI4xQ", "id count address")),
        "wait_event": Request(0x5000560B, _EVENT),
        "modification": Request(0x40285620, MODIFICATION),
    },
    Abi.V7: {
        "version": Request(0x80085600, VERSION),
        "create": Request(0xC0205601, _layout("<QQ16s", "limit_sectors path id")),
        "destroy": Request(0x40105602, ID),
        "take": Request(0x40105603, ID),
        "list_snapshots": Request(0x80105604, _COLLECT),
        "wait_event": Request(0x90005605, _EVENT),
        "modification": Request(0x80285620, MODIFICATION),
        "append_storage": Request(0x40285622, _layout("<16sQI4xQ", "id device count address")),
        "attach": Request(0xC028468C, _layout("<Q32s", "device filter")),
        "detach": Request(0xC028468D, _layout("<Q32s", "device filter")),
        "control": Request(0xC038468E, _layout("<Q32sIIQ", "device filter command length address")),
    },
    Abi.UP: {
        "version": Request(0x80085600, VERSION),
        "create": Request(0xC0205601, _layout("<QQ16s", "limit_sectors path id")),
        "destroy": Request(0x40105602, ID),
        "take": Request(0x40105603, ID),
        "list_snapshots": Request(0x80105604, _COLLECT),
        "wait_event": Request(0x90005605, _EVENT),
        "attach": Request(0xC030128E, _layout("<32sQI4x", "filter address length")),
        "detach": Request(0xC020128F, _layout("<32s", "filter")),
        "control": Request(0xC0301290, _layout("<32sIIQ", "filter command length address")),
    },
}
"""Every request that is ever sent. ``attach``, ``detach`` and ``control`` of V7 and UP go to the filter."""

COMMANDS: dict[str, Command] = {
    "read_tracking": Command(0, _layout("<QII16sB7x", "capacity block_size block_count generation number")),  # CBTINFO
    "read_map": Command(1, _layout("<IIQ", "offset length address")),
    "mark_dirty": Command(2, _layout("<I4xQ", "count address")),
    "add": Command(3, ID),  # SNAPSHOTADD
    "read_image": Command(4, _layout("<i32s", "error image")),  # SNAPSHOTINFO
}
"""What ``control`` asks the filter of V7 and UP."""

_EVENTS = {
    Abi.V1: {0: "low_space", 1: "corrupted"},
    Abi.V7: {0: "corrupted", 1: "low_space"},
    Abi.UP: {0: "corrupted", 1: "no_space"},
}


@dataclass(frozen=True)
class Event:
    """What happened to a snapshot.

    Attributes:
        kind: "low_space": storage is asked for; "no_space": it could not grow any more;
            "corrupted": the snapshot is lost, its image cannot be believed.
        time: nanoseconds of the kernel's monotonic clock.
        sectors: of 512 bytes, that were asked for; 0 for "corrupted".
        device: ``(major, minor)`` of the original device, for "corrupted"; else None.
        errno: why, positive (28: no space), for "corrupted"; else 0.
    """

    kind: str
    time: int
    sectors: int = 0
    device: tuple[int, int] | None = None
    errno: int = 0


def encode_uuid(text: str) -> bytes:
    """Return the 16 bytes of an id written as 8-4-4-4-12 hex digits."""
    raw = bytes.fromhex(text.replace("-", ""))
    if len(raw) != 16:
        raise ValueError(f"'{text}' is no uuid")
    return raw


def decode_uuid(raw: bytes) -> str:
    """Return an id of 16 bytes as 8-4-4-4-12 hex digits."""
    digits = raw.hex()
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))


def decode_tracking(values: dict[str, Any]) -> Tracking:
    """Return what a decoded ``CBTINFO`` or ``cbt_info`` tells.

    Raises:
        FormatError: its numbers do not fit together.
    """
    size, count, capacity = values["block_size"], values["block_count"], values["capacity"]
    if size < SECTOR or size & (size - 1) or count != -(-capacity // size):
        raise FormatError(
            f"blksnap says {count} blocks of {size} bytes for a device of {capacity} bytes: not understood"
        )
    return Tracking(decode_uuid(values["generation"]), values["number"], size, count, capacity)


def decode_event(abi: Abi, data: bytes | bytearray | memoryview) -> Event:
    """Return the event in a struct of 4096 bytes.

    Raises:
        FormatError: another length, or an event that is not known.
    """
    values = REQUESTS[abi]["wait_event"].layout.decode(data)
    kind = _EVENTS[abi].get(values["code"])
    if kind is None:
        raise FormatError(f"blksnap sent event {values['code']}, which is not known to this lvmsync")
    if kind == "corrupted":
        told = CORRUPTED.decode(values["data"][: CORRUPTED.size])
        return Event(kind, values["time"], device=(told["major"], told["minor"]), errno=abs(told["errno"]))
    return Event(kind, values["time"], sectors=REQUESTED.decode(values["data"][: REQUESTED.size])["sectors"])

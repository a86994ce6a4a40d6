"""The structs of the device mapper's control node: what is asked of it, and what it answers.

Source: Linux v6.1, include/uapi/linux/dm-ioctl.h and drivers/md/dm-ioctl.c (version 4 of the interface). In the
machine's own byte order. Every request is one buffer, which begins with ``struct dm_ioctl``; the answer is in the same
buffer. The kernel trusts nobody with the length of its answer: it says in a flag that the buffer was too small.
"""

from __future__ import annotations

import struct
from typing import NamedTuple, Self

from lvmsync.errors import FormatError

VERSION, LIST_DEVICES, DEV_STATUS, TABLE_STATUS = (0xC138FD00 | command for command in (0, 2, 7, 12))
"""The requests: ``_IOWR(DM_IOCTL, command, struct dm_ioctl)``."""

STATUS_TABLE_FLAG = 1 << 4
ACTIVE_PRESENT_FLAG = 1 << 5
BUFFER_FULL_FLAG = 1 << 8
SECURE_DATA_FLAG = 1 << 15

_HEADER = struct.Struct("=3I8xIiII4xQ128s129s7x")
_SIZES = struct.Struct("=II")  # data_size, data_start
_SIZES_AT = 12
_NAME_LIST = struct.Struct("=QI")  # struct dm_name_list, up to its name
_TARGET_SPEC = struct.Struct("=QQiI16s")
_HIDDEN = b"0"

HEADER_SIZE = _HEADER.size
Number = tuple[int, int]


class Answer(NamedTuple):
    """``struct dm_ioctl`` of an answer, as far as it is of use.

    Attributes:
        version: of the kernel's interface.
        target_count: lines that the table has.
        open_count: how many times the device is open.
        flags: of the device, and of the answer.
        event_nr: how many events the device had.
        number: major and minor.
        name: of the device; bytes that are no UTF-8 are replaced.
        uuid: the same.
    """

    version: tuple[int, int, int]
    target_count: int
    open_count: int
    flags: int
    event_nr: int
    number: Number
    name: str
    uuid: str

    @classmethod
    def parse(cls, buffer: bytes | bytearray) -> Self:
        """Read the beginning of an answer.

        Raises:
            FormatError: it is too short.
        """
        if len(buffer) < HEADER_SIZE:
            raise FormatError(f"the device mapper answered {len(buffer)} bytes, fewer than {HEADER_SIZE}")
        *version, targets, opened, flags, event, device, name, uuid = _HEADER.unpack_from(buffer)
        return cls(
            (version[0], version[1], version[2]), targets, opened, flags, event, _decode(device), _text(name),
            _text(uuid),
        )  # fmt: skip

    @property
    def is_full(self) -> bool:
        """Whether the buffer was too small for it."""
        return bool(self.flags & BUFFER_FULL_FLAG)

    @property
    def has_table(self) -> bool:
        """Whether the device has a table that is in use."""
        return bool(self.flags & ACTIVE_PRESENT_FLAG)


class Target(NamedTuple):
    """``struct dm_target_spec``, and its words: a line of a table or of a status.

    Attributes:
        start: its first sector.
        length: its sectors.
        kind: of target: "linear", "snapshot".
        text: what follows.
    """

    start: int
    length: int
    kind: str
    text: str


def request(size: int, *, number: Number | None = None, flags: int = 0) -> bytearray:
    """Return a request that leaves room for an answer of ``size`` bytes, header included.

    Args:
        size: `HEADER_SIZE` at least.
        number: of the device that it is about.
        flags: of the request.
    """
    buffer = bytearray(size)
    _HEADER.pack_into(buffer, 0, 4, 0, 0, 0, 0, flags, 0, _encode(number) if number else 0, b"", b"")
    _SIZES.pack_into(buffer, _SIZES_AT, size, HEADER_SIZE)
    return buffer


def parse_numbers(buffer: bytes | bytearray) -> list[Number]:
    """Return the numbers of the devices that an answer to `LIST_DEVICES` names.

    Raises:
        FormatError: a record does not lie in the answer, or behind the one before.
    """
    found, at, end = [], *_data_of(buffer)
    while at + _NAME_LIST.size <= end:
        device, step = _NAME_LIST.unpack_from(buffer, at)
        if not device:  # there are none
            break
        found.append(_decode(device))
        if not step:
            break
        if step < _NAME_LIST.size or at + step + _NAME_LIST.size > end:
            raise FormatError(f"the device mapper's list: byte {at}: the next record is {step} bytes on, of {end - at}")
        at += step
    return found


def parse_targets(buffer: bytes | bytearray) -> list[Target]:
    """Return the lines of an answer to `TABLE_STATUS`; the key of a dm-crypt target is hidden.

    Raises:
        FormatError: a line does not lie in the answer, or behind the one before.
    """
    count = Answer.parse(buffer).target_count
    start, end = _data_of(buffer)
    found, at = [], start
    for number in range(count):
        if at + _TARGET_SPEC.size > end:
            raise FormatError(f"the device mapper's table: line {number} of {count} would begin at byte {at} of {end}")
        first, length, _, step, kind = _TARGET_SPEC.unpack_from(buffer, at)
        words = bytes(buffer[at + _TARGET_SPEC.size : end])
        ends = words.find(b"\0")
        if ends < 0:
            raise FormatError(f"the device mapper's table: line {number} of {count} has no end before byte {end}")
        name = _text(kind)
        found.append(Target(first, length, name, _words(name, words[:ends])))
        if number + 1 < count and start + step < at + _TARGET_SPEC.size + ends + 1:
            raise FormatError(f"the device mapper's table: line {number + 1} of {count} lies in the one before")
        at = start + step
    return found


def _words(kind: str, words: bytes) -> str:
    if kind == "crypt":  # CIPHER KEY ...: zeros for each letter, as dmsetup shows it
        cipher, _, rest = words.partition(b" ")
        key, blank, rest = rest.partition(b" ")
        words = cipher + b" " + _HIDDEN * len(key) + blank + rest
    return words.decode(errors="replace").strip()


def _data_of(buffer: bytes | bytearray) -> tuple[int, int]:
    """Return where the data of an answer begin and end."""
    if len(buffer) < HEADER_SIZE:
        raise FormatError(f"the device mapper answered {len(buffer)} bytes, fewer than {HEADER_SIZE}")
    size, start = _SIZES.unpack_from(buffer, _SIZES_AT)
    if size > len(buffer) or start < HEADER_SIZE:
        raise FormatError(f"the device mapper's answer: data from {start} to {size}, in {len(buffer)} bytes")
    return start, size


def _text(field: bytes) -> str:
    return field.partition(b"\0")[0].decode(errors="replace")


def _encode(number: Number) -> int:
    """Return a number as new_encode_dev() does (include/linux/kdev_t.h)."""
    major, minor = number
    return (minor & 0xFF) | major << 8 | (minor & ~0xFF) << 12


def _decode(device: int) -> Number:
    return device >> 8 & 0xFFF, device & 0xFF | device >> 12 & 0xFFF00

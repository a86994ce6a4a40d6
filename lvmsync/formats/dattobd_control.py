"""What elastio-snap and dattobd are asked and answer: their ioctl requests, and the JSON of their /proc file.

Source: dattobd 0.12.1 and elastio-snap 0.10.15 (its fork), their public headers, run on Linux 5.10 and 6.1
(x86-64); see fixtures/dattobd/FORMAT.md. Both have the same requests, under another magic number.
"""

from __future__ import annotations

import json
import re
import struct
from dataclasses import dataclass
from typing import Any, NamedTuple, NoReturn, Self

from lvmsync.errors import FormatError

_WRITE, _READ = 1, 2  # directions of _IOC, as the caller sees the kernel: include/uapi/asm-generic/ioctl.h
_MAX_PATH = 4096


class Request(NamedTuple):
    """One ioctl request, and the struct that goes with it.

    Attributes:
        nr: its number, of 8 bits.
        direction: that of _IOC: 1 the kernel is given the struct, 2 it fills it.
        layout: of the struct, padding included.
        fields: what the layout's values are called; of a ``char *`` the address.
    """

    nr: int
    direction: int
    layout: struct.Struct
    fields: tuple[str, ...]

    def number(self, magic: int) -> int:
        """Return the request number that ioctl(2) takes, of the driver with this magic number."""
        return self.direction << 30 | self.layout.size << 16 | magic << 8 | self.nr

    def encode(self, **values: int | bytes) -> bytes:
        """Return the struct with these values; fields that are not given are zero."""
        return self.layout.pack(*(values.get(name, 0) for name in self.fields))

    def decode(self, data: bytes) -> dict[str, Any]:
        """Return the values of a struct, by their names.

        Raises:
            FormatError: it has another length.
        """
        if len(data) != self.layout.size:
            raise FormatError(f"dattobd request {self.nr}: {len(data)} bytes, not {self.layout.size}")
        return dict(zip(self.fields, self.layout.unpack(data), strict=True))


_MINOR = struct.Struct("<I")

REQUESTS = {
    "setup": Request(
        1, _WRITE, struct.Struct("<QQQQI4x"), ("bdev", "cow", "fallocated_space", "cache_size", "minor")
    ),
    "reload_snapshot": Request(2, _WRITE, struct.Struct("<QQQI4x"), ("bdev", "cow", "cache_size", "minor")),
    "reload_incremental": Request(3, _WRITE, struct.Struct("<QQQI4x"), ("bdev", "cow", "cache_size", "minor")),
    "destroy": Request(4, _WRITE, _MINOR, ("minor",)),
    "to_incremental": Request(5, _WRITE, _MINOR, ("minor",)),
    "to_snapshot": Request(6, _WRITE, struct.Struct("<QQI4x"), ("cow", "fallocated_space", "minor")),
    "reconfigure": Request(7, _WRITE, struct.Struct("<QI4x"), ("cache_size", "minor")),
    "info": Request(
        8,
        _READ,
        struct.Struct("<I4xQi4xQQQ16s4096s4096sQQ"),
        (
            "minor", "state", "error", "cache_size", "falloc_size", "seqid", "uuid", "cow", "bdev", "version",
            "nr_changed_blocks",
        ),
    ),
    "find_free_minor": Request(9, _READ, struct.Struct("<i"), ("minor",)),
    "expand": Request(10, _WRITE, struct.Struct("<QI4x"), ("size", "minor")),
    "auto_expand": Request(11, _WRITE, struct.Struct("<QQI4x"), ("step_size", "reserved_space", "minor")),
}  # fmt: skip
"""Every request. ``fallocated_space``, ``size``, ``step_size`` and ``reserved_space`` are MiB, ``cache_size`` bytes.

``bdev`` and ``cow`` of a request are addresses of strings that end with a zero byte; those of the info are the strings.
"""

SNAPSHOT, ACTIVE, UNVERIFIED = 1, 2, 4

STATES = {
    3: "active snapshot",
    2: "active incremental",
    1: "dormant snapshot",
    0: "dormant incremental",
    5: "unverified snapshot",
    4: "unverified incremental",
}
"""Every state that a device can be in: bits 1 snapshot (else incremental), 2 active, 4 unverified."""


class Info(NamedTuple):
    """``struct dattobd_info``: one tracked device, as the info ioctl tells.

    Attributes:
        minor: number of the device.
        state: see `STATES`.
        error: negative errno; 0: it works.
        cache_size: bytes that its index may take in memory.
        falloc_size: limit of the COW file, bytes; 0 while unverified.
        seqid: of the snapshot that the COW file belongs to; 0 while unverified.
        uuid: of the series of snapshots, 32 hex digits; zeros while unverified.
        cow: path of the COW file, relative to the root of its file system.
        bdev: path of the tracked device.
        version: of the COW file's format; not filled in while unverified.
        nr_changed_blocks: that the index tells of now; not filled in while unverified.
    """

    minor: int
    state: int
    error: int
    cache_size: int
    falloc_size: int
    seqid: int
    uuid: str
    cow: str
    bdev: str
    version: int
    nr_changed_blocks: int

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Decode and check the 8272 bytes of an answer.

        Raises:
            FormatError: of another length, or not what the drivers write.
        """
        values = REQUESTS["info"].decode(data)
        _check_state(values["state"], f"info of minor {values['minor']}")
        if values["error"] > 0:
            raise FormatError(f"info of minor {values['minor']}: error {values['error']}; expected 0 or less")
        for name in ("cow", "bdev"):
            text, end, _ = values[name].partition(b"\0")
            if not end:
                raise FormatError(f"info of minor {values['minor']}: a path of {_MAX_PATH} bytes or more")
            values[name] = text.decode(errors="surrogateescape")
        return cls(**values | {"uuid": values["uuid"].hex()})


@dataclass(frozen=True)
class Tracked:
    """One device of a driver's /proc file.

    Attributes:
        minor: number of the device.
        cow_file: path of its COW file, relative to the root of its file system, as in ``/.datto``.
        block_device: path of the tracked device.
        uuid: of the series of snapshots, 32 hex digits; None while unverified.
        seqid: of the snapshot that the COW file belongs to; None while unverified.
        error: negative errno that made it fail; None: it works.
        state: see `STATES`.
        nr_changed_blocks: that the index tells of now; None while unverified.
        version: of the COW file's format; None while unverified.
        max_cache: bytes that the index may take in memory.
        fallocate: bytes that were asked for the COW file; 0 if dormant or reloaded; None while unverified.
        cow_size_current: bytes of the COW file (dattobd only).
        auto_expand: MiB of a step, and MiB to be left free, by which the COW file may grow (dattobd only).
    """

    minor: int
    cow_file: str
    block_device: str
    uuid: str | None
    seqid: int | None
    error: int | None
    state: int
    nr_changed_blocks: int | None
    version: int | None = None
    max_cache: int = 0
    fallocate: int | None = None
    cow_size_current: int | None = None
    auto_expand: tuple[int, int] | None = None

    @property
    def is_snapshot(self) -> bool:
        """Whether it keeps a snapshot, rather than only a record of what changes."""
        return bool(self.state & SNAPSHOT)

    @property
    def is_active(self) -> bool:
        """Whether it tracks now: its file system is mounted."""
        return bool(self.state & ACTIVE)

    @property
    def is_verified(self) -> bool:
        """Whether its COW file has been read: after a reload that is so only once it has been mounted."""
        return not self.state & UNVERIFIED

    @property
    def has_failed(self) -> bool:
        """Whether the driver gave up: nothing is tracked any more."""
        return self.error is not None

    @property
    def words(self) -> str:
        """Its state in words."""
        text = STATES[self.state]
        return f"{text}, failed with error {self.error}" if self.has_failed else text


def parse_tracked(text: str) -> tuple[str, list[Tracked]]:
    """Read a driver's /proc file.

    Returns:
        The driver's version, and its devices by minor.

    Raises:
        FormatError: not what the drivers write.
    """
    try:
        found = json.loads(_PATH_LINE.sub(_escape, text), object_pairs_hook=_once, parse_constant=_refuse)
        version, devices = _take(found, "version", str), _take(found, "devices", list)
        tracked = [_parse_device(one) for one in devices]
    except (ValueError, RecursionError) as error:
        raise FormatError(f"not what the driver writes in /proc ({error}); see which version it is") from error
    if len({one.minor for one in tracked}) != len(tracked):
        raise FormatError("not what the driver writes in /proc: two devices have the same minor")
    return version, sorted(tracked, key=lambda one: one.minor)


# The drivers print paths as they are: a quote or a backslash in one would make other JSON of it.
_PATH_LINE = re.compile(r'^([ \t]*"(?:cow_file|block_device)": ")(.*)(",?)$', re.MULTILINE)
_UUID = re.compile(r"[0-9a-f]{32}")
_U64 = (1 << 64) - 1


def _escape(match: re.Match[str]) -> str:
    return f"{match[1]}{json.dumps(match[2])[1:-1]}{match[3]}"


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key is there twice")
    return found


def _refuse(word: str) -> NoReturn:
    raise ValueError(f"{word} is no number")


def _parse_device(found: object) -> Tracked:
    state = _number(found, "state")
    minor = _number(found, "minor")
    _check_state(state, f"minor {minor}")
    is_known = not state & UNVERIFIED
    error = _number(found, "error", low=-4095, high=-1, default=None)
    uuid = _take(found, "uuid", str) if is_known else None
    if uuid is not None and not _UUID.fullmatch(uuid):
        raise ValueError(f"'{uuid}' is no uuid")
    steps = found.get("auto_expand") if isinstance(found, dict) else None
    return Tracked(
        minor=minor,
        cow_file=_take(found, "cow_file", str),
        block_device=_take(found, "block_device", str),
        uuid=uuid,
        seqid=_number(found, "seq_id") if is_known else None,
        error=error,
        state=state,
        nr_changed_blocks=_number(found, "nr_changed_blocks") if is_known else None,
        version=_number(found, "version") if is_known else None,
        max_cache=_number(found, "max_cache"),
        fallocate=_number(found, "fallocate") if is_known else None,
        cow_size_current=_number(found, "cow_size_current", default=None),
        auto_expand=None if steps is None else (
            _number(steps, "step_size_mib"), _number(steps, "reserved_space_mib")
        ),
    )  # fmt: skip


def _take(found: object, key: str, kind: type[Any]) -> Any:
    if not isinstance(found, dict) or not isinstance(found.get(key), kind):
        raise ValueError(f"no '{key}', or another kind of value")
    return found[key]


_REQUIRED: Any = object()


def _number(found: object, key: str, *, low: int = 0, high: int = _U64, default: Any = _REQUIRED) -> Any:
    if default is not _REQUIRED and isinstance(found, dict) and key not in found:
        return default
    value = _take(found, key, int)
    if isinstance(value, bool) or not low <= value <= high:
        raise ValueError(f"'{key}' is {value}")
    return value


def _check_state(state: int, where: str) -> None:
    if state not in STATES:
        raise FormatError(f"{where}: state {state} is not known to this lvmsync; see which version the driver is")

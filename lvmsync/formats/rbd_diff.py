"""The diff of an RBD image between two snapshots: what ``rbd export-diff`` writes and ``rbd import-diff`` reads.

Source: Ceph v16.2.15, doc/dev/rbd-diff.rst, src/tools/rbd/action/. Little-endian throughout, no checksums anywhere.

    "rbd diff v1\\n"
    'f'  le32 length, name          the snapshot that the diff starts from; without: from an empty image
    't'  le32 length, name          the snapshot that it leads to
    's'  le64 size                  of the image afterwards
    'w'  le64 offset, le64 length, data
    'z'  le64 offset, le64 length   reads as zeros
    'e'                             the end

Version 2 has a le64 with the length of what follows behind every tag but 'e', and 'p' (u8: whether 't' is protected).
It lies only within what ``rbd export --export-format 2`` writes, and ``import-diff`` refuses it: we write version 1.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from lvmsync.errors import StreamError, UsageError
from lvmsync.extents import MAX_SIZE, Offsets
from lvmsync.stream.frames import Buffer, Changes, Data

OBJECT = 4 << 20
"""Bytes of an object of an image, by default. A reader has all of a ``w`` record in memory, so none is larger."""
ZERO_RUN = 1 << 30
"""Bytes of a ``z`` record, at the most: a reader makes a request for each object in it."""
MAX_NAME = 4096
"""Bytes of the name of a snapshot, at the most."""

BANNERS = {1: b"rbd diff v1\n", 2: b"rbd diff v2\n"}

_LENGTH = struct.Struct("<I")
_SIZE = struct.Struct("<Q")
_RANGE = struct.Struct("<QQ")
_RECORD = struct.Struct("<cQQ")
_ZERO = np.dtype([("tag", "S1"), ("offset", "<u8"), ("length", "<u8")])

Piece = tuple[int, int, memoryview | None]
"""Offset, length and bytes of a part of the image; None instead of zeros."""


@dataclass(frozen=True)
class DiffHeader:
    """What a diff says of itself before its data.

    Attributes:
        start: name of the snapshot that it starts from; None: from an empty image.
        end: name of the snapshot that it leads to; None: the image as it was then.
        size: bytes of the image afterwards; None: not said.
    """

    start: str | None = None
    end: str | None = None
    size: int | None = None


def encode_header(header: DiffHeader) -> bytes:
    """Return the bytes of a diff before its data, in version 1.

    Raises:
        UsageError: a name is empty or too long.
    """
    parts = [BANNERS[1]]
    for tag, name in ((b"f", header.start), (b"t", header.end)):
        if name is not None:
            raw = name.encode()
            if not 0 < len(raw) <= MAX_NAME:
                raise UsageError(f"the name of a snapshot has 1 to {MAX_NAME} bytes, and not {len(raw)}")
            parts += [tag, _LENGTH.pack(len(raw)), raw]
    if header.size is not None:
        parts += [b"s", _SIZE.pack(header.size)]
    return b"".join(parts)


def encode_changes(frame: Changes) -> list[Buffer]:
    """Return the records of a frame; data is not copied, and cut where objects begin."""
    if isinstance(frame, Data):
        return _encode_data(frame.table, frame.payload)
    table = _cut(frame.table, ZERO_RUN)
    records = np.empty(len(table), _ZERO)
    records["tag"], records["offset"], records["length"] = b"z", table[:, 0], table[:, 1]
    return [records.tobytes()]


END = b"e"
"""What a diff ends with."""


def _encode_data(table: Offsets, payload: memoryview) -> list[Buffer]:
    buffers: list[Buffer] = []
    at = 0
    for offset, length in _cut(table, OBJECT).tolist():
        buffers += [_RECORD.pack(b"w", offset, length), payload[at : at + length]]
        at += length
    return buffers


def _cut(table: Offsets, unit: int) -> Offsets:
    """Return the extents of a table, cut at every multiple of ``unit``."""
    offsets, ends = table[:, 0], table[:, 0] + table[:, 1]
    first, last = offsets // np.uint64(unit), (ends - np.uint64(1)) // np.uint64(unit)
    if (first == last).all():
        return table
    counts = (last - first).astype(np.int64) + 1
    inside = np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts)
    starts = (np.repeat(first, counts) + inside.astype(np.uint64)) * np.uint64(unit)
    stops = np.minimum(starts + np.uint64(unit), np.repeat(ends, counts))
    starts = np.maximum(starts, np.repeat(offsets, counts))
    return np.stack([starts, stops - starts], axis=1)


class DiffReader:
    """Reads a diff of either version, piece by piece; what a record says of its length costs no memory.

    Attributes:
        version: 1 or 2; None as long as that has not come.
        header: what has come of it; all of it when the first piece or the end has.
        is_over: whether the end has come.
    """

    def __init__(self) -> None:
        self.version: int | None = None
        self.header = DiffHeader()
        self.is_over = False
        self._pending = b""  # of a record that has not come whole
        self._place = 0  # byte of the diff that ``_pending`` begins at
        self._offset = 0  # of what is left of the data of a record
        self._left = 0
        self._skipped = 0  # bytes of an unknown record that are to come
        self._has_data = False

    def feed(self, data: Buffer) -> Iterator[Piece]:
        """Yield what the next bytes tell of the image, in the order of the records. Exhaust it before the next call.

        Raises:
            StreamError: they are no diff, or a damaged one.
        """
        view = memoryview(data).cast("B")
        if self._pending:
            view = memoryview(self._pending + bytes(view))
        at = 0
        while not self.is_over and at < len(view):
            if self._left:
                count = min(self._left, len(view) - at)
                piece = self._offset, count, view[at : at + count]
                self._offset, self._left, at = self._offset + count, self._left - count, at + count
                yield piece
            elif self._skipped:
                count = min(self._skipped, len(view) - at)
                self._skipped, at = self._skipped - count, at + count
            else:
                length, found = self._read_record(view, at)
                if not length:
                    break
                at += length
                if found:
                    yield found
        self._pending = bytes(view[at:])
        self._place += at
        if self.is_over and self._pending:
            raise StreamError(f"rbd diff: bytes behind its end, at byte {self._place}", offset=self._place)

    def finish(self) -> None:
        """Make sure that all has come.

        Raises:
            StreamError: the diff is cut short.
        """
        if not self.is_over:
            where = self._place + len(self._pending)
            raise StreamError(f"rbd diff: cut short at byte {where}: it has no end mark", offset=where)

    def _read_record(self, view: memoryview, at: int) -> tuple[int, Piece | None]:
        """Read the record that begins at a byte, and return its length, without data, and what it says of the image.

        The length is 0 where it has not come whole.
        """
        if self.version is None:
            return self._read_banner(bytes(view[at : at + len(BANNERS[1])]))
        tag = chr(view[at])
        if tag == "e":
            self.is_over = True
            return 1, None
        body, told = at + 1, None
        if self.version == 2:
            if len(view) < body + _SIZE.size:
                return 0, None
            (told,) = _SIZE.unpack_from(view, body)
            body += _SIZE.size
        match tag:
            case "w" | "z":
                if len(view) < body + _RANGE.size:
                    return 0, None
                offset, length = _RANGE.unpack_from(view, body)
                return body + _RANGE.size - at, self._take_range(tag, offset, length, told, at)
            case "f" | "t":
                return self._read_name(tag, view, at, body, told)
            case "s":
                if len(view) < body + _SIZE.size:
                    return 0, None
                (size,) = _SIZE.unpack_from(view, body)
                if size >= MAX_SIZE or told not in (None, _SIZE.size):
                    raise self._wrong(at, f"the size {size} is not possible")
                self._add(tag, at, size)
                return body + _SIZE.size - at, None
            case "p" if told is not None:  # a byte: Ceph v16.2.15 says that there were 8
                self._skipped = 1
                return body - at, None
            case _ if told is not None:  # what a later Ceph may say: in version 2 that can be skipped
                self._skipped = told
                return body - at, None
            case _:
                raise self._wrong(at, f"an unknown record {tag!r}")

    def _read_banner(self, raw: bytes) -> tuple[int, None]:
        for version, banner in BANNERS.items():
            if raw == banner:
                self.version = version
                return len(banner), None
            if banner.startswith(raw):
                return 0, None
        raise self._wrong(0, f"it begins with {raw!r}, and no version of the format does")

    def _read_name(self, tag: str, view: memoryview, at: int, body: int, told: int | None) -> tuple[int, None]:
        if len(view) < body + _LENGTH.size:
            return 0, None
        (length,) = _LENGTH.unpack_from(view, body)
        if not 0 < length <= MAX_NAME or told not in (None, _LENGTH.size + length):
            raise self._wrong(at, f"a snapshot's name of {length} bytes")
        start = body + _LENGTH.size
        if len(view) < start + length:
            return 0, None
        try:
            name = str(view[start : start + length], "utf-8")
        except UnicodeDecodeError as error:
            raise self._wrong(at, "a snapshot's name is not UTF-8") from error
        self._add(tag, at, name)
        return start + length - at, None

    def _add(self, tag: str, at: int, value: str | int) -> None:
        """Take a record of the header."""
        key = {"f": "start", "t": "end", "s": "size"}[tag]
        values = {"start": self.header.start, "end": self.header.end, "size": self.header.size}
        if self._has_data or values[key] is not None:
            raise self._wrong(at, f"a record {tag!r} where none can be")
        self.header = DiffHeader(**{**values, key: value})  # type: ignore[arg-type]  # of the tag's own type

    def _take_range(self, tag: str, offset: int, length: int, told: int | None, at: int) -> Piece | None:
        self._has_data = True
        if offset + length > (MAX_SIZE if self.header.size is None else self.header.size):
            raise self._wrong(at, f"{length} bytes at {offset} lie behind the end of the image")
        if told not in (None, _RANGE.size + (length if tag == "w" else 0)):
            raise self._wrong(at, f"a record of {told} bytes is about {length} bytes of data")
        if tag == "z":
            return (offset, length, None) if length else None
        self._offset, self._left = offset, length
        return None

    def _wrong(self, at: int, words: str) -> StreamError:
        place = self._place + at
        return StreamError(
            f"rbd diff: {words}, at byte {place}: damaged, or not what 'rbd export-diff' writes", offset=place
        )

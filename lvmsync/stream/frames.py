"""The frames of a stream: what both formats are decoded to and encoded from.

Changes carry a table of extents, an array of shape ``(n, 2)``: offset and length in bytes. Data, zeros
and holes are three different things, told by the sender and never guessed by the receiver.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from lvmsync.extents import Offsets
from lvmsync.history import Point

DELTA = "delta"
FULL = "full"
SNAPBACK = "snapback"


MAX_SAMPLES = 1024
"""Most samples in a header."""
MAX_SAMPLE = 1 << 20
"""Bytes that a sample is about, at the most."""


class Sample(NamedTuple):
    """What the base holds at one place, so that a receiver can see whether its target holds that, too."""

    offset: int  # bytes
    length: int  # bytes, 1 to MAX_SAMPLE
    digest: str  # XXH3 (128 bit) of those bytes, hex


@dataclass(frozen=True)
class Header:
    """What a stream is about. Whatever the format does not say is None.

    Attributes:
        size: bytes of the device that the changes are of.
        extents: how many extents the stream will carry.
        changed_bytes: how many bytes those cover.
        map_digest: digest of the change map (`ChangeMap.digest`).
        source: kind of the source ("snapshot").
        name: the source as its user named it.
        base: the state that the changes start from.
        head: the state that they lead to.
        host: name of the sender's machine.
        time: when the stream was begun, UTC, ISO 8601.
        version: version of the sender's program.
        intent: ``DELTA``, ``FULL`` for everything, or ``SNAPBACK`` for what a receive overwrote.
        stream: a random word, so that no two streams are alike.
        minimal: the changes were held against the base: they fit that very state only, and not a later one.
        data_bytes: how many of ``changed_bytes`` are no holes: what the target may need room for.
        resume: the stream goes on with an unfinished transaction: only changes from this byte of the device on.
        transaction: id of that transaction, as the receiver told it.
        samples: what the base holds at some places.
        group: id of the group of streams that are committed together.
        names: of a snapback: other ids of the state that it leads back to, nothing having been changed between them.
    """

    size: int | None = None
    extents: int | None = None
    changed_bytes: int | None = None
    map_digest: str | None = None
    source: str | None = None
    name: str | None = None
    base: Point | None = None
    head: Point | None = None
    host: str | None = None
    time: str | None = None
    version: str | None = None
    intent: str = DELTA
    stream: str | None = None
    minimal: bool = False
    data_bytes: int | None = None
    resume: int | None = None
    transaction: str | None = None
    samples: tuple[Sample, ...] = ()
    group: str | None = None
    names: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False, slots=True)
class Data:
    """Bytes for many extents: a table, and the bytes of all of them one behind the other."""

    table: Offsets
    payload: memoryview

    @property
    def changed_bytes(self) -> int:
        """Bytes of the device that it changes."""
        return len(self.payload)


@dataclass(frozen=True, eq=False, slots=True)
class Zero:
    """Extents that hold zeros."""

    table: Offsets

    @property
    def changed_bytes(self) -> int:
        """Bytes of the device that it changes."""
        return int(self.table[:, 1].sum())


@dataclass(frozen=True, eq=False, slots=True)
class Hole:
    """Extents that are unmapped at the source, and read as zeros."""

    table: Offsets

    @property
    def changed_bytes(self) -> int:
        """Bytes of the device that it changes."""
        return int(self.table[:, 1].sum())


@dataclass(frozen=True)
class Mark:
    """A place where the receiver makes everything so far durable.

    Attributes:
        extents: how many extents came before it.
        changed_bytes: how many bytes those cover.
    """

    extents: int
    changed_bytes: int


@dataclass(frozen=True)
class End:
    """The end of a whole stream, and the only success.

    Attributes:
        extents: how many extents the stream carried.
        changed_bytes: how many bytes those cover.
        digest: 16 bytes over the checksums of all frames before it; empty in a format without one.
    """

    extents: int
    changed_bytes: int
    digest: bytes = b""


@dataclass(frozen=True)
class Abort:
    """The sender gave up; nothing of the stream may stay."""

    reason: str


Changes = Data | Zero | Hole
Frame = Header | Data | Zero | Hole | Mark | End | Abort
Buffer = bytes | bytearray | memoryview


def clip(frame: Changes, size: int) -> tuple[Changes | None, list[tuple[int, int]]]:
    """Hold changes to a device of ``size`` bytes.

    Returns what is left of the frame, and ``(offset, length)`` of each range past the end.
    """
    offsets, lengths = frame.table[:, 0], frame.table[:, 1]
    limit = np.uint64(size)
    if int((offsets + lengths).max()) <= size:
        return frame, []
    inside = np.minimum(np.maximum(offsets, limit) - offsets, lengths)
    dropped = [
        (offset + kept, length - kept)
        for offset, length, kept in zip(offsets.tolist(), lengths.tolist(), inside.tolist(), strict=True)
        if kept < length
    ]
    keep = inside > 0
    if not keep.any():
        return None, dropped
    table = np.stack([offsets[keep], inside[keep]], axis=1)
    if not isinstance(frame, Data):
        return type(frame)(table), dropped
    starts = (np.cumsum(lengths) - lengths).tolist()
    kept_parts = [frame.payload[at : at + kept] for at, kept in zip(starts, inside.tolist(), strict=True) if kept]
    return Data(table, memoryview(b"".join(kept_parts))), dropped

"""A snapshot of an RBD image: ``rbd diff`` says what changed, and ``rbd export-diff`` gives the bytes, in one pass.

Snapshots never change, so nothing need be confirmed but that they are still the same. Ceph tells bytes apart within an
object (4 MiB) that both snapshots have; an object that was first written after the base comes whole.
"""

from __future__ import annotations

import bisect
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager

import numpy as np

from lvmsync.errors import ConflictError, DeviceError, UsageError
from lvmsync.extents import ChangeMap
from lvmsync.formats.rbd_diff import DiffReader, Piece
from lvmsync.history import Point
from lvmsync.images import RbdSnapshot
from lvmsync.sources.source import Reading, Source, Unread
from lvmsync.system import rbd
from lvmsync.system.rbd_pipe import DiffPipe, open_export

_SECTOR = 512
_PIECE = 1 << 20
# Bytes that are kept behind the place that was read last: readers side by side are not in step, each a batch of a MiB.
_KEPT = (2 * (os.cpu_count() or 1) + 8) << 20


@contextmanager
def open_snapshot(name: RbdSnapshot, reading: Reading) -> Iterator[Source]:
    """Open a snapshot of an image, or its changes since another one; see `open_source`."""
    if reading.data_source:
        raise UsageError(f"-r {reading.data_source}: the data of {name.word} is read in the cluster: leave it away")
    if reading.with_base:
        raise UsageError(f"{name.word}: its base is not read; leave --minimal and --audit away")
    state = _look(name)
    head, base = _find(name, state, name.snap), _find(name, state, name.base) if name.base is not None else None
    if base and base.id >= head.id:
        raise UsageError(f"{name.word}: '{base.name}' is not older than '{head.name}': name them the other way round")
    if reading.with_data and state.is_striped:
        raise DeviceError(f"{name.image} is striped over its objects, so that a diff does not give its bytes in order")
    extents = rbd.list_extents(name.image, head.name, base.name if base else None)
    whole = ChangeMap.whole(head.size)
    changes = (extents.data | extents.zeros).clip(head.size) if base else whole
    if base and head.size > base.size:  # nothing is told of what was never written, and a copy may hold anything there
        changes = changes | (whole - ChangeMap.whole(base.size))
    data = extents.data.clip(head.size)

    def confirm() -> None:
        if ordered:
            ordered.finish()
        now = _look(name)
        if now.id != state.id or _find(name, now, head.name) != head or (base and _find(name, now, base.name) != base):
            raise ConflictError(f"{name.word}: image or snapshot was replaced by another one while it was read")

    with ExitStack() as stack:
        ordered = stack.enter_context(_reading(name, head.size, data)) if reading.with_data else None
        yield Source(
            kind="rbd",
            name=name.word,
            size=head.size,
            granularity=_SECTOR,
            base=_point(state, base) if base else None,
            head=_point(state, head),
            changes=changes,
            holes=changes - data,
            data=ordered or Unread(name.word, head.size),
            confirm=confirm,
            is_full=base is None,
        )


def _look(name: RbdSnapshot) -> rbd.ImageState:
    state = rbd.look_up(name.image)
    if state is None:
        raise DeviceError(f"there is no image {name.image}", device=str(name.image))
    return state


def _find(name: RbdSnapshot, state: rbd.ImageState, wanted: str) -> rbd.Snap:
    found = state.find(wanted)
    if found is None:
        there = ", ".join(snap.name for snap in state.snaps[-5:]) or "none"
        raise DeviceError(
            f"{name.image} has no snapshot '{wanted}' (the newest: {there}); 'rbd snap ls {name.image.spec}' tells all",
            device=str(name.image),
        )
    return found


def _point(state: rbd.ImageState, snap: rbd.Snap) -> Point:
    """Return the point of a snapshot: an image of another cluster may have that id, but not that time as well."""
    time = (snap.time or "unknown").replace("-", "").replace(":", "").removesuffix("+0000")
    return Point(f"rbd:{state.id}.{snap.id}.{time}", None, snap.time)


class OrderedBytes:
    """The bytes of a diff (a `Readable`): read once, in order. What lies far behind takes another pass.

    Attributes:
        name: what messages call it.
        size: bytes of the image.
    """

    def __init__(
        self, name: str, size: int, data: ChangeMap, start: Callable[[], AbstractContextManager[DiffPipe]]
    ) -> None:
        """Take what is needed; nothing is started yet.

        Args:
            name: what messages call it.
            size: bytes of the image.
            data: what the diff has to have; all else reads as zeros.
            start: starts the diff, from its beginning.
        """
        self.name = name
        self.size = size
        self._data = data
        self._others = data.complement(size)
        self._start = start
        self._stack = ExitStack()
        self._pieces: Iterator[Piece] | None = None
        self._offsets: list[int] = []  # of the pieces that are kept
        self._kept: list[bytes] = []
        self._bytes = 0
        self._begin = self._end = 0  # what lies between was read, and is kept
        self._lock = threading.Lock()

    def read(self, offsets: Sequence[int], lengths: Sequence[int], out: memoryview) -> None:
        """Fill ``out`` with the given ranges, one behind the other; see `Readable`."""
        at = 0
        with self._lock:
            for offset, length in zip(offsets, lengths, strict=True):
                if offset + length > self.size:
                    raise DeviceError(
                        f"{self.name} has {self.size} bytes; {length} were to be read at {offset}", offset=offset
                    )
                self._read(offset, out[at : at + length])
                at += length

    def _read(self, offset: int, out: memoryview) -> None:
        end = offset + len(out)
        if offset < self._begin:
            self.close()
        while self._end < end and self._advance(offset):
            pass
        np.frombuffer(out, np.uint8)[:] = 0
        index = max(bisect.bisect_right(self._offsets, offset) - 1, 0)
        while index < len(self._offsets) and (start := self._offsets[index]) < end:
            piece = self._kept[index]
            low, high = max(start, offset), min(start + len(piece), end)
            if low < high:
                out[low - offset : high - offset] = piece[low - start : high - start]
            index += 1

    def _advance(self, needed: int) -> bool:
        """Take the next piece of the diff; whether there was one.

        Args:
            needed: what lies at this byte and behind it must be kept.
        """
        if self._pieces is None:
            self._pieces = self._read_pieces()
        piece = next(self._pieces, None)
        offset, length, payload = piece or (self.size, 0, None)
        if offset < self._end:
            raise DeviceError(
                f"{self.name}: its diff does not come in order: {offset} behind {self._end}", offset=offset
            )
        if (offset > self._end and _meets(self._data, self._end, offset)) or (
            payload is not None and _meets(self._others, offset, offset + length)
        ):
            raise DeviceError(
                f"{self.name}: 'rbd export-diff' and 'rbd diff' tell of other data at {self._end}: do not use what was"
                " read of it",
                offset=self._end,
            )
        self._end = offset + length
        if piece is None:
            return False
        if payload is not None:
            self._offsets.append(offset)
            self._kept.append(bytes(payload))
            self._bytes += length
        while self._bytes > _KEPT and self._offsets[0] + len(self._kept[0]) <= needed:
            self._begin = self._offsets.pop(0) + len(self._kept[0])
            self._bytes -= len(self._kept.pop(0))
        return True

    def _read_pieces(self) -> Iterator[Piece]:
        reader, buffer = DiffReader(), memoryview(bytearray(_PIECE))
        pipe = self._stack.enter_context(self._start())
        # Up to its end mark, which says that it is whole: rbd of Ceph v16.2.15 sometimes does not end behind that.
        while not reader.is_over and (count := pipe.receive_some(buffer)):
            yield from reader.feed(buffer[:count])
        reader.finish()

    def finish(self) -> None:
        """Take the rest of a pass that is under way: all of the diff has to fit, and to have come whole."""
        with self._lock:
            while self._pieces is not None and self._end < self.size:
                self._advance(self._end)

    def close(self) -> None:
        """Let go of everything; another read starts anew."""
        self._stack.close()
        self._pieces = None
        self._offsets.clear()
        self._kept.clear()
        self._bytes = self._begin = self._end = 0


def _meets(ranges: ChangeMap, offset: int, end: int) -> bool:
    return ranges.overlaps(np.array([offset], np.uint64), np.array([end], np.uint64))


@contextmanager
def _reading(name: RbdSnapshot, size: int, data: ChangeMap) -> Iterator[OrderedBytes]:
    ordered = OrderedBytes(name.word, size, data, lambda: open_export(name.image, name.snap, name.base))
    try:
        yield ordered
    finally:
        ordered.close()

"""A past state of a device, read from the members of an archive, and the mirror below them (a `Readable`)."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

import numpy as np

from lvmsync.chain.catalogue import Member
from lvmsync.chain.layers import DATA, Numbers, Segments, stack
from lvmsync.errors import DeviceError
from lvmsync.extents import Offsets
from lvmsync.interfaces import Readable, Store
from lvmsync.jobs.archive.members import OpenMember, open_member

_CACHE = 112 << 20  # bytes of frames that are kept: of a hundred members one each, and more
_SLACK = 8 << 20  # bytes that reads which go on side by side may be apart
_MOST_HELD = 256  # members whose objects stay open: a process may have 1024 files open, mostly
_OPENERS = 8  # threads that open members
_SHIFT = 40  # bits of the number of a frame, below that of its member
_MASK = (1 << _SHIFT) - 1
_SMALL = 16 << 10  # bytes of a piece on the average, below which many of them are worth a copy
_ZEROS = memoryview(bytes(1 << 20))


class Past:
    """What several members make of what lies below them. Any thread may read.

    Attributes:
        name: what messages call it.
        size: bytes of the device.
        segments: which member has what.
    """

    def __init__(
        self, name: str, size: int, members: Sequence[OpenMember], segments: Segments, below: Readable | None
    ) -> None:
        self.name = name
        self.size = size
        self.segments = segments
        self._members = members
        self._below = below
        self._frames: dict[int, memoryview] = {}
        self._ends: dict[int, int] = {}  # of the device, up to which each of them has something
        self._cached = 0
        self._lock = threading.Lock()
        self._loading: dict[int, threading.Event] = {}  # frames that a thread reads just now

    def read(self, offsets: Sequence[int], lengths: Sequence[int], out: memoryview) -> None:
        """Fill ``out`` with the given ranges, one behind the other; see `Readable`.

        What no member has comes from below; where nothing lies below, it is zeros.

        Raises:
            StreamError: a member is damaged.
        """
        starts, sizes = np.array(offsets, np.uint64), np.array(lengths, np.uint64)
        ends = starts + sizes
        if len(ends) and int(ends.max()) > self.size:
            at = int(ends.argmax())
            raise DeviceError(
                f"{self.name} has {self.size} bytes; {lengths[at]} were to be read at {offsets[at]}",
                device=self.name,
                offset=offsets[at],
            )
        found = self.segments
        first = np.searchsorted(found.ends, starts, "right")
        counts = np.maximum(np.searchsorted(found.offsets, ends, "left") - first, 0)
        which = np.repeat(np.arange(len(starts)), counts)
        rows = np.repeat(first, counts) + np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts)
        begins = np.maximum(found.offsets[rows], starts[which])
        stops = np.minimum(found.ends[rows], ends[which])
        # Where each lies in ``out``, and in the data of its frame
        shift = np.cumsum(sizes) - sizes - starts  # may wrap around, and does so back
        places = found.places[rows] + (begins - found.offsets[rows]).astype(np.int64)
        if int((stops - begins).sum()) != len(out):
            self._read_gaps(starts, ends, begins, stops, which, out)
        frames = self._frames
        for at, end, key, place, kind in zip(
            (begins + shift[which]).tolist(),
            (stops + shift[which]).tolist(),
            ((found.layers[rows].astype(np.int64) << _SHIFT) + found.frames[rows]).tolist(),
            places.tolist(),
            found.kinds[rows].tolist(),
            strict=True,
        ):
            if kind == DATA:
                data = frames.get(key)
                if data is None:
                    data = self._load(key, int(starts[0]))
                out[at:end] = data[place : place + end - at]
            else:
                out[at:end] = bytes(end - at)

    def gather(self, offset: int, length: int) -> list[memoryview]:
        """Return a range as buffers, one behind the other: those of the members where that is no more trouble.

        Raises:
            LvmsyncError: as of `read`.
        """
        end = offset + length
        found = self.segments
        first = int(np.searchsorted(found.ends, np.uint64(offset), "right"))
        last = int(np.searchsorted(found.offsets, np.uint64(end), "left"))
        if end > self.size or (last - first) * _SMALL > max(length, _SMALL):
            out = np.empty(length, np.uint8).data
            self.read([offset], [length], out)
            return [out]
        pieces: list[memoryview] = []
        done = offset
        rows = slice(first, last)
        for start, stop, layer, frame, place, kind in zip(
            found.offsets[rows].tolist(),
            found.ends[rows].tolist(),
            found.layers[rows].tolist(),
            found.frames[rows].tolist(),
            found.places[rows].tolist(),
            found.kinds[rows].tolist(),
            strict=True,
        ):
            begin, behind = max(start, offset), min(stop, end)
            pieces += self._gather_below(done, begin)
            if kind == DATA:
                key = (layer << _SHIFT) + frame
                data = self._frames.get(key)
                if data is None:
                    data = self._load(key, offset)
                pieces.append(data[place + begin - start : place + behind - start])
            else:
                pieces += _zeros(behind - begin)
            done = behind
        return pieces + self._gather_below(done, end)

    def _gather_below(self, offset: int, end: int) -> list[memoryview]:
        if offset == end or self._below is None:
            return _zeros(end - offset)
        out = np.empty(end - offset, np.uint8).data
        self._read_below(offset, out)
        return [out]

    def _read_gaps(
        self, starts: Offsets, ends: Offsets, begins: Offsets, stops: Offsets, which: Numbers, out: memoryview
    ) -> None:
        """Fill what no segment has of some ranges with what lies below them."""
        at = 0
        for number, (start, end) in enumerate(zip(starts.tolist(), ends.tolist(), strict=True)):
            done = start
            mine = which == number if len(starts) > 1 else slice(None)
            for begin, stop in zip([*begins[mine].tolist(), end], [*stops[mine].tolist(), end], strict=True):
                if begin > done:
                    self._read_below(done, out[at + done - start : at + begin - start])
                done = stop
            at += end - start

    def _read_below(self, offset: int, out: memoryview) -> None:
        below = self._below
        there = max(0, min(len(out), below.size - offset)) if below else 0
        if below and there:
            below.read([offset], [there], out[:there])
        if there < len(out):
            out[there:] = bytes(len(out) - there)

    def _load(self, key: int, place: int) -> memoryview:
        """Read a frame, and keep it for a while.

        Mostly a device is read from its start to its end: frames that lie behind the place that is read go first, then
        those that were read first.
        """
        with self._lock:
            if key in self._frames:
                return self._frames[key]
            loading = self._loading.get(key)
            if loading is None:
                mine = self._loading[key] = threading.Event()
        if loading is not None:  # another thread reads it; if that fails, this one does, and says so
            loading.wait()
            data = self._frames.get(key)
            return self._load(key, place) if data is None else data
        try:
            return self._read_frame(key, place)
        finally:
            with self._lock:
                del self._loading[key]
            mine.set()

    def _read_frame(self, key: int, place: int) -> memoryview:
        member, frame = self._members[key >> _SHIFT], key & _MASK
        data = member.read_frame(frame)
        with self._lock:
            if key not in self._frames:
                self._frames[key] = data
                self._ends[key] = int(member.frame_ends[frame])
                self._cached += len(data)
                if self._cached > _CACHE:
                    for old in [old for old, end in self._ends.items() if end + _SLACK <= place]:
                        self._drop(old)
                while self._cached > _CACHE and len(self._frames) > 1:
                    self._drop(next(iter(self._frames)))
        return data

    def _drop(self, key: int) -> None:
        del self._ends[key]
        self._cached -= len(self._frames.pop(key))


def _zeros(length: int) -> list[memoryview]:
    """Return so many zeros."""
    return [_ZEROS[: min(len(_ZEROS), length - at)] for at in range(0, length, len(_ZEROS))]


@contextmanager
def open_past(
    store: Store, members: Sequence[Member], name: str, size: int, below: Readable | None = None
) -> Iterator[Past]:
    """Open what members make of what lies below them.

    Args:
        store: of the archive.
        members: in the order in which they would be applied; of a full copy, that is the first.
        name: what messages call it.
        size: bytes of the device.
        below: the mirror; None: nothing but zeros.

    Raises:
        LvmsyncError: a member is missing or damaged.
    """
    with ExitStack() as opened:

        def enter(number: int) -> OpenMember:
            return opened.enter_context(open_member(store, members[number], is_held=number < _MOST_HELD))

        # Side by side: each asks the store for two objects, and that may be far away.
        with ThreadPoolExecutor(_OPENERS) as pool:
            found = list(pool.map(enter, range(len(members))))
        yield Past(name, size, found, stack([one.index.table() for one in found], size), below)

"""Read what changed and write it as a stream, ended only if the source still stands by it."""

from __future__ import annotations

import itertools
import os
import threading
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from threading import local

import numpy as np

from lvmsync import __version__
from lvmsync.errors import LvmsyncError, PeerError, TransportError, UsageError
from lvmsync.extents import ChangeMap, as_table
from lvmsync.interfaces import Readable
from lvmsync.jobs.progress import Progress, Receipt, Report, Stopwatch
from lvmsync.jobs.window import Window
from lvmsync.sources.source import Source
from lvmsync.stream import v3, v4
from lvmsync.stream.frames import DELTA, FULL, Abort, Buffer, Changes, Data, End, Header, Hole, Mark, Sample, Zero
from lvmsync.system.device import Device, aligned_buffer

BATCH = 1 << 20
"""Bytes of changes in a frame, at the most."""
BATCH_EXTENTS = 4096
"""Extents in a frame, at the most."""
HOLE_BATCH = 1 << 30
"""Bytes of holes in a frame, at the most: PROTO[3] writes them as zeros, and a receiver may save what is there."""
HOLE_WORTH = 16 << 10
"""Bytes of data that a hole counts as where marks are set."""
ZERO_BLOCK, ZERO_RUN = 4096, 16
"""Of a whole device, so many blocks of so many bytes that hold zeros are sent as zeros."""
_SMALLEST_BATCH = 16 << 10
SIGN_EVERY = 2.0
"""Seconds between two signs of life while a source makes sure of what was read."""
MARK_EVERY = 1 << 30
"""Bytes of data between two marks."""

Send = Callable[[Sequence[Buffer]], None]
Batch = tuple[list[int], list[int]]
_Read = Callable[[Readable, list[int], list[int], memoryview], list[Changes]]


@dataclass(frozen=True)
class StreamOptions:
    """How a stream is to be written.

    Attributes:
        format: 3 or 4.
        level: zstd level, 1-19; 0: no compression.
        resumable: the receiver keeps what has arrived when the line is cut: frames and the distance of marks follow the
            amount, so that little of it is sent twice. PROTO[4] only.
    """

    format: int = 4
    level: int = 0
    resumable: bool = False


@dataclass(frozen=True)
class Resume:
    """Where an unfinished transaction of the receiver is gone on with, as `jobs.standing` tells it.

    Attributes:
        offset: byte of the device; all changes below it have been applied.
        transaction: its id.
        cuts: how often it was broken off, as far as is known.
    """

    offset: int
    transaction: str
    cuts: int = 1


class Sender:
    """One stream on its way out: header, changes, and an END or an ABORT."""

    def __init__(
        self,
        source: Source,
        send: Send,
        options: StreamOptions,
        report: Report,
        *,
        resume: Resume | None = None,
        samples: Sequence[Sample] = (),
        group: str | None = None,
        window: Window | None = None,
        intent: str | None = None,
    ) -> None:
        """Prepare; nothing is sent before `begin`.

        Args:
            source: what changed.
            send: takes the bytes.
            options: how the stream is written.
            report: takes the progress.
            resume: send only what an unfinished transaction lacks.
            samples: what the base holds at some places, besides the source's own; see `jobs.samples`.
            group: id of the group that the stream belongs to.
            window: is told what was sent, and waited for.
            intent: what the header says of it; None: whether it is a full copy, or a delta.

        Raises:
            UsageError: PROTO[3] cannot go on with a transaction.
        """
        if resume and options.format != 4:
            raise UsageError("an unfinished transaction is gone on with in format 4 only: leave --format away")
        if resume:
            source = clip_source(source, resume.offset)
        self._source = source
        self._send = send
        self._options = options
        self._report = report
        self._resume = resume
        self._samples = (*samples, *source.samples)
        self._group = group
        self._window = window
        self._intent = intent or (FULL if source.is_full else DELTA)
        self._watch = Stopwatch()
        self._encoder = v4.Encoder() if options.format == 4 else v3.Encoder()
        self._extents = 0
        self._changed_bytes = 0
        self._wire_bytes = 0

    def begin(self) -> None:
        """Send the header."""
        source = self._source
        self._put(
            self._encoder.encode(
                Header(
                    size=source.size,
                    extents=len(source.changes),
                    changed_bytes=source.changes.total_bytes,
                    map_digest=source.changes.digest(),
                    source=source.kind,
                    name=source.name,
                    base=source.base,
                    head=source.head,
                    host=os.uname().nodename,
                    time=datetime.now(UTC).isoformat(timespec="seconds"),
                    version=__version__,
                    intent=self._intent,
                    stream=uuid.uuid4().hex,
                    minimal=source.is_minimal,
                    data_bytes=source.changes.total_bytes - (source.changes & source.holes).total_bytes,
                    resume=self._resume.offset if self._resume else None,
                    transaction=self._resume.transaction if self._resume else None,
                    samples=self._samples,
                    group=self._group,
                )
            )
        )

    def deliver(self) -> Receipt:
        """Send the whole stream, header and all."""
        self.begin()
        return self.run()

    def run(self) -> Receipt:
        """Send all changes; end the stream if the source confirms them, and abort it if anything fails."""
        try:
            self._send_changes()
            with self._alive():
                self._source.confirm()
        except (TransportError, PeerError):
            raise  # there is no one to tell
        except BaseException as error:
            # A sender that is told to end leaves what has come with a receiver that keeps it; a failed source does not.
            if isinstance(error, Exception) or not self._options.resumable:
                self._abort(error)
            raise
        self._put(self._encoder.encode(End(self._extents, self._changed_bytes)))
        return self._receipt()

    def call_off(self, target: str | None = None) -> Receipt:
        """Return what `run` would have sent: the receipt of a dry run."""
        changes = self._source.changes
        self._extents, self._changed_bytes = len(changes), changes.total_bytes
        return replace(self._receipt(), target=target, rate=0.0, digest=None, wire_bytes=None, dry_run=True)

    def _send_changes(self) -> None:
        changes = self._source.changes
        total = changes.total_bytes - (changes & self._source.holes).total_bytes
        is_resumable = self._options.resumable
        batch = BATCH
        if self._window:
            batch = min(batch_for(total), max(1 << (self._window.size // 4).bit_length() - 1, _SMALLEST_BATCH))
        elif is_resumable:
            batch = batch_for(total, is_resumed=self._resume is not None)
        distance = mark_distance(total) if is_resumable else MARK_EVERY
        done = since_mark = 0
        self._report(Progress("sending", 0, total))
        for frame, packed in read_frames(self._source, self._options.level, batch):
            self._put_changes(frame, packed)
            # Holes are soon sent again, however large they are: a mark, which costs a sync there, is for data.
            data = 0 if isinstance(frame, Hole) else frame.changed_bytes
            done += data
            since_mark += data or len(frame.table) * HOLE_WORTH
            if since_mark >= distance:
                since_mark = 0
                self._put(self._encoder.encode(Mark(self._extents, self._changed_bytes)))
            self._report(Progress("sending", done, total))

    def _put_changes(self, frame: Changes, packed: bytes | None) -> None:
        """Send a frame of changes, once it may be on its way."""
        before = self._wire_bytes
        if self._window:
            length = len(packed) if packed is not None else len(frame.payload) if isinstance(frame, Data) else 0
            if not self._window.wait(length):
                # A mark has the receiver apply what it holds, whatever it was waiting for.
                self._put(self._encoder.encode(Mark(self._extents, self._changed_bytes)))
                while not self._window.wait(length):
                    pass  # who hears the receiver gives it up in the end
        if packed is not None and isinstance(self._encoder, v4.Encoder):
            self._put(self._encoder.encode(frame, packed))
        else:
            self._put(self._encoder.encode(frame))
        self._extents += len(frame.table)
        self._changed_bytes += frame.changed_bytes
        if self._window:
            self._window.sent(self._wire_bytes - before, self._changed_bytes)

    @contextmanager
    def _alive(self) -> Iterator[None]:
        """Send a mark now and then while the source makes sure: a receiver gives a line up on which nothing moves."""
        is_over = threading.Event()

        def beat() -> None:
            with suppress(LvmsyncError):  # the END will meet it, too
                while not is_over.wait(SIGN_EVERY):
                    self._put(self._encoder.encode(Mark(self._extents, self._changed_bytes)))

        if not isinstance(self._encoder, v4.Encoder):
            yield
            return
        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            is_over.set()
            thread.join()

    def _abort(self, error: BaseException) -> None:
        """Tell the receiver why there will be no END; in PROTO[3] the stream just stops."""
        if isinstance(self._encoder, v4.Encoder):
            reason = str(error) if isinstance(error, LvmsyncError) else type(error).__name__
            try:
                self._put(self._encoder.encode(Abort(reason)))
            except TransportError as lost:
                error.add_note(f"the receiver could not be told: {lost}")

    def _put(self, buffers: list[Buffer]) -> None:
        self._send(buffers)
        self._wire_bytes += sum(map(len, buffers))

    def _receipt(self) -> Receipt:
        seconds, source = self._watch.seconds, self._source
        return Receipt(
            job="send",
            source=source.name,
            bytes=self._changed_bytes,
            extents=self._extents,
            wire_bytes=self._wire_bytes,
            seconds=round(seconds, 3),
            rate=round(self._changed_bytes / seconds),
            ratio=round(source.size / self._changed_bytes, 2) if self._changed_bytes else None,
            size=source.size,
            format=self._encoder.version,
            digest=self._encoder.digest if isinstance(self._encoder, v4.Encoder) else None,
            point=source.head.id if source.head else None,
            notes=list(source.notes),
        )


def batch_for(total: int, *, is_resumed: bool = False) -> int:
    """Return how many bytes of data go into a frame of a resumable stream that carries ``total`` bytes of them.

    A cut loses a frame at the most, a killed receiver a few: fifty of them in one transfer must not cost a twentieth
    of it. So the frames of a stream that goes on, which may be cut as well, are smaller.
    """
    if is_resumed:
        return min(max(1 << (total >> 14).bit_length(), _SMALLEST_BATCH), BATCH)
    return min(max(1 << (total >> 12).bit_length(), 64 << 10), BATCH)


def mark_distance(total: int) -> int:
    """Return how many bytes of data are between two marks of a resumable stream, which carries ``total`` of them."""
    return min(max(total // 64, 8 << 20), MARK_EVERY)


def clip_source(source: Source, offset: int) -> Source:
    """Return the part of a source that lies at ``offset`` and behind it."""
    behind = ChangeMap.from_extents([(offset, source.size - offset)] if offset < source.size else [])
    return replace(source, changes=source.changes & behind, holes=source.holes & behind)


def read_frames(source: Source, level: int, batch: int = BATCH) -> Iterator[tuple[Changes, bytes | None]]:
    """Yield the source's changes as frames in order, each with its compressed body where that is worth it.

    A frame's payload is good until the next frame is asked for: its buffer is used again. No frame holds more than
    ``batch`` bytes of data, `BATCH` at the most.

    A device has many reads under way at a time, in threads. A file is read by one, while the kernel is
    told what will come next. Compression has threads of its own in either case. Holes are not read.
    """
    depth = source.data.depth if isinstance(source.data, Device) else 1
    batches = cut_batches(source, batch)
    read = _read_sparse if source.is_full else _read_frame
    if depth == 1 and not level:
        yield from _read_inline(source.data, batches, read)
        return
    workers = depth if depth > 1 else os.cpu_count() or 1
    yield from _read_in_threads(source.data, batches, read, level, workers)


def cut_batches(source: Source, batch: int = BATCH) -> Iterator[Batch | Hole]:
    """Yield what is to be read in batches, and frames of the holes, in the order of their offsets."""
    if not len(source.holes):
        yield from source.changes.batches(batch, BATCH_EXTENTS)
        return
    holes = source.changes & source.holes
    data = source.changes - holes
    # A run is all data up to the next hole, or all holes up to the next data.
    before = np.searchsorted(holes.offsets, data.offsets)  # holes in front of each extent of data
    starts = np.flatnonzero(np.diff(before, prepend=-1))
    stops = np.flatnonzero(np.diff(before, append=-1)) + 1
    at = 0
    for start, stop, first in zip(starts.tolist(), stops.tolist(), before[starts].tolist(), strict=True):
        yield from _hole_frames(holes, at, first)
        yield from _part(data, start, stop).batches(batch, BATCH_EXTENTS)
        at = first
    yield from _hole_frames(holes, at, len(holes))


def _hole_frames(holes: ChangeMap, start: int, stop: int) -> Iterator[Hole]:
    for offsets, lengths in _part(holes, start, stop).batches(HOLE_BATCH, BATCH_EXTENTS):
        yield Hole(as_table(offsets, lengths))


def _part(ranges: ChangeMap, start: int, stop: int) -> ChangeMap:
    return ChangeMap(ranges.offsets[start:stop], ranges.ends[start:stop])


def _read_inline(data: Readable, batches: Iterator[Batch | Hole], read: _Read) -> Iterator[tuple[Changes, None]]:
    buffer = aligned_buffer(BATCH)
    for batch in prefetched(data, batches):
        if isinstance(batch, Hole):
            yield batch, None
            continue
        for frame in read(data, *batch, buffer):
            yield frame, None


def prefetched(data: Readable, batches: Iterator[Batch | Hole]) -> Iterator[Batch | Hole]:
    """Pass batches on; before each, the kernel is told of the one behind it."""
    if not isinstance(data, Device):
        yield from batches
        return
    ahead: deque[Batch | Hole] = deque()
    for batch in batches:
        if not isinstance(batch, Hole):
            data.prefetch(*batch)
        ahead.append(batch)
        if len(ahead) > 2:
            yield ahead.popleft()
    yield from ahead


def _read_in_threads(
    data: Readable, batches: Iterator[Batch | Hole], read: _Read, level: int, workers: int
) -> Iterator[tuple[Changes, bytes | None]]:
    own = local()  # a compressor is for one thread

    def work(batch: Batch | Hole, buffer: memoryview) -> list[tuple[Changes, bytes | None]]:
        if isinstance(batch, Hole):
            return [(batch, None)]
        frames = read(data, *batch, buffer)
        if not level:
            return [(frame, None) for frame in frames]
        if not hasattr(own, "compressor"):
            own.compressor = v4.Compressor(level)
        return [(frame, own.compressor.pack(frame)) for frame in frames]

    batches = prefetched(data, batches)
    with ThreadPoolExecutor(workers) as pool:
        under_way: deque[tuple[Future[list[tuple[Changes, bytes | None]]], memoryview]] = deque()
        try:
            for batch in itertools.islice(batches, workers + 1):
                buffer = aligned_buffer(BATCH)
                under_way.append((pool.submit(work, batch, buffer), buffer))
            while under_way:
                future, buffer = under_way.popleft()
                yield from future.result()
                for batch in itertools.islice(batches, 1):
                    under_way.append((pool.submit(work, batch, buffer), buffer))
        finally:
            pool.shutdown(cancel_futures=True)


def _read_frame(data: Readable, offsets: list[int], lengths: list[int], buffer: memoryview) -> list[Changes]:
    view = buffer[: sum(lengths)]
    data.read(offsets, lengths, view)
    table = as_table(offsets, lengths)
    # The first bytes settle it for almost all data, so that looking for zeros costs nothing.
    if not any(view[:64]) and not np.frombuffer(view, np.uint8).any():
        return [Zero(table)]
    return [Data(table, view)]


def _read_sparse(data: Readable, offsets: list[int], lengths: list[int], buffer: memoryview) -> list[Changes]:
    """Read a batch of a whole device, where long runs of zeros are worth looking for."""
    frames = _read_frame(data, offsets, lengths, buffer)
    if len(offsets) != 1 or not isinstance(frames[0], Data):
        return frames
    return _without_zeros(offsets[0], frames[0].payload)


def _without_zeros(offset: int, view: memoryview) -> list[Changes]:
    """Return the frames of one extent: its long runs of zeros as such, what is between them as data."""
    blocks = np.frombuffer(view[: len(view) // ZERO_BLOCK * ZERO_BLOCK], np.uint64).reshape(-1, ZERO_BLOCK // 8)
    is_zero = blocks[:, 0] == 0  # one word of each block settles it for almost all data
    candidates = np.flatnonzero(is_zero)
    if len(candidates) >= ZERO_RUN:
        is_zero[candidates] = ~blocks[candidates].any(axis=1)
    edges = np.flatnonzero(np.diff(is_zero.astype(np.int8), prepend=0, append=0))
    runs = edges.reshape(-1, 2)
    runs = runs[runs[:, 1] - runs[:, 0] >= ZERO_RUN] * ZERO_BLOCK
    frames: list[Changes] = []
    at = 0
    for start, stop in [*runs.tolist(), [len(view), len(view)]]:
        if start > at:
            frames.append(Data(as_table([offset + at], [start - at]), view[at:start]))
        if stop > start:
            frames.append(Zero(as_table([offset + start], [stop - start])))
        at = stop
    return frames

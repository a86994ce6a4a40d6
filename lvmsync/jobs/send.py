"""Read what changed and write it as a stream, ended only if the source still stands by it."""

from __future__ import annotations

import itertools
import os
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from threading import local

import numpy as np

from lvmsync import __version__
from lvmsync.errors import LvmsyncError, PeerError, TransportError
from lvmsync.extents import as_table
from lvmsync.interfaces import Readable
from lvmsync.jobs.progress import Progress, Receipt, Report, Stopwatch
from lvmsync.sources.source import Source
from lvmsync.stream import v3, v4
from lvmsync.stream.frames import Abort, Buffer, Changes, Data, End, Header, Mark, Zero
from lvmsync.system.device import Device, aligned_buffer

BATCH = 1 << 20
"""Bytes of changes in a frame, at the most."""
BATCH_EXTENTS = 4096
"""Extents in a frame, at the most."""
MARK_EVERY = 1 << 30
"""Bytes of changes between two marks."""

Send = Callable[[Sequence[Buffer]], None]
Batch = tuple[list[int], list[int]]


@dataclass(frozen=True)
class StreamOptions:
    """How a stream is to be written.

    Attributes:
        format: 3 or 4.
        level: zstd level, 1-19; 0: no compression.
    """

    format: int = 4
    level: int = 0


class Sender:
    """One stream on its way out: header, changes, and an END or an ABORT."""

    def __init__(self, source: Source, send: Send, options: StreamOptions, report: Report) -> None:
        """Prepare; nothing is sent before `begin`."""
        self._source = source
        self._send = send
        self._options = options
        self._report = report
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
                    stream=uuid.uuid4().hex,
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
            self._source.confirm()
        except (TransportError, PeerError):
            raise  # there is no one to tell
        except BaseException as error:
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
        total = self._source.changes.total_bytes
        marked = 0
        for frame, packed in read_frames(self._source, self._options.level):
            if packed is not None and isinstance(self._encoder, v4.Encoder):
                self._put(self._encoder.encode(frame, packed))
            else:
                self._put(self._encoder.encode(frame))
            self._extents += len(frame.table)
            self._changed_bytes += frame.changed_bytes
            if self._changed_bytes - marked >= MARK_EVERY:
                marked = self._changed_bytes
                self._put(self._encoder.encode(Mark(self._extents, self._changed_bytes)))
            self._report(Progress("sending", self._changed_bytes, total))

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


def read_frames(source: Source, level: int) -> Iterator[tuple[Changes, bytes | None]]:
    """Yield the source's changes as frames in order, each with its compressed body where that is worth it.

    A frame's payload is good until the next frame is asked for: its buffer is used again.

    A device has many reads under way at a time, in threads. A file is read by one, while the kernel is
    told what will come next. Compression has threads of its own in either case.
    """
    depth = source.data.depth if isinstance(source.data, Device) else 1
    batches = source.changes.batches(BATCH, BATCH_EXTENTS)
    if depth == 1 and not level:
        yield from _read_inline(source.data, batches)
        return
    workers = depth if depth > 1 else os.cpu_count() or 1
    yield from _read_in_threads(source.data, batches, level, workers)


def _read_inline(data: Readable, batches: Iterator[Batch]) -> Iterator[tuple[Changes, None]]:
    buffer = aligned_buffer(BATCH)
    for offsets, lengths in prefetched(data, batches):
        yield _read_frame(data, offsets, lengths, buffer), None


def prefetched(data: Readable, batches: Iterator[Batch]) -> Iterator[Batch]:
    """Pass batches on; before each, the kernel is told of the one behind it."""
    if not isinstance(data, Device):
        yield from batches
        return
    ahead: deque[Batch] = deque()
    for batch in batches:
        data.prefetch(*batch)
        ahead.append(batch)
        if len(ahead) > 2:
            yield ahead.popleft()
    yield from ahead


def _read_in_threads(
    data: Readable, batches: Iterator[Batch], level: int, workers: int
) -> Iterator[tuple[Changes, bytes | None]]:
    own = local()  # a compressor is for one thread

    def work(batch: Batch, buffer: memoryview) -> tuple[Changes, bytes | None]:
        frame = _read_frame(data, *batch, buffer)
        if not level:
            return frame, None
        if not hasattr(own, "compressor"):
            own.compressor = v4.Compressor(level)
        return frame, own.compressor.pack(frame)

    batches = prefetched(data, batches)
    with ThreadPoolExecutor(workers) as pool:
        under_way: deque[tuple[Future[tuple[Changes, bytes | None]], memoryview]] = deque()
        try:
            for batch in itertools.islice(batches, workers + 1):
                buffer = aligned_buffer(BATCH)
                under_way.append((pool.submit(work, batch, buffer), buffer))
            while under_way:
                future, buffer = under_way.popleft()
                yield future.result()
                for batch in itertools.islice(batches, 1):
                    under_way.append((pool.submit(work, batch, buffer), buffer))
        finally:
            pool.shutdown(cancel_futures=True)


def _read_frame(data: Readable, offsets: list[int], lengths: list[int], buffer: memoryview) -> Changes:
    view = buffer[: sum(lengths)]
    data.read(offsets, lengths, view)
    table = as_table(offsets, lengths)
    # The first bytes settle it for almost all data, so that looking for zeros costs nothing.
    if not any(view[:64]) and not np.frombuffer(view, np.uint8).any():
        return Zero(table)
    return Data(table, view)

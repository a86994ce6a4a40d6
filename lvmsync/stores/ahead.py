"""Reading an object that is far away: each request costs a round trip, so who reads on and on is read ahead of."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from types import TracebackType
from typing import Self

from lvmsync.errors import DeviceError
from lvmsync.stores.threads import Threads
from lvmsync.stream.frames import Buffer

_FIRST, _MOST = 1 << 20, 8 << 20  # bytes that are read ahead: at first, and when reading goes on and on
_PIECE = 2 << 20  # bytes of a request
_BUDGET = 64 << 20  # bytes that are held ahead, of all objects of a store together

Fetch = Callable[[int, int], Buffer]
"""Returns the bytes from an offset to an end, or raises an LvmsyncError."""


class Ahead:
    """What the objects of a store are read ahead with: a few threads, and a budget of memory.

    Attributes:
        threads: make calls for whoever has to be able to stop waiting.
    """

    def __init__(self) -> None:
        self.threads = Threads()
        self._lock = threading.Lock()
        self._held = 0

    def close(self) -> None:
        """Let the threads end; what they have under way is not waited for."""
        self.threads.close()

    def start(self, fetch: Fetch, start: int, end: int) -> Future[Buffer] | None:
        """Begin to read a range; None: that much is held already."""
        with self._lock:
            if self._held + end - start > _BUDGET:
                return None
            self._held += end - start
        return self.threads.start(lambda: fetch(start, end))

    def give_back(self, count: int) -> None:
        """Note that so many bytes are no longer held."""
        with self._lock:
            self._held -= count


class AheadBlob:
    """An object that is read by ranges, ahead of who reads it from its start to its end (an `interfaces.Blob`).

    Attributes:
        name: what messages call it.
        size: bytes.
    """

    def __init__(self, name: str, size: int, fetch: Fetch, ahead: Ahead) -> None:
        self.name = name
        self.size = size
        self._fetch = fetch
        self._ahead = ahead
        self._lock = threading.Lock()
        self._windows: list[tuple[int, int, Future[Buffer]]] = []  # side by side, in order
        self._reach = 0
        self._next = -1  # where the last read ended

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of what was read ahead; harmless when it is closed."""
        with self._lock:
            self._drop(self.size)

    def read_at(self, offset: int, length: int) -> memoryview:
        """Return bytes from a place; fewer only at the end of the object.

        Raises:
            LvmsyncError: it cannot be read.
        """
        end = min(self.size, offset + length)
        if offset >= end:
            return memoryview(b"")
        with self._lock:
            # Frames lie behind one another, and a few that are not wanted may be between them.
            is_next = self._next <= offset <= self._next + _FIRST and self._next >= 0
            self._reach = min(_MOST, max(_FIRST, 2 * self._reach)) if is_next else 0
            if not is_next:
                self._drop(self.size)
            self._next = end
            self._extend(end, end + self._reach)
            windows = [one for one in self._windows if one[0] < end and one[1] > offset]
        pieces, done = [], offset
        for start, stop, future in windows:
            if start > done:
                pieces.append(memoryview(self._fetch(done, start)))
                done = start
            until = min(stop, end)
            pieces.append(memoryview(future.result())[done - start : until - start])
            done = until
        if done < end:
            pieces.append(memoryview(self._fetch(done, end)))
        with self._lock:
            self._drop(end)
        out = pieces[0] if len(pieces) == 1 else memoryview(b"".join(pieces))
        if len(out) < end - offset:
            raise self._short(offset + len(out))
        return out

    def prefetch(self, offset: int, length: int) -> None:
        """Begin to read what will be wanted soon."""
        with self._lock:
            self._extend(offset, offset + length)

    def _extend(self, start: int, end: int) -> None:
        """Begin to read what is not under way yet, behind the last window; under the lock."""
        at = max(start, self._windows[-1][1]) if self._windows else start
        end = min(end, self.size)
        # Whole pieces only, but for the last one: requests that are too small are no help
        while at < end and (end - at >= _PIECE or end == self.size):
            stop = min(at + _PIECE, end)
            future = self._ahead.start(self._fetch, at, stop)
            if future is None:
                return
            self._windows.append((at, stop, future))
            at = stop

    def _drop(self, end: int) -> None:
        """Let go of the windows that end there or before; under the lock."""
        while self._windows and self._windows[0][1] <= end:
            start, stop, _ = self._windows.pop(0)  # not cancelled: another thread may wait for it
            self._ahead.give_back(stop - start)

    def _short(self, at: int) -> DeviceError:
        return DeviceError(
            f"{self.name} ends at byte {at}, and has {self.size}: was it changed?", device=self.name, offset=at
        )

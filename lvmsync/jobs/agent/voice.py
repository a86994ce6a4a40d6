"""What the side that serves says: a line at a time, and signs of life."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from lvmsync.errors import LvmsyncError, TransportError
from lvmsync.interfaces import Transport
from lvmsync.jobs.agent.protocol import AT, WAIT, Line
from lvmsync.jobs.window import SMALLEST, STEPS
from lvmsync.stream.frames import Buffer
from lvmsync.transport import STALL_TIMEOUT

_TICK = 0.5  # seconds between two looks whether a sign of life is due


class Voice:
    """One end of a line, as the side that serves uses it.

    There is no sign of life while nothing is done but wait for bytes: a wait that we ourselves break would never end.
    Between two requests nobody waits for us. There they serve ourselves, where that is wanted: a line whose other side
    is gone without a goodbye breaks when something is sent on it, and only then.

    Args:
        line: to the other side.
        beat: seconds between two signs of life.
        on_lost: called from another thread when the line is found to be gone while there is work.
        patience: seconds that the other side may be silent when it has no question; None: any time.

    Attributes:
        lock: held by whoever says something.
        beats_at_rest: whether signs of life are given between two requests.
    """

    def __init__(self, line: Line, beat: float, on_lost: Callable[[], None], patience: float | None = None) -> None:
        self.lock = threading.Lock()
        self.beats_at_rest = False
        self._line = line
        self._beat = beat
        self._on_lost = on_lost
        self._rest_patience = patience
        self._ended = threading.Event()
        self._is_receiving = False
        self._has_frames = False  # that were received, and are being applied
        self._step: int | None = None  # bytes of changes between two words of how far we are
        self._told = 0
        self._moved_at = time.monotonic()
        self._patience = STALL_TIMEOUT  # the other side's
        line.transport.stall_timeout = patience
        # From here on: under the lock
        self._is_working = False
        self._hears_end = False  # who reads the line knows that it has ended, and needs no signal
        self._is_silent = False

    def say(self, word: str, values: Mapping[str, Any] | None = None) -> None:
        """Say a line."""
        with self.lock:
            self._line.say(word, values)

    def hand_over(self, word: str, values: Mapping[str, Any], transport: Transport | None = None) -> None:
        """Say a line, and from then on nothing else on this transport: another one takes its place, or raw bytes."""
        with self.lock:
            self._line.say(word, values)
            if transport:
                self._line.transport = transport
            else:
                self._is_silent = True

    def send_all(self, buffers: Sequence[Buffer]) -> None:
        """Send lines and what belongs to them, at once."""
        with self.lock:
            self._line.send_all(buffers)
            self._moved_at = time.monotonic()

    def receive_some(self, buffer: memoryview) -> int:
        """Receive raw bytes, and take note of the end."""
        count = 0
        self._is_receiving = True
        try:
            count = self._line.receive_some(buffer)
        finally:
            if not self._has_frames:
                self._moved_at = time.monotonic()
            self._is_receiving = False
            if not count:
                with self.lock:
                    self._hears_end = True
        return count

    def begin_stream(self, window: int | None) -> None:
        """Prepare to tell how far a stream is applied.

        Args:
            window: bytes of it that its sender lets be on their way; None: it does not ask how far we are.
        """
        self._step, self._told = window and max(window, SMALLEST) // STEPS, 0

    def is_applying(self, has_frames: bool) -> None:  # a callback
        """Take note whether something of the stream is being applied, or all that has come is."""
        self._has_frames = has_frames

    def applied(self, changed_bytes: int) -> None:
        """Say, now and then, of how many bytes of changes the stream has been applied.

        Where that cannot be said the sender is gone, and what it has sent is taken none the less.
        """
        if self._step is None or changed_bytes - self._told < self._step:
            return
        self._told = changed_bytes
        try:
            self.say(AT, {"bytes": changed_bytes})
        except TransportError:
            self._step = None

    @contextmanager
    def working(self, stall_timeout: float) -> Iterator[None]:
        """Give signs of life in the ``with``, and wait no longer than so many seconds for those of the other side."""
        self._patience, self._moved_at = stall_timeout, time.monotonic()
        with self.lock:
            self._is_working, self._is_silent, self._has_frames = True, False, False
        self._line.transport.stall_timeout = stall_timeout
        try:
            yield
        finally:
            self._line.transport.stall_timeout = self._rest_patience
            with self.lock:
                self._is_working = False

    @contextmanager
    def beating(self) -> Iterator[None]:
        """Run the thread that gives them."""
        self._ended.clear()
        thread = threading.Thread(target=self._run, name="signs of life", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._ended.set()

    def _run(self) -> None:
        while not self._ended.wait(min(self._beat, _TICK)):
            with self.lock:
                is_waiting = self._is_receiving and not self._has_frames
                is_on = self._is_working or self.beats_at_rest
                if self._ended.is_set() or self._is_silent or not is_on or is_waiting:
                    continue
                every = min(self._beat, self._patience / 3) if self._is_working else self._beat
                if time.monotonic() - self._moved_at < every:
                    continue
                self._moved_at = time.monotonic()
                try:
                    self._line.say(WAIT)
                except (LvmsyncError, OSError, ValueError):  # the line broke, or was closed under us
                    if self._is_working and not self._hears_end and not self._is_receiving:
                        self._on_lost()
                    return

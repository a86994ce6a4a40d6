"""Pipes as the line: this process's own stdin and stdout, or those of a child."""

from __future__ import annotations

import fcntl
import os
import select
import stat
import subprocess
import sys
import termios
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from itertools import islice
from types import TracebackType
from typing import IO, Self

from lvmsync.errors import DeviceError, TransportError
from lvmsync.transport.lines import Lines

PIPE_SIZE = 1 << 20
"""Bytes that a pipe holds, where the system permits it: the default of 64 KiB costs a third of the speed."""

_IOV_MAX = os.sysconf("SC_IOV_MAX")
_CLOSE_TIMEOUT = 300.0  # seconds; the far side may be busy with its last sync
_KILL_TIMEOUT = 300.0  # seconds from SIGTERM to SIGKILL: a receiver brings its target back first
_LAST_WORDS_TIMEOUT = 1.0  # seconds that stderr and stdout may stay open behind a child that has ended


class Watch:
    """Tells a line on which bytes move from one that has stalled.

    Args:
        name: of the line, for the message.
        patience: seconds without a byte that are too many; None: none are.
        progress: returns something that changes whenever a byte moves.
    """

    def __init__(self, name: str, patience: float | None, progress: Callable[[], object]) -> None:
        self._name = name
        self._patience = patience
        self._progress = progress
        self._seen = progress()
        self._since = time.monotonic()
        self.nap = 1.0 if patience is None else min(1.0, patience / 4)
        """Seconds to wait between two checks."""

    def check(self) -> None:
        """Look once.

        Raises:
            TransportError: no byte has moved for too long.
        """
        now, seen = time.monotonic(), self._progress()
        if seen != self._seen:
            self._seen, self._since = seen, now
        elif self._patience is not None and now - self._since >= self._patience:
            raise TransportError(
                f"{self._name}: no byte moved for {self._patience:g} s: the line or the far side hangs; try again"
            )


class Flow:
    """Two descriptors of one line, read and written until they take no more, and no longer than patience lasts.

    A byte that moves either way shows that the line is alive: one that comes in while we cannot send, too.

    Attributes:
        stall_timeout: see `interfaces.Transport`.
        failure: how the patience ended; None: it has not.
        writing: held by whoever writes to a descriptor, or closes it: its number may be another file's right after.
        reading: the same of reading.
    """

    def __init__(self, name: str, stall_timeout: float | None = None) -> None:
        self.stall_timeout = stall_timeout
        self.failure: TransportError | None = None
        self.writing = threading.Lock()
        self.reading = threading.Lock()
        self._name = name
        self._moved = 0

    def write_all(self, out: int, buffers: Sequence[bytes | bytearray | memoryview], back: int) -> None:
        """Write every byte to ``out``; what is there to be read from ``back`` shows life.

        ``out`` never fills up, or does not block: a write that blocks cannot be timed.
        """
        views = deque(memoryview(buffer).cast("B") for buffer in buffers if len(buffer))
        while views:
            try:
                written = os.writev(out, list(islice(views, _IOV_MAX)))
            except BlockingIOError:
                self._wait_for(out, select.POLLOUT, back)
                continue
            self._moved += written
            while views and written >= len(views[0]):
                written -= len(views.popleft())
            if written:
                views[0] = views[0][written:]

    def read_some(self, fd: int, buffer: memoryview) -> int:
        """Read at least one byte from ``fd``; 0 at the end."""
        while True:
            try:
                if self.stall_timeout is not None:
                    self._wait_for(fd, select.POLLIN, fd)
                count = os.readv(fd, [buffer])
            except BlockingIOError:  # whoever started us left the descriptor non-blocking
                self._wait_for(fd, select.POLLIN, fd)
                continue
            self._moved += count
            return count

    def _wait_for(self, fd: int, event: int, back: int) -> None:
        poll = select.poll()
        poll.register(fd, event)
        patience = self.stall_timeout
        if patience is None:
            poll.poll()
            return
        watch = Watch(self._name, patience, lambda: (self._moved, _waiting(back)))
        while not poll.poll(1000 * watch.nap):
            try:
                watch.check()
            except TransportError as error:
                self.failure = error
                raise


def _waiting(fd: int) -> int:
    """Return how many bytes can be read from ``fd`` now."""
    count = bytearray(4)
    with suppress(OSError):
        fcntl.ioctl(fd, termios.FIONREAD, count)
    return int.from_bytes(count, sys.byteorder)


@contextmanager
def unused(*locks: threading.Lock) -> Iterator[bool]:
    """Yield whether nobody uses what is under locks of a `Flow`, or does no more in a moment: else it stays open."""
    with ExitStack() as stack:
        held = True
        for lock in locks:
            held = held and lock.acquire(timeout=_LAST_WORDS_TIMEOUT)
            if held:
                stack.callback(lock.release)
        yield held


class Flowing:
    """What carries its bytes in a `Flow`, and is as patient as that."""

    _flow: Flow

    @property
    def stall_timeout(self) -> float | None:
        """Seconds that a blocked call sees no byte move before it fails; None: never."""
        return self._flow.stall_timeout

    @stall_timeout.setter
    def stall_timeout(self, seconds: float | None) -> None:
        self._flow.stall_timeout = seconds


class Stdio(Flowing):
    """This process's stdin and stdout, taken away from everything else that runs in it.

    While it is open, descriptor 0 is empty and descriptor 1 is stderr, so that no ``print`` and no
    program that is started can eat from the stream or write into it. It waits for ever, unless its
    ``stall_timeout`` is set.
    """

    def __init__(self) -> None:
        self._flow = Flow("standard input and output")

    def __enter__(self) -> Self:
        try:
            self._in, self._out = os.dup(0), _own(os.dup(1))  # not inherited by children
        except OSError as error:
            raise DeviceError(f"stdin and stdout: {error.strerror}; both must be open") from error
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        os.dup2(2, 1)
        os.close(null)
        _grow(self._in)
        _grow(self._out)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.aclose()

    def send_all(self, buffers: Sequence[bytes | bytearray | memoryview]) -> None:
        """Send every byte of ``buffers``, in order.

        Raises:
            TransportError: nobody reads our stdout any more.
            DeviceError: stdout is a file, and it cannot be written.
        """
        try:
            with self._flow.writing:
                self._flow.write_all(self._out, buffers, self._in)
        except (BrokenPipeError, ConnectionError) as error:
            raise TransportError("stdout: the reader of the stream is gone; see what it says") from error
        except OSError as error:
            raise DeviceError(f"stdout: {error.strerror}; the stream is not complete") from error

    def receive_some(self, buffer: memoryview) -> int:
        """Receive at least one byte into ``buffer`` and return how many; 0 at the end."""
        try:
            return self._flow.read_some(self._in, buffer)
        except ConnectionError as error:
            raise TransportError(f"stdin: {error.strerror}; the line is gone") from error
        except OSError as error:
            raise DeviceError(f"stdin: {error.strerror}") from error

    def send_eof(self) -> None:
        """Close stdout; a file there is made durable first."""
        out, self._out = self._out, -1
        if out < 0:
            return
        try:
            if stat.S_ISREG(os.fstat(out).st_mode):
                os.fsync(out)
            with unused(self._flow.writing) as is_unused:
                if is_unused:
                    os.close(out)
        except OSError as error:
            raise DeviceError(f"stdout: {error.strerror}; the stream may not be complete") from error

    def aclose(self) -> int:
        """Close both ends; a pipe has no status, so it is 0."""
        ends = [end for end in (self._in, self._out) if end >= 0]
        self._in = self._out = -1
        with unused(self._flow.writing) as is_unused:
            for end in ends if is_unused else ():
                os.close(end)
        return 0


class Command(Flowing):
    """A child process whose stdin and stdout are the line.

    It keeps our terminal and our process group, so that ssh can ask for a password and Ctrl-C reaches it.
    One thread may send while another receives; close it when both are done.

    Args:
        argv: the program and its words; no shell is involved.
        on_stderr: gets each line of its stderr; called from another thread.
        name: what messages call the far side; by default the program.
        stall_timeout: see `interfaces.Transport`.
    """

    def __init__(
        self,
        argv: Sequence[str],
        on_stderr: Callable[[str], None],
        *,
        name: str | None = None,
        stall_timeout: float | None = None,
    ) -> None:
        self._argv = argv
        self._name = name or argv[0]
        self._lines = Lines(on_stderr)
        self._flow = Flow(self._name, stall_timeout)

    def __enter__(self) -> Self:
        try:
            self._child = subprocess.Popen(
                self._argv, bufsize=0, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
            )
        except OSError as error:
            raise TransportError(f"{self._argv[0]}: cannot be started: {error.strerror}") from error
        assert self._child.stdin
        assert self._child.stdout
        assert self._child.stderr
        self._in, self._out = self._child.stdin, self._child.stdout
        for end in self._in.fileno(), self._out.fileno():
            _grow(end)
            os.set_blocking(end, False)  # our ends alone: the child's are others
        self._listener = threading.Thread(target=self._listen, args=[self._child.stderr], daemon=True)
        self._listener.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close(0)

    def send_all(self, buffers: Sequence[bytes | bytearray | memoryview]) -> None:
        """Send every byte of ``buffers``, in order.

        Raises:
            TransportError: the child stopped reading; ``aclose`` has its status.
        """
        try:
            with self._flow.writing:
                self._flow.write_all(self._in.fileno(), buffers, self._out.fileno())
        except OSError as error:
            raise TransportError(f"{self._name}: stopped reading before the end: {error.strerror}") from error

    def receive_some(self, buffer: memoryview) -> int:
        """Receive at least one byte into ``buffer`` and return how many; 0 at the end."""
        with self._flow.reading:
            if self._out.closed:
                raise TransportError(f"{self._name}: the line is gone: it was closed")
            try:
                return self._flow.read_some(self._out.fileno(), buffer)
            except OSError as error:
                raise TransportError(f"{self._name}: the line is gone: {error.strerror}") from error

    def send_eof(self) -> None:
        """Close the child's stdin."""
        with unused(self._flow.writing) as is_unused:
            if is_unused:
                self._in.close()

    def aclose(self) -> int:
        """Close the line and return the child's exit status, 128+n where a signal ended it.

        What it still says on stdout is dropped. It has five minutes to end; then it is made to.
        Receive to the end first where it may be busy for longer.

        Raises:
            TransportError: the line had stalled; the child was made to end at once.
        """
        status = self._close(0 if self._flow.failure else _CLOSE_TIMEOUT)
        if self._flow.failure:
            raise self._flow.failure
        return status

    def _close(self, patience: float) -> int:
        if self._child.returncode is None:
            deadline = time.monotonic() + patience
            if patience:
                self.send_eof()
                self._discard(deadline)
            if not self._ends(max(0.0, deadline - time.monotonic())):
                self._child.terminate()
                if not self._ends(_KILL_TIMEOUT):
                    self._child.kill()
                    self._child.wait()
            # A master that ssh leaves behind (ControlPersist) keeps our stderr open: do not wait for its end.
            self._listener.join(_LAST_WORDS_TIMEOUT)
        self.send_eof()  # only now where the line is cut: a thread that sends has got its EPIPE
        # A thread that still receives finds the end now, and must not find another file behind this descriptor.
        with unused(self._flow.reading) as is_unused:
            if is_unused:
                self._out.close()
        status = self._child.wait()
        return status if status >= 0 else 128 - status

    def _discard(self, deadline: float) -> None:
        """Drop what the child says, so that it does not wait for us, until it ends or the time is up."""
        out = self._out.fileno()
        poll = select.poll()
        poll.register(out, select.POLLIN)
        while (left := deadline - time.monotonic()) > 0:
            if poll.poll(min(left, 0.5) * 1000):
                with suppress(BlockingIOError):  # another thread receives, and was first
                    if not os.read(out, PIPE_SIZE):
                        return
            elif self._child.poll() is not None:  # a grandchild may hold the pipe open
                return

    def _ends(self, seconds: float) -> bool:
        try:
            self._child.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def _listen(self, stderr: IO[bytes]) -> None:
        while data := os.read(stderr.fileno(), PIPE_SIZE):
            self._lines.feed(data)
        self._lines.end()
        stderr.close()


def _own(fd: int) -> int:
    """Return a descriptor of the same pipe that can be told not to block, or ``fd`` where there is none.

    The flag would also hold for whoever shares ours, so the pipe is opened once more.
    """
    if stat.S_ISFIFO(os.fstat(fd).st_mode):
        with suppress(OSError):  # no /proc, or a pipe of another user: such a write cannot be timed
            own = os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            os.close(fd)
            return own
    return fd


def _grow(fd: int) -> None:
    """Make the pipe behind ``fd``, if it is one, hold ``PIPE_SIZE`` where the system permits it."""
    if stat.S_ISFIFO(os.fstat(fd).st_mode):
        with suppress(PermissionError):  # past the user's limit: slower, and no harm
            fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, PIPE_SIZE)

"""Diffs of RBD images that stream in or out of ``rbd``: a child process, a pipe, and nothing waits for ever."""

from __future__ import annotations

import fcntl
import os
import select
import subprocess
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import islice
from signal import SIGKILL, SIGTERM
from typing import Any

from lvmsync.errors import CommandError, TransportError
from lvmsync.images import RbdImage
from lvmsync.stream.frames import Buffer
from lvmsync.system import rbd

STALL = 60.0
"""Seconds without a byte after which a cluster is given up, where nothing else is said."""
ASK_EVERY = 8.0
"""Seconds without a byte after which the cluster is asked whether it is there."""
_END = 60.0  # seconds for a child to end that has no more to do
_BAD_MESSAGE = 74  # EBADMSG
_IOV = 1024
_PIPE = 1 << 20  # bytes
_GIVE_UP = 5.0


class DiffPipe:
    """A running ``rbd import-diff`` or ``export-diff`` (a `Transport`)."""

    def __init__(
        self,
        command: str,
        about: str,
        process: subprocess.Popen[bytes],
        err: Any,
        stall: float | None,
        ask: Callable[[], object],
    ) -> None:
        self._command = command
        self._about = about
        self._process = process
        self._err = err
        self.stall_timeout = stall
        self._ask = ask
        pipe = process.stdin or process.stdout
        assert pipe is not None
        self._fd = pipe.fileno()
        os.set_blocking(self._fd, False)
        with suppress(OSError):  # of a user who has many pipes
            fcntl.fcntl(self._fd, fcntl.F_SETPIPE_SZ, _PIPE)

    def send_all(self, buffers: Sequence[Buffer]) -> None:
        """Write every byte of ``buffers``.

        Raises:
            LvmsyncError: the child failed, or takes no byte for too long.
        """
        views = deque(memoryview(buffer).cast("B") for buffer in buffers if len(buffer))
        while views:
            try:
                count = os.writev(self._fd, list(islice(views, _IOV)))
            except BlockingIOError:
                self._wait(select.POLLOUT)
                continue
            except BrokenPipeError:
                self._fail()
            while views and count >= len(views[0]):
                count -= len(views.popleft())
            if count:
                views[0] = views[0][count:]

    def receive_some(self, buffer: memoryview) -> int:
        """Read at least one byte; 0 at the end, when the child has ended well.

        Raises:
            LvmsyncError: it failed, or gives no byte for too long.
        """
        while True:
            try:
                count = os.readv(self._fd, [buffer])
            except BlockingIOError:
                self._wait(select.POLLIN)
                continue
            if not count:
                self._require_success()
            return count

    def send_eof(self) -> None:
        """Say that all was sent."""
        assert self._process.stdin is not None
        self._process.stdin.close()

    def aclose(self) -> int:
        """Wait until the child has ended well.

        Raises:
            LvmsyncError: it failed, or does not end.
        """
        self._require_success()
        return 0

    def _wait(self, event: int) -> None:
        poll = select.poll()
        poll.register(self._fd, event)
        self._watch(lambda: bool(poll.poll(200)) or (event == select.POLLOUT and self._process.poll() is not None))
        if event == select.POLLOUT and self._process.poll() is not None:
            self._fail()

    def _require_success(self) -> None:
        def has_ended() -> bool:
            try:
                self._process.wait(0.2)
            except subprocess.TimeoutExpired:
                return False
            return True

        self._watch(has_ended)
        if self._process.returncode:
            self._fail()

    def _watch(self, is_done: Callable[[], bool]) -> None:
        """Wait for something, and ask the cluster now and then whether it is there at all.

        Each write of a child may wait for a cluster that has gone, one after the other, and each again as it ends.
        """
        stall, began = self.stall_timeout, time.monotonic()
        asked = began
        while not is_done():
            now = time.monotonic()
            if stall is not None and now - began >= stall:
                raise TransportError(
                    f"{self._about}: no byte moved for {stall:g} s: the cluster hangs; try again", device=self._about
                )
            if now - asked >= ASK_EVERY:
                self._ask()
                asked = time.monotonic()

    def _fail(self) -> None:
        """Raise what the child's end means."""
        try:
            status = self._process.wait(_END)
        except subprocess.TimeoutExpired:
            status = 110  # ETIMEDOUT
        self._err.seek(0)
        said = self._err.read()
        if self._command == "import-diff" and status == _BAD_MESSAGE:  # of any write that failed; what we send is whole
            raise TransportError(
                f"{self._about}: 'rbd import-diff' could not write: the cluster does not answer, or is full; try again",
                device=self._about,
            )
        if status < 0:
            raise CommandError(
                f"{self._about}: 'rbd {self._command}' was ended by signal {-status}", device=self._about
            )
        raise rbd.failure(self._command, self._about, status or 32, said)  # EPIPE: it ended before it had all

    def close(self) -> None:
        """End the child, whatever it does.

        An ``import-diff`` that finds its input at an end lets go of the image; one that is killed seems to have it open
        for half a minute.
        """
        process = self._process
        for pipe in (process.stdin, process.stdout):
            if pipe:
                pipe.close()
        patience = _GIVE_UP if process.stdin else _GIVE_UP / 10  # one that only reads leaves nothing open
        for signal in (None, SIGTERM, SIGKILL):
            if signal is not None:
                process.send_signal(signal)
            try:
                process.wait(patience)
                return
            except subprocess.TimeoutExpired:
                continue


@contextmanager
def open_import(image: RbdImage, stall: float | None = STALL) -> Iterator[DiffPipe]:
    """Start ``rbd import-diff``; if it is not waited for it is ended, and what it was sent has no end mark.

    Args:
        image: what is changed.
        stall: seconds without a byte after which it is given up; None: never.
    """
    words = ["import-diff", "--no-progress", "-", image.spec]
    with _open(words, image, stall, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as pipe:
        yield pipe


@contextmanager
def open_export(image: RbdImage, snap: str, since: str | None) -> Iterator[DiffPipe]:
    """Start ``rbd export-diff`` of a snapshot, from its beginning or since another one."""
    start = ["--from-snap", since] if since is not None else []
    words = ["export-diff", "--no-progress", *start, f"{image.spec}@{snap}", "-"]
    with _open(words, image, STALL, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as pipe:
        yield pipe


@contextmanager
def _open(words: Sequence[str], image: RbdImage, stall: float | None, *, stdin: int, stdout: int) -> Iterator[DiffPipe]:
    with os.fdopen(os.memfd_create("rbd"), "w+b") as err:
        try:
            # In a group of its own: what ends us from the keyboard is not to kill it
            process = subprocess.Popen(
                ["rbd", *words],
                stdin=stdin,
                stdout=stdout,
                stderr=err,
                env=rbd.environment(),
                bufsize=0,
                process_group=0,
            )
        except OSError as error:
            raise rbd.cannot_run(error) from error
        pipe = DiffPipe(words[0], str(image), process, err, stall, lambda: rbd.require_answer(image))
        try:
            yield pipe
        finally:
            pipe.close()

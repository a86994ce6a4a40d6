"""lvmsync as a process of its own, without the time that python and its modules take to start.

One process per worker has imported everything; each program is a fork of it, with pipes, environment and working
folder of its caller. It is what `subprocess.Popen` is to the transports: a number to send signals to, and a status.
"""

from __future__ import annotations

import functools
import gc
import io
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
_ASKING = threading.Lock()
START = [sys.executable, "-P", "-m", "lvmsync"]
"""How the words of a command line begin that a fork stands for."""


class Forked:
    """A running program: what is used of ``Popen``."""

    def __init__(self, argv: Sequence[str], *, cwd: Path | None = None, env: dict[str, str] | None = None) -> None:
        self.args = argv
        self.returncode: int | None = None
        pipes = [os.pipe() for _ in range(4)]
        (their_in, our_in), (our_out, their_out), (our_err, their_err), (self._status, their_status) = pipes
        call = {"argv": list(argv[len(START) :]), "cwd": str(cwd or Path.cwd()), "env": env or dict(os.environ)}
        theirs = [their_in, their_out, their_err, their_status]
        with _ASKING:  # one answer belongs to one question, and there is one server
            asked = _server()
            socket.send_fds(asked, [json.dumps(call).encode(errors="surrogateescape")], theirs)
            self.pid = int(asked.recv(64))
        for fd in theirs:
            os.close(fd)
        self.stdin = io.FileIO(our_in, "wb")
        self.stdout, self.stderr = io.FileIO(our_out, "rb"), io.FileIO(our_err, "rb")

    def poll(self) -> int | None:
        with suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            if not select.select([self._status], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(self.args, timeout or 0)
            self.returncode = int(os.read(self._status, 64))
            os.close(self._status)
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class Processes:
    """The module `subprocess`, for who starts lvmsync by it."""

    PIPE = subprocess.PIPE
    TimeoutExpired = subprocess.TimeoutExpired

    @staticmethod
    def Popen(argv: Sequence[str], **more: Any) -> Any:
        if list(argv[: len(START)]) != START:
            return subprocess.Popen(argv, **more)
        assert more == {"bufsize": 0, "stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return Forked(argv)


@functools.cache
def _server() -> socket.socket:
    """Start the process that is forked from; it ends with this one."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        subprocess.Popen(
            [sys.executable, "-m", "tests.forked", str(theirs.fileno())],
            cwd=ROOT,
            env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},  # a process of many threads cannot be forked
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
        )
    return ours


# ---- The process that is forked from


def serve(calls: socket.socket) -> None:
    """Fork for each call, until nobody is left who could call."""
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    os.set_blocking(woken, False)
    signal.set_wakeup_fd(wake)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    running: dict[int, int] = {}
    while True:
        ready = select.select([calls.fileno(), woken], [], [])[0]
        if woken in ready:
            os.read(woken, 4096)
            report(running)
        if calls.fileno() not in ready:
            continue
        message, fds, *_ = socket.recv_fds(calls, 1 << 20, 4)
        if not message:
            return
        child = os.fork()
        if not child:
            be(json.loads(message), fds, [calls.fileno(), woken, wake, *running.values()])
        for fd in fds[:3]:
            os.close(fd)
        running[child] = fds[3]
        calls.send(str(child).encode())


def report(running: dict[int, int]) -> None:
    """Tell how the children ended that have; their numbers are theirs until that is told."""
    while running and (ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)):
        status = ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status
        fd = running.pop(ended.si_pid)
        with suppress(BrokenPipeError):
            os.write(fd, str(status).encode())
        os.close(fd)
        os.waitpid(ended.si_pid, 0)


def be(call: dict[str, Any], fds: list[int], not_ours: list[int]) -> None:
    """Be the program, and end."""
    status = 1
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for at, fd in enumerate(fds[:3]):
            os.dup2(fd, at)
        for fd in (*fds, *not_ours):
            os.close(fd)
        os.environ.clear()
        os.environ.update(call["env"])
        os.chdir(call["cwd"])
        sys.stdin, sys.stdout = (os.fdopen(fd, mode, closefd=False) for fd, mode in ((0, "r"), (1, "w")))
        sys.stderr = os.fdopen(2, "w", buffering=1, errors="backslashreplace", closefd=False)
        sys.argv = ["lvmsync", *call["argv"]]
        from lvmsync.cli.classic import run

        status = run(sys.argv[1:])
        sys.stdout.flush()
    except BaseException as error:  # noqa: BLE001  # the end of this process
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
    finally:
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    from tests.lab.forks import import_all

    import_all()
    gc.freeze()  # else a fork that collects copies every page
    with socket.socket(fileno=int(sys.argv[1])) as line:
        serve(line)

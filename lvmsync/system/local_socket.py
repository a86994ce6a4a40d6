"""A Unix socket that clients of this user find by its path, and that is gone when its server is."""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lvmsync.errors import ConflictError, DeviceError, UsageError

_LONGEST = 107  # bytes of a path (sun_path of struct sockaddr_un, with a NUL behind it)
_MOST_FILES = 1 << 16


@contextmanager
def listening(path: str, backlog: int) -> Iterator[socket.socket]:
    """Listen at a path, only for this user; a socket there that nobody listens at is replaced.

    To be called before there are threads: the mask of the process is another one for a moment.

    Raises:
        UsageError: the path is too long for a socket.
        ConflictError: somebody listens there.
        DeviceError: something else is there, or it cannot be made.
    """
    if len(os.fsencode(path)) > _LONGEST:
        raise UsageError(f"{path}: the path of a socket has {_LONGEST} bytes at the most; name a shorter one")
    with socket.socket(socket.AF_UNIX) as listener:
        mine = _bind(listener, path, backlog)
        try:
            yield listener
        finally:
            with suppress(OSError), _locked(path):
                if _identity(path) == mine:  # and not one that somebody has put there since
                    Path(path).unlink()


def allow_many_files() -> None:
    """Let this process have as many files open as it may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, _MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < most:
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def _bind(listener: socket.socket, path: str, backlog: int) -> tuple[int, int]:
    try:
        with _locked(path):
            _remove_stale(path)
            before = os.umask(0o177)
            try:
                listener.bind(path)
            finally:
                os.umask(before)
            listener.listen(backlog)  # still locked: nobody takes it for one that is left over
            return _identity(path)
    except OSError as error:
        raise DeviceError(f"cannot make the socket {path}: {error.strerror or error}", device=path) from error


@contextmanager
def _locked(path: str) -> Iterator[None]:
    """Keep others who would listen in the same folder out for a moment."""
    fd = os.open(Path(path).parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _identity(path: str) -> tuple[int, int]:
    state = os.lstat(path)
    return state.st_dev, state.st_ino


def _remove_stale(path: str) -> None:
    """Remove the socket of a server that was killed.

    Raises:
        ConflictError: a server listens there.
        DeviceError: it is no socket.
    """
    try:
        state = os.lstat(path)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(state.st_mode):
        raise DeviceError(f"{path} is there already and is no socket; choose another name", device=path)
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)  # a server whose backlog is full would let us wait
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            Path(path).unlink()
            return
        except OSError as error:
            if error.errno != errno.EAGAIN:
                raise
    raise ConflictError(f"somebody serves at {path} already; choose another name, or end that one", device=path)

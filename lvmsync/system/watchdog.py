"""The process that freezes file systems or suspends devices, and lets go of them whatever becomes of us.

Run as a program, by its path; it imports nothing of lvmsync. $LVMSYNC_NOTE is a file to remove when nothing is held.
Standard input has a line of JSON {"kind", "what", "limit", "lockfs"}, later the words
``hold`` and ``free``; standard output gets ``ready``, ``held`` or ``failed: WHY``, and ``freed`` or ``late``. An end of
standard input is like ``free``. All that it needs is opened and locked in memory before the first hold. The limit
counts from ``hold``; what took too long by itself is let go of as soon as it is held.

Source: Linux v6.1, include/uapi/linux/dm-ioctl.h, drivers/md/dm-ioctl.c (``dev_suspend``), fs/ioctl.c.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import select
import signal
import struct
import time
from contextlib import suppress
from typing import Any, Protocol

FIFREEZE = 0xC0045877  # _IOWR('X', 119, int)
FITHAW = 0xC0045878  # _IOWR('X', 120, int)
DM_DEV_SUSPEND = 0xC138FD06  # _IOWR(0xfd, 6, struct dm_ioctl); without DM_SUSPEND_FLAG it resumes
DM_SUSPEND_FLAG, DM_SKIP_LOCKFS_FLAG = 1 << 1, 1 << 10
_DM_IOCTL = struct.Struct("=3I I I I i I I I Q 128s 129s 7x")  # 312 bytes, of which data_size says so
_CONTROL = "/dev/mapper/control"
_MCL_CURRENT, _MCL_FUTURE = 1, 2


class Held(Protocol):
    """One thing that can be held, and let go of more than once."""

    def hold(self) -> None:
        """Hold it."""

    def free(self) -> None:
        """Let go of it; no error if it is not held."""


class FileSystem:
    """A mounted file system, which is frozen."""

    def __init__(self, point: str) -> None:
        self.name = point
        self._fd = os.open(point, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def hold(self) -> None:
        """Freeze it: what was written is on its device then, and writers wait."""
        fcntl.ioctl(self._fd, FIFREEZE, 0)

    def free(self) -> None:
        """Thaw it."""
        try:
            fcntl.ioctl(self._fd, FITHAW, 0)
        except OSError as error:
            if error.errno != 22:  # EINVAL: it is not frozen
                raise


class MappedDevice:
    """A device of the device mapper, which is suspended."""

    def __init__(self, number: str, *, lockfs: bool) -> None:
        self.name = number
        major, _, minor = number.partition(":")
        self._number = int(minor) & 0xFF | int(major) << 8 | (int(minor) & ~0xFF) << 12  # huge_encode_dev()
        self._skip = 0 if lockfs else DM_SKIP_LOCKFS_FLAG
        self._control = os.open(_CONTROL, os.O_RDWR | os.O_CLOEXEC)

    def hold(self) -> None:
        """Suspend it: what was written is on the device below then, and more waits."""
        self._call(DM_SUSPEND_FLAG | self._skip)

    def free(self) -> None:
        """Resume it; a device that is gone needs none."""
        try:
            self._call(0)
        except OSError as error:
            if error.errno != 6:  # ENXIO
                raise

    def _call(self, flags: int) -> None:
        size = _DM_IOCTL.size
        request = bytearray(_DM_IOCTL.pack(4, 0, 0, size, 0, 0, 0, flags, 0, 0, self._number, b"", b""))
        fcntl.ioctl(self._control, DM_DEV_SUSPEND, request)


def open_held(kind: str, what: list[str], *, lockfs: bool = True) -> list[Any]:
    """Open what is to be held.

    Raises:
        OSError: one of them is not there.
    """
    if kind == "frozen":
        return [FileSystem(point) for point in what]
    return [MappedDevice(number, lockfs=lockfs) for number in what]


def free_all(things: list[Any]) -> list[str]:
    """Let go of all, the last one first; return what could not be let go of, and why."""
    failures = []
    for thing in reversed(things):
        try:
            thing.free()
        except OSError as error:
            failures.append(f"{thing.name}: {error.strerror}")
    return failures


def main() -> None:
    """Hold, wait, let go."""
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGPIPE, signal.SIGTSTP):
        signal.signal(number, signal.SIG_IGN)
    note = os.environ["LVMSYNC_NOTE"]
    text = _read_line(None)
    if not text:
        _forget(note)
        return
    order = json.loads(text)
    try:
        things = open_held(order["kind"], order["what"], lockfs=order["lockfs"])
    except OSError as error:
        _forget(note)
        _say(f"failed: {error.filename}: {error.strerror}")
        return
    _stay_in_memory()
    _say("ready")
    if _read_line(None) != "hold":
        _forget(note)
        return
    over = time.monotonic() + order["limit"]
    held: list[Any] = []
    failure = ""
    for thing in things:
        try:
            thing.hold()
        except OSError as error:
            failure = f"failed: {thing.name}: {error.strerror}"
            break
        held.append(thing)
        if time.monotonic() >= over or _is_alone():
            failure = "late"
            break
    if not failure:
        _say("held")
        word = _read_line(over)
        failure = "late" if word is None else "freed"
    left = free_all(held)
    if left:
        _say(f"stuck: {'; '.join(left)}")
        return  # the note stays
    _forget(note)
    _say(failure)


def _forget(note: str) -> None:
    """Remove the note: nothing is held any more."""
    with suppress(OSError):
        os.unlink(note)  # noqa: PTH108 - pathlib is not imported here


def _read_line(over: float | None) -> str | None:
    """Return a line of standard input, empty at its end; None when ``over`` comes first."""
    line = bytearray()
    while not line.endswith(b"\n"):
        wait = None if over is None else max(0.0, over - time.monotonic())
        if not select.select([0], [], [], wait)[0]:
            return None
        byte = os.read(0, 1)
        if not byte:
            return ""
        line += byte
    return line.decode().strip()


def _is_alone() -> bool:
    """Tell whether whoever asked is gone."""
    poll = select.poll()
    poll.register(0, select.POLLHUP)
    return any(event & select.POLLHUP for _, event in poll.poll(0))


def _say(text: str) -> None:
    with suppress(OSError):
        os.write(1, text.encode(errors="replace") + b"\n")


def _stay_in_memory() -> None:
    """Need neither disk nor swap any more, and not be chosen when memory is short; as far as we may."""
    ctypes.CDLL(None).mlockall(_MCL_CURRENT | _MCL_FUTURE)
    with suppress(OSError):
        fd = os.open("/proc/self/oom_score_adj", os.O_WRONLY)
        os.write(fd, b"-1000")
        os.close(fd)


if __name__ == "__main__":
    main()

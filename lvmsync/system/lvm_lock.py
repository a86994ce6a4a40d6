"""Changing LVM: one run of ours at a time, and no command is killed in the middle."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from lvmsync.errors import ConflictError, DeviceError
from lvmsync.system.command import run_to_end
from lvmsync.system.holds import run_folder
from lvmsync.system.ledger import make_folders

TIMEOUT = 120.0
"""Seconds that one command may take, and that the lock is waited for."""


def change(argv: Sequence[str]) -> str:
    """Run a command that changes LVM, under the lock; return what it printed.

    Raises:
        CommandError: it failed, or takes longer than `TIMEOUT`; then it is left to run.
        ConflictError, DeviceError: as of `lvm_locked`.
    """
    with lvm_locked():
        return run_to_end(argv, timeout=TIMEOUT)


@contextmanager
def lvm_locked() -> Iterator[None]:
    """Let one run of ours at a time change LVM.

    Raises:
        ConflictError: another run has done so for `TIMEOUT` seconds.
        DeviceError: there is no place for the lock.
    """
    path = run_folder() / "lvm.lock"
    fd = _open(path)
    try:
        over = time.monotonic() + TIMEOUT
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() >= over:
                    raise ConflictError(
                        f"another run of lvmsync has changed LVM for {TIMEOUT:g} s ({path} is locked); does lvm hang?"
                    ) from error
                time.sleep(0.05)
        yield
    finally:
        os.close(fd)


def _open(path: Path) -> int:
    try:
        make_folders(path.parent)
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise DeviceError(f"cannot open {path}: {error.strerror}", device=str(path)) from error

"""``--bwlimit`` and ``--bwlimit-file``: a rate that can be changed while a job runs, by SIGHUP or in its file."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from lvmsync.system.ledger import state_folder
from lvmsync.transport.throttle import Limit, parse_rates

FILE_NAME = "bwlimit"
"""In the state folder: what SIGHUP reads where no file was named."""


@contextmanager
def open_limit(bwlimit: str | None, bwlimit_file: str | None, state: str | None) -> Iterator[Limit | None]:
    """Yield the limit that the options ask for, None for none; SIGHUP reads its file again meanwhile.

    A SIGHUP ends the program as ever where there is no such file, and where it says that the terminal is gone.

    Raises:
        UsageError, DeviceError: what should be a rate is none.
    """
    if bwlimit is None and bwlimit_file is None:
        yield None
        return
    file = Path(bwlimit_file) if bwlimit_file is not None else state_folder(state) / FILE_NAME
    rates = parse_rates(bwlimit) if bwlimit is not None else None
    limit = Limit(rates, file, is_watched=bwlimit_file is not None, say=_say)
    if threading.current_thread() is not threading.main_thread():
        yield limit
        return
    before = signal.getsignal(signal.SIGHUP)
    ours = _handler(limit, file, before, had_terminal=_has_terminal())
    signal.signal(signal.SIGHUP, ours)
    try:
        yield limit
    finally:
        if signal.getsignal(signal.SIGHUP) is ours:  # not where a signal has ended us
            signal.signal(signal.SIGHUP, before)


def _handler(
    limit: Limit, file: Path, before: object, *, had_terminal: bool
) -> Callable[[int, FrameType | None], None]:
    def hear(number: int, frame: FrameType | None) -> None:
        if file.exists() and (_has_terminal() or not had_terminal):
            limit.reload()
        elif callable(before):
            before(number, frame)

    return hear


def _has_terminal() -> bool:
    """Tell whether there is a terminal that we belong to: when one hangs up, it is gone before its SIGHUP comes."""
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError:
        return False
    return True


def _say(text: str) -> None:
    print(f"note: {text}", file=sys.stderr, flush=True)

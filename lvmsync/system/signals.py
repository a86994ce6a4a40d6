"""Signals that would end us, held back while a few steps are done whole."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

BREAK_OFF = signal.SIGUSR1
"""What a thread of ours sends to the main one, for it to break off what it waits for."""

_SIGNALS = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, BREAK_OFF}


class _BrokenOff(BaseException):
    """Another thread has broken off what this one did."""


@contextmanager
def breaking_off() -> Iterator[Callable[[], None]]:
    """Yield what another thread calls to break off the block: it ends where it is, whatever it waits for, and no error.

    A block that is not of the main thread cannot be broken off.
    """
    main = threading.main_thread()
    if threading.current_thread() is not main:
        yield lambda: None
        return
    guard = threading.Lock()
    is_over = is_wanted = False

    def break_off() -> None:
        nonlocal is_wanted
        with guard:
            if not is_over and main.ident:
                is_wanted = True
                signal.pthread_kill(main.ident, BREAK_OFF)

    def interrupt(*_: object) -> None:
        if is_wanted and not is_over:  # not of somebody who would have us tell how far we are, as dd does
            raise _BrokenOff

    before = signal.signal(BREAK_OFF, interrupt)
    try:
        with suppress(_BrokenOff):
            yield break_off
    finally:
        is_over = True
        with guard:  # from here on none is sent
            signal.signal(BREAK_OFF, signal.SIG_DFL if before is None else before)


@contextmanager
def signals_deferred() -> Iterator[None]:
    """Let a few steps be done whole: signals to end come after them. Programs that are run inherit this."""
    came: list[int] = []
    handlers = {}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    try:  # a handler of before may still raise until ours are there
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        if threading.current_thread() is threading.main_thread():
            # A mask is one thread's: a signal that another thread gets would run its handler here all the same.
            for number in _SIGNALS:
                handlers[number] = signal.signal(number, lambda number, _: came.append(number))
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        if came:  # one that ends us before one that only breaks something off
            signal.raise_signal(next((number for number in came if number != BREAK_OFF), came[0]))

"""Signals that come while a few steps must be done whole wait until they are."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType

import pytest

from lvmsync.system.signals import BREAK_OFF, signals_deferred


@pytest.fixture
def came() -> Iterator[list[str]]:
    """Note signals to end, and what else happens, in order."""
    order: list[str] = []

    def handle(number: int, _: FrameType | None) -> None:
        order.append(signal.Signals(number).name)

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    yield order
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_waits_though_another_thread_gets_it(came: list[str], number: signal.Signals) -> None:
    is_over = threading.Event()
    thread = threading.Thread(target=is_over.wait)  # its mask lets all signals through
    thread.start()
    with signals_deferred():
        os.kill(os.getpid(), number)
        over = time.monotonic() + 0.2
        while time.monotonic() < over:  # the other thread gets it soon
            time.sleep(0)  # lets go of the GIL, as running a program does: then handlers are run here
        came.append("done")
    is_over.set()
    thread.join()
    assert came == ["done", number.name]


def test_programs_inherit_that_signals_wait(came: list[str]) -> None:
    with signals_deferred():
        assert {signal.SIGINT, signal.SIGTERM} <= signal.pthread_sigmask(signal.SIG_BLOCK, [])
    assert not {signal.SIGINT, signal.SIGTERM} & signal.pthread_sigmask(signal.SIG_BLOCK, [])
    assert came == []


def test_a_thread_of_its_own_can_defer_signals(came: list[str]) -> None:
    def work() -> None:
        with signals_deferred():
            came.append("done")

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert came == ["done"]


def test_what_ends_us_comes_before_what_breaks_something_off(came: list[str]) -> None:
    before = signal.signal(BREAK_OFF, lambda *_: came.append("broken off"))
    try:
        with signals_deferred():
            for number in (BREAK_OFF, signal.SIGTERM):
                os.kill(os.getpid(), number)
                signal.pthread_sigmask(signal.SIG_UNBLOCK, [number])  # as another thread would get it
    finally:
        signal.signal(BREAK_OFF, before)
    assert came == ["SIGTERM"]


def test_a_signal_that_comes_as_they_are_about_to_be_deferred_leaves_nothing_blocked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupt(*_: object) -> None:
        raise InterruptedError

    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    monkeypatch.setattr(signal, "signal", interrupt)
    with pytest.raises(InterruptedError), signals_deferred():
        raise AssertionError
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == mask

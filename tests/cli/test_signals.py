"""A signal that asks the command to end, at the moments when it ends already."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any

import pytest

from lvmsync.cli import classic

Handler = Callable[[int, Any], None]


def test_a_signal_while_an_error_is_about_to_be_told_is_one_line_and_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    complain = classic._complain
    rest = [signal.SIGTERM]

    def interrupted(*given: Any) -> int:
        while rest:
            signal.raise_signal(rest.pop())
        return complain(*given)

    monkeypatch.setattr(classic, "_complain", interrupted)
    assert classic.run(["changes", "./none"]) == 130
    assert capsys.readouterr().err == "lvmsync: ended by SIGTERM\n"


def test_a_signal_while_their_handlers_are_put_back_is_one_line_and_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real, before = signal.signal, signal.getsignal(signal.SIGHUP)
    is_sent = False

    def interrupting(number: signal.Signals, handler: Handler) -> Any:
        nonlocal is_sent
        if handler is before and not is_sent:
            is_sent = True
            signal.raise_signal(signal.SIGHUP)
        return real(number, handler)

    monkeypatch.setattr(signal, "signal", interrupting)
    try:
        assert classic.run(["--version"]) == 130
    finally:
        for number in classic._SIGNALS:
            real(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    assert is_sent
    assert capsys.readouterr().err == "lvmsync: ended by SIGHUP\n"

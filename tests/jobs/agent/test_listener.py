"""Hearing the other side in a thread: an end of its line is an answer, whatever it looks like."""

from __future__ import annotations

from typing import cast

import pytest

from lvmsync.errors import TransportError
from lvmsync.interfaces import Transport
from lvmsync.jobs.agent.listener import Listener
from lvmsync.jobs.agent.protocol import Line


class Failing:
    """A transport that says something, and then fails in its own way."""

    def __init__(self, said: bytes, failure: Exception) -> None:
        self._said, self._failure = said, failure

    def receive_some(self, buffer: memoryview) -> int:
        if not self._said:
            raise self._failure
        buffer[: len(self._said)] = self._said
        count, self._said = len(self._said), b""
        return count


@pytest.mark.parametrize(
    "failure", [TransportError("cut"), OSError(9, "Bad file descriptor"), ValueError("I/O operation on closed file")]
)
def test_a_line_that_is_closed_under_it_is_gone_and_no_traceback(
    failure: Exception, capsys: pytest.CaptureFixture[str]
) -> None:
    applied: list[int] = []
    ends: list[bool] = []
    line = Line(cast(Transport, Failing(b'lvmsync AT {"bytes": 7}\n', failure)))
    listener = Listener(line, applied.append, lambda: ends.append(True))
    with pytest.raises(TransportError):
        listener.read_answer()
    assert listener.has_given_up
    assert applied == [7]
    assert capsys.readouterr().err == ""

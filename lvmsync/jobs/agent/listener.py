"""Hearing the other side while a stream is sent to it: how much it has applied, that it works, that it gives up."""

from __future__ import annotations

import threading
from collections.abc import Callable

from lvmsync.errors import LvmsyncError, TransportError
from lvmsync.jobs.agent.protocol import AT, RECEIPT, WAIT, Line, parse


class Listener:
    """A thread that reads lines until one comes that is an answer, or their end.

    What is sent must not wait for who reads, and the other side must not wait for its words to be read: so each is
    done by a thread of its own.

    Args:
        line: to the other side; nobody else reads it before `read_answer` has returned.
        on_applied: told of how many bytes of changes it has applied.
        on_end: called when no more of that will come.
    """

    def __init__(self, line: Line, on_applied: Callable[[int], None], on_end: Callable[[], None]) -> None:
        self._line = line
        self._on_applied = on_applied
        self._on_end = on_end
        self._answer: str | None = None
        self._failure: LvmsyncError | None = None
        self._ended = threading.Event()
        threading.Thread(target=self._run, name="listener", daemon=True).start()

    @property
    def has_given_up(self) -> bool:
        """Whether what is sent to it is wanted no more: it refuses it, or has ended."""
        return self._ended.is_set() and not (self._answer and self._answer.startswith(RECEIPT))

    def read_answer(self) -> str | None:
        """Wait for the answer, and return its line; None: the other side has ended without one.

        Raises:
            TransportError: the line is gone.
        """
        self._ended.wait()
        if self._failure:
            raise self._failure
        return self._answer

    def _run(self) -> None:
        try:
            while (text := self._line.read_line()) is not None:
                place = parse(text, AT)
                if place is None and text != WAIT:
                    self._answer = text
                    return
                if place and type(place.get("bytes")) is int:
                    self._on_applied(place["bytes"])
        except LvmsyncError as error:
            self._failure = error
        except (OSError, ValueError) as error:  # it was closed under us
            self._failure = TransportError(f"the line is gone: {error}")
        finally:
            self._ended.set()
            self._on_end()

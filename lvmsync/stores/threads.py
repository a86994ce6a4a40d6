"""Calls that wait for a store, in threads that nobody waits for: an interrupt is heeded at once, and so is the end."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

_T = TypeVar("_T")
_MOST = 8  # threads


class Threads:
    """A few threads that end with the program, whatever they are waiting for."""

    def __init__(self) -> None:
        self._waiting: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._count = self._busy = 0

    def start(self, work: Callable[[], _T]) -> Future[_T]:
        """Begin a call."""
        future: Future[_T] = Future()
        with self._lock:
            self._busy += 1
            if self._busy > self._count and self._count < _MOST:
                self._count += 1
                threading.Thread(target=self._serve, name="store", daemon=True).start()
        self._waiting.put((future, work))
        return future

    def run(self, work: Callable[[], _T], patience: float | None = None) -> _T:
        """Make a call, and return what it returns; an interrupt ends the waiting, and not the call.

        Raises:
            TimeoutError: it did not end within ``patience`` seconds.
        """
        future: Future[_T] = Future()
        threading.Thread(target=_do, args=(future, work), name="store", daemon=True).start()
        return future.result(patience)

    def close(self) -> None:
        """Let the threads end, each with what it is at."""
        with self._lock:
            for _ in range(self._count):
                self._waiting.put(None)

    def _serve(self) -> None:
        while (found := self._waiting.get()) is not None:
            _do(*found)
            with self._lock:
                self._busy -= 1


def _do(future: Future[_T], work: Callable[[], _T]) -> None:
    try:
        future.set_result(work())
    except BaseException as error:  # noqa: BLE001  (it is raised where the call was made)
        future.set_exception(error)

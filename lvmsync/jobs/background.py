"""An iterator that runs ahead in a thread, so that two slow things overlap."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Iterator
from typing import TypeVar

T = TypeVar("T")


@contextlib.contextmanager
def in_background(items: Iterator[T], depth: int) -> Iterator[Iterator[T]]:
    """Yield an iterator over ``items``, which are made by a thread of their own, up to ``depth`` ahead.

    What ``items`` raises is raised where the item would have come. The thread is a daemon: one that is
    blocked in a read does not keep the program from ending.
    """
    ready: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue(depth)
    stopped = threading.Event()

    def put(item: T | None, error: BaseException | None) -> None:
        while not stopped.is_set():
            with contextlib.suppress(queue.Full):
                ready.put((item, error), timeout=0.2)
                return

    def run() -> None:
        try:
            for item in items:
                put(item, None)
                if stopped.is_set():
                    return
        except BaseException as error:  # noqa: BLE001  # handed over, raised by the other side
            put(None, error)
        else:
            put(None, StopIteration())

    def take() -> Iterator[T]:
        while True:
            item, error = ready.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield item  # type: ignore[misc]  # an item, where there is no error

    threading.Thread(target=run, daemon=True).start()
    try:
        yield take()
    finally:
        stopped.set()

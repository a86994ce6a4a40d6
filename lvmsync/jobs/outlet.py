"""A device and the way to its copy, for jobs that choose by themselves what is to be sent."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

from lvmsync.jobs.progress import Receipt
from lvmsync.names import Comparison
from lvmsync.sources.source import Reading, Source


@dataclass(frozen=True)
class Outlet:
    """A device, and the way to its copy.

    Attributes:
        word: the device, as its user named it.
        target: the copy, as its user named it.
        send: sends a source there; if it is told True, to a target only whose ledger knows that it holds the base.
        compare: opens where a device differs from it.
        check: refuses a target that such a source could not be sent to; nothing is changed.
        is_new: whether the copy is yet to be made, so that there is nothing to compare with.
    """

    word: str
    target: str
    send: Callable[[Source, bool], Receipt]
    compare: Callable[[Comparison, Reading], AbstractContextManager[Source]]
    check: Callable[[Source, bool], None] = lambda *_: None
    is_new: bool = False

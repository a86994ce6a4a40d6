"""What every mechanism gives: one value that says what changed, and where to read it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from lvmsync.extents import ChangeMap
from lvmsync.history import Point
from lvmsync.interfaces import Readable


@dataclass(frozen=True)
class Source:
    """The changes of one device between two of its states.

    Attributes:
        kind: mechanism that tracked them: "snapshot".
        name: the source as its user named it.
        size: bytes of the device.
        granularity: bytes that the tracker tells apart (its chunk).
        base: the state the changes start from; None where nothing names it.
        head: the state they lead to; None where nothing names it.
        changes: which bytes may differ between them; clipped to ``size``.
        holes: those of ``changes`` that are unmapped now and read as zeros.
        data: where the head's bytes are read.
        confirm: asks the tracker again, once all data has been read; raises if what was read may
            not be the head (ChangesLost: the tracker failed; ConflictError: data changed meanwhile).
        notes: what its user should know, a sentence each.
    """

    kind: str
    name: str
    size: int
    granularity: int
    base: Point | None
    head: Point | None
    changes: ChangeMap
    holes: ChangeMap
    data: Readable
    confirm: Callable[[], None]
    notes: tuple[str, ...] = ()

"""What a job tells while it runs, and what it says when it is done."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Progress:
    """How far a job is.

    Attributes:
        phase: what it is doing, one word or two: "sending", "receiving", "rolling back".
        done: bytes of changes dealt with.
        total: bytes of changes in all; None where nobody knows.
    """

    phase: str
    done: int
    total: int | None


Report = Callable[[Progress], None]


def ignore(_: Progress) -> None:
    """Report to no one."""


@dataclass(frozen=True)
class Receipt:
    """What a finished job did; ``--json`` prints it.

    Attributes:
        job: "send", "receive", "recover", ...
        source: name of what was sent.
        target: name of what was changed.
        bytes: bytes of changes carried.
        extents: how many extents those were.
        wire_bytes: bytes of the stream.
        seconds: time it took.
        rate: bytes of changes a second.
        ratio: the device's size, by the bytes of changes: how many times less than a full copy; None for no changes.
        size: bytes of the device.
        format: stream format, 3 or 4.
        digest: hex digest over all frames; None in PROTO[3].
        durable: whether it is known that everything is durable on the target.
        confirmed: whether the far side said so.
        dropped: ``[offset, length]`` ranges past the end of a smaller target, which were not written.
        snapback: path of the snapback file.
        archive: the archive that what was overwritten went into, and the number of the point that the target is at.
        point: id of the point that the target is at now.
        dry_run: nothing was changed: what would have been done.
        kind: of a managed volume's sync: "first", "delta", "resume", or "nothing" where nothing had changed.
        snapshot: of a managed volume: the one that the target holds now, VG/LV.
        notes: what the user should know, a sentence each.
    """

    job: str
    source: str | None = None
    target: str | None = None
    bytes: int = 0
    extents: int = 0
    wire_bytes: int | None = None
    seconds: float = 0.0
    rate: float = 0.0
    ratio: float | None = None
    size: int | None = None
    format: int | None = None
    digest: str | None = None
    durable: bool = False
    confirmed: bool = False
    dropped: list[list[int]] = field(default_factory=list)
    snapback: str | None = None
    archive: str | None = None
    point: str | None = None
    dry_run: bool = False
    kind: str | None = None
    snapshot: str | None = None
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class GroupReceipt:
    """What a sync of a group did; ``--json`` prints it.

    Attributes:
        job: "sync group".
        group: its name.
        cut: id of the moment that all its copies show now; None of a dry run.
        kind: "first", "delta", "resume", or "nothing" where nothing had changed in any volume.
        members: receipts of its volumes, in the order that they were named in.
        bytes: bytes of changes carried, of all.
        wire_bytes: bytes of all streams.
        seconds: time it took.
        still_seconds: for how long writes to the volumes had to wait at the most; 0 where no snapshot was taken.
        confirmed: whether the far side has committed all of them at one point.
        dry_run: nothing was changed: what would have been done.
        notes: what the user should know, a sentence each.
    """

    job: str
    group: str
    cut: str | None
    kind: str
    members: list[Receipt]
    bytes: int = 0
    wire_bytes: int = 0
    seconds: float = 0.0
    still_seconds: float = 0.0
    confirmed: bool = False
    dry_run: bool = False
    notes: list[str] = field(default_factory=list)


class Stopwatch:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self._began = time.monotonic()

    @property
    def seconds(self) -> float:
        """Seconds so far; never zero, so that rates can be computed."""
        return max(time.monotonic() - self._began, 1e-9)

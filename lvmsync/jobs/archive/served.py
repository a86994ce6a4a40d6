"""The points of an archive as exports: each is opened when the first client wants it, and all share what is open."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from lvmsync.chain.catalogue import ArchivedPoint
from lvmsync.chain.layers import ZERO
from lvmsync.chain.routes import find_routes
from lvmsync.jobs.archive.restore import Mirror, find_route, open_point
from lvmsync.jobs.archive.shelf import Shelf
from lvmsync.jobs.nbd.overlay import Overlay
from lvmsync.jobs.nbd.volume import Volume
from lvmsync.nbd.allocation import Allocation
from lvmsync.nbd.requests import Export

_IDLE = 4  # points that stay open though nobody uses them: their tables, and their members' descriptors
_LONGEST_NAME = 256  # bytes; every client takes that


@dataclass
class _Open:
    volume: Volume
    stack: ExitStack
    users: int = 0


class ServedPoints:
    """What an archive is served as; a context manager.

    Attributes:
        exports: by name: the default one without a name, then each point that can be restored, by number and by label.
    """

    def __init__(self, shelf: Shelf, at: ArchivedPoint, mirror: Mirror | None, overlays: Path | None) -> None:
        """Take an archive.

        Args:
            shelf: the archive, as it is now.
            at: the point of the default export.
            mirror: as of `open_point`.
            overlays: the folder for what clients write; None: they do not.

        Raises:
            ConflictError: nothing leads to the point.
        """
        find_route(shelf.catalogue, at, mirror, shelf.store.name)
        self._shelf = shelf
        self._mirror = mirror
        self._overlays = overlays
        self._lock = threading.Lock()
        self._open: dict[int, _Open] = {}  # those that were used last are the last
        self._points: dict[str, ArchivedPoint] = {"": at}
        routes = find_routes(shelf.catalogue, [mirror.point] if mirror else [])
        points = [point for point in shelf.catalogue.points if point.id in routes]
        self._points |= {str(point.number): point for point in points}
        for point in points:
            if point.label and _is_name(point.label):
                self._points.setdefault(point.label, point)
        self.exports = {
            name: Export(name, point.size, _describe(point), overlays is not None)
            for name, point in self._points.items()
        }

    def close(self) -> None:
        """Close all points, and throw away what was written."""
        with self._lock:
            while self._open:
                self._open.popitem()[1].stack.close()

    @contextmanager
    def open(self, export: Export) -> Iterator[Volume]:
        """Open the point of an export, or use it with those who have it open.

        Raises:
            LvmsyncError: a member is missing or damaged.
        """
        point = self._points[export.name]
        with self._lock:
            found = self._open.pop(point.number, None) or self._open_point(point)
            self._open[point.number] = found
            found.users += 1
        try:
            yield found.volume
        finally:
            with self._lock:
                found.users -= 1
                self._close_idle()

    def _open_point(self, point: ArchivedPoint) -> _Open:
        overlays = self._overlays
        with ExitStack() as stack:
            past, holes = stack.enter_context(open_point(self._shelf, point, self._mirror))
            allocation = Allocation.of(past.size, holes, past.segments.map(ZERO))
            make = (lambda: Overlay(overlays, past.size, past.gather)) if overlays else None
            volume = Volume(past.size, past.gather, allocation, make)
            stack.callback(volume.close)
            return _Open(volume, stack.pop_all())

    def _close_idle(self) -> None:
        """Close points that nobody has used for longest, but none that was written to."""
        idle = [number for number, one in self._open.items() if not one.users and not one.volume.is_changed]
        for number in idle[:-_IDLE]:
            self._open.pop(number).stack.close()


def _describe(point: ArchivedPoint) -> str:
    """Return what people are told of a point, in a line."""
    words = [f"point #{point.number}"]
    if point.time:
        words.append(f"{point.time[:19].replace('T', ' ')} UTC")
    if point.name:
        words.append(f"{point.name} on {point.host}" if point.host else point.name)
    if point.label:
        words.append(f"label {point.label}")
    text = ", ".join(words)
    return "".join(one if one.isprintable() else "?" for one in text)[:_LONGEST_NAME]


def _is_name(label: str) -> bool:
    """Tell whether a label can be the name of an export; no number is, which a point may have one day."""
    return label.isprintable() and len(label.encode()) <= _LONGEST_NAME and not label.isdecimal()

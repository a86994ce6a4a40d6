"""Points of a device's history: how one side knows which state the other is in."""

from __future__ import annotations

from dataclasses import dataclass

UNNAMED = "state:"
"""What the id of a point begins with that nothing but itself names: of a full copy, or of a comparison."""


@dataclass(frozen=True)
class Point:
    """One state of a device.

    Attributes:
        id: names this state and no other: the uuid of the snapshot that holds it, or a random word
            where nothing holds it.
        parent: id of the point it was reached from by a delta; None where that is not known.
        time: when it was seen, UTC, ISO 8601; for people, never for order.
    """

    id: str
    parent: str | None = None
    time: str | None = None

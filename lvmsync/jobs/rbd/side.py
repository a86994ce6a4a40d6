"""An image in the place of a copy, for a volume whose snapshots lvmsync takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from lvmsync import __version__
from lvmsync.history import Point
from lvmsync.images import RbdImage, point_id
from lvmsync.jobs.progress import Receipt, Report
from lvmsync.jobs.rbd.choose import look
from lvmsync.jobs.rbd.fill import Filling, fill
from lvmsync.jobs.send import StreamOptions
from lvmsync.jobs.standing import Standing
from lvmsync.sources.source import Source
from lvmsync.system import rbd


class ImageSide:
    """What a pass asks of the side of its target, as far as an image has an answer."""

    is_over = False

    def __init__(self, image: RbdImage, how: Filling) -> None:
        self._image = image
        self._how = how

    @property
    def place(self) -> str:
        """What messages call it."""
        return str(self._image)

    def standing(self, target: str) -> Standing:
        """Return what the image is."""
        found = look(self._image)
        standing = Standing(target, __version__, datetime.now(UTC).isoformat(timespec="seconds"))
        if found.state is None:
            return standing
        newest = found.newest
        held = point_id(newest.name) if newest else None
        return replace(
            standing,
            exists=True,
            kind="rbd",
            size=found.state.size,
            identity={"rbd": found.state.id},
            point=Point(held, None, newest.time) if newest and held else None,
            written="no" if (found.is_clean or found.mark) and not found.forged else "yes",
            in_use=found.users if not found.mark else None,
            other_use=None if newest or found.is_clean or found.mark else "an RBD image that holds other data",
        )

    def receive(
        self,
        target: str,
        source: Source,
        stream: StreamOptions,
        report: Report,
        *,
        orders: Mapping[str, Any],
        **_: Any,
    ) -> Receipt:
        """Fill the image; what a receiver is told besides is of no use to it."""
        return fill(self._image, source, self._how, report)

    def create(self, target: str, size: int, *, pool: str | None = None) -> None:
        """Make the image."""
        rbd.create(self._image, size)

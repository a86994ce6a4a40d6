"""``sync`` and ``archive restore`` to an RBD image: ``rbd:POOL/IMAGE``."""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Self, cast

from lvmsync.cli.asked import Asked, Orders, Way
from lvmsync.cli.delivery import Delivery
from lvmsync.cli.limit import open_limit
from lvmsync.errors import UsageError
from lvmsync.images import RbdImage, find_image
from lvmsync.interfaces import Transport
from lvmsync.jobs.progress import Receipt, Report
from lvmsync.jobs.rbd.fill import Filling, fill
from lvmsync.names import Comparison, TargetName
from lvmsync.sources import Reading, Source
from lvmsync.system.ledger import state_folder
from lvmsync.transport.throttle import Limit, Throttled

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lvmsync.jobs.agent.client import Agent
    from lvmsync.system.lvm import LogicalVolume


class ImageDelivery:
    """The way to an image, as `Delivery` is to another target; a context manager.

    Attributes:
        place: the target.
    """

    def __init__(self, image: RbdImage, way: Way, orders: Orders, report: Report) -> None:
        """Check what the user said.

        Raises:
            UsageError: options that are for other targets.
        """
        for word, value in (
            ("--snapback", orders.snapback is not None),
            ("--archive", orders.archive is not None),
            ("--atomic", orders.atomic),
            ("--pool-limit", orders.pool_limit != Orders().pool_limit),
            ("--target-extend-cmd", way.target_extend_cmd is not None),
            ("--no-undo", orders.no_undo),
            ("--allow-smaller-target", orders.allow_smaller),
            ("--streams", way.streams > 1),
        ):
            if value:
                raise UsageError(f"{word} is not for {image}: an RBD image has snapshots of the states before")
        self.place = TargetName(None, str(image))
        self._image = image
        self._way = way
        self._orders = orders
        self._report = report
        self._limit: Limit | None = None
        self._around = ExitStack()

    def __enter__(self) -> Self:
        way = self._way
        self._limit = self._around.enter_context(open_limit(way.bwlimit, way.bwlimit_file, self._orders.state))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._around.close()

    @property
    def filling(self) -> Filling:
        """How the image is to be filled."""
        orders = self._orders
        return Filling(
            state_folder(orders.state),
            orders.create,
            orders.ignore_base,
            orders.dry_run,
            self._way.patience,
            self._limited,
        )

    def send(self, source: Source, *, require_base: bool = False) -> Receipt:
        """Send a source's changes to the image, which has to be at the point that they start from in any case."""
        return fill(self._image, source, self.filling, self._report)

    def open_compared(self, name: Comparison, reading: Reading) -> AbstractContextManager[Source]:
        """Refuse."""
        raise UsageError(f"compare: is not for {self._image}: send it whole with full:{name.new.word}")

    def _limited(self, line: Transport) -> Transport:
        return Throttled(line, self._limit) if self._limit else line


def open_delivery(
    target: str, way: Way, orders: Orders, report: Report, *, stream_format: int = 4, compress: str | None = None
) -> Delivery | ImageDelivery:
    """Return the way to a target of any kind.

    Raises:
        UsageError: options that do not go together, or no target.
    """
    image = find_image(target)
    if image is None:
        return Delivery(target, way, orders, report, stream_format=stream_format, compress=compress)
    if stream_format != 4 or compress not in (None, "none"):
        raise UsageError(f"--format and --compress are not for {image}: it is filled by 'rbd import-diff'")
    return ImageDelivery(image, way, orders, report)


def push_to_image(
    volume: LogicalVolume,
    image: RbdImage,
    asked: Asked,
    report: Report,
    told: Sequence[LogicalVolume] | None = None,
) -> Receipt:
    """Bring an image up to date with a volume of this machine whose snapshots lvmsync takes."""
    from lvmsync.cli.replica import pass_options, require_simple
    from lvmsync.jobs.rbd.side import ImageSide
    from lvmsync.jobs.replica.run import foresee, sync_volume

    require_simple(asked.orders)
    if asked.managing.thin_pool:
        raise UsageError(f"--thin-pool is not for {image}")
    with ImageDelivery(image, asked.way, asked.orders, report) as delivery:
        place = delivery.place
        folder = state_folder(asked.orders.state)
        # What the base and the volume have alike is sent, too: nothing holds an image to samples of the base.
        options = replace(pass_options(place, asked), minimal=False)
        side = cast("Agent", ImageSide(image, replace(delivery.filling, ignore_base=asked.managing.full)))
        if asked.orders.dry_run:
            return foresee(side, volume, place.name, str(place), folder, options, told)
        return sync_volume(
            lambda: side,
            volume,
            place.name,
            str(place),
            folder,
            options,
            report,
            retries=asked.managing.tries,
            told=told,
        )

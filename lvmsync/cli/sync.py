"""``lvmsync sync``: a copy is brought up to date, from whatever tells what changed."""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from lvmsync.cli.asked import Asked, Grouping, Managing, Orders, View, Way
from lvmsync.cli.options import Compress, Create, DataSource, Format, Frozen, SourceWord, TargetWord
from lvmsync.cli.refinement import Refinement
from lvmsync.errors import UsageError
from lvmsync.images import find_image
from lvmsync.names import BlockMap, Comparison, CowFile, SourceName, Volume, parse_source

if TYPE_CHECKING:
    from lvmsync.cli.delivery import Delivery
    from lvmsync.cli.image import ImageDelivery
    from lvmsync.jobs import blksnap_points, era_points
    from lvmsync.sources import Reading, Source


def sync(
    source: SourceWord,
    target: TargetWord,
    more: Annotated[
        list[str] | None, typer.Argument(metavar="...", help="with --group: more volumes, and last [HOST:]VG")
    ] = None,
    *,
    grouping: Grouping,
    data_source: DataSource = None,
    frozen: Frozen = False,
    refinement: Refinement,
    create: Create = False,
    managing: Managing,
    orders: Orders,
    stream_format: Format = 4,
    compress: Compress = None,
    way: Way,
    view: View,
) -> None:
    """Bring a copy up to date with what changed, and believe only the receiver's receipt.

    Of a plain or thin volume (vg/lv, or HOST:vg/lv to pull) lvmsync takes the snapshots by itself: all of it is copied
    the first time, and what changed since then each further time. Other sources tell their changes themselves.
    """
    from lvmsync.cli import render
    from lvmsync.cli.group import push_group
    from lvmsync.cli.image import open_delivery, push_to_image
    from lvmsync.cli.replica import far_source, find_managed, pull, push
    from lvmsync.sources import Reading
    from lvmsync.system.lvm import list_around

    orders = replace(orders, create=create)
    asked = Asked(way, orders, managing, refinement.minimal, compress)
    is_plain = data_source is None and not frozen and refinement.audit_percent is None and stream_format == 4
    is_plain = is_plain and refinement.base_data is None
    unfit = "-r, --frozen, --audit, --base-data and --format 3 are not for that"
    with ExitStack() as stack:
        report = stack.enter_context(view.report())
        if grouping.name is not None:
            if not is_plain:
                raise UsageError(f"--group: {unfit}")
            receipts = push_group([source, target, *(more or ())], grouping, asked, report)
            return render.print_group(receipts, as_json=view.as_json, quiet=view.quiet)
        grouping.require_none(more or ())
        image = find_image(target)
        if far_source(source):
            if not is_plain:
                raise UsageError(f"{source} is pulled: {unfit}")
            return view.print_receipt(pull(source, target, asked, report))
        name = parse_source(source)
        told = list_around(name) if is_plain and isinstance(name, Volume) else None
        volume = find_managed(source, managing, told) if is_plain and isinstance(name, Volume) else None
        if volume:
            if image:
                return view.print_receipt(push_to_image(volume, image, asked, report, told))
            return view.print_receipt(push(volume, target, asked, report, told))
        managing.require_none(source)
        delivery = open_delivery(target, way, orders, report, stream_format=stream_format, compress=compress)
        stack.enter_context(delivery)
        reading = refinement.want(name, Reading(data_source=data_source, frozen=frozen))
        memory = _memory_of(name, orders.state, delivery)
        found = refinement.apply(stack.enter_context(_open(name, reading, memory, orders.state, delivery)), report)
        receipt = memory.remember(delivery.send(found, require_base=memory.is_used))
    view.print_receipt(receipt)


def _memory_of(
    name: SourceName, state: str | None, delivery: Delivery | ImageDelivery
) -> blksnap_points.Memory | era_points.Memory:
    """Return what remembers the point of a tracker that a copy is at."""
    from lvmsync.system.ledger import state_folder

    if isinstance(name, BlockMap):
        from lvmsync.jobs import blksnap_points

        return blksnap_points.Memory(state_folder(state), str(delivery.place))
    from lvmsync.jobs import era_points

    return era_points.Memory(state_folder(state), str(delivery.place))


def _open(
    name: SourceName,
    reading: Reading,
    memory: blksnap_points.Memory | era_points.Memory,
    state: str | None,
    delivery: Delivery | ImageDelivery,
) -> AbstractContextManager[Source]:
    """Open a source that tells its changes by itself, with what is known of the copy."""
    if isinstance(name, Comparison) and name.old is None:
        return delivery.open_compared(name, reading)
    if isinstance(name, CowFile):
        from lvmsync.jobs.dattobd_points import open_recorded
        from lvmsync.system.ledger import state_folder

        return open_recorded(state_folder(state), name, reading, str(delivery.place))
    return memory.open(name, reading)

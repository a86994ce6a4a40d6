"""``lvmsync sync``: a copy is brought up to date, from whatever tells what changed."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Annotated

import typer

from lvmsync.cli.group import Grouping, push_group
from lvmsync.cli.options import (
    AllowSmaller,
    Atomic,
    Audit,
    BaseData,
    Bwlimit,
    BwlimitFile,
    Compress,
    Create,
    DataSource,
    Debug,
    DryRun,
    Format,
    Frozen,
    Identity,
    IgnoreBase,
    Json,
    Minimal,
    NoUndo,
    PoolLimit,
    Port,
    ProgressStyle,
    Quiet,
    RemoteCommand,
    Rsh,
    SnapbackName,
    SourceWord,
    StallTimeout,
    State,
    Streams,
    Sudo,
    Verbose,
)
from lvmsync.cli.replica import Managing, far_source, find_managed, pull, push
from lvmsync.errors import UsageError
from lvmsync.names import BlockMap, Comparison, CowFile, Volume, parse_source


def sync(
    source: SourceWord,
    target: Annotated[str, typer.Argument(metavar="[HOST:]TARGET", help="where the copy is")],
    more: Annotated[
        list[str] | None, typer.Argument(metavar="...", help="with --group: more volumes, and last [HOST:]VG")
    ] = None,
    group: Annotated[
        str | None, typer.Option("--group", metavar="NAME", help="cut all volumes at one instant, commit all or none")
    ] = None,
    snapback: SnapbackName = None,
    data_source: DataSource = None,
    frozen: Frozen = False,
    minimal: Minimal = False,
    audit: Audit = None,
    base_data: BaseData = None,
    rsh: Rsh = None,
    port: Port = None,
    identity: Identity = None,
    sudo: Sudo = False,
    remote_command: RemoteCommand = "lvmsync",
    bwlimit: Bwlimit = None,
    bwlimit_file: BwlimitFile = None,
    stall_timeout: StallTimeout = 120,
    streams: Streams = 1,
    no_undo: NoUndo = False,
    create: Create = False,
    thin_pool: Annotated[
        str | None, typer.Option("--thin-pool", metavar="VG/POOL", help="with --create: make a thin volume in it")
    ] = None,
    full: Annotated[bool, typer.Option("--full", help="copy the whole volume anew, whatever the copy holds")] = False,
    freeze: Annotated[
        bool, typer.Option("--freeze", help="freeze file systems on SOURCE while its snapshot is taken")
    ] = False,
    freeze_cmd: Annotated[
        str | None,
        typer.Option("--freeze-cmd", metavar="CMD", help="with --group: freezes what lvmsync cannot see, in a guest"),
    ] = None,
    thaw_cmd: Annotated[str | None, typer.Option("--thaw-cmd", metavar="CMD", help="undoes --freeze-cmd")] = None,
    freeze_limit: Annotated[
        float | None,
        typer.Option("--freeze-limit", metavar="SECONDS", help="with --group: anything stands still  [default: 10]"),
    ] = None,
    managed: Annotated[
        bool, typer.Option("--managed", help="take snapshots of SOURCE, though it is a thin snapshot itself")
    ] = False,
    cow_size: Annotated[
        str | None, typer.Option("--cow-size", metavar="SIZE", help="store of the snapshots that are taken")
    ] = None,
    chunk_size: Annotated[
        str | None, typer.Option("--chunk-size", metavar="SIZE", help="chunks of these snapshots: 4K to 512K")
    ] = None,
    extend_cmd: Annotated[
        str | None,
        typer.Option("--extend-cmd", metavar="CMD", help="makes room in $LVMSYNC_VOLUME when that becomes full"),
    ] = None,
    extend_at: Annotated[
        float | None, typer.Option("--extend-at", metavar="PERCENT", help="when that is  [default: 70]")
    ] = None,
    retries: Annotated[
        int | None,
        typer.Option("--retries", metavar="N", help="open a failed line again so often  [default: 3]", min=0),
    ] = None,
    atomic: Atomic = False,
    allow_smaller: AllowSmaller = False,
    ignore_base: IgnoreBase = False,
    pool_limit: PoolLimit = 95.0,
    stream_format: Format = 4,
    compress: Compress = None,
    as_json: Json = False,
    dry_run: DryRun = False,
    state: State = None,
    progress: ProgressStyle = "auto",
    quiet: Quiet = False,
    verbose: Verbose = False,
    debug: Debug = False,
) -> None:
    """Bring a copy up to date with what changed, and believe only the receiver's receipt.

    Of a plain or thin volume (vg/lv, or HOST:vg/lv to pull) lvmsync takes the snapshots by itself: all of it is copied
    the first time, and what changed since then each further time. Other sources tell their changes themselves.
    """
    from lvmsync.cli import render
    from lvmsync.cli.delivery import Delivery, Orders, Way
    from lvmsync.cli.refinement import Refinement
    from lvmsync.sources import Reading
    from lvmsync.system.ledger import state_folder

    way = Way(rsh, port, identity, sudo, remote_command, bwlimit, bwlimit_file, stall_timeout or None, streams)
    orders = Orders(snapback, no_undo, create, atomic, allow_smaller, ignore_base, state, dry_run, debug, pool_limit)
    refinement = Refinement(minimal, audit, base_data)
    managing = Managing(managed, full, freeze, thin_pool, cow_size, chunk_size, extend_cmd, extend_at, retries)
    with ExitStack() as stack:
        report = stack.enter_context(render.progress("none" if quiet else progress))
        grouping = Grouping(group, freeze_cmd, thaw_cmd, freeze_limit)
        is_plain = data_source is None and not frozen and audit is None and base_data is None and stream_format == 4
        if group is not None:
            if not is_plain:
                raise UsageError("--group: -r, --frozen, --audit, --base-data and --format 3 are not for that")
            words = [source, target, *(more or ())]
            receipts = push_group(words, grouping, way, orders, managing, report, minimal=minimal, compress=compress)
            return render.print_group(receipts, as_json=as_json, quiet=quiet)
        grouping.require_none(more or ())
        if far_source(source):
            if not is_plain:
                raise UsageError(
                    f"{source} is pulled: -r, --frozen, --audit, --base-data and --format 3 are not for that"
                )
            receipt = pull(source, target, way, orders, managing, report, minimal=minimal, compress=compress)
            return render.print_receipt(receipt, as_json=as_json, quiet=quiet)
        volume = find_managed(source, managing) if is_plain and isinstance(parse_source(source), Volume) else None
        if volume:
            receipt = push(volume, target, way, orders, managing, report, minimal=minimal, compress=compress)
            return render.print_receipt(receipt, as_json=as_json, quiet=quiet)
        managing.require_none(source)
        delivery = Delivery(target, way, orders, report, stream_format=stream_format, compress=compress)
        stack.enter_context(delivery)
        name = parse_source(source)
        memory: blksnap_points.Memory | era_points.Memory
        if isinstance(name, BlockMap):
            from lvmsync.jobs import blksnap_points

            memory = blksnap_points.Memory(state_folder(state), str(delivery.place))
        else:
            from lvmsync.jobs import era_points

            memory = era_points.Memory(state_folder(state), str(delivery.place))
        reading = refinement.want(name, Reading(data_source=data_source, frozen=frozen))
        if isinstance(name, Comparison) and name.old is None:
            opened = delivery.open_compared(name, reading)
        elif isinstance(name, CowFile):
            from lvmsync.jobs.dattobd_points import open_recorded

            opened = open_recorded(state_folder(state), name, reading, str(delivery.place))
        else:
            opened = memory.open(name, reading)
        found = refinement.apply(stack.enter_context(opened), report)
        receipt = memory.remember(delivery.send(found, require_base=memory.is_used))
    render.print_receipt(receipt, as_json=as_json, quiet=quiet)

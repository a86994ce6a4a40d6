"""``sync`` of a volume that lvmsync takes the snapshots of: to another place (push), or from another machine (pull)."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lvmsync.cli.asked import Asked, Managing, Orders
from lvmsync.cli.delivery import Delivery
from lvmsync.cli.files import stream_options
from lvmsync.errors import UsageError
from lvmsync.jobs.progress import Receipt, Report
from lvmsync.names import KINDS, TargetName, Volume, parse_size, parse_target, parse_volume
from lvmsync.system.identity import is_same_storage
from lvmsync.system.ledger import state_folder

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lvmsync.jobs.replica.copy import PassOptions
    from lvmsync.system.lvm import LogicalVolume


def far_source(word: str) -> TargetName | None:
    """Return the place of a SOURCE on another machine; None for one of this machine."""
    if word.startswith(("/", "./", "../")) or word.partition(":")[0] in KINDS:
        return None
    place = parse_target(word)
    return place if place.host else None


def find_managed(word: str, managing: Managing, told: Sequence[LogicalVolume] | None = None) -> LogicalVolume | None:
    """Return the volume that a SOURCE means, if its snapshots are to be taken; None for a source of another kind.

    Args:
        word: the SOURCE.
        managing: whether they are to be taken in any case.
        told: what LVM told of its group just now; None: it is asked.

    Raises:
        UsageError: --managed was said of what has no snapshots, or the volume is being merged.
    """
    from lvmsync.jobs.replica import snapshots
    from lvmsync.system import lvm

    name = parse_volume(word)
    if not name.is_lvm_name and not word.startswith("/dev/"):
        return None
    if managing.managed:
        return snapshots.find_source(word, told)
    volume = lvm.find_named(name, told)
    if volume is None or not snapshots.is_managed(volume):
        return None
    if volume.is_merging:
        raise UsageError(f"{volume.full_name} {snapshots.refusal(volume)}", device=volume.full_name)
    return None if snapshots.refusal(volume) else volume


def push(
    volume: LogicalVolume,
    target: str,
    asked: Asked,
    report: Report,
    told: Sequence[LogicalVolume] | None = None,
) -> Receipt:
    """Bring a target up to date with a volume of this machine; ``told`` is as of `find_managed`."""
    from lvmsync.jobs.replica.run import foresee, sync_volume

    orders = asked.orders
    require_simple(orders)
    with Delivery(target, asked.way, orders, report, compress=asked.compress) as delivery:
        place = delivery.place
        if place.host is None:
            require_other(volume, Volume(place.name).path)
        folder, options = state_folder(orders.state), pass_options(place, asked)
        if orders.dry_run:
            return foresee(delivery.agent, volume, place.name, str(place), folder, options, told)
        return sync_volume(
            lambda: delivery.agent,
            volume,
            place.name,
            str(place),
            folder,
            options,
            report,
            retries=asked.managing.tries,
            told=told,
        )


def pull(source: str, target: str, asked: Asked, report: Report) -> Receipt:
    """Bring a target of this machine up to date with a volume of another one."""
    from lvmsync.jobs.agent.policy import POOL_LIMIT, Policy
    from lvmsync.jobs.replica.run import retried
    from lvmsync.jobs.standing import standing

    orders = asked.orders
    require_simple(orders)
    to = parse_target(target)
    if to.host:
        raise UsageError(f"'{source}' and '{target}' are both on other machines: run lvmsync on one of them")
    _require_no_commands(source, asked.managing)
    far, way = replace(orders, state=None), replace(asked.way, target_extend_cmd=None)
    with Delivery(source, way, far, report, compress=asked.compress) as delivery:
        options = pass_options(delivery.place, asked)
        wanted = pull_options(options, to, dry_run=orders.dry_run)
        policy = Policy.of_word(
            to.name,
            may_create=orders.create,
            risks=["no_undo"] if orders.no_undo else [],
            files=[orders.snapback] if orders.snapback else [],
            archive=orders.archive,
            pool_limit=orders.pool_limit or POOL_LIMIT,
        )
        pools = frozenset([options.thin_pool] if options.thin_pool else [])
        policy = replace(policy, extend_cmd=asked.way.target_extend_cmd, pools=pools)
        return retried(
            lambda: delivery.agent,
            lambda agent: agent.pull(delivery.place.name, to.name, wanted, policy, state_folder(orders.state), report),
            report,
            retries=asked.managing.tries,
            find_place=lambda: standing(to.name, state_folder(orders.state)).transaction,
        )


def _require_no_commands(source: str, managing: Managing) -> None:
    """Refuse what acts where the source is: no machine is told by another one what to run, or when to stand still."""
    words = {
        "--extend-cmd": managing.extend_cmd,
        "--extend-at": managing.extend_at is not None,
        "--freeze": managing.freeze,
        "--managed": managing.managed,
    }
    for word, value in words.items():
        if value:
            host, _, name = source.rpartition(":")
            raise UsageError(
                f"{word} acts where the source is, and is not sent to another machine: give it to a sync that is run on"
                f" {host}, 'lvmsync sync {name} {os.uname().nodename}:TARGET'"
            )


def pull_options(options: PassOptions, to: TargetName, *, dry_run: bool) -> dict[str, Any]:
    """Return what is asked of the source's machine: see `PUSH_OPTIONS` in `jobs.agent.requests`."""
    return {
        "place": f"{os.uname().nodename}:{to.name}",
        "create": options.create,
        "thin_pool": options.thin_pool,
        "full": options.full,
        "minimal": options.minimal,
        "store": options.store,
        "chunk": options.chunk,
        "level": options.stream.level,
        "dry_run": dry_run,
        **options.orders,
    }


def pass_options(place: TargetName, asked: Asked) -> PassOptions:
    """Read how a volume is to be copied.

    Raises:
        UsageError: a value out of range, or options that do not go together.
    """
    from lvmsync.jobs.replica.copy import PassOptions
    from lvmsync.system.fill_watch import Limits

    orders, managing = asked.orders, asked.managing
    if managing.thin_pool and not orders.create:
        raise UsageError("--thin-pool is for a target that is made: give --create as well")
    limits = Limits(managing.extend_cmd)
    if managing.extend_at is not None:
        if not 0 < managing.extend_at < limits.limit:
            raise UsageError(f"--extend-at {managing.extend_at:g} is out of range: 1 to {limits.limit:g}")
        limits = replace(limits, extend_at=managing.extend_at)
    wanted = {
        "no_undo": orders.no_undo,
        "snapback": orders.snapback,
        "archive": orders.archive,
        "pool_limit": orders.pool_limit,
    }
    return PassOptions(
        stream=stream_options(4, asked.compress or ("zstd:1" if place.host else None)),
        create=orders.create,
        thin_pool=managing.thin_pool,
        full=managing.full,
        freeze=managing.freeze,
        minimal=True if asked.minimal else None,
        store=_store_size(managing.store) if managing.store else None,
        chunk=parse_size(managing.chunk) if managing.chunk else None,
        limits=limits,
        orders={key: value for key, value in wanted.items() if value},
    )


def _store_size(text: str) -> int:
    size = parse_size(text)
    if not size:
        raise UsageError("--cow-size 0: a store of nothing keeps nothing; leave it out, and its size is chosen")
    return size


def require_simple(orders: Orders) -> None:
    """Refuse what makes no sense where lvmsync knows both sides."""
    for word, value in (
        ("--allow-smaller-target", orders.allow_smaller),
        ("--ignore-base", orders.ignore_base),
        ("--atomic", orders.atomic),
    ):
        if value:
            raise UsageError(f"{word} is for sources that are no volume with snapshots of lvmsync's own")


def require_other(volume: LogicalVolume, path: str) -> None:
    """Refuse a target that is the source."""
    if is_same_storage(f"/dev/{volume.full_name}", path):
        raise UsageError(
            f"{volume.full_name} and the target {path} are the same: the copy would be itself; name another target",
            device=path,
        )

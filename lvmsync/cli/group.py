"""``sync --group``: several volumes, cut at one instant, to volumes of the same names in another volume group."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from lvmsync.cli.asked import Asked, Grouping, Managing
from lvmsync.cli.delivery import Delivery
from lvmsync.cli.replica import far_source, find_managed, pass_options, require_other, require_simple
from lvmsync.errors import UsageError
from lvmsync.jobs.progress import GroupReceipt, Report
from lvmsync.names import KINDS, TargetName, parse_target, parse_volume
from lvmsync.system.ledger import state_folder

if TYPE_CHECKING:
    from lvmsync.jobs.replica.group import Member
    from lvmsync.system.lvm import LogicalVolume


def push_group(
    words: Sequence[str],
    grouping: Grouping,
    asked: Asked,
    report: Report,
) -> GroupReceipt:
    """Bring copies of several volumes of this machine up to date, to one moment.

    Args:
        words: the volumes, and the volume group of the copies as the last one.
        grouping: options of the group.
        asked: how.
        report: takes the progress.
    """
    grouping.require_some()
    orders, managing = asked.orders, asked.managing
    require_simple(orders)
    for word, value in (("--no-undo", orders.no_undo), ("--snapback", orders.snapback)):
        if value:
            raise UsageError(f"{word}: the copies of a group are brought back together, by undo files of their own")
    if orders.archive is not None:
        raise UsageError("--archive is not for a group: sync its volumes one by one, each with an archive of its own")
    *sources, last = words
    place = _parse_group(last)
    far = next((word for word in sources if far_source(word.partition("=")[0])), None)
    if far:
        raise UsageError(
            f"{far}: the volumes of a group are pushed, from the machine that they are on: run 'lvmsync sync --group"
            f" {grouping.name} VG/LV ... HOST:{place.name}' there, with this machine as HOST"
        )
    from lvmsync.jobs.replica.group import foresee_group, sync_group
    from lvmsync.jobs.replica.together import Stillness
    from lvmsync.system.suspend import LIMIT

    name = grouping.name or ""
    # It names the line in messages.
    line = str(place) if place.host else f"/dev/{place.name}"
    with Delivery(line, asked.way, orders, report, compress=asked.compress) as delivery:
        members, told = _find_members(sources, place, managing)
        if place.host is None:
            for one in members:
                for other in members:
                    require_other(other.volume, f"/dev/{one.target}")
        options = pass_options(place, replace(asked, managing=replace(managing, freeze=False)))
        folder = state_folder(orders.state)
        if orders.dry_run:
            return foresee_group(name, delivery.agent, members, folder, options)
        limit = LIMIT if grouping.limit is None else grouping.limit
        return sync_group(
            name,
            lambda: delivery.agent,
            members,
            folder,
            options,
            Stillness(managing.freeze, grouping.freeze_cmd, grouping.thaw_cmd, limit),
            report,
            retries=managing.tries,
            told=told,
        )


def _parse_group(word: str) -> TargetName:
    """Return where the copies are: ``name`` is a volume group."""
    bad = UsageError(
        f"'{word}': with --group the last word is the volume group that the copies are in: VG, or HOST:VG (each copy"
        " has the name of its volume there; write vg/lv=NAME for another one)"
    )
    if word.partition(":")[0] in KINDS or word.startswith(("/", ".")):
        raise bad
    place = parse_target(word) if ":" in word else TargetName(None, word)
    if not place.name or "/" in place.name:
        raise bad
    parse_volume(f"{place.name}/x")
    return place


def _find_members(
    words: Sequence[str], place: TargetName, managing: Managing
) -> tuple[list[Member], list[LogicalVolume] | None]:
    """Return the members, and what LVM told of their groups; None where it has not told of all."""
    from lvmsync.jobs.replica import snapshots
    from lvmsync.jobs.replica.group import Member
    from lvmsync.system import lvm

    found: dict[str, Member] = {}
    targets: dict[str, str] = {}
    told: dict[str, list[LogicalVolume]] = {}  # by volume group; each is asked for once
    for word in words:
        source, equals, other = word.partition("=")
        if equals and not other:
            raise UsageError(f"{word}: a name is missing behind '='; write {source}=NAME, or {source} alone")
        named = parse_volume(source)
        around = told.get(source.partition("/")[0]) if named.is_lvm_name else None
        around = lvm.list_around(named) if around is None else around
        if around is not None:
            told[source.partition("/")[0]] = around
        volume = find_managed(source, managing, around)
        if volume is None:
            snapshots.find_source(source, around)  # says why, if it has no snapshots
            raise UsageError(
                f"{source} is a snapshot itself; give --managed as well if snapshots of it are to be taken"
            )
        if volume.id in found:
            raise UsageError(f"{volume.full_name} is named twice; name each volume of a group once")
        target = parse_volume(f"{place.name}/{other or volume.name}").word
        if target in targets:
            raise UsageError(
                f"{targets[target]} and {volume.full_name} would both be copied to {target}: write"
                f" {volume.full_name}=NAME for one of them"
            )
        targets[target] = volume.full_name
        found[volume.id] = Member(volume, target, str(TargetName(place.host, target)))
    groups = {one.volume.group for one in found.values()}
    return list(found.values()), [one for group in told.values() for one in group] if groups <= told.keys() else None

"""All checks of one machine, one after the other: what one of them cannot do is a finding, too."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

from lvmsync import __version__
from lvmsync.errors import LvmsyncError, TransportError, UsageError
from lvmsync.jobs.agent.client import Agent
from lvmsync.jobs.cleanup import find_leftovers
from lvmsync.jobs.doctor.archives import check_runs
from lvmsync.jobs.doctor.findings import Finding
from lvmsync.jobs.doctor.records import (
    check_clock,
    check_far_clock,
    check_migrations,
    check_mounts,
    check_state,
    check_targets,
    check_unused,
)
from lvmsync.jobs.doctor.tools import check_modules, check_packages, check_programs
from lvmsync.jobs.doctor.volumes import check_room, check_suspended, check_volumes
from lvmsync.jobs.replica import cleanup
from lvmsync.jobs.replica.record import Record, list_records
from lvmsync.system import dm, lvm
from lvmsync.system.command import has_program
from lvmsync.system.holds import is_kept, list_holds

_NOBODY = "/dev/lvmsync.is.asked.for.the.time"


def examine(state: Path, groups: Sequence[str] = ()) -> list[Finding]:
    """Return all that is wrong on this machine, or will be soon.

    Args:
        state: the state folder.
        groups: look only at the volumes of these volume groups; empty: at all.

    Raises:
        UsageError: there is no such group.
    """
    found = [*check_programs(), *check_modules(), *check_packages(), *check_state(state)]
    records: list[Record] = []
    found += _tried("the records of replicas", lambda: _keep(records, list_records(state)))
    if has_program("lvs"):
        found += _tried("LVM", lambda: _check_lvm(state, records, groups))
    if has_program("dmsetup"):
        found += _tried("the device mapper", _check_kernel)
    found += _tried("what is frozen", _check_holds)
    found += _tried("targets", lambda: check_targets(state))
    found += _tried("targets that were made", lambda: check_unused(state))
    found += _tried("migrations", lambda: check_migrations(state))
    found += _tried("runs of archives", lambda: check_runs(state, datetime.now(UTC)))
    found += _tried("past states that are mounted", lambda: check_mounts(state))
    return [*found, *check_clock(records, datetime.now(UTC))]


def examine_far(agent: Agent, place: str) -> list[Finding]:
    """Return what is wrong with the lvmsync on another machine, which has answered."""
    found = []
    if agent.version != __version__:
        found.append(
            Finding(
                "line",
                place,
                f"lvmsync there is {agent.version}, and {__version__} here",
                "install the same version on both machines",
            )
        )
    try:
        standing = agent.standing(_NOBODY)
    except TransportError as error:
        return [*found, describe_far(error, place)]
    except LvmsyncError:
        return found  # a server that answers for some volumes only
    return [*found, *check_far_clock(standing.now, datetime.now(UTC), place)]


def describe_far(error: LvmsyncError, place: str) -> Finding:
    """Return the failure of a line as a finding."""
    return Finding("line", place, str(error), f"try 'ssh {place.rstrip(':')} lvmsync --version' by hand")


def _keep(records: list[Record], read: list[Record]) -> Iterable[Finding]:
    records.extend(read)
    return ()


def _check_lvm(state: Path, records: Iterable[Record], groups: Sequence[str]) -> Iterator[Finding]:
    volumes = lvm.list_volumes()
    there = lvm.list_groups()
    unknown = set(groups) - {group.name for group in there}
    if unknown:
        raise UsageError(f"there is no volume group '{min(unknown)}'; see 'vgs'")
    wanted = [one for one in volumes if not groups or one.group in groups]
    yield from check_volumes(wanted)
    mine = [one for one in records if not groups or one.source.partition("/")[0] in groups]
    yield from check_room(mine, volumes, there)
    for one in cleanup.find_snapshots(state):
        if groups and one.volume.group not in groups:
            continue
        if one.is_spare:
            yield Finding("leftover", one.volume.full_name, one.state, "lvmsync cleanup --remove")
        elif not one.target and one.role != "back":
            remedy = f"lvmsync cleanup --replica {one.replica}" if one.replica else f"lvremove {one.volume.full_name}"
            yield Finding("leftover", one.volume.full_name, one.state, f"if it is not needed: {remedy}")
    for bare in cleanup.find_bare(state, volumes):
        # Of a first copy that was refused or cut off the target's side tells; what is remembered here does no harm.
        is_wrong = bare.is_spare or bare.record.committed
        if is_wrong and (not groups or bare.record.source.partition("/")[0] in groups):
            yield Finding("leftover", bare.record.source, bare.state, bare.remedy)


def _check_kernel() -> Iterator[Finding]:
    yield from check_suspended(dm.list_devices())
    for leftover in find_leftovers():
        if not leftover.held.is_running:
            name = leftover.held.device.name
            yield Finding(
                "leftover", leftover.held.device.path, str(leftover.held), f"lvmsync cleanup --release {name}"
            )


def _check_holds() -> Iterator[Finding]:
    for hold in list_holds():
        if not is_kept(hold):
            yield Finding("leftover", ", ".join(hold.what), str(hold), "lvmsync cleanup --remove")


def _tried(what: str, check: Callable[[], Iterable[Finding]]) -> list[Finding]:
    """Return what a check finds; that it fails is a finding, after those that it has made."""
    found = []
    try:
        for one in check():
            found.append(one)
    except UsageError:
        raise
    except LvmsyncError as error:
        found.append(Finding("broken", what, str(error), "mend that, and run 'lvmsync doctor' again"))
    return found

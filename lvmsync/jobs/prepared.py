"""Receives that are prepared, and committed together: the one commit point of a group is the file that says so.

A prepared target is wholly new and durable, and its undo is whole. As long as STATE/groups/ID.json is not there, it
goes back; from then on it goes forward. Both happen only under the lock of its ledger entry, and the file is written
only under the locks of all members: so they all go the same way, whoever is killed when.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from lvmsync.errors import ConflictError, DeviceError, FormatError
from lvmsync.jobs.owing import owe
from lvmsync.jobs.progress import Report, ignore
from lvmsync.jobs.samples import find_different
from lvmsync.jobs.traces import find_lost
from lvmsync.jobs.way_back import can_go_back, go_back
from lvmsync.system import seen
from lvmsync.system.ledger import Ledger, file_name, make_folders, open_ledger, remove_file, replace_file
from lvmsync.system.record import read_record
from lvmsync.targets.block import BlockTarget, open_target


def commit_group(targets: Sequence[str], state: Path, group: str) -> None:
    """Commit all members of a group that are on this machine, or none. Doing it again does no harm.

    Args:
        targets: paths of all of them.
        state: the state folder.
        group: its id.

    Raises:
        ConflictError: one of them is neither prepared for this group nor committed with it already, or is not named;
            nothing was committed.
        DeviceError: one cannot be claimed, or the state folder cannot be written.
    """
    with ExitStack() as stack:
        members = [_claim(stack, path, state) for path in sorted(set(targets))]
        if not is_committed(state, group):
            for target, ledger in members:
                _require_part(target, ledger, group)
            names = [target.canonical for target, _ in members]
            unnamed = [name for name in _find_members(state, group, "prepared")[0] if name not in names]
            if unnamed:
                raise ConflictError(
                    f"{', '.join(unnamed)} is prepared for group {group} as well, and was not named: nothing was"
                    f" committed. Commit all of them, or run 'lvmsync recover {unnamed[0]}'",
                    device=unnamed[0],
                )
            _write_commit(state, group, names)
        for target, ledger in members:
            settle(target, ledger, state, ignore)
        _forget(state, group)


def _require_part(target: BlockTarget, ledger: Ledger, group: str) -> None:
    """Refuse what is neither prepared for a group nor committed with it already: its answer may have been lost."""
    note = ledger.record.transaction
    if note is None and ledger.record.group == group:
        return
    if note is None or note.phase != "prepared" or note.group != group:
        raise ConflictError(
            f"{target.name} is not prepared for group {group}: nothing was committed", device=target.name
        )
    if was_written(target, ledger, seen.look_at_target(target.fd)) == "yes":
        raise ConflictError(
            f"{target.name} was written to since it was prepared for group {group}: nothing was committed; run"
            f" 'lvmsync recover {target.name}'",
            device=target.name,
        )


def abort_group(targets: Sequence[str], state: Path, group: str, report: Report) -> None:
    """Bring back what a group has begun on these targets; if it is committed, they go forward instead.

    A first copy has no way back: it stays as one whose stream was cut, to be gone on with.

    Args:
        targets: paths; one that has no transaction of this group is left alone.
        state: the state folder.
        group: its id.
        report: takes the progress.

    Raises:
        DeviceError, ConflictError: one cannot be claimed.
        VerifyError: what one has overwritten is damaged.
    """
    for path in sorted(set(targets)):
        if not Path(path).exists():
            continue
        with ExitStack() as stack:
            target, ledger = _claim(stack, path, state)
            note = ledger.record.transaction
            if note is None or note.group != group:
                continue
            if note.phase == "prepared":
                settle(target, ledger, state, report)
            elif can_go_back(note):
                _bring_back(target, ledger, report)


def list_members(state: Path, group: str) -> list[str]:
    """Return the targets of this machine that are in the middle of a receive for a group: their canonical names."""
    found, _ = _find_members(state, group)
    return found


def _find_members(state: Path, group: str, phase: str | None = None) -> tuple[list[str], bool]:
    """Return what `list_members` does, of those in one phase if that is given; and whether every record was read."""
    found, is_all = [], True
    for path in sorted((state / "targets").glob("*/record.json")):
        try:
            record = read_record(path)
        except FormatError:  # who works on that target is told
            is_all = False
            continue
        note = record.transaction if record else None
        if record and note and note.group == group and phase in (None, note.phase):
            found.append(record.target)
    return found, is_all


def commit_prepared(path: str, state: Path) -> bool:
    """Bring one prepared target forward, if its group is committed; tell whether it was.

    Raises:
        DeviceError, ConflictError: it cannot be claimed.
    """
    with ExitStack() as stack:
        target, ledger = _claim(stack, path, state)
        note = ledger.record.transaction
        if note is None or note.phase != "prepared" or note.group is None or not is_committed(state, note.group):
            return False
        settle(target, ledger, state, ignore)
        return True


def settle(target: BlockTarget, ledger: Ledger, state: Path, report: Report) -> bool | None:
    """Bring a prepared target forward or back, as its group went; return whether it went forward.

    None: it is not prepared, or has no way back and is as one whose stream was cut, to be gone on with.
    """
    note = ledger.record.transaction
    if note is None or note.phase != "prepared":
        return None
    if note.group is not None and is_committed(state, note.group):
        ledger.write(
            transaction=None,
            dirty=False,
            point=note.point,
            size=target.size,
            held=note.held,
            made=False,
            traces=note.traces,
            group=note.group,
            **owe(ledger.record, target.size, is_same=False),
        )
        ledger.sweep()
        _forget(state, note.group)
        return True
    if can_go_back(note):
        _bring_back(target, ledger, report)
        return False
    ledger.write(transaction=replace(note, phase="applying"))
    return None


def is_committed(state: Path, group: str) -> bool:
    """Tell whether the members of a group go forward.

    Raises:
        FormatError: what the state folder says cannot be read.
    """
    path = _group_file(state, group)
    try:
        return json.loads(path.read_text())["committed"] is True
    except FileNotFoundError:
        return False
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FormatError(f"{path} cannot be read ({error}): whether the group is committed is not known") from error


def _forget(state: Path, group: str) -> None:
    """Remove the file of a committed group, if nobody is left who would go back without it."""
    members, is_all = _find_members(state, group, "prepared")
    if is_all and not members:
        remove_file(_group_file(state, group))


def _claim(stack: ExitStack, path: str, state: Path) -> tuple[BlockTarget, Ledger]:
    target = stack.enter_context(open_target(path))
    return target, stack.enter_context(open_ledger(state, target.canonical, target.identity, target.size))


def _bring_back(target: BlockTarget, ledger: Ledger, report: Report) -> None:
    """Undo what is open; that somebody else wrote to the target meanwhile shows after that as well."""
    before, written = ledger.record.seen, was_written(target, ledger, seen.look_at_target(target.fd))
    go_back(target, ledger, report, written)
    if written == "yes":
        ledger.write(seen=before)


def was_written(target: BlockTarget, ledger: Ledger, look: dict[str, str] | None) -> seen.Written:
    """Tell whether somebody else has written to a target since its open transaction was left.

    Args:
        target: claimed.
        ledger: of the target.
        look: what it looked like before anything of ours.
    """
    note = ledger.record.transaction
    written = seen.was_written(ledger.record.seen, look)
    if note is None or written != "unknown":
        return written
    if note.phase == "applying":
        return "yes" if find_lost(target, ledger) else written
    inside = [one for one in note.traces if one.offset + one.length <= target.size]
    return "yes" if note.phase == "prepared" and find_different(target, inside) else written


def _write_commit(state: Path, group: str, members: list[str]) -> None:
    path = _group_file(state, group)
    try:
        make_folders(path.parent)
        # The commit point of the group: before this rename a crash means going back, after it all members stand.
        replace_file(path, json.dumps({"group": group, "members": members, "committed": True}))
    except OSError as error:
        raise DeviceError(f"cannot write {path}: {error.strerror}", device=str(path)) from error


def _group_file(state: Path, group: str) -> Path:
    return state / "groups" / f"{file_name(group)}.json"

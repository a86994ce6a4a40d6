"""``lvmsync cleanup``: what was left behind, whose it is, and giving it back."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from lvmsync.cli.files import print_text
from lvmsync.cli.options import Debug, Json, Quiet, State
from lvmsync.errors import ConflictError, UsageError

if TYPE_CHECKING:
    from pathlib import Path

    from lvmsync.jobs.archive.mounted import Mounted
    from lvmsync.jobs.cleanup import Leftover
    from lvmsync.jobs.left import GoneTarget
    from lvmsync.jobs.replica.cleanup import Bare, Found
    from lvmsync.system.holds import Hold


_FORGETS = "'lvmsync cleanup --remove' forgets it"


def cleanup(
    release: Annotated[
        str | None,
        typer.Option("--release", metavar="DEVICE", help="give back the metadata snapshot of this pool or era device"),
    ] = None,
    remove: Annotated[
        bool, typer.Option("--remove", help="remove what is ours and nothing needs, and let go of what is held")
    ] = False,
    replica: Annotated[
        str | None,
        typer.Option("--replica", metavar="ID", help="give a copy up: remove its snapshots here, and its record"),
    ] = None,
    as_json: Json = False,
    state: State = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Show what lvmsync has left: snapshots with its tag, metadata snapshots, what is frozen; and remove it."""
    from lvmsync.jobs.archive.umount import find_stale
    from lvmsync.jobs.cleanup import find_leftovers, give_back
    from lvmsync.jobs.left import find_gone
    from lvmsync.system.holds import list_holds
    from lvmsync.system.ledger import state_folder

    if sum(map(bool, (release, remove, replica))) > 1:
        raise UsageError("--release, --remove and --replica: choose one")
    if release:
        return _say([give_back(release)], [], [], [], [], [], as_json=as_json, quiet=quiet, released=True)
    folder = state_folder(state)
    if replica:
        from lvmsync.jobs.replica.cleanup import give_up

        return _say([], give_up(folder, replica), [], [], [], [], as_json=as_json, quiet=quiet, removed=True)
    found, bare = _find_snapshots(folder)
    holds, gone, leftovers, mounts = list_holds(), find_gone(folder), find_leftovers(), find_stale(folder)
    if remove:
        leftovers = [one for one in leftovers if one.held.is_ours and not one.held.is_running]
        found, bare = [one for one in found if one.is_spare], [one for one in bare if one.is_spare]
        _remove(folder, leftovers, found, holds, bare, gone, mounts)
    _say(leftovers, found, holds, bare, gone, mounts, as_json=as_json, quiet=quiet, released=remove, removed=remove)


def _find_snapshots(state: Path) -> tuple[list[Found], list[Bare]]:
    from lvmsync.jobs.replica.cleanup import find_bare, find_snapshots
    from lvmsync.jobs.replica.record import list_records
    from lvmsync.system.command import has_program

    if not has_program("lvs") and not list_records(state):
        return [], []  # no LVM, no snapshots of its; with records there was one, and it cannot be looked

    return find_snapshots(state), find_bare(state)


def _remove(
    state: Path,
    leftovers: list[Leftover],
    found: list[Found],
    holds: list[Hold],
    bare: list[Bare],
    gone: list[GoneTarget],
    mounts: list[Mounted],
) -> None:
    """Remove what nothing needs, as far as that is certain.

    Raises:
        ConflictError: something could not be removed.
    """
    from lvmsync.jobs.archive.umount import clear_stale
    from lvmsync.jobs.left import forget_gone
    from lvmsync.jobs.replica.cleanup import forget_bare, remove_spare
    from lvmsync.system.holds import forget_old, is_kept, mend
    from lvmsync.system.reservation import release

    forget_old()
    for hold in holds:
        if not is_kept(hold):
            mend(hold)
    for leftover in leftovers:
        release(leftover.held, leftover.tracker)
    for replica in bare:
        forget_bare(state, replica)
    for target in gone:
        forget_gone(state, target)
    left = clear_stale(state, mounts) + remove_spare(found)
    if left:
        raise ConflictError("; ".join(left))


def _say(
    leftovers: list[Leftover],
    found: list[Found],
    holds: list[Hold],
    bare: list[Bare],
    gone: list[GoneTarget],
    mounts: list[Mounted],
    *,
    as_json: bool,
    quiet: bool,
    released: bool = False,
    removed: bool = False,
) -> None:
    """Show what is there, or what was done about it."""
    from lvmsync.jobs.archive.umount import describe_stale
    from lvmsync.system.command import has_program

    if as_json:
        rows = {
            "metadata_snapshots": [_metadata_row(leftover) for leftover in leftovers],
            "released": released,
            "snapshots": [_snapshot_row(one) for one in found],
            "holds": [asdict(hold) for hold in holds],
            "replicas": [_bare_row(one) for one in bare],
            "targets": [asdict(one) for one in gone],
            "mounts": [{**asdict(one), "device": one.path} for one in mounts],
            "removed": removed,
        }
        print_text(json.dumps(rows) + "\n")
        return
    for leftover in leftovers:
        held = leftover.held
        state = ", and that run works with it now" if held.is_running else ", and was given back" if released else ""
        offer = "" if released or held.is_running else f"; 'lvmsync cleanup --release {held.device.name}' gives it back"
        print_text(f"{held}{state}{offer}\n")
    for one in found:
        print_text(f"{_describe(one)}{', and was removed' if removed else _offer(one)}\n")
    for hold in holds:
        print_text(f"{hold}{'' if removed else _offer_hold(hold)}\n")
    for replica in bare:
        what = f"{replica.record.source} (replica {replica.record.id}): {replica.state}"
        print_text(f"{what}{', and was forgotten' if removed else _offer_bare(replica)}\n")
    for target in gone:
        print_text(f"{target}{', and was forgotten' if removed else '; ' + _FORGETS}\n")
    for mount in mounts:
        what = f"{mount.path}: {describe_stale(mount)}"
        print_text(f"{what}{', and was removed' if removed else _offer_mount(mount)}\n")
    if not (leftovers or found or holds or bare or gone or mounts or quiet):
        print_text(
            "nothing was left that could be removed without asking\n"
            if removed
            else "nothing is left behind: no thin pool and no era device has a metadata snapshot taken, no volume has a"
            " snapshot of lvmsync's, and nothing is frozen\n"
            if has_program("lvs")
            else "nothing was found; LVM's commands are not in PATH, so snapshots of volumes were not looked for\n"
        )


def _bare_row(one: Bare) -> dict[str, object]:
    record = one.record
    return {
        "id": record.id,
        "source": record.source,
        "target": record.target,
        "state": one.state,
        "is_spare": one.is_spare,
    }


def _offer_bare(one: Bare) -> str:
    return f"; {_FORGETS}" if one.is_spare else f"; 'lvmsync cleanup --replica {one.record.id}' gives the copy up"


def _describe(one: Found) -> str:
    of = f" of {one.source}" if one.source else ""
    to = f" for {one.target}" if one.target else ""
    return f"{one.volume.full_name}: snapshot{of}{to} (replica {one.replica or 'unknown'}): {one.state}"


def _offer(one: Found) -> str:
    if one.is_spare:
        return "; 'lvmsync cleanup --remove' removes it"
    if one.replica and one.role != "back":
        return f"; 'lvmsync cleanup --replica {one.replica}' gives the copy up"
    if one.replica and not one.target:
        return f"; 'lvmsync cleanup --replica {one.replica}' removes it, and then there is no way back"
    return ""


def _offer_hold(hold: Hold) -> str:
    from lvmsync.system.holds import is_kept

    return "; it is let go of by itself" if is_kept(hold) else "; 'lvmsync cleanup --remove' lets go of it"


def _offer_mount(mount: Mounted) -> str:
    return f"; 'lvmsync cleanup --remove' or 'lvmsync archive umount {mount.path}' removes it"


def _metadata_row(leftover: Leftover) -> dict[str, object]:
    held = leftover.held
    return {
        "device": held.device.path,
        "kind": leftover.tracker.kind,
        "block": held.root,
        "owner": asdict(held.owner) if held.owner else None,
        "is_ours": held.is_ours,
        "is_running": held.is_running,
    }


def _snapshot_row(one: Found) -> dict[str, object]:
    return {
        "name": one.volume.full_name,
        "id": one.volume.id,
        "replica": one.replica,
        "role": one.role,
        "source": one.source,
        "target": one.target,
        "state": one.state,
        "is_spare": one.is_spare,
        "fill": one.volume.data_percent,
    }

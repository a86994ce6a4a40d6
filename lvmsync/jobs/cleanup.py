"""What runs have left behind in the kernel: metadata snapshots that are still taken, and giving them back."""

from __future__ import annotations

from dataclasses import dataclass

from lvmsync.errors import CommandError, ConflictError, DeviceError
from lvmsync.names import parse_volume
from lvmsync.sources import era, thin
from lvmsync.system import dm, lvm
from lvmsync.system.reservation import Held, Tracker, find_held, release

TRACKERS: tuple[Tracker, ...] = (thin.TRACKER, era.TRACKER)


@dataclass(frozen=True)
class Leftover:
    """A metadata snapshot that is taken now, and how its kind of target deals with it."""

    held: Held
    tracker: Tracker


def find_leftovers() -> list[Leftover]:
    """Return every metadata snapshot of thin pools and era devices that is taken now, by whomever.

    Raises:
        CommandError: dmsetup failed.
    """
    return [Leftover(held, tracker) for tracker in TRACKERS for held in find_held(tracker)]


def give_back(word: str) -> Leftover:
    """Give back the metadata snapshot of the device that ``word`` names, on the user's word that nobody needs it.

    Args:
        word: the device mapper's name of a pool or an era device, its path, or VG/POOL.

    Raises:
        DeviceError: nothing of that name has one.
        ConflictError: a run of lvmsync works with it at this moment.
        CommandError: the kernel refused.
    """
    leftovers = find_leftovers()
    names = _names(word)
    for leftover in leftovers:
        held = leftover.held
        if not names & {held.device.name, held.device.path, held.device.uuid}:
            continue
        if held.is_running:
            raise ConflictError(f"{held}, and that run still works with it; wait for it", device=held.device.path)
        release(held, leftover.tracker)
        return leftover
    there = ", ".join(leftover.held.device.name for leftover in leftovers) or "none"
    raise DeviceError(f"'{word}': no pool or era device of that name has a metadata snapshot; these have: {there}")


def _names(word: str) -> set[str]:
    """Return the names and uuids of mapped devices that a word may mean."""
    names = {word}
    if "/" not in word:
        return names
    volume = parse_volume(word)
    if volume.is_lvm_name or word.count("/") == 3:
        try:
            found = lvm.find_volume(word.removeprefix("/dev/"))
        except (DeviceError, CommandError):
            return names
        group, own = found.id[:32], found.id[32:]
        names.add(f"LVM-{group}{own}-tpool")
    else:
        names |= {device.uuid for device in dm.list_devices() if device.uuid and device.path == word}
    return names

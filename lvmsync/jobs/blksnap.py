"""What is done with blksnap by hand: track a device, see what is there, hold a snapshot, mark what was missed."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from lvmsync.errors import ChangesLost, ConflictError, DeviceError, UsageError
from lvmsync.formats.blksnap import Tracking
from lvmsync.formats.blksnap_abi import Abi
from lvmsync.jobs.blksnap_notes import (
    Note,
    alone,
    destroy_noted,
    give_back,
    is_forgotten,
    is_running,
    read_notes,
    remove_note,
    say_forgotten,
)
from lvmsync.jobs.blksnap_points import list_bases
from lvmsync.jobs.blksnap_snapshot import take_snapshot
from lvmsync.jobs.blksnap_storage import Room, Storage, choose_storage
from lvmsync.jobs.blksnap_sync import begin_tracking
from lvmsync.names import parse_volume
from lvmsync.sources import blksnap
from lvmsync.sources.blksnap import connect, find_held, require_tracking
from lvmsync.system.blksnap import Control, DeviceName, name_device

_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


@dataclass(frozen=True)
class TrackedDevice:
    """One tracked device, as it is now.

    Attributes:
        path: of the device.
        generation: of its map.
        number: of the last snapshot.
        block_size: bytes of a block.
        size: bytes of the device when the generation began.
        changed: bytes that were written in this generation, up to the last snapshot; None: the map cannot be read.
        image: path of the image that a snapshot holds; None: none does.
        error: what is wrong with that; None: nothing.
        targets: what is remembered: target, snapshot, time of each, and whether that is of this generation.
    """

    path: str
    generation: str
    number: int
    block_size: int
    size: int
    changed: int | None
    image: str | None
    error: str | None
    targets: list[dict[str, str | int | bool]] = field(default_factory=list)


@dataclass(frozen=True)
class HeldSnapshot:
    """One snapshot.

    Attributes:
        id: of the snapshot.
        is_ours: whether lvmsync made it.
        whose: a sentence about that.
        devices: what it holds, as far as it is known.
    """

    id: str
    is_ours: bool
    whose: str
    devices: list[str]


@dataclass(frozen=True)
class Status:
    """The module, and all that it has.

    Attributes:
        node: its control node.
        abi: which ABI it has: v1, v7 or up.
        version: that it tells.
        devices: that it tracks.
        snapshots: that are held.
        notes: what the user should know, a sentence each.
    """

    node: str
    abi: str
    version: str
    devices: list[TrackedDevice]
    snapshots: list[HeldSnapshot]
    notes: list[str]


@dataclass(frozen=True)
class TakenSnapshot:
    """A snapshot that was taken to be kept.

    Attributes:
        id: of the snapshot.
        images: path of the image of each device, by the device's path.
        numbers: of the snapshot, by the device's path.
        notes: what the user should know, a sentence each.
    """

    id: str
    images: dict[str, str]
    numbers: dict[str, int]
    notes: list[str]


def attach(words: Sequence[str], *, force: bool) -> list[str]:
    """Have devices tracked from now on; return what the user should know.

    Raises:
        DeviceError: a device is used in a way that the module does not see.
    """
    with connect() as control:
        devices = [name_device(parse_volume(word).path) for word in words]
        notes = begin_tracking(control, devices, force=force)
        if control.abi is Abi.V1:
            notes.append("blksnap 6 begins to track a device with its first snapshot ('lvmsync blksnap sync').")
        return notes


def detach(words: Sequence[str]) -> list[str]:
    """Stop tracking devices; their next copy is compared whole. Return what the user should know.

    Raises:
        ConflictError: a snapshot holds one: v7 and up would detach it all the same, and its image would change.
    """
    with connect() as control:
        devices = [name_device(parse_volume(word).path) for word in words]
        for device in devices:
            require_tracking(control, device)
            held = find_held(control, device)
            if held:
                raise ConflictError(
                    f"{device.path} is held by a snapshot ({held.image}), which would silently change with it from then"
                    " on; release that first: 'lvmsync blksnap release', and see 'lvmsync blksnap status'",
                    device=device.path,
                )
        for device in devices:
            control.detach(device)
        return [f"{device.path} is not tracked any more: its next sync compares all of it." for device in devices]


def take(state: Path, words: Sequence[str], room: Room, *, force: bool) -> TakenSnapshot:
    """Take one snapshot of some devices, and leave it there until it is released."""
    with connect() as control:
        devices = [name_device(parse_volume(word).path) for word in words]
        if len({device.number for device in devices}) < len(devices):
            raise UsageError("a device is named twice")
        notes = begin_tracking(control, devices, force=force)

        def choose() -> Storage:
            return choose_storage(control.abi, room, devices, state)

        with take_snapshot(control, state, devices, choose, keep=True) as taken:
            numbers = {device.path: tracking.number for device, tracking in taken.trackings.items()}
        notes += [*taken.notes, "What is written from now on takes room until 'lvmsync blksnap release'."]
        return TakenSnapshot(taken.id, {one.path: image for one, image in taken.images.items()}, numbers, notes)


def release(state: Path, ids: Sequence[str], *, force: bool) -> list[str]:
    """Destroy snapshots: those that lvmsync made, or some by their ids.

    Args:
        state: the state folder.
        ids: of the snapshots; none: all of ours that no run of lvmsync is using.
        force: also one that lvmsync did not make.

    Raises:
        ConflictError: it is of another program, or a run of lvmsync is using it.
        DeviceError: there is none of that id.

    Returns:
        What was done, a sentence each.
    """
    for one in ids:
        if not _UUID.fullmatch(one):
            raise UsageError(f"'{one}' is no id of a snapshot; 'lvmsync blksnap status' lists them")
    with connect() as control, alone(control):
        found, wrong = read_notes(state)
        if wrong and not (ids and force):
            raise wrong[0]
        # One that cannot be read may be of a snapshot that would be given back.
        said = [str(error) for error in wrong] or give_back(control, state)
        ours = {note.id: note for note in found if note.id}
        there = control.list_snapshots()
        for one in ids or [one for one in there if one in ours and not is_running(state, ours[one])]:
            note = ours.get(one)
            if note and force and is_forgotten(control, note, there) and not is_running(state, note):
                remove_note(state, note)
                said = [sentence for sentence in said if sentence != say_forgotten(note)]
                said.append(f"What was noted of the snapshot {one} was removed, and the file of its storage.")
                continue
            if one not in there:
                raise DeviceError(f"there is no snapshot {one}; 'lvmsync blksnap status' lists those that are held")
            if note is None and not force:
                raise ConflictError(
                    f"lvmsync did not make the snapshot {one}: another backup program may be reading it; give --force"
                    " if it surely is abandoned"
                )
            if note and is_running(state, note):
                raise ConflictError(f"a run of lvmsync of {note.time} is using the snapshot {one}; end that")
            if note:
                destroy_noted(control, state, note)
            else:
                control.destroy(one)
            said.append(f"The snapshot {one} was released.")
        return said or ["There is no snapshot of lvmsync."]


def mark(word: str, offset: int, length: int) -> list[str]:
    """Have a range of a device count as written, now and in the next snapshot: for writes that were not seen.

    Args:
        word: the device.
        offset: bytes.
        length: bytes.
    """
    with connect() as control:
        device = name_device(parse_volume(word).path)
        tracking = require_tracking(control, device)
        if length <= 0 or offset + length > tracking.capacity:
            raise UsageError(
                f"{offset} and {length}: not a range of {device.path}, which has {tracking.capacity} bytes"
            )
        control.mark_dirty(device, [(offset, length)])
        return [f"{length} bytes at {offset} of {device.path} count as written now."]


def show(state: Path) -> Status:
    """Return what the module is, what it tracks, and what is held; nothing is changed."""
    with connect() as control:
        devices, notes = [], [*control.notes]
        for device, tracking in _list_tracked(control):
            devices.append(_show_device(control, state, device, tracking))
        snapshots = _list_held(control, state)
        there = [one.id for one in snapshots]
        found, wrong = read_notes(state)
        notes += [str(error) for error in wrong]
        notes += [say_forgotten(note) for note in found if is_forgotten(control, note, there)]
        return Status(str(control.node), control.abi.name.lower(), str(control.version), devices, snapshots, notes)


def _show_device(control: Control, state: Path, device: DeviceName, tracking: Tracking) -> TrackedDevice:
    held = find_held(control, device)
    changed, wrong = None, None
    if tracking.number and (held or control.abi is not Abi.V1):
        try:
            written = int(np.count_nonzero(control.read_map(device, tracking)))
            changed = min(written * tracking.block_size, tracking.capacity)
        except ChangesLost as error:
            wrong = str(error)
    code = control.read_error(device)
    if code:
        wrong = f"its snapshot is lost ({os.strerror(code)}): the difference storage ran over"
    targets: list[dict[str, str | int | bool]] = [
        {
            "target": base.target,
            "snapshot": base.tracking.number,
            "time": base.time,
            "current": base.tracking.generation == tracking.generation,
        }
        for base in list_bases(state)
        if base.device == device.path
    ]
    return TrackedDevice(
        device.path,
        tracking.generation,
        tracking.number,
        tracking.block_size,
        tracking.capacity,
        changed,
        held.image if held else None,
        wrong,
        targets,
    )


def _list_tracked(control: Control) -> list[tuple[DeviceName, Tracking]]:
    """Return all tracked devices; v7 and up do not list them, so each block device is asked for."""
    found = []
    images = set()
    for path in sorted((blksnap.ROOT / "sys/class/block").glob("*")):
        node = blksnap.ROOT / "dev" / path.name.replace("!", "/")
        try:
            device = name_device(str(node))
            tracking = control.read_tracking(device)
        except DeviceError:
            continue  # no medium, or gone just now
        if tracking:
            images.add(device.number)
            found.append((device, tracking))
    if control.abi is Abi.V1:
        for number, tracking in control.list_trackers().items():
            if number not in images:
                found.append((DeviceName(f"/dev/block/{number[0]}:{number[1]}", number), tracking))
    return found


def _list_held(control: Control, state: Path) -> list[HeldSnapshot]:
    notes = {note.id: note for note in read_notes(state)[0] if note.id}
    found = []
    for one in control.list_snapshots():
        note = notes.get(one)
        devices = note.devices if note else []
        found.append(HeldSnapshot(one, note is not None, _whose(state, note), devices))
    return found


def _whose(state: Path, note: Note | None) -> str:
    if note is None:
        return "not made by lvmsync"
    if note.keep:
        return f"taken by 'lvmsync blksnap take' at {note.time}, until it is released"
    if is_running(state, note):
        return f"of a run of lvmsync since {note.time}"
    return f"left by a run of lvmsync of {note.time} that was cut short; the next one gives it back"

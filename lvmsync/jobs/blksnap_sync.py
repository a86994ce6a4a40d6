"""Bring copies of tracked devices up to date: one snapshot of all, and what its maps say sent from its images.

A target is at a snapshot that is remembered; where the map leads from there to now, that is sent. Where it does
not (the machine or the module was started anew, the device resized, the count began again), image and target are
compared. A target of which nothing is remembered gets everything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from lvmsync.errors import ChangesLost, LvmsyncError, UsageError
from lvmsync.formats.blksnap_abi import Abi
from lvmsync.jobs.blksnap_place import describe, require_targets, require_visible
from lvmsync.jobs.blksnap_points import Memory
from lvmsync.jobs.blksnap_snapshot import Taken, take_snapshot
from lvmsync.jobs.blksnap_storage import Room, Storage, choose_storage
from lvmsync.jobs.outlet import Outlet
from lvmsync.jobs.progress import Receipt
from lvmsync.names import Comparison, Volume, parse_target, parse_volume
from lvmsync.sources.blksnap import (
    Choice,
    Held,
    Seen,
    Watch,
    boot_id,
    build_source,
    connect,
    read_sequence,
)
from lvmsync.sources.source import Reading, Source
from lvmsync.system.blksnap import Control, DeviceName, name_device
from lvmsync.system.device import open_device
from lvmsync.system.identity import identify


def sync(
    state: Path,
    outlets: Sequence[Outlet],
    room: Room,
    *,
    base: Path | None = None,
    compare: bool = False,
    force: bool = False,
    dry_run: bool = False,
    tell: Callable[[Receipt], None] = lambda _: None,
) -> list[Receipt]:
    """Take a snapshot of all devices, bring each copy up to it, remember that, and give the snapshot back.

    A device whose copy fails does not keep the others from theirs; the first error is raised at the end.

    Args:
        state: the state folder.
        outlets: devices and targets.
        room: for what is overwritten meanwhile.
        base: file that remembers the snapshot of the one target; None: one in the state folder for each.
        compare: compare image and target, whatever is remembered.
        force: although writes to a device may not be seen.
        dry_run: whether nothing is to be left behind: no tracking that was not there.
        tell: called with each receipt at the end, also if another device failed.

    Raises:
        UsageError: a device or a target is named twice, or a target is a device.
        ChangesLost: the snapshot did not last; what was remembered stays.
    """
    if base and len(outlets) > 1:
        raise UsageError("--base is of one target; leave it away for several")
    devices = [name_device(parse_volume(outlet.word).path) for outlet in outlets]
    if len({device.number for device in devices}) < len(devices):
        raise UsageError("a device is named twice; give each device once, and sync other targets in a run of their own")
    if len({outlet.target for outlet in outlets}) < len(outlets):
        raise UsageError("a target is named twice")
    places = [parse_target(outlet.target) for outlet in outlets]
    targets = [Volume(place.name).path for place in places if place.host is None]
    require_targets(devices, targets)
    memories = [Memory(state, outlet.target, base) for outlet in outlets]
    for memory in memories:
        memory.read()  # refused now, not when a snapshot is held
    receipts: list[Receipt] = []
    try:
        with connect() as control:
            if dry_run:
                _require_tracked(control, devices)
            notes = begin_tracking(control, devices, force=force)

            def choose() -> Storage:
                return choose_storage(control.abi, room, devices, state, targets)

            with take_snapshot(control, state, devices, choose) as taken, taken.watcher.running():
                errors = []
                for outlet, device, memory in zip(outlets, devices, memories, strict=True):
                    job = _Job(control, taken, outlet, device, memory, compare=compare)
                    try:
                        receipts.append(memory.remember(job.run()))
                    except LvmsyncError as error:
                        errors.append(error)
                _raise_first(errors)
    except LvmsyncError as error:
        for receipt in receipts:
            error.add_note(f"{receipt.target} was brought up to date")
            tell(receipt)
        raise
    notes += [*taken.notes, *taken.watcher.notes]
    receipts = [replace(receipt, notes=[*notes, *receipt.notes]) for receipt in receipts]
    for receipt in receipts:
        tell(receipt)
    return receipts


def _require_tracked(control: Control, devices: Sequence[DeviceName]) -> None:
    for device in devices:
        if control.read_tracking(device) is None:
            raise UsageError(
                f"--dry-run: {device.path} is not tracked yet, and to see more its tracking would have to begin; the"
                " first sync does that, and sends everything or compares",
                device=device.path,
            )


def _raise_first(errors: list[LvmsyncError]) -> None:
    if errors:
        first, *others = errors
        for other in others:
            first.add_note("; ".join([str(other), *getattr(other, "__notes__", ())]))
        raise first


def begin_tracking(control: Control, devices: Sequence[DeviceName], *, force: bool) -> list[str]:
    """Have devices tracked that are not yet; return what the user should know.

    Raises:
        DeviceError: a device is used in a way that the module does not see.
    """
    notes = [*control.notes]
    for device in devices:
        notes += require_visible(device, control.abi, force=force)
    for device in devices:
        if control.read_tracking(device) is None:
            notes += describe(device)
            if control.abi is not Abi.V1:
                control.attach(device)
                notes.append(f"{device.path} was not tracked; it is from now on.")
    return notes


class _Job:
    """One device of a sync, while the snapshot is held."""

    def __init__(
        self, control: Control, taken: Taken, outlet: Outlet, device: DeviceName, memory: Memory, *, compare: bool
    ) -> None:
        self._taken = taken
        self._outlet = outlet
        self._memory = memory
        self._compare = compare
        self._device = device
        self._image = taken.images[device]
        self._control = control

    def run(self) -> Receipt:
        """Choose what is to be sent, send it, and return the receipt."""
        with ExitStack() as stack:
            image = stack.enter_context(open_device(self._image))
            tracking = self._taken.trackings[self._device]
            watch = Watch(self._control, self._device, tracking, Held(self._taken.id, self._image), image)
            with open_device(self._device.path) as opened:
                seen = Seen(
                    self._device,
                    identify(opened.fd),
                    boot_id(),
                    tracking,
                    is_own=True,
                    sequence=read_sequence(self._device),
                )
            is_anew = self._compare or self._outlet.is_new
            choice = self._memory.start_anew(seen) if is_anew else self._memory.choose(seen)
            source, lost = self._build(watch, choice)
            if lost and not self._outlet.is_new:
                source = stack.enter_context(self._open_compared(source, lost))
            return self._outlet.send(source, source.base is not None)

    def _build(self, watch: Watch, choice: Choice) -> tuple[Source, str]:
        """Return what to send: changes, or everything, with a reason to compare first, if there is one."""
        image = watch.image
        assert image is not None

        def healthy() -> None:
            self._taken.watcher.require_healthy(self._device)

        def build(since: int | None) -> Source:
            word = f"blksnap:{self._outlet.word}"
            return build_source(word, watch, since, image, is_own=True, notes=choice.notes, also=healthy)

        try:
            return build(choice.since), choice.lost
        except ChangesLost as error:  # a map that is not to be believed
            return build(None), str(error)

    @contextmanager
    def _open_compared(self, whole: Source, why: str) -> Iterator[Source]:
        """Compare the image with the target, and yield where they differ, under the name and head of the snapshot."""
        name = Comparison(Volume(self._image), size=whole.size)
        # Nothing writes to an image; that it is the same to the end, `confirm` sees.
        with self._outlet.compare(name, Reading(frozen=True)) as found:

            def confirm() -> None:
                found.confirm()
                whole.confirm()

            yield replace(
                found,
                name=whole.name,
                head=whole.head,
                origin=whole.origin,
                confirm=confirm,
                notes=(f"{why}: the target is compared with all of it.", *found.notes),
            )

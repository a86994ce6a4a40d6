"""A snapshot of blksnap for as long as it is needed: noted, given room, taken, watched, and given back.

The order is: give back what cut-short runs have left; note that one will be made; make it; note its id; give it
room; take it. Whatever comes next, it is destroyed before its note goes.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from lvmsync.errors import ChangesLost, ConflictError, LvmsyncError
from lvmsync.formats.blksnap import Tracking
from lvmsync.formats.blksnap_abi import SECTOR, Abi
from lvmsync.jobs.blksnap_notes import (
    Noted,
    alone,
    destroy_noted,
    give_back,
    is_forgotten,
    list_notes,
    note_snapshot,
    remove_note,
    say_forgotten,
)
from lvmsync.jobs.blksnap_storage import Storage
from lvmsync.sources.blksnap import KEPT, find_held
from lvmsync.system.blksnap import Control, DeviceName

TICKS = 10
"""How long one wait for events takes, in ticks of the scheduler (1 to 10 ms each), whatever its field is called."""


@dataclass
class Watcher:
    """Hears of a snapshot's events while it is held: answers the call for room, and remembers what went wrong.

    An event is told once, so there is one watcher a snapshot.

    Attributes:
        control: to ask by.
        id: of the snapshot.
        storage: where more room is.
        failed: errno by device number, of images that are lost.
        notes: what the user should know, a sentence each.
    """

    control: Control
    id: str
    storage: Storage
    failed: dict[tuple[int, int] | None, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    _trouble: BaseException | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _stop: threading.Event = field(default_factory=threading.Event)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Watch in a thread of its own."""
        thread = threading.Thread(target=self._run, name="blksnap-events", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._stop.set()
            thread.join()

    def drain(self) -> None:
        """Deal with all events that have come so far.

        Raises:
            LvmsyncError: the module failed, here or in the thread.
        """
        with self._lock:
            if self._trouble:
                raise self._trouble
            while self._deal(1):
                pass

    def require_healthy(self, device: DeviceName) -> None:
        """Raise ChangesLost if the image of a device is lost."""
        self.drain()
        for number, code in self.failed.items():
            if number in (device.number, None):
                room = f" of {self.storage.given} bytes" if self.storage.given else f" of {self.storage.limit} bytes"
                raise ChangesLost(
                    f"the snapshot of {device.path} was lost while it was read ({os.strerror(code)}): its difference"
                    f" storage{room} ran over; {KEPT}. Give it more room (--limit), and run this again",
                    device=device.path,
                )

    def _run(self) -> None:
        while not self._stop.is_set():
            with self._lock:
                try:
                    is_quiet = not self._deal(TICKS)
                except BaseException as error:  # noqa: BLE001  # told by the next `drain`
                    self._trouble = error
                    return
            if is_quiet:
                self._stop.wait(0.002)  # so that others get the lock

    def _deal(self, ticks: int) -> bool:
        """Wait for an event, deal with it, and tell whether there was one."""
        event = self.control.wait_event(self.id, ticks)
        if event is None:
            return False
        if event.kind == "corrupted":
            self.failed[event.device] = event.errno
        elif self.storage.path is None:
            if not self.storage.append(self.control, self.id, event.sectors * SECTOR):
                self._say(f"The module asks for more than the {self.storage.given} bytes of difference storage.")
        else:
            self._say(f"The difference storage {self.storage.path} is at its limit of {self.storage.limit} bytes.")
        return True

    def _say(self, note: str) -> None:
        if note not in self.notes:
            self.notes.append(note)


@dataclass(frozen=True)
class Taken:
    """A snapshot that was taken.

    Attributes:
        id: of the snapshot.
        images: path of each device's image.
        trackings: what the module said of each device right after it was taken.
        watcher: of its events; the first ones are dealt with.
        notes: what the user should know, a sentence each.
    """

    id: str
    images: dict[DeviceName, str]
    trackings: dict[DeviceName, Tracking]
    watcher: Watcher
    notes: list[str]


@contextmanager
def take_snapshot(
    control: Control, state: Path, devices: Sequence[DeviceName], choose: Callable[[], Storage], *, keep: bool = False
) -> Iterator[Taken]:
    """Take one snapshot of some devices and yield it; it is destroyed at the end, whatever happened.

    Args:
        control: to ask by.
        state: the state folder.
        devices: which; v7 and up must track them already.
        choose: returns room for it, once what cut-short runs have left is given back; a file that is made for it
            is removed with it.
        keep: it stays, if nothing fails; it is given all its room at once, for nobody will answer later.

    Raises:
        ConflictError: on v1 there is one already; or a device is in one.
        ChangesLost: a device was detached while it was taken.
    """
    with ExitStack() as stack:
        with alone(control):
            notes = give_back(control, state)
            before = control.list_snapshots()
            _require_free(control, devices, before)
            storage = choose()
            _require_unwritten(control, state, storage, before)
            noted = stack.enter_context(note_snapshot(state, [device.path for device in devices], before))
            stack.enter_context(_giving_up(control, state, noted, notes))
            snapshot = _make(control, devices, storage, noted)
        watcher = Watcher(control, snapshot, storage)
        if control.abi is Abi.V1:
            watcher.drain()  # v1 asks for its first portion at once
            while (keep or not storage.given) and storage.append(control, snapshot, storage.limit if keep else 0):
                pass
        _take(control, snapshot, noted)
        trackings = {device: _read_taken(control, device) for device in devices}
        if control.abi is Abi.V1 and len(devices) > 1:
            notes.append("blksnap 6 takes the devices one after the other: the snapshot is of no common point in time.")
        yield Taken(snapshot, control.images(snapshot, devices), trackings, watcher, notes)
        if keep:
            noted.write(keep=True)


def _require_free(control: Control, devices: Sequence[DeviceName], ids: list[str]) -> None:
    if ids and control.abi is Abi.V1:
        raise ConflictError(
            f"snapshot {' and '.join(ids)} is held, and blksnap 6 would forget it if another was made; if it is yours,"
            " release it: 'lvmsync blksnap release', and see 'lvmsync blksnap status'"
        )
    for device in devices:
        if control.abi is not Abi.V1 and control.read_tracking(device) is None:
            continue
        held = find_held(control, device) if ids else None
        if held:
            raise ConflictError(
                f"{device.path} is held by a snapshot already ({held.image}); if it is yours, 'lvmsync sync"
                f" blksnap:{device.path} TARGET' sends from it, and 'lvmsync blksnap release' gives it back",
                device=device.path,
            )


def _require_unwritten(control: Control, state: Path, storage: Storage, ids: list[str]) -> None:
    """Raise ConflictError if a snapshot that v1 has forgotten may write to the spare device that is to be used."""
    if storage.spare is None:
        return
    for note in list_notes(state):
        if note.spare_number == storage.spare.word and is_forgotten(control, note, ids):
            raise ConflictError(
                f"{storage.spare.path} may still be written to: {say_forgotten(note)} Name another place until then",
                device=storage.spare.path,
            )


def _make(control: Control, devices: Sequence[DeviceName], storage: Storage, noted: Noted) -> str:
    """Make a snapshot, and note its id before anything is in it."""
    spare = storage.spare
    noted.write(file=storage.file, spare=spare.path if spare else None, spare_number=spare.word if spare else None)
    storage.prepare()
    if control.abi is Abi.V1:
        snapshot = control.create(devices)
        noted.write(id=snapshot)
        return snapshot
    snapshot = control.create([], storage.path, storage.limit)
    noted.write(id=snapshot)
    for device in devices:
        control.add(snapshot, device)
    return snapshot


def _take(control: Control, snapshot: str, noted: Noted) -> None:
    """Take a snapshot; that v1 may write by itself from then on is noted before."""
    if control.abi is not Abi.V1:
        control.take(snapshot)
        return
    noted.write(is_taken=True)
    try:
        control.take(snapshot)
    except LvmsyncError:
        with suppress(LvmsyncError):
            noted.write(is_taken=False)
        raise


def _read_taken(control: Control, device: DeviceName) -> Tracking:
    """Return how far the tracking of a device is that was just taken."""
    tracking = control.read_tracking(device)
    if tracking is None or not tracking.number:
        raise ChangesLost(
            f"{device.path} was detached while its snapshot was taken, so that it shows no one state; {KEPT}. Run this"
            " again",
            device=device.path,
        )
    return tracking


@contextmanager
def _giving_up(control: Control, state: Path, noted: Noted, notes: list[str]) -> Iterator[None]:
    """Give a snapshot up at the end; if that fails as well, the first error is the one to be told."""
    try:
        yield
    except BaseException as error:
        try:
            for said in _give_up(control, state, noted):
                error.add_note(said)
        except LvmsyncError as failure:
            error.add_note(f"its snapshot could not be given back, the next run tries again: {failure}")
        raise
    notes += _give_up(control, state, noted)


def _give_up(control: Control, state: Path, noted: Noted) -> list[str]:
    """Destroy a snapshot, if it is still there, and then forget it; one that is to be kept stays.

    Returns:
        What the user should know, a sentence each.
    """
    note = noted.note
    if note.keep:
        return []
    there = control.list_snapshots()
    if note.id is None and set(there) - set(note.before):
        return []  # we may have been stopped right after it was made: the next run looks
    if note.id in there:  # a take that failed destroys it on v1
        destroy_noted(control, state, note)
    elif is_forgotten(control, note, there):
        return [say_forgotten(note)]
    else:
        remove_note(state, note)
    return []

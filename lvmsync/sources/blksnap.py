"""What blksnap saw written since one of its snapshots: of a device that it tracks, or from a map that was saved.

Of a device the map is the one that a snapshot froze, and the data is that snapshot's image: both are of the
same moment, and later writes change neither. The image ends with the snapshot, and silently when the device is
detached or the difference storage runs over; so all of it is asked again once the data has been read.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from lvmsync.errors import ChangesLost, ConflictError, DeviceError, UsageError
from lvmsync.extents import ChangeMap
from lvmsync.formats.blksnap import MAX_NUMBER, Tracking, changes, check_map
from lvmsync.formats.blksnap_abi import Abi
from lvmsync.history import Point
from lvmsync.interfaces import Readable
from lvmsync.names import BlockMap, parse_volume
from lvmsync.sources.blksnap_saved import open_base, open_saved, require_order
from lvmsync.sources.head import make_point
from lvmsync.sources.source import Reading, Source, Unread
from lvmsync.system.blksnap import Control, DeviceName, name_device, open_control
from lvmsync.system.device import Device, aligned_buffer, open_device, opening_failed
from lvmsync.system.identity import boot_id as read_boot_id
from lvmsync.system.identity import identify

ROOT = Path("/")
"""Where dev, sys and proc are."""

KEPT = "what was sent is not kept, and the copy stays at the snapshot that it was at"


@dataclass(frozen=True)
class Seen:
    """What is there when the snapshot to start from is chosen.

    Attributes:
        device: the tracked one.
        identity: what makes it this device and no other.
        boot: id of the boot that the machine runs since.
        tracking: what the module says of it; its number is that of the snapshot that is read.
        is_own: whether the data is that snapshot's image.
        sequence: the kernel's number of this disk being there, as of `read_sequence`.
    """

    device: DeviceName
    identity: dict[str, str]
    boot: str
    tracking: Tracking
    is_own: bool
    sequence: str | None = None


@dataclass(frozen=True)
class Choice:
    """From which snapshot on changes are wanted.

    Attributes:
        since: its number; None: everything.
        lost: why a target that was remembered must be compared; empty: it need not be.
        notes: what the user should know of the choice.
    """

    since: int | None
    lost: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Held:
    """A snapshot that holds a device.

    Attributes:
        id: of the snapshot; None where the module does not tell which one it is.
        image: path of the device that shows what it holds.
    """

    id: str | None
    image: str


def connect() -> Control:
    """Open the module's control node.

    Raises:
        DeviceError: there is none, or it is of a generation that is not known.
    """
    return open_control(ROOT)


def boot_id() -> str:
    """Return what names this boot of the machine."""
    return read_boot_id(ROOT)


def read_sequence(device: DeviceName) -> str | None:
    """Return the number that the kernel gave a disk when it came, the next one each time; None: it tells none."""
    folder = ROOT / "sys/dev/block" / device.word
    for place in (folder / "diskseq", folder.resolve().parent / "diskseq"):  # the parent: a partition's disk
        try:
            return place.read_text().strip()
        except OSError:
            continue
    return None


def is_device(name: BlockMap) -> bool:
    """Tell whether a name is of a block device, and not of a saved map.

    Raises:
        DeviceError: there is nothing of that name.
    """
    try:
        return stat.S_ISBLK(Path(name.place.path).stat().st_mode)
    except OSError as error:
        raise opening_failed(name.place.path, error) from error


def find_held(control: Control, device: DeviceName) -> Held | None:
    """Return the snapshot that holds a device; None: there is none, or it was not taken yet."""
    ids = control.list_snapshots()
    for one in ids:
        try:
            image = control.images(one, [device])[device]
        except DeviceError as error:  # it is of other devices, not taken yet, or gone just now
            if isinstance(error.__cause__, OSError) and error.__cause__.errno not in (errno.ENODEV, errno.ESRCH):
                raise
            continue
        # v7 and up tell of the device, whichever snapshot they are asked for.
        return Held(one if control.abi is Abi.V1 or len(ids) == 1 else None, image)
    return None


def require_tracking(control: Control, device: DeviceName) -> Tracking:
    """Return what the module says of a device.

    Raises:
        DeviceError: it does not track it.
    """
    tracking = control.read_tracking(device)
    if tracking is None:
        attach = f"run 'lvmsync blksnap attach {device.path}'"
        step = "its first snapshot starts that" if control.abi is Abi.V1 else attach
        raise DeviceError(f"{device.path} is not tracked by blksnap; {step}", device=device.path)
    return tracking


@contextmanager
def open_map(name: BlockMap, reading: Reading) -> Iterator[Source]:
    """Open the changes that a map of blksnap tells; see `open_source`."""
    if not is_device(name):
        with open_saved(name, reading) as source:
            yield source
        return
    since = name.since
    if since is None:
        raise UsageError(
            f"{name.word}: since which snapshot? Write {name.word},since=N with the number that your copy is of;"
            " 'lvmsync blksnap sync' remembers it for each target"
        )
    with open_live(name, reading, lambda seen: take_word(since, seen)) as source:
        yield source


def take_word(since: int, seen: Seen) -> Choice:
    """Return a choice that a user made."""
    generation = seen.tracking.generation
    note = f"That the copy is of snapshot {since} of generation {generation}, the one that runs, is your word."
    if since == 0:
        note += f" Since 0 is what was written since tracking began; everything is full:{seen.device.path}."
    return Choice(since, notes=(note,))


@contextmanager
def open_live(name: BlockMap, reading: Reading, choose: Callable[[Seen], Choice]) -> Iterator[Source]:
    """Open what was written to a tracked device since the snapshot that ``choose`` says.

    Raises:
        ChangesLost: the map does not reach back to that snapshot.
        DeviceError: no snapshot holds the device, and its data is wanted.
    """
    given = {"block-size": name.block_size, "number": name.number, "size": name.size}
    for key, value in given.items():
        if value is not None:
            raise UsageError(f"{key}={value}: {name.place.word} is a device, and the module tells; leave {key}= away")
    device = name_device(name.place.path)
    with ExitStack() as stack:
        control = stack.enter_context(connect())
        tracking = require_tracking(control, device)
        held = find_held(control, device)
        if held is None and (reading.with_data or control.abi is Abi.V1):
            raise DeviceError(
                f"no snapshot holds {device.path}, so there is nothing to read that keeps still; take one with 'lvmsync"
                f" blksnap take {device.path}', or let 'lvmsync blksnap sync' do all of it",
                device=device.path,
            )
        if held and not tracking.number:
            raise ChangesLost(
                f"{device.path} was attached anew since the snapshot that holds it was taken, whose image changes with"
                " it now; release that ('lvmsync blksnap release') and take another",
                device=device.path,
            )
        image = stack.enter_context(open_device(held.image)) if held else None
        elsewhere = None
        if reading.data_source:
            elsewhere = stack.enter_context(open_device(parse_volume(reading.data_source).path))
        is_own = image is not None and (elsewhere is None or _is_same(elsewhere, image))
        seen = Seen(device, _identity(device), boot_id(), tracking, is_own, read_sequence(device))
        choice = choose(seen)
        if choice.lost:
            raise ChangesLost(
                f"{choice.lost}; 'lvmsync blksnap sync' compares all of it with the target, and so does 'compare:'",
                device=device.path,
            )
        notes = list(choice.notes)
        if held is None:
            notes.append(
                f"No snapshot holds {device.path}: this is the map of its last one, number {tracking.number}, and what"
                " was written since is not in it."
            )
        if elsewhere and not is_own:
            notes.append(f"That {reading.data_source} holds the state of snapshot {tracking.number} is your word.")
        watch = Watch(control, device, tracking, held, image)
        yield build_source(
            name.word,
            watch,
            choice.since,
            elsewhere or image or Unread(name.word, tracking.capacity),
            is_own=is_own,
            notes=tuple(notes),
            base_data=open_base(name, reading, stack),
        )


@dataclass(frozen=True)
class Watch:
    """A device in the snapshot that is read, and how it is known to be healthy still.

    Attributes:
        control: to ask by.
        device: the tracked one.
        tracking: as it was right after the snapshot was taken.
        held: the snapshot; None: the map is read without one.
        image: of it, open for reading.
    """

    control: Control
    device: DeviceName
    tracking: Tracking
    held: Held | None
    image: Device | None

    def confirm(self) -> None:
        """Raise ChangesLost unless everything that was read is of this snapshot."""
        now = self.control.read_tracking(self.device)
        if now != self.tracking:
            what = "is not tracked any more" if now is None else f"was {_words(self.tracking)} and is {_words(now)}"
            raise self._lost(f"it {what}: it was detached, resized, or another snapshot was taken")
        if self.held is None:
            return
        found = find_held(self.control, self.device)
        if found is None or found.image != self.held.image:
            raise self._lost("it is gone")
        code = self.control.read_error(self.device)
        if code:
            reason = os.strerror(abs(code))
            raise self._lost(f"its image failed ({reason}); if that is for want of room, give more difference storage")
        if self.image:
            # After an overflow every read fails, except one that was under way. Events would tell as well, but
            # whoever takes one takes it away from the snapshot's owner.
            try:
                self.image.read([0], [min(4096, self.image.size)], aligned_buffer(min(4096, self.image.size)))
            except DeviceError as error:
                raise self._lost(f"its image cannot be read any more ({error})") from error

    def _lost(self, what: str) -> ChangesLost:
        return ChangesLost(
            f"the snapshot of {self.device.path} did not last until its data was read: {what}; {KEPT}",
            device=self.device.path,
        )


def build_source(
    word: str,
    watch: Watch,
    since: int | None,
    data: Readable,
    *,
    is_own: bool,
    notes: tuple[str, ...] = (),
    base_data: Readable | None = None,
    also: Callable[[], None] = lambda: None,
) -> Source:
    """Return what was written to a tracked device since one of its snapshots as a source.

    Args:
        word: what messages call it.
        watch: the device and its snapshot.
        since: number of the snapshot that is the base; None: everything.
        data: where the head's data is read.
        is_own: whether that is the snapshot's image.
        notes: as of `Source`.
        base_data: as of `Source`.
        also: asked when the data has been read, besides the watch; raises if something is wrong.

    Raises:
        ChangesLost: the map does not reach back to ``since``.
        DeviceError: the image has not the device's size.
    """
    tracking = watch.tracking
    if data.size < tracking.capacity or (is_own and data.size != tracking.capacity):
        raise DeviceError(
            f"{data.name} has {data.size} bytes, and blksnap tracks {tracking.capacity} of {watch.device.path}: it was"
            " resized; take a new snapshot",
            device=data.name,
        )
    if since is not None:
        require_order(since, tracking.number, watch.device.path)
    found = watch.control.read_map(watch.device, tracking)
    if since is None:
        changed = ChangeMap.whole(tracking.capacity)
    else:
        check_map(found, tracking)
        changed = changes(found, since, tracking.block_size, tracking.capacity)

    def confirm() -> None:
        watch.confirm()
        also()
        if not np.array_equal(watch.control.read_map(watch.device, tracking), found):
            raise ConflictError(
                f"the image of {watch.device.path} was written to, or a range was marked, while it was read: what was"
                " read is no one state; run this again",
                device=watch.device.path,
            )

    base = Point(f"blksnap:{tracking.generation}:{since}") if since is not None else None
    head = make_head(tracking, base) if is_own else base
    return Source(
        kind="blksnap",
        name=word,
        size=tracking.capacity,
        granularity=tracking.block_size,
        base=base,
        head=head,
        changes=changed,
        holes=ChangeMap.empty(),
        data=data,
        confirm=confirm,
        notes=notes,
        base_data=base_data,
        is_full=since is None,
        origin=watch.device.path,
    )


def make_head(tracking: Tracking, base: Point | None) -> Point:
    """Return the point that a copy of a snapshot's image is at."""
    if tracking.number == MAX_NUMBER:
        # It has the generation of the snapshots that come after it, and a higher number than they.
        return make_point()
    time = datetime.now(UTC).isoformat(timespec="seconds")
    return Point(f"blksnap:{tracking.generation}:{tracking.number}", base.id if base else None, time)


def _is_same(one: Device, other: Device) -> bool:
    return one.number == other.number if one.number else os.path.samestat(os.fstat(one.fd), os.fstat(other.fd))


def _identity(device: DeviceName) -> dict[str, str]:
    with open_device(device.path) as opened:
        return identify(opened.fd)


def _words(tracking: Tracking) -> str:
    return f"at snapshot {tracking.number} of generation {tracking.generation}, {tracking.capacity} bytes"

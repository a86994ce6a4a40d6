"""A past state as a block device: a COW store of dm-snapshot that is made for it, over the mirror or over zeros.

The order is: the record, the mirror's snapshot (if one was asked for), the origin, which holds the mirror, the store,
the view, the file system. A run that is killed leaves a record, by which `umount` takes down what was made of it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

from lvmsync.chain.catalogue import ArchivedPoint
from lvmsync.errors import ConflictError, LvmsyncError, VerifyError
from lvmsync.formats.snapshot import SECTOR, Layout
from lvmsync.formats.snapshot_store import NewStore
from lvmsync.interfaces import Readable
from lvmsync.jobs.archive.cow import make_file, plan_store, write_store
from lvmsync.jobs.archive.mirror import ClaimedMirror, claim_mirror
from lvmsync.jobs.archive.mount_plan import (
    MountOptions,
    MountReceipt,
    find_volume,
    plan_mount,
    require_place,
    require_possible,
)
from lvmsync.jobs.archive.mounted import Mounted, lock_mount, write_record
from lvmsync.jobs.archive.past import Past, open_past
from lvmsync.jobs.archive.restore import find_route
from lvmsync.jobs.archive.shelf import Shelf
from lvmsync.jobs.archive.umount import clear
from lvmsync.jobs.progress import Report, Stopwatch
from lvmsync.system import dm, loop, lvm, lvm_commands, mounting, past_views
from lvmsync.system.dm import Number


class _Below:
    """The origin, which is there only after the members were opened (a `Readable`)."""

    def __init__(self, name: str, size: int) -> None:
        self.name = name
        self.size = size
        self.device: Readable | None = None

    def read(self, offsets: Sequence[int], lengths: Sequence[int], out: memoryview) -> None:
        assert self.device is not None
        self.device.read(offsets, lengths, out)


def mount(
    shelf: Shelf, point: ArchivedPoint, mirror: str | None, state: Path, options: MountOptions, report: Report
) -> MountReceipt:
    """Make a block device of a point, and mount its file system if that is wanted.

    Args:
        shelf: the archive.
        point: of it.
        mirror: path of the mirror; None: what needs none.
        state: the state folder.
        options: how.
        report: told how far it is.

    Raises:
        LvmsyncError: it cannot be; nothing is left of it then, or a note says what.
    """
    watch = Stopwatch()
    require_possible(point, mirror, options, shelf.store.name)
    with ExitStack() as claim, ExitStack() as stack:
        claimed = claim.enter_context(claim_mirror(mirror, state, shelf.catalogue)) if mirror else None
        route = find_route(shelf.catalogue, point, claimed.mirror if claimed else None, shelf.store.name)
        notes = []
        if claimed and route.mirror is None:
            notes.append(f"{mirror} is not needed for this point: a full copy is nearer, and nothing holds the mirror")
            claim.close()
            claimed = None
        name = f"{shelf.store.name}, point #{point.number}"
        below = _Below(mirror or "", claimed.mirror.device.size) if claimed else None
        past = stack.enter_context(open_past(shelf.store, route.members, name, point.size, below))
        store = plan_store(past, is_over_mirror=claimed is not None)
        size = store.stored_with(options.room) if options.is_writable else store.stored
        volume = find_volume(claimed) if claimed and options.with_snapshot else None
        record = plan_mount(shelf, point, claimed, volume, state, options)
        require_place(record, size)
        making = _Making(record, state, options, past, store, size, report)
        if not options.dry_run:
            with lock_mount(state, record.id):
                notes += making.run(claimed, volume, below, claim)
        return MountReceipt(
            "archive mount", shelf.store.name, point.number, point.id, record.path, point.size, record.directory,
            claimed.canonical if claimed else None, record.snapshot, record.store, size, making.written,
            store.exceptions, store.chunk_size, options.is_writable, watch.seconds, options.dry_run, notes,
        )  # fmt: skip


@dataclass
class _Making:
    """One mount that is being made."""

    record: Mounted
    state: Path
    options: MountOptions
    past: Past
    store: NewStore
    size: int
    report: Report
    written: int = 0

    def run(
        self, claimed: ClaimedMirror | None, volume: lvm.LogicalVolume | None, below: _Below | None, claim: ExitStack
    ) -> list[str]:
        """Make everything; take it down again if that fails.

        Returns:
            What the user should know, a sentence each.
        """
        write_record(self.state, self.record)  # from here on it is found, whatever happens
        try:
            view = self._make(claimed, volume, below, claim)
            notes = self._mount(view)
            write_record(self.state, replace(self.record, is_ready=True))
        except BaseException as error:
            try:
                clear(self.state, self.record)
            except LvmsyncError as left:
                error.add_note(f"and not all of it could be taken down: {left}")
            raise
        return notes

    def _make(
        self, claimed: ClaimedMirror | None, volume: lvm.LogicalVolume | None, below: _Below | None, claim: ExitStack
    ) -> dm.Mapped:
        with ExitStack() as stack:
            number = None
            if claimed and volume:
                number = self._take_snapshot(claimed, volume)
                claim.close()  # what the mirror holds from now on is of no matter
            elif claimed:
                claimed.let_go()
                number = stack.enter_context(_device_of(claimed))
            origin = self._make_origin(number, below)
            if claimed and not volume and claimed.was_written:
                raise ConflictError(
                    f"{claimed.canonical} was written to by something else at this very moment; try again when that has"
                    " ended",
                    device=claimed.canonical,
                )
            if below:
                below.device = stack.enter_context(dm.open_number(origin.number))
            return self._make_view(origin, stack.enter_context(self._stored()))

    def _take_snapshot(self, claimed: ClaimedMirror, volume: lvm.LogicalVolume) -> Number:
        assert self.record.snapshot is not None
        snapshot = lvm_commands.take_snapshot(
            volume,
            self.record.snapshot.partition("/")[2],
            tags=[f"{lvm_commands.MOUNT_TAG}{self.record.id}"],
            size=self.options.cow_size,
            active=True,
        )
        if claimed.was_written or snapshot.number is None:
            raise ConflictError(
                f"{volume.full_name} was written to while its snapshot was taken, or that is not active; try again",
                device=volume.full_name,
            )
        return snapshot.number

    def _make_origin(self, number: Number | None, below: _Below | None) -> dm.Mapped:
        """Make the device that the view lies on: the mirror, and zeros where it ends."""
        sectors = self.record.size // SECTOR
        covered = min(below.size // SECTOR, sectors) if below and number else 0
        lines = []
        if number and covered:
            lines.append(f"0 {covered} linear {number[0]}:{number[1]} 0")
        if covered < sectors:
            lines.append(f"{covered} {sectors - covered} zero")
        uuid = past_views.uuid_of(self.record.id, past_views.ORIGIN)
        return past_views.create(self.record.name + past_views.ORIGIN, uuid, lines, read_only=True)

    @contextmanager
    def _stored(self) -> Iterator[Number]:
        """Make the store, fill it, and yield its device."""
        record, read_only = self.record, not self.options.is_writable
        if record.is_volume:
            lvm_commands.create_volume(record.store, self.size)
            path = f"/dev/{record.store}"
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        else:
            path = record.store
            fd = make_file(Path(path), self.size, is_reserved=not read_only)
        try:
            self.written = write_store(self.store, self.past, fd, path, self.report, is_blank=not record.is_volume)
            number = os.fstat(fd).st_rdev
        finally:
            os.close(fd)
        device = (os.major(number), os.minor(number))
        with nullcontext(device) if record.is_volume else loop.attached(path, read_only=read_only) as found:
            yield found

    def _make_view(self, origin: dm.Mapped, store: Number) -> dm.Mapped:
        (a, b), (c, d) = origin.number, store
        chunk = self.store.chunk_size // SECTOR
        line = f"0 {self.record.size // SECTOR} snapshot {a}:{b} {c}:{d} P {chunk}"
        read_only = not self.options.is_writable
        view = past_views.create(self.record.name, past_views.uuid_of(self.record.id), [line], read_only=read_only)
        self._require_taken(view)
        return view

    def _require_taken(self, view: dm.Mapped) -> None:
        """Make sure that the kernel has understood the store as it was meant."""
        snapshot = dm.find_snapshot(view.number)
        usage = snapshot.read_usage() if snapshot else None
        layout = Layout(self.store.chunk_size, self.size // self.store.chunk_size)
        found = layout.count_allocated(usage.allocated) if usage else None
        if found != self.store.exceptions:
            raise VerifyError(
                f"{view.path}: the kernel finds {found} chunks in its store, and {self.store.exceptions} were written",
                device=view.path,
            )

    def _mount(self, view: dm.Mapped) -> list[str]:
        if self.record.directory is None:
            return []
        note = mounting.mount(view.path, self.record.directory, read_only=not self.options.is_writable)
        return [note] if note else []


@contextmanager
def _device_of(claimed: ClaimedMirror) -> Iterator[Number]:
    """Yield the block device that a mirror is, or that its file is made."""
    number = os.fstat(claimed.fd).st_rdev
    if number:
        yield os.major(number), os.minor(number)
        return
    with loop.attached(str(Path(claimed.mirror.device.name).resolve()), read_only=True) as found:
        yield found

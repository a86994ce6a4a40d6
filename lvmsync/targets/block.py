"""A block device or image file that changes are applied to: claimed for us alone before anything is written."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import os
import re
import stat
from collections.abc import Callable, Iterator, Sequence
from itertools import repeat
from pathlib import Path

import numpy as np

from lvmsync.errors import DeviceError, SyncFailed
from lvmsync.extents import MAX_SIZE, Offsets
from lvmsync.stream.frames import Changes, Data, Hole, Zero
from lvmsync.system import dm, identity, ioctl, past_views
from lvmsync.system.device import Device, open_device, opening_failed, require_storage
from lvmsync.system.ledger import remove_file, sync_folder

_ZEROS = memoryview(bytes(1 << 20))
_BY_LVM = 1 << 20
"""Bytes at the beginning of a new volume where LVM may write: of a pool that does not zero its blocks, the rest of such
a block holds anything."""


class BlockTarget:
    """An open target (a `Target`). It reads as a `Device` does; writes go through the page cache until ``sync``.

    Attributes:
        name: the path as the user gave it.
        canonical: the name that it keeps over reboots.
        identity: what makes it this device and no other.
        created: whether the file was made by us, for this.
        is_block: whether it is a block device.
        number: ``(major, minor)`` of a block device; None for a file.
        fd: the open descriptor.
        before_write: called with each frame before it is written; what it raises comes out of `write`.
        is_blank: whether it was made for this, and nothing was written to it before: then a thin volume reads as zeros
            wherever we have not written, and neither holes nor zeros cost anything there.
    """

    def __init__(self, name: str, fd: int, reader: Device, *, created: bool) -> None:
        self.name = name
        self.canonical = identity.canonical_name(name, fd)
        self.identity = identity.identify(fd)
        self.created = created
        self.is_block = reader.is_block
        self.number = reader.number
        self.before_write: Callable[[Changes], None] = lambda frame: None
        self.is_blank = False
        self._written_to = _BY_LVM  # byte up to which a blank one may have been written
        self.fd = fd
        self._reader = reader

    @property
    def size(self) -> int:
        """Size in bytes."""
        return self._reader.size

    def read(self, offsets: Sequence[int], lengths: Sequence[int], out: memoryview) -> None:
        """Fill ``out`` with the given ranges; see `Readable`."""
        self._reader.read(offsets, lengths, out)

    @property
    def allocated(self) -> int:
        """Bytes that can hold anything but zeros: of a sparse file, those that take up space."""
        return self.size if self.is_block else os.fstat(self.fd).st_blocks * 512

    def resize(self, size: int) -> None:
        """Give a file that we have just made its size."""
        try:
            os.ftruncate(self.fd, size)
        except OSError as error:
            raise self._failed("resized", 0, error) from error
        self._reader.size = size

    def data_ranges(self, offset: int, end: int) -> Iterator[tuple[int, int, bool]]:
        """Yield ``(offset, end, has_data)`` pieces that cover a range: where a file has holes, they are told."""
        if self.is_block:
            yield offset, end, True
            return
        while offset < end:
            data = min(self._seek(offset, os.SEEK_DATA), end)
            if data > offset:
                yield offset, data, False
            if data == end:
                return
            hole = min(self._seek(data, os.SEEK_HOLE), end)
            yield data, hole, True
            offset = hole

    def write(self, batch: Sequence[Changes]) -> None:
        """Apply frames in order; see `Target`."""
        for frame in batch:
            self.before_write(frame)
            try:
                match frame:
                    case Data(table, payload):
                        self._write_data(table, payload)
                    case Zero(table):
                        for offset, length in table.tolist():
                            # What was made for this need not have space for zeros.
                            self._zero(offset, offset + length, unmap=self.is_blank)
                    case Hole(table):
                        for offset, length in table.tolist():
                            self._zero(offset, offset + length, unmap=True)
            except OSError as error:
                raise self._failed("written", int(frame.table[0, 0]), error) from error
            if self.is_blank and not isinstance(frame, Hole):
                self._written_to = max(self._written_to, int(frame.table.sum(axis=1).max()))

    def sync(self) -> None:
        """Make everything written durable; see `Target`."""
        try:
            os.fsync(self.fd)
        except OSError as error:
            # The kernel reports a failed write-back once: a second fsync would succeed and prove nothing.
            raise SyncFailed(
                f"{self.name} failed to make writes durable: {error.strerror}; what it holds now is not known."
                " Mend the device, then run 'lvmsync recover'",
                device=self.name,
            ) from error

    def start_writeback(self) -> None:
        """Ask the kernel to begin writing what is dirty, so that the next ``sync`` is short."""
        # Starts write-back without waiting, and lets go of pages that are clean already: their memory serves the next
        # window, which is twice as fast as new memory, and the machine keeps its other caches.
        os.posix_fadvise(self.fd, 0, 0, os.POSIX_FADV_DONTNEED)

    def remove(self) -> None:
        """Remove a file that we made, durably."""
        remove_file(Path(self.name).resolve())

    def _write_data(self, table: Offsets, payload: memoryview) -> None:
        offsets, lengths = table[:, 0], table[:, 1]
        # Extents that touch are one write: a stream from another tool may carry a record a chunk.
        first = np.ones(len(offsets), bool)
        first[1:] = offsets[1:] != offsets[:-1] + lengths[:-1]
        starts = offsets[first].tolist()
        # A signed type for positions in the payload, which is short; uint64 would make floats with ints.
        positions = (np.cumsum(lengths) - lengths)[first].astype(np.int64).tolist()
        views = [payload[at:to] for at, to in zip(positions, [*positions[1:], len(payload)], strict=True)]
        if sum(map(os.pwrite, repeat(self.fd), views, starts)) == len(payload):
            return
        for view, offset in zip(views, starts, strict=True):
            self._write_exactly(view, offset)

    def _write_exactly(self, view: memoryview, offset: int) -> None:
        done = 0
        while done < len(view):
            count = os.pwrite(self.fd, view[done:], offset + done)
            if count == 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            done += count

    def _zero(self, offset: int, end: int, *, unmap: bool) -> None:
        """Make a range read as zeros; ``unmap``: give its space back where that surely gives zeros."""
        if not self.is_block:
            self._zero_file(offset, end, unmap=unmap)
            return
        block = self._reader.block_size
        first, last = -(-offset // block) * block, end // block * block
        if first >= last:
            self._write_zeros(offset, end)
            return
        if unmap and self._unmap_thin(offset, end):
            return
        self._write_zeros(offset, first)
        # Of a block device PUNCH_HOLE means: unmap if that is sure to give zeros, else fail
        # (blkdev_fallocate: BLKDEV_ZERO_NOFALLBACK). A plain discard promises nothing.
        mode = ioctl.FALLOC_FL_PUNCH_HOLE | ioctl.FALLOC_FL_KEEP_SIZE
        if not (unmap and ioctl.fallocate(self.fd, mode, first, last - first)):
            ioctl.zero_out(self.fd, first, last - first)
        self._write_zeros(last, end)

    def _unmap_thin(self, offset: int, end: int) -> bool:
        """Unmap the whole blocks of a range of a thin volume, and zero its edges; False where that cannot be done.

        What is unmapped there reads as zeros. A discard of a part of a block is ignored by dm-thin, so that is
        never asked for.
        """
        unit = self._thin_block
        if not unit or -(-offset // unit) >= end // unit:
            return False
        first, last = -(-offset // unit) * unit, end // unit * unit
        try:
            # A discard takes time for each of its blocks, mapped or not. Those of a blank one are not: what was written
            # to the edges of the hole is in other blocks.
            if not self.is_blank or first < self._written_to:
                ioctl.discard(self.fd, first, last - first)
        except OSError as error:
            if error.errno == errno.EOPNOTSUPP:  # the pool ignores discards
                return False
            raise
        for start, stop in ((offset, first), (last, end)):
            if start < stop:
                self._zero(start, stop, unmap=False)
        return True

    @functools.cached_property
    def _thin_block(self) -> int:
        """Bytes of a block of the thin pool that the target is in; 0 for any other device.

        Any other is one with an external origin, too, which shows where nothing is mapped.
        """
        lines = [line for line in dm.list_tables() if line.device.number == self._reader.number]
        is_plain = [line.kind for line in lines] == ["thin"] and len(lines[0].text.split()) == 2  # POOL ID [ORIGIN]
        if not is_plain or not self._reader.number:
            return 0
        major, minor = self._reader.number
        return int(Path(f"/sys/dev/block/{major}:{minor}/queue/discard_granularity").read_text())

    def _zero_file(self, offset: int, end: int, *, unmap: bool) -> None:
        mode = ioctl.FALLOC_FL_PUNCH_HOLE if unmap else ioctl.FALLOC_FL_ZERO_RANGE
        for start, stop, has_data in self.data_ranges(offset, end):  # what is a hole stays one
            if has_data and not ioctl.fallocate(self.fd, mode | ioctl.FALLOC_FL_KEEP_SIZE, start, stop - start):
                self._write_zeros(start, stop)

    def _write_zeros(self, offset: int, end: int) -> None:
        for at in range(offset, end, len(_ZEROS)):
            self._write_exactly(_ZEROS[: min(len(_ZEROS), end - at)], at)

    def _seek(self, offset: int, whence: int) -> int:
        try:
            return os.lseek(self.fd, offset, whence)
        except OSError as error:
            if error.errno == errno.ENXIO:  # no data behind this offset
                return MAX_SIZE
            raise

    def _failed(self, what: str, offset: int, error: OSError) -> DeviceError:
        return DeviceError(
            f"{self.name} could not be {what} at byte {offset}: {error.strerror}", device=self.name, offset=offset
        )


@contextlib.contextmanager
def open_target(path: str, *, create: bool = False) -> Iterator[BlockTarget]:
    """Claim a block device or image file for writing, and yield it.

    Args:
        path: of the device or file.
        create: make the file, which must not be there yet.

    Raises:
        DeviceError: missing, mounted, held, open elsewhere, read-only, no permission, or there already.
    """
    with contextlib.ExitStack() as stack:
        try:
            fd = _open_for_writing(path, create=create)
            stack.callback(os.close, fd)
            if stat.S_ISBLK(os.fstat(fd).st_mode):
                _claim_device(path, fd)
            else:
                _claim_file(path, fd)
            # By descriptor, not by path: it is this device that is read, whatever the path says by now.
            reader = stack.enter_context(open_device(f"/proc/self/fd/{fd}"))
        except OSError as error:
            if error.errno == errno.EBUSY and (reason := past_views.refusal(path)):
                raise DeviceError(f"cannot open {path}: {reason}", device=path) from error
            raise opening_failed(path, error) from error
        reader.name = path
        yield BlockTarget(path, fd, reader, created=create)


def _open_for_writing(path: str, *, create: bool) -> int:
    flags = os.O_RDWR | os.O_CLOEXEC
    if create:
        refuse_among_devices(path)
        try:
            fd = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError as error:
            raise DeviceError(f"{path} is there already; leave --create away to change it", device=path) from error
        sync_folder(Path(path).resolve().parent)
        return fd
    state = Path(path).stat()
    require_storage(path, state)
    if stat.S_ISREG(state.st_mode):
        refuse_among_devices(path)
    # O_EXCL on a block device: refused while it is mounted, in use as swap, or held by another device.
    return os.open(path, flags | (os.O_EXCL if stat.S_ISBLK(state.st_mode) else 0))


def refuse_among_devices(path: str) -> None:
    """Refuse a plain file where device nodes are: it lies in memory, and takes the place of a device.

    Raises:
        DeviceError: it would be one.
    """
    folder = Path(path).resolve().parent
    if folder.is_relative_to("/dev") and not folder.is_relative_to("/dev/shm"):
        raise DeviceError(
            f"there is no device {path}, and a file there would be gone after the next boot: make the volume first"
            " ('lvcreate -n LV -L SIZE VG'; --create makes volumes only in a 'sync VG/LV' or 'migrate'), or plug the"
            " disk in",
            device=path,
        )


def _claim_device(path: str, fd: int) -> None:
    """Make a block device, which O_EXCL has made ours, ready to be written."""
    if ioctl.is_read_only(fd):
        raise DeviceError(
            f"cannot write to {path}: the device is set read-only, as a migration leaves what it has moved away from;"
            " if nothing there is needed, 'lvchange -prw' (of a volume) or 'blockdev --setrw' makes it writable",
            device=path,
        )
    # A guest may have its disk open without O_EXCL, and so has a loop device that is mounted.
    users = _find_users(fd, writers_only=True)
    if users:
        raise DeviceError(f"{path} is open for writing in {', '.join(users)}; stop that first", device=path)
    # Pages from before the device was changed from below would be read again, and written back around our writes.
    ioctl.flush_buffers(fd)


def _claim_file(path: str, fd: int) -> None:
    """Lock an image file against other receivers, and refuse it while anything else has it open."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise DeviceError(f"{path} is locked by another program, perhaps another receive", device=path) from error
    try:
        # A write lease is granted only while no one else, a loop device included, has the file open.
        # It is given back at once: held, it would stall every innocent reader that comes later.
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except BlockingIOError as error:
        if reason := past_views.refusal(path):
            raise DeviceError(f"cannot open {path}: {reason}", device=path) from error
        users = _find_users(fd, writers_only=False)
        by = f" ({', '.join(users)})" if users else ""
        raise DeviceError(
            f"{path} is open in another program or a loop device{by}; close it first", device=path
        ) from error
    except OSError as error:  # no leases on this file system
        users = [user for user in _find_users(fd, writers_only=True) if user.startswith("/dev/loop")]
        if users:
            raise DeviceError(f"{path} is in use by {', '.join(users)}; detach it first", device=path) from error


def _find_users(fd: int, *, writers_only: bool) -> list[str]:
    """Return who else has the open file or device: loop devices, and the processes that we may see."""
    mine = os.fstat(fd)
    users = []
    for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
        with contextlib.suppress(OSError):
            if _is_same(Path(backing.read_text().rstrip("\n")).stat(), mine):
                users.append(f"/dev/{backing.parts[3]}")
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        with contextlib.suppress(OSError, LookupError, ValueError):
            if link.parts[2] != str(os.getpid()) and _is_same(link.stat(), mine):
                flags = int(
                    re.findall(r"^flags:\s*([0-7]+)", (link.parents[1] / "fdinfo" / link.name).read_text(), re.M)[0], 8
                )
                if not writers_only or flags & os.O_ACCMODE != os.O_RDONLY:
                    users.append(f"process {link.parts[2]}")
    return list(dict.fromkeys(users))


def _is_same(one: os.stat_result, other: os.stat_result) -> bool:
    """Tell whether two names are of one file, or of one device (of which there may be many nodes)."""
    if stat.S_ISBLK(one.st_mode) or stat.S_ISBLK(other.st_mode):
        return stat.S_IFMT(one.st_mode) == stat.S_IFMT(other.st_mode) and one.st_rdev == other.st_rdev
    return (one.st_dev, one.st_ino) == (other.st_dev, other.st_ino)

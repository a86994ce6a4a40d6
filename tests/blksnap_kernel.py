"""The blksnap module of a kernel, played at the level of its ioctls: three generations, over image files as devices.

Written from the facts of fixtures/blksnap/FORMAT.md (sections 1 to 3), without the tables of the code under test:
request numbers and struct offsets stand here as literals. A tracked device is a loop device, whose file only
`Kernel.write` may change: it marks the map, and keeps the old bytes in the image file of a snapshot that is held.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import subprocess
import threading
import uuid
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tests.losetup import attach

SECTOR = 512
PORTION = 2097152
"""Sectors that v1 asks for in an event (1 GiB, its default)."""
COW_CHUNK = 64 << 10
"""Bytes that the difference storage takes for the first write to a chunk."""
IMAGE_MAJOR = 252

V1 = {
    0x40085600: "VERSION", 0x80085600: "VERSION", 0x40085601: "TRACKER_REMOVE", 0x40105602: "TRACKER_COLLECT",
    0x80185603: "TRACKER_READ_CBT_MAP", 0x80185604: "TRACKER_MARK_DIRTY_BLOCKS", 0x40205605: "SNAPSHOT_CREATE",
    0x80105606: "SNAPSHOT_DESTROY", 0x40285607: "SNAPSHOT_APPEND_STORAGE", 0x80105608: "SNAPSHOT_TAKE",
    0x40105609: "SNAPSHOT_COLLECT", 0x4020560A: "SNAPSHOT_COLLECT_IMAGES", 0x5000560B: "SNAPSHOT_WAIT_EVENT",
}  # fmt: skip
_V2 = {
    0x80085600: "VERSION", 0xC0205601: "SNAPSHOT_CREATE", 0x40105602: "SNAPSHOT_DESTROY", 0x40105603: "SNAPSHOT_TAKE",
    0x80105604: "SNAPSHOT_COLLECT", 0x90005605: "SNAPSHOT_WAIT_EVENT",
}  # fmt: skip
V7 = _V2 | {0x40285622: "SNAPSHOT_APPEND_STORAGE"}
V7_FILTER = {0xC028468C: "ATTACH", 0xC028468D: "DETACH", 0xC038468E: "CTL"}
UP_FILTER = {0xC030128E: "ATTACH", 0xC020128F: "DETACH", 0xC0301290: "CTL"}
CTL = ["CBTINFO", "CBTMAP", "CBTDIRTY", "SNAPSHOTADD", "SNAPSHOTINFO"]

NODES = {"v1": "veeamblksnap", "v7": "veeamblksnap", "up": "blksnap-control"}
VERSIONS = {"v1": (1, 0, 0, 0), "v7": (7, 0, 0, 0), "up": (2, 0, 0, 0)}

Number = tuple[int, int]


class Crash(BaseException):
    """The process is gone: no call of it reaches the kernel any more."""


def fail(code: int) -> OSError:
    return OSError(code, os.strerror(code))


@dataclass
class Tracker:
    """What the kernel keeps of a tracked device."""

    capacity: int
    block_size: int
    generation: bytes = b""
    previous: int = 0
    active: int = 1
    live: bytearray = field(default_factory=bytearray)
    frozen: bytearray = field(default_factory=bytearray)
    is_corrupted: bool = False

    def __post_init__(self) -> None:
        self.renew()

    @property
    def count(self) -> int:
        return -(-self.capacity // self.block_size)

    def renew(self) -> None:
        self.generation = uuid.uuid4().bytes
        self.previous, self.active = 0, 1
        self.live, self.frozen = bytearray(self.count), bytearray(self.count)
        self.is_corrupted = False

    def take(self, capacity: int, *, is_stale: bool) -> None:
        if self.is_corrupted or capacity != self.capacity:
            self.capacity = capacity
            self.renew()
        if self.active < 255 or not is_stale:
            self.frozen = bytearray(self.live)
        self.previous, self.active = self.active, self.active + 1
        if self.active == 256:
            self.active = 1
            self.live = bytearray(self.count)
            self.generation = uuid.uuid4().bytes

    def mark(self, offset: int, length: int, *, both: bool) -> None:
        first, last = offset // self.block_size, (offset + length - 1) // self.block_size
        if last >= self.count:
            self.is_corrupted = True
            return
        for block in range(first, last + 1):
            self.live[block] = self.active
            if both:
                self.frozen[block] = self.previous


@dataclass
class Disk:
    """A device: a loop device by name, and the file behind it."""

    node: str
    file: Path
    number: Number
    tracker: Tracker | None = None

    @property
    def size(self) -> int:
        return self.file.stat().st_size

    @property
    def content(self) -> bytes:
        return self.file.read_bytes()


@dataclass
class Image:
    """The state of one device that a snapshot holds."""

    disk: Disk
    name: str
    number: Number
    path: Path
    saved: set[int] = field(default_factory=set)
    is_protected: bool = True
    error: int = 0


@dataclass
class Snapshot:
    """A snapshot, taken or not."""

    id: bytes
    disks: list[Disk]
    limit: int = 0
    used: int = 0
    images: dict[Number, Image] = field(default_factory=dict)
    events: deque[tuple[int, bytes]] = field(default_factory=deque)
    ranges: list[tuple[Number | str, int, int]] = field(default_factory=list)
    is_taken: bool = False
    asked: int = 0


class Kernel:
    """One running kernel with one generation of the module.

    Attributes:
        root: the root folder to give to the binding: ``dev`` with the control nodes and images, ``sys``, ``proc``.
        calls: names of all requests so far.
        before: called with the name of each request before it is carried out.
        after: the same, afterwards.
        crash_after: how many requests (waits for events do not count) this process may still make.
        is_readable_when_full: an overflow shows in the image as new data, not as failing reads: those that
            were under way.
    """

    def __init__(self, generation: str, folder: Path, *, block_size: int = 64 << 10, portion: int = PORTION) -> None:
        self.generation = generation
        self.folder = folder
        self.root = folder / "root"
        self.block_size = block_size
        self.portion = portion
        self.disks: dict[Number, Disk] = {}
        self.snapshots: dict[bytes, Snapshot] = {}
        self.orphans: list[Snapshot] = []
        self.calls: list[str] = []
        self.before: Callable[[str], None] = lambda _: None
        self.after: Callable[[str], None] = lambda _: None
        self.crash_after: int | None = None
        self.is_dead = False
        self.is_readable_when_full = False
        self._lock = threading.RLock()
        self._clock = 0
        self._minors = -1
        self._loops: list[str] = []
        for path in ("dev", "sys/dev/block", "sys/class/block", "proc/sys/kernel/random", "proc/self"):
            (self.root / path).mkdir(parents=True)
        (self.root / "proc/self/mountinfo").write_text("")
        (self.root / "dev" / NODES[generation]).touch()
        if generation == "v7":
            (self.root / "dev/bdevfilter").touch()
        self.boot()

    # ---- what tests do to the machine

    def boot(self) -> None:
        """Start anew: whatever the module held in memory is gone, and the machine has another boot id."""
        for snapshot in [*self.snapshots.values(), *self.orphans]:
            self._drop_images(snapshot)
        self.snapshots.clear()
        self.orphans.clear()
        for disk in self.disks.values():
            disk.tracker = None
        (self.root / "proc/sys/kernel/random/boot_id").write_text(f"{uuid.uuid4()}\n")

    def reload(self) -> None:
        """Unload and load the module: as a boot, under the same boot id."""
        path = self.root / "proc/sys/kernel/random/boot_id"
        before = path.read_text()
        self.boot()
        path.write_text(before)

    def revive(self) -> None:
        """Start a new process after a crash."""
        self.crash_after, self.is_dead = None, False

    def add_disk(self, node: str, file: Path) -> Disk:
        """Make a loop device known to the kernel by its number."""
        rdev = Path(node).stat().st_rdev
        disk = Disk(node, file, (os.major(rdev), os.minor(rdev)))
        self.disks[disk.number] = disk
        folder = self.root / "sys/devices/block" / Path(node).name
        folder.mkdir(parents=True)
        (folder / "dev").write_text(f"{disk.number[0]}:{disk.number[1]}\n")
        (self.root / f"sys/dev/block/{disk.number[0]}:{disk.number[1]}").symlink_to(folder)
        (self.root / "sys/class/block" / Path(node).name).symlink_to(folder)
        (self.root / "dev" / Path(node).name).symlink_to(node)
        return disk

    def add_spare(self, file: Path, size: int) -> str:
        """Make a loop device that is not known to the module, and holds zeros."""
        file.write_bytes(b"")
        os.truncate(file, size)
        return self.attach_loop(file)

    def attach_loop(self, file: Path) -> str:
        loop = str(attach(file))
        self._loops.append(loop)
        return loop

    def close(self) -> None:
        """Let the loop devices go."""
        for loop in self._loops:
            subprocess.run(["losetup", "-d", loop], check=True)

    def write(self, disk: Disk, offset: int, data: bytes) -> None:
        """Write to a device, as a program does that the module sees."""
        with self._lock:
            if disk.tracker:
                for snapshot in [*self.snapshots.values(), *self.orphans]:
                    if snapshot.is_taken and disk.number in snapshot.images:
                        self._save(snapshot, snapshot.images[disk.number], offset, len(data))
                disk.tracker.mark(offset, len(data), both=False)
            _overwrite(disk.file, offset, data)
            for snapshot in self.snapshots.values():
                image = snapshot.images.get(disk.number)
                if image and not image.is_protected and image.path.stat().st_size:
                    _overwrite(image.path, offset, data)

    def write_image(self, disk: Disk, offset: int, data: bytes) -> None:
        """Write to the image of a held snapshot, as a mount with a journal to replay does."""
        for snapshot in self.snapshots.values():
            if disk.number in snapshot.images:
                assert disk.tracker
                _overwrite(snapshot.images[disk.number].path, offset, data)
                disk.tracker.mark(offset, len(data), both=True)

    def write_unseen(self, disk: Disk, offset: int, data: bytes) -> None:
        """Write to a device past the module, as through a partition of it."""
        _overwrite(disk.file, offset, data)

    def take(self, disk: Disk, *, keep: bool) -> str:
        """Take a snapshot of one tracked device, as another program does; destroy it unless it is to be kept."""
        snapshot = Snapshot(uuid.uuid4().bytes, [disk], limit=1 << 30)
        self.snapshots[snapshot.id] = snapshot
        self._snapshot_take(memoryview(snapshot.id))
        if not keep:
            self._snapshot_destroy(memoryview(snapshot.id))
        return str(uuid.UUID(bytes=snapshot.id))

    def overflow(self) -> None:
        """Let the difference storage of each snapshot run over."""
        for snapshot in self.snapshots.values():
            for image in snapshot.images.values():
                self._overflow(snapshot, image)

    def destroy_all(self) -> None:
        """Destroy all snapshots, whoever made them."""
        for key in list(self.snapshots):
            self._snapshot_destroy(memoryview(key))

    def held(self) -> list[str]:
        """Return the ids of all snapshots, orphans too."""
        return [str(uuid.UUID(bytes=one.id)) for one in [*self.snapshots.values(), *self.orphans]]

    # ---- the module

    def call(self, fd: int, request: int, argument: Any = b"", *_: Any) -> int:
        """Carry out one request, as ioctl(2)."""
        if self.is_dead:
            raise Crash
        target = self._target(fd)
        name = self._name(target, request, argument)
        if name != "SNAPSHOT_WAIT_EVENT":
            self.calls.append(name)
        self.before(name)
        view = memoryview(argument).cast("B")
        with self._lock:
            done = getattr(self, f"_{name.lower()}")
            result = done(self._of(target, view), view) if name in CTL or name in UP_FILTER.values() else done(view)
        self.after(name)
        if self.crash_after is not None and name != "SNAPSHOT_WAIT_EVENT":
            self.crash_after -= 1
            if self.crash_after <= 0:
                self.is_dead = True
                raise Crash
        return int(result or 0)

    def _target(self, fd: int) -> str | Number:
        state = os.fstat(fd)
        number = (os.major(state.st_rdev), os.minor(state.st_rdev))
        return number if number in self.disks else Path(f"/proc/self/fd/{fd}").readlink().name

    def _name(self, target: str | Number, request: int, argument: Any) -> str:
        if self.generation == "v1":
            # As the module: only the number's last byte counts. What is past the table is a crash there.
            found = {one & 0xFF: name for one, name in V1.items()}.get(request & 0xFF)
            assert request & 0xFF != 12, "request 12 is past the module's table"
            assert request in V1, f"{request:#x}: not a request of v1"
            assert target == "veeamblksnap"
        elif target == NODES[self.generation]:
            found = (V7 if self.generation == "v7" else _V2).get(request)
        elif target == "bdevfilter":
            found = V7_FILTER.get(request)
        else:
            found = UP_FILTER.get(request) if self.generation == "up" else None
        if found == "CTL":
            at = 40 if self.generation == "v7" else 32
            found = CTL[struct.unpack_from("<I", argument, at)[0]]
        if found is None:
            raise fail(errno.ENOTTY)
        return found

    def _of(self, target: str | Number, view: memoryview) -> Disk:
        """Return the device of a filter request."""
        at = 8 if self.generation == "v7" else 0
        assert bytes(view[at : at + 32]) == b"blksnap".ljust(32, b"\0")
        if self.generation == "v7":
            return self._disk_at(os.fsdecode(ctypes.string_at(struct.unpack_from("<Q", view)[0])))
        assert isinstance(target, tuple)
        return self.disks[target]

    def _disk_at(self, path: str) -> Disk:
        rdev = Path(path).stat().st_rdev
        return self.disks[os.major(rdev), os.minor(rdev)]

    def _version(self, view: memoryview) -> None:
        view[:8] = struct.pack("<4H", *VERSIONS[self.generation])

    # v1: tracking

    def _tracker_remove(self, view: memoryview) -> None:
        disk = self._tracked(struct.unpack_from("<II", view), errno.ENODATA)
        if any(disk.number in [one.number for one in held.disks] for held in self.snapshots.values()):
            raise fail(errno.EBUSY)
        disk.tracker = None

    def _tracker_collect(self, view: memoryview) -> None:
        room, pointer = struct.unpack_from("<I4xQ", view)
        found = [disk for disk in self.disks.values() if disk.tracker]
        if pointer and room < len(found):
            raise fail(errno.ENOBUFS)
        for at, disk in enumerate(found if pointer else []):
            one = disk.tracker
            assert one
            _put(
                pointer + 48 * at,
                struct.pack("<IIIxxxxQI16sBxxx", *disk.number, one.block_size, one.capacity, one.count, one.generation,
                            one.previous),
            )  # fmt: skip
        struct.pack_into("<I", view, 0, len(found))

    def _tracker_read_cbt_map(self, view: memoryview) -> int:
        *number, offset, length, pointer = struct.unpack_from("<IIIIQ", view)
        disk = self._tracked(tuple(number), errno.ENODATA)
        if not any(disk.number in held.images for held in self.snapshots.values()):
            raise fail(errno.EPERM)
        assert disk.tracker
        if offset >= disk.tracker.count:
            raise fail(errno.EINVAL)
        piece = bytes(disk.tracker.frozen[offset : offset + length])
        _put(pointer, piece)
        return len(piece)

    def _tracker_mark_dirty_blocks(self, view: memoryview) -> None:
        *number, count, pointer = struct.unpack_from("<IIIxxxxQ", view)
        self._mark(self._tracked(tuple(number), errno.ENODEV), count, pointer)

    # v7 and up: the filter

    def _attach(self, disk: Disk, _: memoryview) -> None:
        if disk.tracker:
            raise fail(errno.EALREADY)
        disk.tracker = Tracker(disk.size, self.block_size)

    def _detach(self, disk: Disk, _: memoryview) -> None:
        if not disk.tracker:
            raise fail(errno.ENOENT)
        disk.tracker = None
        for snapshot in self.snapshots.values():
            if disk.number in snapshot.images:
                snapshot.images[disk.number].is_protected = False

    def _option(self, view: memoryview, size: int) -> int:
        """Return the address of a filter request's option."""
        length, pointer = struct.unpack_from("<IQ", view, 44 if self.generation == "v7" else 36)
        if length < size:
            raise fail(errno.EINVAL)
        return int(pointer)

    def _cbtinfo(self, disk: Disk, view: memoryview) -> None:
        one = self._tracked(disk.number, errno.ENOENT).tracker
        assert one
        info = struct.pack("<QII16sB7x", one.capacity, one.block_size, one.count, one.generation, one.previous)
        _put(self._option(view, 40), info)

    def _cbtmap(self, disk: Disk, view: memoryview) -> None:
        one = self._tracked(disk.number, errno.ENOENT).tracker
        assert one
        offset, length, pointer = struct.unpack("<IIQ", ctypes.string_at(self._option(view, 16), 16))
        if one.is_corrupted:
            raise fail(errno.EFAULT)
        assert offset < one.count, "past the count: the module does not check that properly"
        if offset + length > one.count:
            raise fail(errno.ENODATA)
        _put(pointer, bytes(one.frozen[offset : offset + length]))

    def _cbtdirty(self, disk: Disk, view: memoryview) -> None:
        count, pointer = struct.unpack("<I4xQ", ctypes.string_at(self._option(view, 16), 16))
        self._mark(self._tracked(disk.number, errno.ENOENT), count, pointer)

    def _snapshotadd(self, disk: Disk, view: memoryview) -> None:
        snapshot = self._find(ctypes.string_at(self._option(view, 16), 16), errno.ESRCH)
        self._tracked(disk.number, errno.ENOENT)
        if any(disk in one.disks for one in self.snapshots.values()):
            raise fail(errno.EALREADY)
        snapshot.disks.append(disk)

    def _snapshotinfo(self, disk: Disk, view: memoryview) -> None:
        self._tracked(disk.number, errno.ENOENT)
        error, name = 0, b""
        for snapshot in self.snapshots.values():
            image = snapshot.images.get(disk.number)
            if image:
                error, name = image.error, image.name.encode()
        _put(self._option(view, 36), struct.pack("<i32s", error, name))

    # snapshots

    def _snapshot_create(self, view: memoryview) -> None:
        new = Snapshot(uuid.uuid4().bytes, [])
        if self.generation == "v1":
            count, pointer = struct.unpack_from("<I4xQ", view)
            numbers = [struct.unpack("<II", ctypes.string_at(pointer + 8 * at, 8)) for at in range(count)]
            if len(set(numbers)) < count:
                raise fail(errno.EINVAL)
            if any(number in [disk.number for disk in one.disks] for one in self.snapshots.values()
                   for number in numbers):  # fmt: skip
                raise fail(errno.EALREADY)
            new.disks = [self.disks[number] for number in numbers]
            for disk in new.disks:
                disk.tracker = disk.tracker or Tracker(disk.size, self.block_size)
            self.orphans += self.snapshots.values()  # the module forgets them
            self.snapshots.clear()
            self._push(new, 0, struct.pack("<Q", self.portion))
            new.asked = self.portion
        else:
            limit, pointer = struct.unpack_from("<QQ", view)
            if not pointer and self.generation == "up":
                raise fail(errno.EFAULT)
            new.limit = limit * SECTOR
            if pointer:
                path = os.fsdecode(ctypes.string_at(pointer))
                self._require_place(path)
                new.ranges.append((path, 0, limit))
        self.snapshots[new.id] = new
        view[16:32] = new.id

    def _require_place(self, path: str) -> None:
        Path(path).stat()  # as the module does: a path that is not there is an error

    def _snapshot_append_storage(self, view: memoryview) -> None:
        snapshot = self._find(bytes(view[:16]), errno.ESRCH)
        place: Number | str
        if self.generation == "v1":
            *number, count, pointer = struct.unpack_from("<IIIxxxxQ", view, 16)
            place = (number[0], number[1])
        else:
            path, count, pointer = struct.unpack_from("<QI4xQ", view, 16)
            place = os.fsdecode(ctypes.string_at(path))
        for at in range(count):
            first, length = struct.unpack("<QQ", ctypes.string_at(pointer + 16 * at, 16))
            assert length, "an empty range"
            for other, begin, size in snapshot.ranges:
                assert other != place or first + length <= begin or begin + size <= first, "given twice"
            snapshot.ranges.append((place, first, length))
            snapshot.limit += length * SECTOR
        snapshot.asked = 0

    def _snapshot_take(self, view: memoryview) -> None:
        snapshot = self._find(bytes(view[:16]), errno.ESRCH)
        if snapshot.is_taken:
            raise fail(errno.EALREADY)
        if not snapshot.limit:
            del self.snapshots[snapshot.id]
            raise fail(errno.EFAULT)
        for disk in snapshot.disks:
            tracker = disk.tracker
            assert tracker
            tracker.take(disk.size, is_stale=self.generation != "v1")
            major, minor = disk.number
            name = {"v1": f"veeamblksnapimg{self._minors + 1}", "v7": f"veeamblksnapimg_{major}:{minor}",
                    "up": f"blksnap-{major}-{minor}"}[self.generation]  # fmt: skip
            minor = self._minors = self._minors + 1
            image = Image(disk, name, (IMAGE_MAJOR, minor), self.root / "dev" / name)
            image.path.write_bytes(disk.content)
            link = self.root / f"sys/dev/block/{IMAGE_MAJOR}:{minor}"
            folder = self.root / "sys/devices/block" / name
            folder.mkdir(parents=True)
            link.symlink_to(folder)
            snapshot.images[disk.number] = image
        snapshot.is_taken = True

    def _snapshot_destroy(self, view: memoryview) -> None:
        self._drop_images(self._find(bytes(view[:16]), errno.ENODEV))
        del self.snapshots[bytes(view[:16])]

    def _snapshot_collect(self, view: memoryview) -> None:
        room, pointer = struct.unpack_from("<I4xQ", view)
        if pointer and room < len(self.snapshots):
            raise fail(errno.ENODATA)
        if pointer:
            _put(pointer, b"".join(self.snapshots))
        struct.pack_into("<I", view, 0, len(self.snapshots))

    def _snapshot_collect_images(self, view: memoryview) -> None:
        snapshot = self._find(bytes(view[:16]), errno.ESRCH)
        room, pointer = struct.unpack_from("<I4xQ", view, 16)
        struct.pack_into("<I", view, 16, len(snapshot.disks))
        if not snapshot.is_taken:
            raise fail(errno.ENODEV)
        if pointer:
            assert room >= len(snapshot.images)
            _put(pointer, b"".join(struct.pack("<4I", *key, *one.number) for key, one in snapshot.images.items()))

    def _snapshot_wait_event(self, view: memoryview) -> None:
        snapshot = self._find(bytes(view[:16]), errno.ESRCH)
        ticks = struct.unpack_from("<I", view, 16)[0]
        assert ticks <= 1000, "the unit is ticks: a long wait"
        if not snapshot.events:
            raise fail(errno.ENOENT)
        code, data = snapshot.events.popleft()
        self._clock += 1
        struct.pack_into("<Iq", view, 20, code, self._clock)
        view[32 : 32 + len(data)] = data

    # ---- below

    def _tracked(self, number: Any, code: int) -> Disk:
        disk = self.disks.get(number)
        if disk is None or disk.tracker is None:
            raise fail(code)
        return disk

    def _find(self, key: bytes, code: int) -> Snapshot:
        if key not in self.snapshots:
            raise fail(code)
        return self.snapshots[key]

    def _mark(self, disk: Disk, count: int, pointer: int) -> None:
        tracker = disk.tracker
        assert tracker
        for at in range(count):
            first, length = struct.unpack("<QQ", ctypes.string_at(pointer + 16 * at, 16))
            if (first + length) * SECTOR > tracker.capacity:
                raise fail(errno.EINVAL)
            tracker.mark(first * SECTOR, length * SECTOR, both=True)

    def _push(self, snapshot: Snapshot, code: int, data: bytes) -> None:
        snapshot.events.append((code, data))

    def _save(self, snapshot: Snapshot, image: Image, offset: int, length: int) -> None:
        """Keep what a write is about to overwrite: the image file holds it already, so only room is counted."""
        chunks = set(range(offset // COW_CHUNK, (offset + length - 1) // COW_CHUNK + 1)) - image.saved
        if image.error or not chunks:
            return
        snapshot.used += len(chunks) * COW_CHUNK
        image.saved |= chunks
        if snapshot.used > snapshot.limit:
            self._overflow(snapshot, image)
        elif (
            self.generation == "v1"
            and not snapshot.asked
            and snapshot.limit - snapshot.used < self.portion * SECTOR // 2
        ):
            snapshot.asked = self.portion
            self._push(snapshot, 0, struct.pack("<Q", self.portion))

    def _overflow(self, snapshot: Snapshot, image: Image) -> None:
        if self.generation == "up":
            self._push(snapshot, 1, struct.pack("<Q", COW_CHUNK // SECTOR))
        self._push(snapshot, int(self.generation == "v1"), struct.pack("<IIi", *image.disk.number, errno.ENOSPC))
        image.error = -errno.ENOSPC
        image.is_protected = False
        if not self.is_readable_when_full:
            os.truncate(image.path, 0)  # so that every read of it fails

    def _drop_images(self, snapshot: Snapshot) -> None:
        for image in snapshot.images.values():
            image.path.unlink()
            (self.root / f"sys/dev/block/{image.number[0]}:{image.number[1]}").unlink()
            (self.root / "sys/devices/block" / image.name).rmdir()


def _put(address: int, data: bytes) -> None:
    ctypes.memmove(address, data, len(data))


def _overwrite(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


@contextmanager
def running(
    folder: Path, generation: str, sizes: dict[str, int], **options: Any
) -> Iterator[tuple[Kernel, list[Disk]]]:
    """Yield a kernel, and a disk of each name and size that holds random bytes."""
    kernel = Kernel(generation, folder, **options)
    try:
        disks = []
        for seed, (name, size) in enumerate(sizes.items()):
            file = folder / f"{name}.img"
            file.write_bytes(np.random.default_rng(seed).bytes(size))
            disks.append(kernel.add_disk(kernel.attach_loop(file), file))
        yield kernel, disks
    finally:
        kernel.close()

"""A machine on which dattobd runs, as far as its users see it: a real ext4 on a loop device, a driver that is played.

The driver answers ioctl requests and writes its /proc file, all below a folder. It sees what is written by comparing
images, and leaves the COW files' own blocks out, as the real one does: so what it does not record is really missing.
Rules of fixtures/dattobd/FORMAT.md; nothing of the code that is tested is used.
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import struct
import subprocess
import uuid as uuids
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from lvmsync.system import dattobd
from tests.dattobd_store import BLOCK, build_cow, first_position, sections_of
from tests.losetup import attach

SIZE = 16 << 20
SNAPSHOT, ACTIVE, UNVERIFIED = 1, 2, 4


@dataclass
class Device:
    """What the driver knows of one tracked device."""

    minor: int
    bdev: str
    cow: str  # relative to the root of the file system
    uuid: str = field(default_factory=lambda: uuids.uuid4().hex)
    seqid: int = 1
    state: int = SNAPSHOT | ACTIVE
    error: int = 0
    cache: int = 300 << 20
    space: int = 0
    base: bytes = b""  # the device when the snapshot was taken
    missed: set[int] = field(default_factory=set)  # blocks that were written while nothing was tracked
    own: set[int] = field(default_factory=set)  # blocks that the COW file has or had
    before: set[int] = field(default_factory=set)  # changed before a reload


class Driver:
    """The machine.

    Attributes:
        folder: what is seen as /.
        loop: the tracked block device.
        point: where it is mounted.
        calls: names of the requests so far.
        last: what the last snapshot held.
        given_back: blocks that COW files had when their snapshots were given up.
        fail: called before and after each request; may raise.
    """

    def __init__(self, folder: Path, kind: dattobd.Driver = dattobd.DATTOBD, size: int = SIZE) -> None:
        self.folder, self.kind, self.size = folder, kind, size
        self.point = folder / "mnt"
        for name in ("dev", "proc/sys/kernel/random", "mnt"):
            (folder / name).mkdir(parents=True)
        self.image = folder / "image"
        with self.image.open("wb") as file:
            file.truncate(size)
        subprocess.run(["mkfs.ext4", "-q", "-F", "-b", "4096", "-E", "nodiscard", self.image], check=True)
        self.loop = attach(self.image)
        self.devices: dict[int, Device] = {}
        self.calls: list[str] = []
        self.fail: Callable[[str, str], None] = lambda *_: None
        self.is_mounted = False
        self.last = b""
        self.given_back: set[int] = set()
        self.boot()
        self.mount()

    # ---- the machine

    def boot(self) -> None:
        (self.folder / "proc/sys/kernel/random/boot_id").write_text(str(uuids.uuid4()) + "\n")
        self.devices.clear()
        self.load()

    def load(self) -> None:
        (self.folder / "dev" / f"{self.kind.stem}-ctl").touch()
        self._show()

    def mount(self) -> None:
        subprocess.run(["mount", "-t", "ext4", "-o", "nodiscard", self.loop, self.point], check=True)
        self.is_mounted = True
        for device in self.devices.values():
            if device.error:
                continue
            if device.state & UNVERIFIED:
                self._verify(device)
            if not device.error:
                self._write_header(device, 0)  # CLEAN is cleared at once
                device.state |= ACTIVE
        self._show()

    def umount(self) -> None:
        for device in self.devices.values():
            if device.state & ACTIVE and not device.error:
                self._note(device)
                self._close_cow(device)
                device.state &= ~ACTIVE
        before = self.read()
        subprocess.run(["umount", self.point], check=True)
        self.is_mounted = False
        for device in self.devices.values():
            device.missed |= differing(before, self.read())
        self._show()

    def reboot(self) -> None:
        self.umount()
        self.boot()

    def write(self, name: str, data: bytes, offset: int = 0) -> None:
        """Write to a file of the file system."""
        path = self.point / name
        fd = os.open(path, os.O_RDWR | os.O_CREAT)
        os.pwrite(fd, data, offset)
        os.fsync(fd)
        os.close(fd)

    def read(self) -> bytes:
        """Return the device as it is now."""
        if self.is_mounted:
            subprocess.run(["sync", "-f", self.point], check=True)
        return self.image.read_bytes()

    def snapshot(self, minor: int = 0) -> bytes:
        return Path(self.kind.snapshot_path(minor)).read_bytes()

    def overflow(self, minor: int = 0) -> None:
        """Let the COW file be full."""
        device = self.devices[minor]
        device.error = -errno.EFBIG
        self._cow(device).unlink()
        self._show()

    def stop(self) -> None:
        if self.is_mounted:
            subprocess.run(["umount", self.point], check=False)
        subprocess.run(["losetup", "-d", self.loop], check=False)

    # ---- the driver

    def ioctl(self, fd: int, number: int, argument: bytearray) -> int:
        assert os.path.samestat(os.fstat(fd), (self.folder / "dev" / f"{self.kind.stem}-ctl").stat())
        assert number >> 8 & 0xFF == self.kind.magic
        name, layout = {
            1: ("setup", "<QQQQI4x"), 2: ("reload_snapshot", "<QQQI4x"), 3: ("reload_incremental", "<QQQI4x"),
            4: ("destroy", "<I"), 5: ("to_incremental", "<I"), 6: ("to_snapshot", "<QQI4x"),
            7: ("reconfigure", "<QI4x"), 8: ("info", "<I8268x"), 9: ("find_free_minor", "<I"),
            10: ("expand", "<QI4x"), 11: ("auto_expand", "<QQI4x"),
        }[number & 0xFF]  # fmt: skip
        assert number >> 16 & 0x3FFF == struct.calcsize(layout) == len(argument)
        self.fail("before", name)
        getattr(self, f"_{name}")(argument, *struct.unpack(layout, argument))
        self.calls.append(name)
        self._show()
        self.fail("after", name)
        return 0

    def _setup(self, _: bytearray, bdev: int, cow: int, space: int, cache: int, minor: int) -> None:
        path, file = text(bdev), Path(text(cow))
        if (
            minor > 23
            or not self.is_mounted
            or path != str(self.loop)
            or any(d.bdev == path for d in self.devices.values())
        ):
            raise OSError(errno.EINVAL, "Invalid argument")
        if minor in self.devices:
            raise OSError(errno.EBUSY, "Device or resource busy")
        device = Device(minor, path, self._relative(file), cache=cache or 300 << 20)
        self._make_cow(device, file, space)
        self.devices[minor] = device
        self._freeze(device)

    def _reload_snapshot(self, _: bytearray, bdev: int, cow: int, cache: int, minor: int) -> None:
        self._reload(text(bdev), text(cow), cache, minor, SNAPSHOT)

    def _reload_incremental(self, _: bytearray, bdev: int, cow: int, cache: int, minor: int) -> None:
        self._reload(text(bdev), text(cow), cache, minor, 0)

    def _reload(self, bdev: str, cow: str, cache: int, minor: int, state: int) -> None:
        if self.is_mounted or minor > 23 or bdev != str(self.loop):
            raise OSError(errno.EINVAL, "Invalid argument")
        if minor in self.devices:
            raise OSError(errno.EBUSY, "Device or resource busy")
        self.devices[minor] = Device(minor, bdev, cow, "", state=state | UNVERIFIED, cache=cache or 300 << 20)

    def _destroy(self, _: bytearray, minor: int) -> None:
        device = self._find(minor)
        if not device.error and self.is_mounted:
            self._cow(device).unlink()
        del self.devices[minor]

    def _to_incremental(self, _: bytearray, minor: int) -> None:
        device = self._find(minor)
        if device.state != SNAPSHOT | ACTIVE or device.error:
            raise OSError(errno.EINVAL, "Invalid argument")
        device.state = ACTIVE
        self.given_back |= device.own
        os.truncate(self._cow(device), first_position(self.size) * BLOCK)

    def _to_snapshot(self, _: bytearray, cow: int, space: int, minor: int) -> None:
        device = self._find(minor)
        file = Path(text(cow))
        if device.state != ACTIVE or device.error or file.parent.stat().st_dev != self.point.stat().st_dev:
            raise OSError(errno.EINVAL, "Invalid argument")
        old = Device(**vars(device))
        device.cow, device.seqid = self._relative(file), device.seqid + 1
        try:
            self._make_cow(device, file, space)
        except OSError:
            vars(device).update(vars(old))
            raise
        device.state = SNAPSHOT | ACTIVE
        device.missed, device.before = set(), set()
        self._freeze(device)
        after = device.base
        old.own |= device.own
        changed = (differing(old.base, after) | old.before) - old.own - old.missed
        self._write_index(old, changed, 3)

    def _reconfigure(self, _: bytearray, cache: int, minor: int) -> None:
        self._find(minor).cache = cache

    def _info(self, argument: bytearray, minor: int) -> None:
        device = self._find(minor)
        struct.pack_into("<I4xQi4xQQQ16s4096s4096sQQ", argument, 0, minor, device.state, device.error, device.cache,
                         device.space, device.seqid, bytes.fromhex(device.uuid), device.cow.encode(),
                         device.bdev.encode(), 1, 0)  # fmt: skip

    def _find_free_minor(self, argument: bytearray, _: int) -> None:
        struct.pack_into("<I", argument, 0, next(one for one in range(24) if one not in self.devices))

    # ---- below

    def _find(self, minor: int) -> Device:
        if minor > 23:
            raise OSError(errno.EINVAL, "Invalid argument")
        if minor not in self.devices:
            raise OSError(errno.ENOENT, "No such file or directory")
        if self.is_open(minor):
            raise OSError(errno.EBUSY, "Device or resource busy")
        return self.devices[minor]

    def is_open(self, minor: int) -> bool:
        """Tell whether anybody has the snapshot device open."""
        path = self.kind.snapshot_path(minor)
        for fd in Path("/proc/self/fd").iterdir():
            try:
                if str(fd.readlink()) == path:
                    return True
            except OSError:
                continue
        return False

    def _relative(self, file: Path) -> str:
        return f"/{file.resolve().relative_to(self.point)}"

    def _cow(self, device: Device) -> Path:
        return self.point / device.cow.lstrip("/")

    def _make_cow(self, device: Device, file: Path, space: int) -> None:
        device.space = space << 20 or device.space or self.size // 10
        with file.open("wb") as out:
            out.write(build_cow(self.size, {}, flags=0, seqid=device.seqid, uuid=bytes.fromhex(device.uuid)))
            os.posix_fallocate(out.fileno(), 0, device.space)
        file.chmod(0)
        self.read()
        device.own = blocks_of(file)

    def _freeze(self, device: Device) -> None:
        self.last = device.base = self.read()
        Path(self.kind.snapshot_path(device.minor)).write_bytes(device.base)

    def _changed(self, device: Device) -> set[int]:
        return (differing(device.base, self.read()) | device.before) - device.own - device.missed

    def _note(self, device: Device) -> None:
        device.before = self._changed(device)

    def _close_cow(self, device: Device) -> None:
        self._write_index(device, device.before, 1 if device.state & SNAPSHOT else 3)

    def _write_index(self, device: Device, changed: set[int], flags: int) -> None:
        content = build_cow(self.size, dict.fromkeys(changed, 1), flags=flags, seqid=device.seqid,
                            uuid=bytes.fromhex(device.uuid), fpos=first_position(self.size) + 1)  # fmt: skip
        self._put(device, content)
        self.read()

    def _write_header(self, device: Device, keep: int) -> None:
        """Clear CLEAN, and leave the rest as it was."""
        path = self._cow(device)
        content = bytearray(path.read_bytes()[:BLOCK])
        struct.pack_into("<I", content, 4, struct.unpack_from("<I", content, 4)[0] & ~1 | keep)
        self._put(device, bytes(content))

    def _put(self, device: Device, content: bytes) -> None:
        with self._cow(device).open("r+b") as file:
            file.write(content)
            os.fsync(file.fileno())

    def _verify(self, device: Device) -> None:
        path = self._cow(device)
        header = path.read_bytes()[:64] if path.exists() else bytes(64)
        magic, flags, _, _, seqid, raw, _, _ = struct.unpack("<IIQQQ16sQQ", header)
        wanted = 1 if device.state & SNAPSHOT else 3
        device.state &= ~UNVERIFIED
        device.seqid, device.uuid = seqid, raw.hex()
        if magic != 4776 or flags & 3 != wanted:
            device.error = -errno.EINVAL
            return
        index = np.frombuffer(path.read_bytes()[BLOCK : BLOCK + sections_of(self.size) * 32768], "<u8")
        device.before = set(np.flatnonzero(index).tolist())
        device.base, device.own = self.read(), blocks_of(path)

    def _show(self) -> None:
        lines = []
        for device in sorted(self.devices.values(), key=lambda one: one.minor):
            facts = [f'"minor": {device.minor}', f'"cow_file": "{device.cow}"', f'"block_device": "{device.bdev}"',
                     f'"max_cache": {device.cache}']  # fmt: skip
            if not device.state & UNVERIFIED:
                facts += [f'"fallocate": {device.space}', f'"seq_id": {device.seqid}', f'"uuid": "{device.uuid}"',
                          '"version": 1', f'"nr_changed_blocks": {len(device.before)}']  # fmt: skip
            facts += [f'"error": {device.error}'] * bool(device.error) + [f'"state": {device.state}']
            lines.append("\t\t{\n\t\t\t" + ",\n\t\t\t".join(facts) + "\n\t\t}")
            node = Path(self.kind.snapshot_path(device.minor))
            if device.state != SNAPSHOT | ACTIVE:
                node.unlink(missing_ok=True)
        body = ",\n".join(lines)
        (self.folder / "proc" / self.kind.proc_name).write_text(
            f'{{\n\t"version": "0.12.1",\n\t"devices": [\n{body}\n\t]\n}}\n'
        )


def text(address: int) -> str:
    """Return a string of the caller."""
    return os.fsdecode(ctypes.string_at(address))


def differing(one: bytes, other: bytes) -> set[int]:
    """Return which blocks differ."""
    a, b = (np.frombuffer(data, np.uint8).reshape(-1, BLOCK) for data in (one, other))
    return set(np.flatnonzero((a != b).any(axis=1)).tolist())


def blocks_of(file: Path) -> set[int]:
    """Return the blocks of the device that a file has, as another program tells."""
    done = subprocess.run(["filefrag", "-s", "-v", "-e", "-b4096", file], check=True, capture_output=True, text=True)
    found: set[int] = set()
    for line in done.stdout.splitlines():
        fields = line.replace("..", " ").replace(":", " ").split()
        if fields and fields[0].isdecimal() and len(fields) > 5:
            found |= set(range(int(fields[3]), int(fields[4]) + 1))
    return found


@contextmanager
def running(folder: Path, monkeypatch: pytest.MonkeyPatch, kind: dattobd.Driver = dattobd.DATTOBD) -> Iterator[Driver]:
    """Yield the machine, for lvmsync in this process."""
    if os.getuid() or not shutil.which("mkfs.ext4") or not Path("/dev/loop-control").exists():
        pytest.skip("needs root, loop devices and ext4")
    root = folder / "machine"
    root.mkdir()
    monkeypatch.setattr(dattobd, "ROOT", root)
    driver = Driver(root, kind)
    monkeypatch.setattr(dattobd, "call_ioctl", driver.ioctl)
    try:
        yield driver
    finally:
        driver.stop()

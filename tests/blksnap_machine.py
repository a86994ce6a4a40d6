"""A machine with blksnap on it for tests: a simulated kernel, devices, room for storage, targets that are files."""

from __future__ import annotations

import io
import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lvmsync.jobs import blksnap_notes, blksnap_storage, blksnap_sync
from lvmsync.jobs.blksnap_storage import Room
from lvmsync.jobs.outlet import Outlet
from lvmsync.jobs.progress import Receipt, ignore
from lvmsync.jobs.receive import ReceiveOptions, receive
from lvmsync.jobs.send import Sender, StreamOptions
from lvmsync.names import BlockMap, Comparison, Volume, parse_source
from lvmsync.sources import Reading, Source, blksnap, open_source
from lvmsync.system.blksnap import open_control
from tests.blksnap_kernel import Disk, Kernel, Tracker, running

GENERATIONS = ("v1", "v7", "up")
SIZE = 4 << 20
BLOCK = 64 << 10


@dataclass
class Machine:
    """The machine.

    Attributes:
        kernel: with the module.
        disks: that can be tracked.
        folder: of targets and state.
        room: for difference storage: a spare device on v1, a folder for the others.
        sent: sources that were sent, the last one behind.
        during: called in the middle of each copy, when half of what is sent has been read.
    """

    kernel: Kernel
    disks: list[Disk]
    folder: Path
    room: Room
    sent: list[Source] = field(default_factory=list)
    during: Callable[[], None] = lambda: None
    writes: int = 0
    protected: list[bool] = field(default_factory=list)

    @property
    def state(self) -> Path:
        return self.folder / "state"

    @property
    def disk(self) -> Disk:
        return self.disks[0]

    def target(self, disk: Disk | None = None) -> Path:
        """Return the copy of a disk, an image file; it holds ones at first."""
        path = self.folder / f"copy-of-{(disk or self.disk).file.name}"
        if not path.exists():
            path.write_bytes(b"\1" * (disk or self.disk).size)
        return path

    def outlet(self, disk: Disk) -> Outlet:
        target = self.target(disk)

        def send(source: Source, require_base: bool) -> Receipt:
            self.sent.append(source)
            return self.deliver(source, target, require_base=require_base)

        return Outlet(disk.node, str(target), send, lambda name, reading: self.compare(target, name, reading))

    def compare(self, target: Path, name: Comparison, reading: Reading) -> AbstractContextManager[Source]:
        return open_source(replace(name, old=Volume(str(target))), reading)

    def deliver(self, source: Source, target: Path, *, require_base: bool) -> Receipt:
        """Send and receive, in this process; the stream is applied only when it is whole."""
        stream = io.BytesIO()
        sender = Sender(source, stream.writelines, StreamOptions(), ignore)
        sender.begin()
        self.during()
        sent = sender.run()
        stream.seek(0)
        options = ReceiveOptions(str(target), self.state, require_base=require_base)
        got = receive(stream.readinto, options, ignore)
        assert got.digest == sent.digest
        return replace(sent, target=str(target), durable=got.durable, confirmed=True, point=got.point)

    def sync(self, *disks: Disk, **options: Any) -> list[Receipt]:
        """Sync some disks, the first one if none is named, to their copies."""
        outlets = [self.outlet(disk) for disk in disks or [self.disk]]
        return blksnap_sync.sync(self.state, outlets, self.room, **options)

    def scribble(self, disk: Disk | None = None, count: int = 5) -> None:
        """Write at random places of a disk, at its first and its last sector as well."""
        disk = disk or self.disk
        self.writes += 1
        random = np.random.default_rng(self.writes)
        places = [0, disk.size - 512, *(random.integers(0, disk.size - 9000, count) // 512 * 512).tolist()]
        for place in places[self.writes % 3 :]:
            length = min(int(random.integers(1, 18)) * 512, disk.size - place)
            self.kernel.write(disk, place, random.bytes(length))

    def is_equal(self, disk: Disk | None = None) -> bool:
        return self.target(disk).read_bytes() == (disk or self.disk).content

    def kernel_attach(self, disk: Disk | None = None) -> None:
        """Have a disk tracked, if it is not."""
        disk = disk or self.disk
        if not disk.tracker:
            disk.tracker = Tracker(disk.size, self.kernel.block_size)

    def kernel_take(self, disk: Disk | None = None, *, keep: bool = False) -> str:
        """Take a snapshot of a disk as another program does, and destroy it unless it is to be kept."""
        disk = disk or self.disk
        self.kernel_attach(disk)
        return self.kernel.take(disk, keep=keep)

    def resize(self, size: int) -> None:
        os.truncate(self.disk.file, size)
        subprocess.run(["losetup", "-c", self.disk.node], check=True)

    def rewrite_base(self, file: Path | None = None, **changes: Any) -> None:
        """Change what is remembered of the only target."""
        path = file or next((self.state / "blksnap/bases").glob("*.json"))
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    def forget_target(self) -> None:
        """Change the target as by a stream of something else, so that its ledger holds another point."""
        path = next((self.state / "targets").glob("*/record.json"))
        record = json.loads(path.read_text())
        record["point"] = {"id": "era:another:3", "parent": None, "time": None}
        path.write_text(json.dumps(record))

    def open_everything(self) -> AbstractContextManager[Source]:
        """Open all of the first disk, as it is in the snapshot that is held."""
        name = parse_source(f"blksnap:{self.disk.node}")
        assert isinstance(name, BlockMap)
        return blksnap.open_live(name, Reading(), lambda _: blksnap.Choice(None))

    def requests_until(self, name: str) -> int:
        """Return how many requests the next sync makes up to the first one of a name, that included."""
        folder, self.kernel.calls = self.kernel.calls, []
        self.sync()
        at = self.kernel.calls.index(name) + 1
        self.kernel.calls = folder
        return at

    def wait_for_room(self) -> None:
        """Wait until the event thread has answered."""
        for _ in range(5000):
            if not any(one.asked for one in self.kernel.snapshots.values()):
                return
            time.sleep(0.002)
        raise AssertionError("no answer")

    def noted(self) -> list[Path]:
        """Return the files about snapshots that are left."""
        return sorted((self.state / "blksnap/snapshots").glob("*"))

    def spare(self, name: str, size: int) -> str:
        """Make a loop device that nothing uses."""
        return self.kernel.add_spare(self.folder / name, size)


@contextmanager
def machine(folder: Path, monkeypatch: pytest.MonkeyPatch, generation: str, *, sizes: dict[str, int] | None = None,
            limit: int | None = None, **options: Any) -> Iterator[Machine]:  # fmt: skip
    """Yield a machine whose blksnap is of a generation; the code under test reaches nothing else."""
    (folder / "kernel").mkdir()
    (folder / "room").mkdir()
    with running(folder / "kernel", generation, sizes or {"one": SIZE - 4096, "two": SIZE}, **options) as (
        kernel,
        disks,
    ):
        monkeypatch.setattr(blksnap, "ROOT", kernel.root)
        monkeypatch.setattr(blksnap, "connect", lambda: open_control(kernel.root, kernel.call))
        for module in blksnap_sync, __import__("lvmsync.jobs.blksnap", fromlist=["connect"]):
            monkeypatch.setattr(module, "connect", lambda: open_control(kernel.root, kernel.call))
        monkeypatch.setattr(blksnap_storage, "find_file_device", lambda _: (8, 200))
        monkeypatch.setattr(blksnap_storage, "LEAST", 1 << 16)
        monkeypatch.setattr(blksnap_storage, "PORTION", 1 << 20)
        place = folder / "room"
        if generation == "v1":
            place = Path(kernel.add_spare(folder / "spare.img", 40 << 20))
        here = Machine(kernel, disks, folder, Room(str(place), limit or 8 << 20))
        for module in blksnap_storage, blksnap_notes:  # not every file system that tests run on can do it
            monkeypatch.setattr(module, "set_immutable", lambda _, is_immutable: here.protected.append(is_immutable))
        monkeypatch.setattr(blksnap_storage, "is_realtime", lambda _: False)
        yield here

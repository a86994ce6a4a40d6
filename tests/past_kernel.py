"""A device mapper that is files: views of past states are read from their stores, as the kernel reads them.

What it runs is in one file, changed by a rename, so that a run which is killed leaves what a kernel would have.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from lvmsync.errors import CommandError
from lvmsync.formats.snapshot import ENTRY_SIZE, DiskHeader, Layout, Usage, decode_exceptions, kept_at
from lvmsync.jobs.archive.mount import mount
from lvmsync.jobs.archive.mount_plan import MountOptions, MountReceipt
from lvmsync.jobs.archive.mounted import list_mounted
from lvmsync.jobs.archive.shelf import Shelf
from lvmsync.jobs.progress import ignore
from lvmsync.system import dm, loop, mounting, past_views
from lvmsync.system.device import Device, open_device
from lvmsync.system.dm import Mapped, Number
from tests.archive_history import Archive, Forward, History, Reverse


@dataclass
class Taken:
    """A snapshot as `dm.find_snapshot` tells of it."""

    usage: Usage

    def read_usage(self) -> Usage:
        return self.usage


class PastKernel:
    """The kernel, and loop devices.

    Attributes:
        folder: where it keeps what it runs.
        refuses: words of a device's name with which none is made.
        in_use: numbers of devices that somebody has open.
        texts: statuses of devices that are not as they should be, by their names.
    """

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.refuses = "nothing"
        self.in_use: set[Number] = set()
        self.texts: dict[str, str] = {}
        self.loops: list[str] = []  # paths by minor number
        folder.mkdir()
        for module, names in (
            (past_views, ("create", "remove")),
            (
                dm,
                (
                    "list_devices",
                    "is_in_kernel",
                    "open_number",
                    "find_snapshot",
                    "wait_until_closed",
                    "read_status",
                    "list_tables",
                ),
            ),
            (loop, ("attached",)),
        ):
            for name in names:
                patch.setattr(module, name, getattr(self, name))
        patch.setattr(mounting, "mount", self.mount)
        patch.setattr(mounting, "unmount", self.unmount)

    # --- What is asked of it

    def is_in_kernel(self) -> bool:
        return True

    def list_devices(self) -> list[Mapped]:
        return [
            Mapped(row["name"], row["uuid"], (253, row["minor"]), int((253, row["minor"]) in self.in_use))
            for row in self.rows()
        ]

    def list_tables(self) -> list[dm.Line]:
        return []  # of pools and era devices there are none

    def create(self, name: str, uuid: str, lines: Sequence[str], *, read_only: bool) -> Mapped:
        if self.refuses in name or any(row["name"] == name for row in self.rows()):
            raise CommandError(f"'dmsetup create' failed: {name}")
        minor = max([row["minor"] for row in self.rows()], default=0) + 1
        row = {"name": name, "uuid": uuid, "minor": minor, "lines": list(lines), "read_only": read_only}
        self._keep([*self.rows(), {**row, "loops": self.loops}])
        found = past_views.find(uuid)
        assert found is not None
        return found

    def remove(self, device: Mapped) -> None:
        self._keep([row for row in self.rows() if row["uuid"] != device.uuid])

    def open_number(self, number: Number) -> Device:
        """Open an origin: an image of what its table shows."""
        row = self._row(number)
        path = self.folder / f"{number[1]}.image"
        path.write_bytes(self._origin(row))
        return open_device(str(path))

    def find_snapshot(self, number: Number) -> Taken:
        row = self._row(number)
        store, chunk, found = self._store(row)
        used = max(found.values(), default=1) + 1
        used += used % (chunk // ENTRY_SIZE + 1) == 1
        return Taken(Usage(used * chunk // 512, len(store) // 512, 0))

    def wait_until_closed(self, number: Number) -> bool:
        return number not in self.in_use

    def read_status(self, device: Mapped) -> list[dm.Line]:
        row = self._row(device.number)
        kind, text = row["lines"][0].split()[2], self.texts.get(device.name, "16/32 16")
        return [dm.Line(device, 0, 0, kind, text)]

    @contextmanager
    def attached(self, path: str, *, read_only: bool) -> Iterator[Number]:
        self.loops = [*self.loops, path]
        yield 7, len(self.loops) - 1

    def mount(self, path: str, directory: str, *, read_only: bool) -> str | None:
        self._keep(self.rows())  # a step
        return "its journal was not replayed" if read_only else None

    def unmount(self, directory: str) -> None:
        pass

    # --- What it shows

    def read(self, path: str) -> bytes:
        """Return all bytes of a view."""
        row = next(row for row in self.rows() if str(dm.NODES / row["name"]) == path)
        words = row["lines"][0].split()
        origin = bytearray(self._origin(self._row(_number(words[3]))))
        store, chunk, found = self._store(row)
        for old, new in found.items():
            end = min((old + 1) * chunk, len(origin))
            origin[old * chunk : end] = store[new * chunk : new * chunk + end - old * chunk]
        return bytes(origin)

    def rows(self) -> list[dict[str, Any]]:
        path = self.folder / "state"
        found: list[dict[str, Any]] = json.loads(path.read_text()) if path.exists() else []
        return found

    def _row(self, number: Number) -> dict[str, Any]:
        return next(row for row in self.rows() if row["minor"] == number[1])

    def _origin(self, row: dict[str, Any]) -> bytes:
        out = b""
        for line in row["lines"]:
            start, length, kind, *rest = line.split()
            assert int(start) * 512 == len(out)
            size = int(length) * 512
            if kind == "linear":
                data = Path(row["loops"][_number(rest[0])[1]]).read_bytes()[:size]
                assert len(data) == size  # the kernel refuses a device that ends before
            else:
                data = bytes(size)
            out += data
        return out

    def _store(self, row: dict[str, Any]) -> tuple[bytes, int, dict[int, int]]:
        words = row["lines"][0].split()
        assert words[2] == "snapshot"
        store = Path(row["loops"][_number(words[4])[1]]).read_bytes()
        chunk = DiskHeader.parse(store).chunk_size * 512
        assert int(words[6]) * 512 == chunk
        layout = Layout(chunk, len(store) // chunk)
        found: dict[int, int] = {}
        for first in range(0, layout.table_size // ENTRY_SIZE, layout.exceptions_per_area):
            (offset,), (length,) = layout.locate(first * ENTRY_SIZE, chunk)
            area = store[offset : offset + length]
            old = decode_exceptions(area, first, layout, int(words[1]) * 512)
            found |= zip(old.tolist(), kept_at(area, len(old)).tolist(), strict=True)
            if len(old) < layout.exceptions_per_area:
                return store, chunk, found
        raise AssertionError("the store's table has no end")

    def _keep(self, rows: list[dict[str, Any]]) -> None:
        new = self.folder / "new"
        new.write_text(json.dumps(rows))
        new.rename(self.folder / "state")


class World:
    """An archive, and a machine that points of it are mounted on."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch, kind: type[Archive] = Reverse, seed: int = 7) -> None:
        self.kernel = PastKernel(folder / "kernel", patch)
        self.archive = kind(folder, History.make(seed, 6, (160 << 10) + 1536))
        self.state = folder / "state"
        self.image = None if isinstance(self.archive, Forward) else str(self.archive.image)

    @property
    def shelf(self) -> Shelf:
        return self.archive.shelf

    def mount(self, number: int = 1, options: MountOptions = MountOptions()) -> MountReceipt:  # noqa: B008
        point = next(one for one in self.shelf.catalogue.points if one.number == number)
        return mount(self.shelf, point, self.image, self.state, options, ignore)

    def wanted(self, number: int) -> bytes:
        return self.archive.history.data_of(next(one for one in self.shelf.catalogue.points if one.number == number))

    def look(self) -> str:
        """Return a digest of the archive and the mirror."""
        files = sorted(path for path in self.state.parent.glob("archive/*") if path.is_file())
        data = b"".join(path.read_bytes() for path in [*files, *([Path(self.image)] if self.image else [])])
        return hashlib.sha256(data).hexdigest()

    def require_tidy(self) -> None:
        assert self.kernel.rows() == []
        assert list_mounted(self.state) == []
        assert list((self.state / "mounts").glob("*.cow")) == []


def _number(text: str) -> Number:
    major, _, minor = text.partition(":")
    return int(major), int(minor)

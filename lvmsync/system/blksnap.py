"""The control nodes of blksnap: snapshots, maps, storage and events, of all three generations of its ABI.

How a request is made is the affair of `blksnap_requests`.
A snapshot is not bound to the process: whoever made one has to destroy it, or a later run.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from lvmsync.errors import ChangesLost, DeviceError, FormatError, LvmsyncError
from lvmsync.formats import blksnap_abi as abi
from lvmsync.formats.blksnap import BlockNumbers, Tracking
from lvmsync.formats.blksnap_abi import SECTOR, Abi, Event
from lvmsync.system.blksnap_requests import (
    Asking,
    Call,
    DeviceName,
    Opener,
    Version,
    call_ioctl,
    errno_of,
    name_device,
    open_nodes,
)

__all__ = ["Control", "DeviceName", "Version", "errno_of", "name_device", "open_control"]

MAP_PIECE = 1 << 20
"""Bytes of a map that are asked for at a time."""


def open_control(root: Path = Path("/"), call: Call = call_ioctl, open_path: Opener = os.open) -> Control:
    """Find the control node of blksnap, and which ABI it has; nothing but VERSION is sent before that is known.

    Args:
        root: where /dev and /sys are.
        call: instead of ioctl(2).
        open_path: instead of os.open.

    Raises:
        DeviceError: no module is loaded, or none that is known; or permission denied.
    """
    return Control(open_nodes(root, call, open_path), root)


class Control:
    """blksnap itself; a context manager, made by `open_control`. A method is one operation.

    Each raises DeviceError, with the reason and what to do next, where blksnap refuses. Ids of snapshots are written
    as 8-4-4-4-12 hex digits. Several threads may use one at a time.

    Attributes:
        abi: its generation.
        version: what the module says.
        node: path of its control node.
        notes: what the user should know of the choice of the node.
    """

    def __init__(self, asking: Asking, root: Path) -> None:
        """Take over the open nodes."""
        self.abi = asking.abi
        self.version = asking.version
        self.node = asking.node
        self.notes = asking.notes
        self._asking = asking
        self._root = root

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the nodes; snapshots stay."""
        self._asking.close()

    # The module

    def read_version(self) -> Version:
        """Return the version once more, asked by this ABI's own number."""
        return Version(**self._asking.ask("version", "tell its version")[0])

    def read_modification(self) -> tuple[int, str]:
        """Return the flags and the name of the module's build (V1 and V7)."""
        values, _ = self._asking.ask("modification", "tell its modification")
        return values["flags"], _text(values["name"])

    # Tracking

    def attach(self, device: DeviceName) -> None:
        """Begin to track a device; on V1 nothing: there `create` does it."""
        if self.abi is not Abi.V1:
            self._asking.ask_filter("attach", f"track {device.path}", device)

    def detach(self, device: DeviceName) -> None:
        """Stop tracking a device; its generation is over.

        V7 and UP do it even while a snapshot is held, whose image then changes with the device: never do that.
        """
        what = f"stop tracking {device.path}"
        if self.abi is Abi.V1:
            self._asking.ask("detach", what, about=device.path, **_number(device))
        else:
            self._asking.ask_filter("detach", what, device)

    def read_tracking(self, device: DeviceName) -> Tracking | None:
        """Return how far the tracking of a device is; None: it is not tracked."""
        if self.abi is Abi.V1:
            return self.list_trackers().get(device.number)
        try:
            values = self._asking.command("read_tracking", f"tell how {device.path} is tracked", device)
        except DeviceError as error:
            if errno_of(error) == errno.ENOENT:
                return None
            raise
        with _about(device):
            return abi.decode_tracking(values)

    def list_trackers(self) -> dict[tuple[int, int], Tracking]:
        """Return every tracked device by its number (V1; the others do not tell)."""
        found = self._asking.collect("list_trackers", "list what is tracked", abi.CBT_INFO)
        return {(one["major"], one["minor"]): abi.decode_tracking(one) for one in found}

    def read_map(self, device: DeviceName, tracking: Tracking, piece: int = MAP_PIECE) -> BlockNumbers:
        """Return a device's map, which is still to be checked (`formats.blksnap.check_map`).

        It stays as it is while a snapshot is held, apart from `mark_dirty` and writes to the image. V1 gives it only
        then; the others also without, as it was at the latest snapshot.

        Args:
            device: whose.
            tracking: what `read_tracking` said of it, in this snapshot.
            piece: bytes asked for at a time.

        Raises:
            ChangesLost: there is no such map any more.
        """
        numbers = np.zeros(tracking.block_count, np.uint8)
        for at in range(0, len(numbers), piece):
            length = min(piece, len(numbers) - at)
            got = self.read_map_piece(device, at, length)
            if len(got) != length:
                raise ChangesLost(
                    f"{device.path}: its map ends at {at + len(got)}, not at {len(numbers)}: it was resized, or"
                    " tracking began anew; take another snapshot, and send everything",
                    device=device.path,
                )
            numbers[at : at + length] = got
        return numbers

    def read_map_piece(self, device: DeviceName, offset: int, length: int) -> BlockNumbers:
        """Return ``length`` bytes of a map from ``offset``; never ask behind its end, which is not always checked.

        V1 gives less at the end.
        """
        out = np.zeros(length, np.uint8)
        what, wanted = f"read the map of {device.path}", {"offset": offset, "length": length}
        if self.abi is not Abi.V1:
            self._asking.command("read_map", what, device, **wanted, address=out.ctypes.data)
            return out  # the answer is no count of bytes, whatever the header says
        values = _number(device) | wanted
        _, got = self._asking.ask("read_map", what, about=device.path, **values, address=out.ctypes.data)
        if not 0 <= got <= length:
            raise FormatError(f"{device.path}: blksnap read {got} bytes of its map, of {length}", device=device.path)
        return out[:got]

    def mark_dirty(self, device: DeviceName, ranges: Iterable[tuple[int, int]]) -> None:
        """Have ranges of a device count as written, now and in the next snapshot.

        Args:
            device: which.
            ranges: offset and length in bytes, rounded outward to sectors.
        """
        table = _range_table((offset // SECTOR, -(-(offset + length) // SECTOR)) for offset, length in ranges)
        if not _count(table):
            return
        what, values = f"mark ranges of {device.path}", {"count": _count(table), "address": ctypes.addressof(table)}
        if self.abi is Abi.V1:
            self._asking.ask("mark_dirty", what, about=device.path, **_number(device), **values)
        else:
            self._asking.command("mark_dirty", what, device, **values)

    # Snapshots

    def list_snapshots(self) -> list[str]:
        """Return the ids of all snapshots, whoever made them."""
        found = self._asking.collect("list_snapshots", "list snapshots", abi.ID)
        return [abi.decode_uuid(one["id"]) for one in found]

    def create(self, devices: Sequence[DeviceName], storage: str | None = None, limit: int = 0) -> str:
        """Prepare one snapshot of some devices, and return its id; `take` then takes it.

        On V1, devices are tracked from here on, storage is appended later, and a snapshot that exists already
        is lost to all: see first that there is none (`list_snapshots`).

        Args:
            devices: which; V7 and UP must track them already.
            storage: path of a folder, a file or a spare block device for old content (V7 and UP).
            limit: bytes that it may take there.
        """
        what = f"make a snapshot of {', '.join(device.path for device in devices) or 'nothing'}"
        if self.abi is Abi.V1:
            numbers = b"".join(abi.DEVICE.encode(**_number(device)) for device in devices)
            room = ctypes.create_string_buffer(numbers, max(len(numbers), 1))
            values, _ = self._asking.ask("create", what, count=len(devices), address=ctypes.addressof(room))
            return abi.decode_uuid(values["id"])
        path = ctypes.create_string_buffer(os.fsencode(storage)) if storage is not None else None
        values, _ = self._asking.ask(
            "create", what, limit_sectors=limit // SECTOR, path=ctypes.addressof(path) if path else 0
        )
        snapshot = abi.decode_uuid(values["id"])
        try:
            for device in devices:
                self.add(snapshot, device)
        except BaseException:
            with suppress(LvmsyncError):
                self.destroy(snapshot)
            raise
        return snapshot

    def add(self, snapshot: str, device: DeviceName) -> None:
        """Add a tracked device to a snapshot that was not taken yet (V7 and UP; `create` does it)."""
        self._asking.command("add", f"add {device.path} to snapshot {snapshot}", device, id=abi.encode_uuid(snapshot))

    def append_storage(self, snapshot: str, device: DeviceName, ranges: Iterable[tuple[int, int]]) -> None:
        """Give a snapshot room for old content (V1 and V7; UP takes it by itself).

        Args:
            snapshot: its id.
            device: where the room is.
            ranges: offset and length in bytes of ranges that nothing else uses, rounded inward to sectors.
        """
        table = _range_table((-(-offset // SECTOR), (offset + length) // SECTOR) for offset, length in ranges)
        if not _count(table):
            raise DeviceError(
                f"{device.path}: no whole sector in what snapshot {snapshot} is to use", device=device.path
            )
        values = {"count": _count(table), "address": ctypes.addressof(table), "id": abi.encode_uuid(snapshot)}
        if self.abi is Abi.V1:
            values |= _number(device)
        else:
            self._asking.check(device)
            path = ctypes.create_string_buffer(os.fsencode(device.path))
            values["device"] = ctypes.addressof(path)
        self._asking.ask("append_storage", f"use {device.path} for snapshot {snapshot}", about=device.path, **values)

    def take(self, snapshot: str) -> None:
        """Take a snapshot: from now on its images stay as they are, and the maps, too."""
        self._asking.ask("take", f"take snapshot {snapshot}", id=abi.encode_uuid(snapshot))

    def destroy(self, snapshot: str) -> None:
        """Give a snapshot up, taken or not; tracking goes on."""
        self._asking.ask("destroy", f"destroy snapshot {snapshot}", id=abi.encode_uuid(snapshot))

    def images(self, snapshot: str, devices: Sequence[DeviceName]) -> dict[DeviceName, str]:
        """Return the path of each device's image in a snapshot that has been taken.

        A snapshot that is lost has images, too; see `read_error` and `wait_event`.
        """
        if self.abi is not Abi.V1:
            return {device: self._image(snapshot, device) for device in devices}
        found = self._asking.collect(
            "list_images", f"list the images of snapshot {snapshot}", abi.IMAGE_INFO, id=abi.encode_uuid(snapshot)
        )
        numbers = {(one["major"], one["minor"]): (one["image_major"], one["image_minor"]) for one in found}
        for device in devices:
            if device.number not in numbers:
                raise DeviceError(f"snapshot {snapshot} is not of {device.path}", device=device.path)
        return {device: self._node_path(numbers[device.number]) for device in devices}

    def read_error(self, device: DeviceName) -> int:
        """Return why the snapshot of a device is lost, as a positive errno; 0: it is not (on V1 only events tell)."""
        if self.abi is Abi.V1:
            return 0
        return abs(int(self._asking.command("read_image", f"tell the state of {device.path}", device)["error"]))

    def wait_event(self, snapshot: str, ticks: int) -> Event | None:
        """Wait for an event of a snapshot; None: there was none, or a signal came: just ask again.

        Args:
            snapshot: its id.
            ticks: of the scheduler (1 to 10 ms each), whatever the header says.
        """
        try:
            values = self._asking.send(
                "wait_event", f"wait for events of snapshot {snapshot}", id=abi.encode_uuid(snapshot), timeout=ticks
            )[0]
        except DeviceError as error:
            if errno_of(error) in (errno.ENOENT, errno.EINTR):
                return None
            raise
        return abi.decode_event(self.abi, values)

    def _image(self, snapshot: str, device: DeviceName) -> str:
        name = _text(self._asking.command("read_image", f"find the image of {device.path}", device)["image"])
        if not name:
            raise DeviceError(f"snapshot {snapshot} of {device.path} has not been taken yet", device=device.path)
        if "/" in name:
            raise FormatError(f"blksnap names an image '{name}', which is no name in /dev", device=device.path)
        return str(self._root / "dev" / name)

    def _node_path(self, number: tuple[int, int]) -> str:
        link = self._root / f"sys/dev/block/{number[0]}:{number[1]}"
        try:
            name = link.readlink().name
        except OSError as error:
            raise DeviceError(f"image device {number[0]}:{number[1]}: {link}: {error.strerror}") from error
        return str(self._root / "dev" / name.replace("!", "/"))


def _number(device: DeviceName) -> dict[str, int]:
    return {"major": device.number[0], "minor": device.number[1]}


def _range_table(sectors: Iterable[tuple[int, int]]) -> ctypes.Array[ctypes.c_char]:
    """Return an array of ranges, of first sectors and ends; empty ones are left out."""
    found = [(first, end) for first, end in sectors if end > first]
    data = b"".join(abi.RANGE.encode(first_sector=first, sector_count=end - first) for first, end in found)
    return ctypes.create_string_buffer(data, len(data))


def _count(table: ctypes.Array[ctypes.c_char]) -> int:
    return len(table) // abi.RANGE.size


def _text(raw: bytes) -> str:
    return raw.partition(b"\0")[0].decode(errors="replace")


@contextmanager
def _about(device: DeviceName) -> Iterator[None]:
    """Put a device's name into errors of a format, which knows none."""
    try:
        yield
    except FormatError as error:
        raise FormatError(f"{device.path}: {error}", device=device.path) from error

"""The control nodes of blksnap: snapshots, maps, storage and events, of all three generations of its ABI.

What a request looks like is the affair of `formats.blksnap_abi`; what its refusal means, of `blksnap_refusals`.
A snapshot is not bound to the process: whoever made one has to destroy it, or a later run.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np

from lvmsync.errors import ChangesLost, DeviceError, FormatError, LvmsyncError, UsageError
from lvmsync.formats import blksnap_abi as abi
from lvmsync.formats.blksnap import BlockNumbers, Tracking
from lvmsync.formats.blksnap_abi import COMMANDS, FILTER_NAME, PROBE, REQUESTS, SECTOR, Abi, Event
from lvmsync.system.blksnap_refusals import explain
from lvmsync.system.device import opening_failed

Call = Callable[[int, int, bytearray], int]
"""ioctl(2): descriptor, request number, and the struct, which is changed in place; raises OSError."""

MAP_PIECE = 1 << 20
"""Bytes of a map that are asked for at a time."""

_NODES = (("dev/blksnap-control", (Abi.UP,)), ("dev/veeamblksnap", (Abi.V1, Abi.V7)), ("dev/blksnap", (Abi.V1,)))
_FILTER_NODE = "dev/bdevfilter"
_ATTEMPTS = 5  # to count things and then list them, if there are more each time
_LOAD = "load the module: 'modprobe veeamblksnap', or 'modprobe blksnap', whichever this machine has"


class DeviceName(NamedTuple):
    """A block device, as blksnap is told of it; made by `name_device`.

    Attributes:
        path: absolute, with no symbolic link in it: V7 looks it up again at each request.
        number: ``(major, minor)``.
    """

    path: str
    number: tuple[int, int]


class Version(NamedTuple):
    """What a module says it is; ``major`` tells the ABI."""

    major: int
    minor: int
    revision: int
    build: int

    def __str__(self) -> str:
        return ".".join(map(str, self))


def name_device(path: str) -> DeviceName:
    """Return the block device that a path leads to.

    Raises:
        DeviceError: it does not lead to one.
    """
    real = os.path.realpath(path)
    try:
        state = Path(real).stat()
    except OSError as error:
        raise opening_failed(path, error) from error
    if not stat.S_ISBLK(state.st_mode):
        raise DeviceError(f"{path} is no block device, and blksnap tracks nothing else", device=path)
    return DeviceName(real, (os.major(state.st_rdev), os.minor(state.st_rdev)))


def call_ioctl(fd: int, number: int, argument: bytearray) -> int:
    """Call ioctl(2); what the kernel writes is then in ``argument``."""
    return int(fcntl.ioctl(fd, number, argument, True))


def open_control(
    root: Path = Path("/"), call: Call = call_ioctl, open_path: Callable[[str, int], int] = os.open
) -> Control:
    """Find the control node of blksnap, and which ABI it has; nothing but VERSION is sent before that is known.

    Args:
        root: where /dev and /sys are.
        call: instead of ioctl(2).
        open_path: instead of os.open.

    Raises:
        DeviceError: no module is loaded, or none that is known; or permission denied.
    """
    found = [(root / name, abis) for name, abis in _NODES if (root / name).exists()]
    refusals = []
    for path, abis in found:
        try:
            control = _open_node(path, abis, root, call, open_path)
        except DeviceError as error:
            refusals.append(error)
            continue
        if len(found) > 1:
            nodes = " and ".join(str(path) for path, _ in found)
            control.notes = (f"There are control nodes {nodes}; {path} is used.",)
        return control
    if refusals:
        raise refusals[0]
    names = ", ".join(f"/{name}" for name, _ in _NODES)
    raise DeviceError(f"blksnap has no control node here ({names}): {_LOAD}")


def _open_node(
    path: Path, abis: tuple[Abi, ...], root: Path, call: Call, open_path: Callable[[str, int], int]
) -> Control:
    """Open one control node and ask for its version; see `open_control`."""
    fds: list[int] = []
    try:
        fds.append(_open(open_path, path))
        answer = bytearray(abi.VERSION.size)
        try:
            call(fds[0], PROBE, answer)
        except OSError as error:
            raise DeviceError(
                f"{path} does not tell its version ({error.strerror}): this is no blksnap that lvmsync knows",
                device=str(path),
            ) from error
        version = Version(**abi.VERSION.decode(answer))
        known = next((one for one in abis if one.value == version.major), None)
        if known is None:
            expected = " or ".join(str(one.value) for one in abis)
            raise DeviceError(
                f"{path} is of blksnap {version}; expected major version {expected}: this lvmsync does not know it,"
                " and sends nothing to what it does not know",
                device=str(path),
            )
        if known is Abi.V7:
            fds.append(_open(open_path, root / _FILTER_NODE))
        return Control(known, version, path, fds, root, call, open_path)
    except BaseException:
        for fd in fds:
            os.close(fd)
        raise


def _open(open_path: Callable[[str, int], int], path: Path) -> int:
    try:
        return open_path(str(path), os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise DeviceError(
            f"there is no {path}, which blksnap 7 needs: load the module, 'modprobe bdevfilter'", device=str(path)
        ) from error
    except OSError as error:
        raise opening_failed(str(path), error) from error


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

    def __init__(
        self,
        kind: Abi,
        version: Version,
        node: Path,
        fds: list[int],
        root: Path,
        call: Call,
        open_path: Callable[[str, int], int],
    ) -> None:
        """Take over descriptors: of the control node, and for V7 of the filter's node."""
        self.abi = kind
        self.version = version
        self.node = node
        self.notes: tuple[str, ...] = ()
        self._fds = fds
        self._root = root
        self._call = call
        self._open_path = open_path

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the nodes; snapshots stay."""
        while self._fds:
            os.close(self._fds.pop())

    # The module

    def read_version(self) -> Version:
        """Return the version once more, asked by this ABI's own number."""
        return Version(**self._ask("version", "tell its version")[0])

    def read_modification(self) -> tuple[int, str]:
        """Return the flags and the name of the module's build (V1 and V7)."""
        values, _ = self._ask("modification", "tell its modification")
        return values["flags"], _text(values["name"])

    # Tracking

    def attach(self, device: DeviceName) -> None:
        """Begin to track a device; on V1 nothing: there `create` does it."""
        if self.abi is not Abi.V1:
            self._filter("attach", f"track {device.path}", device)

    def detach(self, device: DeviceName) -> None:
        """Stop tracking a device; its generation is over.

        V7 and UP do it even while a snapshot is held, whose image then changes with the device: never do that.
        """
        what = f"stop tracking {device.path}"
        if self.abi is Abi.V1:
            self._ask("detach", what, **_number(device))
        else:
            self._filter("detach", what, device)

    def read_tracking(self, device: DeviceName) -> Tracking | None:
        """Return how far the tracking of a device is; None: it is not tracked."""
        if self.abi is Abi.V1:
            return self.list_trackers().get(device.number)
        try:
            values = self._command("read_tracking", f"tell how {device.path} is tracked", device)
        except DeviceError as error:
            if _errno(error) == errno.ENOENT:
                return None
            raise
        with _about(device):
            return abi.decode_tracking(values)

    def list_trackers(self) -> dict[tuple[int, int], Tracking]:
        """Return every tracked device by its number (V1; the others do not tell)."""
        found = self._collect("list_trackers", "list what is tracked", abi.CBT_INFO)
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
            self._command("read_map", what, device, **wanted, address=out.ctypes.data)
            return out  # the answer is no count of bytes, whatever the header says
        _, got = self._ask("read_map", what, **_number(device), **wanted, address=out.ctypes.data)
        if not 0 <= got <= length:
            raise FormatError(f"{device.path}: blksnap read {got} bytes of its map, of {length}", device=device.path)
        return out[:got]

    def mark_dirty(self, device: DeviceName, ranges: Iterable[tuple[int, int]]) -> None:
        """Have ranges of a device count as written, now and in the next snapshot.

        Args:
            device: which.
            ranges: offset and length in bytes, rounded outward to sectors.
        """
        sectors = [(offset // SECTOR, -(-(offset + length) // SECTOR)) for offset, length in ranges]
        table = _range_table((first, end - first) for first, end in sectors)
        what, values = f"mark ranges of {device.path}", {"count": len(sectors), "address": ctypes.addressof(table)}
        if self.abi is Abi.V1:
            self._ask("mark_dirty", what, **_number(device), **values)
        else:
            self._command("mark_dirty", what, device, **values)

    # Snapshots

    def list_snapshots(self) -> list[str]:
        """Return the ids of all snapshots, whoever made them."""
        found = self._collect("list_snapshots", "list snapshots", abi.ID)
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
            values, _ = self._ask("create", what, count=len(devices), address=ctypes.addressof(room))
            return abi.decode_uuid(values["id"])
        path = ctypes.create_string_buffer(os.fsencode(storage)) if storage is not None else None
        values, _ = self._ask("create", what, limit_sectors=limit // SECTOR, path=ctypes.addressof(path) if path else 0)
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
        self._command("add", f"add {device.path} to snapshot {snapshot}", device, id=abi.encode_uuid(snapshot))

    def append_storage(self, snapshot: str, device: DeviceName, ranges: Iterable[tuple[int, int]]) -> None:
        """Give a snapshot room for old content (V1 and V7; UP takes it by itself).

        Args:
            snapshot: its id.
            device: where the room is.
            ranges: offset and length in bytes of ranges that nothing else uses, rounded inward to sectors.
        """
        sectors = [(-(-offset // SECTOR), (offset + length) // SECTOR) for offset, length in ranges]
        table = _range_table((first, end - first) for first, end in sectors if end > first)
        values: dict[str, Any] = {"count": len(table) // abi.RANGE.size, "address": ctypes.addressof(table)}
        if self.abi is Abi.V1:
            values |= _number(device)
        else:
            self._check(device)
            path = ctypes.create_string_buffer(os.fsencode(device.path))
            values["device"] = ctypes.addressof(path)
        self._ask(
            "append_storage", f"use {device.path} for snapshot {snapshot}", id=abi.encode_uuid(snapshot), **values
        )

    def take(self, snapshot: str) -> None:
        """Take a snapshot: from now on its images stay as they are, and the maps, too."""
        self._ask("take", f"take snapshot {snapshot}", id=abi.encode_uuid(snapshot))

    def destroy(self, snapshot: str) -> None:
        """Give a snapshot up, taken or not; tracking goes on."""
        self._ask("destroy", f"destroy snapshot {snapshot}", id=abi.encode_uuid(snapshot))

    def images(self, snapshot: str, devices: Sequence[DeviceName]) -> dict[DeviceName, str]:
        """Return the path of each device's image in a snapshot that has been taken."""
        if self.abi is not Abi.V1:
            return {device: self._image(snapshot, device) for device in devices}
        found = self._collect(
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
        return abs(int(self._command("read_image", f"tell the state of {device.path}", device)["error"]))

    def wait_event(self, snapshot: str, ticks: int) -> Event | None:
        """Wait for an event of a snapshot; None: there was none, or a signal came: just ask again.

        Args:
            snapshot: its id.
            ticks: of the scheduler (1 to 10 ms each), whatever the header says.
        """
        try:
            values = self._raw(
                "wait_event", f"wait for events of snapshot {snapshot}", id=abi.encode_uuid(snapshot), timeout=ticks
            )[0]
        except DeviceError as error:
            if _errno(error) in (errno.ENOENT, errno.EINTR):
                return None
            raise
        return abi.decode_event(self.abi, values)

    # Requests

    def _image(self, snapshot: str, device: DeviceName) -> str:
        name = _text(self._command("read_image", f"find the image of {device.path}", device)["image"])
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

    def _raw(
        self, name: str, what: str, *, fd: int | None = None, key: str | None = None, **values: Any
    ) -> tuple[bytearray, int]:
        """Make a request; return its struct as the kernel left it, and what ioctl(2) returned."""
        request = REQUESTS[self.abi].get(name)
        if request is None:  # never a number that this module may not know
            raise UsageError(f"blksnap {self.version} cannot {what}: there is no such request")
        argument = bytearray(request.layout.encode(**values))
        try:
            return argument, self._call(self._fds[0] if fd is None else fd, request.number, argument)
        except OSError as error:
            raise explain(self.abi, key or name, error, what) from error

    def _ask(self, name: str, what: str, **values: Any) -> tuple[dict[str, Any], int]:
        """Make a request; return its values as the kernel left them, and what ioctl(2) returned."""
        argument, result = self._raw(name, what, **values)
        return REQUESTS[self.abi][name].layout.decode(argument), result

    def _collect(self, name: str, what: str, item: abi.Layout, **values: Any) -> list[dict[str, Any]]:
        """Return what a request lists: it is asked for the count, then for so many."""
        for _ in range(_ATTEMPTS):
            try:
                count = self._ask(name, what, **values)[0]["count"]
                if not count:
                    return []
                room = ctypes.create_string_buffer(count * item.size)
                got = self._ask(name, what, **values, count=count, address=ctypes.addressof(room))[0]["count"]
            except DeviceError as error:
                if _errno(error) in (errno.ENOBUFS, errno.ENODATA):  # there are more by now
                    continue
                raise
            return [
                item.decode(room.raw[at : at + item.size]) for at in range(0, min(got, count) * item.size, item.size)
            ]
        raise DeviceError(f"blksnap cannot {what}: their number changes all the time; try again", device=str(self.node))

    def _filter(self, name: str, what: str, device: DeviceName, *, key: str | None = None, **values: Any) -> None:
        """Make a request of the filter: of its own node, or of the device."""
        values["name"] = FILTER_NAME
        if self.abi is Abi.V1:
            raise UsageError(f"blksnap {self.version} cannot {what}: there is no such request")
        if self.abi is Abi.V7:
            self._check(device)
            path = ctypes.create_string_buffer(os.fsencode(device.path))
            self._raw(name, what, fd=self._fds[1], key=key, device=ctypes.addressof(path), **values)
            return
        with self._opened(device, os.O_RDONLY | os.O_NONBLOCK) as fd:
            self._raw(name, what, fd=fd, key=key, **values)

    def _command(self, name: str, what: str, device: DeviceName, **values: Any) -> dict[str, Any]:
        """Ask the filter something about a device, and return the values of the answer."""
        number, layout = COMMANDS[name]
        option = ctypes.create_string_buffer(layout.encode(**values), layout.size)
        address = ctypes.addressof(option)
        self._filter("control", what, device, key=name, command=number, length=layout.size, address=address)
        return layout.decode(option.raw)

    def _check(self, device: DeviceName) -> None:
        """Raise unless the path still leads to the device: V7 looks it up anew at each request."""
        with self._opened(device, os.O_PATH):
            pass

    @contextmanager
    def _opened(self, device: DeviceName, flags: int) -> Iterator[int]:
        try:
            fd = self._open_path(device.path, flags | os.O_CLOEXEC)
        except OSError as error:
            raise opening_failed(device.path, error) from error
        try:
            check_number(device, os.fstat(fd))
            yield fd
        finally:
            os.close(fd)


def check_number(device: DeviceName, state: os.stat_result) -> None:
    """Raise DeviceError if what a path leads to is another block device by now."""
    number = os.major(state.st_rdev), os.minor(state.st_rdev)
    if stat.S_ISBLK(state.st_mode) and number != device.number:
        raise DeviceError(
            f"{device.path} is {number[0]}:{number[1]} now, and was {device.number[0]}:{device.number[1]}: another"
            " device has its name; run this again",
            device=device.path,
        )


def _number(device: DeviceName) -> dict[str, int]:
    return {"major": device.number[0], "minor": device.number[1]}


def _range_table(sectors: Iterable[tuple[int, int]]) -> ctypes.Array[ctypes.c_char]:
    """Return an array of ranges, each a first sector and a count."""
    data = b"".join(abi.RANGE.encode(first_sector=first, sector_count=count) for first, count in sectors)
    return ctypes.create_string_buffer(data, len(data))


def _text(raw: bytes) -> str:
    return raw.partition(b"\0")[0].decode(errors="replace")


def _errno(error: DeviceError) -> int | None:
    return error.__cause__.errno if isinstance(error.__cause__, OSError) else None


@contextmanager
def _about(device: DeviceName) -> Iterator[None]:
    """Put a device's name into errors of a format, which knows none."""
    try:
        yield
    except FormatError as error:
        raise FormatError(f"{device.path}: {error}", device=device.path) from error

"""Recordings of the real blksnap modules, and a kernel that answers from them: the next request has to be the next one
recorded, byte for byte, with all that its pointers lead to. The layouts here are read off FORMAT.md, not off lvmsync.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import itertools
import json
import os
import struct
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lvmsync.errors import LvmsyncError
from lvmsync.formats.blksnap import Tracking
from lvmsync.system.blksnap import Control, DeviceName, Version, open_control
from tests.fixture_files import FIXTURES

FOLDER = FIXTURES / "blksnap"
PROBE = 0x80085600
MAJORS = {"v1": 1, "v7": 7, "up": 2}
NODES = {
    "v1": {"control": "dev/veeamblksnap"},
    "v7": {"control": "dev/veeamblksnap", "bdevfilter": "dev/bdevfilter"},
    "up": {"control": "dev/blksnap-control"},
}


@functools.cache
def load_manifest() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((FOLDER / "manifest.json").read_text())
    return found


def list_recordings() -> list[str]:
    """Return every folder that holds a recording, whether the manifest knows it or not."""
    return sorted(path.parent.name for path in FOLDER.glob("*/ioctls.json"))


def load_facts(case: str) -> dict[str, Any]:
    path = FOLDER / case / "facts.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return found


@dataclass(frozen=True)
class Pointer:
    """An address in a struct, and what was there before and after the call."""

    offset: int
    length: int
    before: bytes | None
    after: bytes | None
    inner: tuple[Pointer, ...] = ()


@dataclass(frozen=True)
class Recorded:
    """One recorded ioctl.

    Attributes:
        seq: where in the recording it is; facts.json refers to it.
        target: "control", "bdevfilter" or "device:PATH".
        images: what the note behind it says of image nodes, by number of the original.
    """

    seq: int
    target: str
    name: str
    number: int
    before: bytes
    after: bytes
    result: int
    errno: int
    pointers: tuple[Pointer, ...]
    images: dict[str, str] = field(default_factory=dict)

    @property
    def option(self) -> Pointer:
        """What a filter's CTL carries."""
        return next(one for one in self.pointers if one.offset in (40, 48))

    @property
    def device(self) -> str:
        """The path of the device that a request to the filter is about."""
        if self.target.startswith("device:"):
            return self.target.removeprefix("device:")
        path = next(one for one in self.pointers if one.offset in (0, 16) and one.before)
        return read_text(path.before or b"")


def read_text(raw: bytes) -> str:
    return raw.partition(b"\0")[0].decode()


def load_recording(case: str) -> list[Recorded]:
    """Return the ioctls of a recording, in order."""
    entries = json.loads((FOLDER / case / "ioctls.json").read_text())
    found = []
    for at, entry in enumerate(entries):
        if entry["event"] != "ioctl":
            continue
        note = entries[at + 1] if at + 1 < len(entries) else {}
        found.append(
            Recorded(
                entry["seq"],
                entry["target"],
                entry["name"],
                int(entry["request"], 16),
                _bytes(entry["in"]),
                _bytes(entry["out"]),
                entry["ret"],
                entry["errno"],
                tuple(_pointers(entry.get("pointers", []))),
                note.get("map", {}) if note.get("what", "").startswith("image node") else {},
            )
        )
    return found


def _bytes(found: dict[str, Any]) -> bytes:
    return bytes.fromhex(found["hex"]).ljust(found["len"], b"\0")


def _pointers(found: list[dict[str, Any]]) -> Iterator[Pointer]:
    for one in found:
        inner = tuple(_pointers(one.get("pointers", [])))
        before = _bytes(one["in"]) if "in" in one else None
        yield Pointer(one["offset"], one["len"], before, _bytes(one["out"]) if "out" in one else None, inner)


class Mismatch(AssertionError):
    """The binding asked for something else than was recorded."""


class Replay:
    """A kernel that answers what was recorded.

    Attributes:
        left: what has not been asked yet.
        again: how many times more the last answer is to be given.
    """

    def __init__(self, abi: str, recorded: list[Recorded], root: Path) -> None:
        self.abi = abi
        self.left = list(recorded)
        self.again = 0
        self._root = root
        self._is_opening = False
        for name in NODES[abi].values():
            (root / name).parent.mkdir(exist_ok=True, parents=True)
            (root / name).touch()

    def open(self) -> Control:
        """Let the binding find the nodes. What it asks for then is not always recorded."""
        self._is_opening = True
        try:
            return open_control(self._root, self, self.open_path)
        finally:
            self._is_opening = False

    def open_path(self, path: str, flags: int) -> int:
        """Open a node, or a file in place of a device."""
        at = Path(path)
        if not at.is_relative_to(self._root):
            at = self._root / path.lstrip("/")
            at.parent.mkdir(parents=True, exist_ok=True)
            at.touch()
        return os.open(at, flags)

    def skip(self) -> Recorded:
        """Leave out the next request."""
        return self.left.pop(0)

    def __call__(self, fd: int, number: int, argument: bytearray) -> int:
        if self._is_opening and not (self.left and self.left[0].number == number):
            assert number == PROBE
            argument[:] = struct.pack("<4H", MAJORS[self.abi], 0, 0, 0)
            return 0
        if not self.left:
            raise Mismatch(f"{number:#x} was asked for, and nothing more was recorded")
        expected = self.left[0]
        place = f"{expected.seq} {expected.name}"
        if number != expected.number:
            raise Mismatch(f"{place}: {number:#x} was asked for, not {expected.number:#x}")
        node = Path(f"/proc/self/fd/{fd}").readlink().relative_to(self._root)
        target = next((key for key, name in NODES[self.abi].items() if Path(name) == node), f"device:/{node}")
        if target != expected.target:
            raise Mismatch(f"{place}: {target} was asked, not {expected.target}")
        addresses = compare(bytes(argument), expected.before, expected.pointers, place)
        if self.again:
            self.again -= 1
        else:
            self.left.pop(0)
        argument[:] = keep_pointers(expected.after, bytes(argument), expected.pointers)
        if expected.errno:
            raise OSError(expected.errno, os.strerror(expected.errno))
        for pointer, address in addresses:
            if pointer.after is not None:
                old = ctypes.string_at(address, pointer.length)
                ctypes.memmove(address, keep_pointers(pointer.after, old, pointer.inner), pointer.length)
        return expected.result


def compare(given: bytes, expected: bytes, pointers: tuple[Pointer, ...], place: str) -> list[tuple[Pointer, int]]:
    """Compare a struct and what it leads to with the recording; return the addresses that were found."""
    masked = bytearray(given)
    found = []
    for pointer in pointers:
        (address,) = struct.unpack_from("<Q", given, pointer.offset)
        masked[pointer.offset : pointer.offset + 8] = bytes(8)
        if address:
            found.append((pointer, address))
        if pointer.before is None:
            continue
        if not address:
            raise Mismatch(f"{place}: the pointer at {pointer.offset} leads nowhere")
        found += compare(ctypes.string_at(address, pointer.length), pointer.before, pointer.inner, place)
    if bytes(masked) != expected:
        raise Mismatch(f"{place}: {masked.hex()} was given, not {expected.hex()}")
    return found


def keep_pointers(new: bytes, old: bytes, pointers: tuple[Pointer, ...]) -> bytes:
    """Return the recorded struct with the addresses that it had: they are zero in the recording."""
    kept = bytearray(new)
    for pointer in pointers:
        kept[pointer.offset : pointer.offset + 8] = old[pointer.offset : pointer.offset + 8]
    return bytes(kept)


TOO_SMALL = (errno.ENOBUFS, errno.ENODATA)
DELIBERATE = {
    "UNKNOWN",
    "BDEVFILTER_CTL/UNKNOWN",
    "BLKFILTER_CTL/UNKNOWN",
    "VERSION with the other generation's number",
    "CBTINFO with a short struct",
}
"""What was recorded to see a wrong request refused. The binding has no way to ask these; all else it has to."""


def is_deliberate(one: Recorded, abi: str) -> bool:
    if one.name.endswith("CTL/CBTINFO") and one.option.length != 40:
        return True
    return one.name in DELIBERATE and not (one.number == PROBE and abi == "v1")  # this one is what finds a V1


@dataclass
class Outcome:
    """What the binding made of one operation, and the requests that it took."""

    requests: list[Recorded]
    method: str
    value: Any = None
    error: LvmsyncError | None = None


class Driver:
    """Goes through a recording by the binding's own methods, with the values of the recording.

    Attributes:
        outcomes: in order.
        left_out: requests that were not made.
    """

    def __init__(self, case: str, root: Path) -> None:
        self.case = case
        self.abi = case.partition("-")[0]
        self.replay = Replay(self.abi, load_recording(case), root)
        self.outcomes: list[Outcome] = []
        self.left_out: list[Recorded] = []
        self._root = root
        self._known: dict[DeviceName, Tracking] = {}
        self._snapshot = ""
        self.control = self.replay.open()

    def run(self) -> None:
        with self.control:
            while self.replay.left:
                left = list(self.replay.left)
                if is_deliberate(left[0], self.abi):
                    self.left_out.append(self.replay.skip())
                    continue
                method, *arguments = self._choose(left)
                outcome = Outcome([], method)
                try:
                    outcome.value = getattr(self if method == "open_again" else self.control, method)(*arguments)
                except LvmsyncError as error:
                    outcome.error = error
                outcome.requests = left[: len(left) - len(self.replay.left)]
                assert outcome.requests, f"{left[0].seq} {left[0].name}: {method} asked nothing"
                self._learn(outcome, arguments)
                self.outcomes.append(outcome)

    def open_again(self) -> Version:
        self.control.close()
        self.control = self.replay.open()
        return self.control.version

    def _learn(self, outcome: Outcome, arguments: list[Any]) -> None:
        if outcome.method == "create" and outcome.value:
            self._snapshot = outcome.value
        if outcome.method == "list_trackers" and outcome.value:
            self._known = {DeviceName("/dev/vda", number): one for number, one in outcome.value.items()}
        if outcome.method == "read_tracking" and outcome.value:
            self._known[arguments[0]] = outcome.value

    def _choose(self, left: list[Recorded]) -> tuple[Any, ...]:
        """Return the method that makes the next request, and what it is given."""
        one = left[0]
        snapshot = str(uuid.UUID(bytes=one.before[:16])) if len(one.before) >= 16 else ""
        match one.name.rpartition("/")[2].rpartition("_")[2]:
            case "VERSION":
                return ("read_version",)
            case "number" | "VERSION with the other generation's number":
                return ("open_again",)
            case "MOD":
                return ("read_modification",)
            case "ATTACH":
                return "attach", self._device(one)
            case "REMOVE" | "DETACH":
                return "detach", self._device(one)
            case "COLLECT" if one.errno in TOO_SMALL:  # the list was longer than its room: asked again and again
                self.replay.again = 4
                return ("list_trackers",) if one.name == "TRACKER_COLLECT" else ("list_snapshots",)
            case "COLLECT":
                return ("list_trackers",) if one.name == "TRACKER_COLLECT" else ("list_snapshots",)
            case "IMAGES":
                return "images", snapshot, self._link_images(left)
            case "CBTINFO":
                return "read_tracking", self._device(one)
            case "MAP" | "CBTMAP":
                return self._read_map(left)
            case "BLOCKS" | "CBTDIRTY":
                table = one.pointers[0] if self.abi == "v1" else one.option.inner[0]
                return "mark_dirty", self._device(one), ranges_in(table.before or b"")
            case "CREATE":
                return "create", *self._creation(left)
            case "SNAPSHOTADD":
                return "add", str(uuid.UUID(bytes=one.option.before)), self._device(one)
            case "SNAPSHOTINFO":
                told = one.option.after or b""
                if one.images or not any(told):
                    return "images", self._snapshot, [self._device(one)]
                return "read_error", self._device(one)
            case "STORAGE":
                table = next(pointer for pointer in one.pointers if pointer.offset == 32)
                number = struct.unpack_from("<II", one.before, 16)
                device = DeviceName("/dev/vdc", number) if self.abi == "v1" else self._device(one)
                return "append_storage", snapshot, device, ranges_in(table.before or b"")
            case "TAKE":
                return "take", snapshot
            case "DESTROY":
                return "destroy", snapshot
            case "EVENT":
                return "wait_event", snapshot, struct.unpack_from("<I", one.before, 16)[0]
        raise AssertionError(f"{one.name}: no method for it")

    def _device(self, one: Recorded) -> DeviceName:
        if self.abi == "v1":
            return DeviceName("/dev/vda", struct.unpack_from("<II", one.before))
        return DeviceName(one.device, (254, 0))

    def _creation(self, left: list[Recorded]) -> tuple[Any, ...]:
        """Return devices, storage and limit; what is added to the snapshot right behind belongs to it."""
        one = left[0]
        if self.abi == "v1":
            numbers = struct.iter_unpack("<II", one.pointers[0].before or b"")
            return [DeviceName("/dev/vda", number) for number in numbers], None, 0
        added = itertools.takewhile(
            lambda later: (
                later.name.endswith("/SNAPSHOTADD") and not later.errno and later.option.before == one.after[16:]
            ),
            left[1:],
        )
        path = read_text(one.pointers[0].before or b"") if one.pointers else None
        return [self._device(later) for later in added], path, struct.unpack_from("<Q", one.before)[0] * 512

    def _read_map(self, left: list[Recorded]) -> tuple[Any, ...]:
        """Return the reading of a whole map, if what follows is that, or else of a piece."""
        device = self._device(left[0])
        same = [one for one in left if one.name == left[0].name]
        wanted = [one.before[8:] if self.abi == "v1" else one.option.before or b"" for one in same]
        asked = [struct.unpack_from("<II", one) for one in wanted]
        end = 0
        for offset, length in asked:
            if offset != end or device not in self._known:
                break
            end += length
            if end == self._known[device].block_count:
                return "read_map", device, self._known[device], asked[0][1]
        return "read_map_piece", device, *asked[0]

    def _link_images(self, left: list[Recorded]) -> list[DeviceName]:
        """Make the links of sysfs that lead from the numbers of images to their names; return the originals."""
        if left[0].errno:
            return []
        devices = []
        for major, minor, image_major, image_minor in struct.iter_unpack("<4I", left[1].pointers[0].after or b""):
            link = self._root / f"sys/dev/block/{image_major}:{image_minor}"
            link.parent.mkdir(parents=True, exist_ok=True)
            link.unlink(missing_ok=True)
            link.symlink_to(f"../../devices/virtual/block/{Path(left[1].images[f'{major}:{minor}']).name}")
            devices.append(DeviceName("/dev/vda", (major, minor)))
        return devices


def ranges_in(table: bytes) -> list[tuple[int, int]]:
    """Return the ranges of a table of sectors, in bytes."""
    return [(first * 512, count * 512) for first, count in struct.iter_unpack("<QQ", table)]

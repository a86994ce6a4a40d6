"""Images of a Ceph cluster, by way of its own program ``rbd``: what there is, and what is done with it.

A cluster that is out of reach is told from all other failures. Ceph's clients wait for it for minutes, or for ever: the
limits here come first in CEPH_ARGS, so that a user's own win.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np

from lvmsync.errors import CommandError, DeviceError, LvmsyncError, TransportError
from lvmsync.extents import ChangeMap, MapBuilder
from lvmsync.images import RbdImage

_LIMITS = "--client_mount_timeout=15 --rados_mon_op_timeout=15 --rados_osd_op_timeout=25"
_BRIEF = ("--client_mount_timeout=8", "--rados_mon_op_timeout=8", "--rados_osd_op_timeout=8")
_PATIENCE = 60  # seconds for what asks a few objects
_LONG = 24 * 3600  # seconds for what asks each object of an image; a cluster that does not answer ends it before
_AWAY = (5, 11, 101, 104, 107, 108, 110, 111, 113)  # EIO ... ETIMEDOUT ... EHOSTUNREACH: errno values
_DENIED = (1, 13)
_MISSING = 2
_PIECE = 1 << 20
_TOLD = {b"data": b"1", b"zero": b"0"}


@dataclass(frozen=True)
class Snap:
    """A snapshot of an image.

    Attributes:
        id: its number; a later one has a larger one.
        name: what it is called.
        size: bytes of the image then.
        time: when it was made, UTC, ISO 8601; None: not known.
        protected: it cannot be removed.
    """

    id: int
    name: str
    size: int
    time: str | None
    protected: bool


@dataclass(frozen=True)
class ImageState:
    """An image as it is.

    Attributes:
        id: names it in its pool, and no image after it.
        size: bytes.
        is_striped: its bytes go round its objects, so that a diff does not give them in order.
        snaps: its snapshots, oldest first.
    """

    id: str
    size: int
    is_striped: bool
    snaps: tuple[Snap, ...]

    def find(self, name: str) -> Snap | None:
        """Return a snapshot by its name."""
        return next((snap for snap in self.snaps if snap.name == name), None)


def environment() -> dict[str, str]:
    """Return the environment of ``rbd``: with limits of time, times in UTC, and messages that can be understood."""
    given = os.environ.get("CEPH_ARGS", "")
    return {**os.environ, "CEPH_ARGS": f"{_LIMITS} {given}".strip(), "TZ": "UTC", "LC_ALL": "C"}


def look_up(image: RbdImage) -> ImageState | None:
    """Return what an image is; None: it is not there, but its pool is.

    Raises:
        DeviceError: there is no such pool or namespace, or it may not be read.
        TransportError: the cluster is out of reach.
    """
    status, out, err = _run(["info", image.spec, "--format", "json"])
    if status == _MISSING and b"opening image" in err:
        return None
    told = _parse(_require("info", str(image), status, out, err), dict)
    snaps = _parse(_ask("snap", "ls", image.spec, "--format", "json", about=image), list)
    try:
        return ImageState(
            id=str(told["id"]),
            size=int(told["size"]),
            is_striped=int(told.get("stripe_count", 1)) > 1,
            snaps=tuple(
                sorted(
                    (
                        Snap(int(one["id"]), str(one["name"]), int(one["size"]), _time(one.get("timestamp")),
                             str(one.get("protected")) == "true")
                        for one in snaps
                    ),
                    key=lambda snap: snap.id,
                )
            ),
        )  # fmt: skip
    except (KeyError, TypeError, ValueError) as error:
        raise _unreadable("info", error) from error


def require_answer(image: RbdImage) -> None:
    """Make sure that the cluster is there: its monitors, and the OSD that has the image's header.

    Raises:
        TransportError: it does not answer.
    """
    _require("info", str(image), *_run(["info", image.spec, *_BRIEF], 15))


def find_users(image: RbdImage) -> str | None:
    """Return who has an image open, or has locked it; None: nobody.

    A lock that a client took by itself to write ("auto") goes with its watch; one that somebody made stays.
    """
    status = _parse(_ask("status", image.spec, "--format", "json", about=image), dict)
    locks = _parse(_ask("lock", "ls", image.spec, "--format", "json", about=image), list)
    try:
        users = [f"{one['address']} has it open" for one in status.get("watchers", [])]
        users += [f"'{one['id']}' of {one['address']} has locked it" for one in locks if one["id"][:5] != "auto "]
    except (KeyError, TypeError) as error:
        raise _unreadable("status", error) from error
    return ", ".join(users) or None


def list_extents(image: RbdImage, snap: str | None, since: str | None, *, whole_objects: bool = False) -> Extents:
    """Return what an image has, or what changed since a snapshot.

    Args:
        image: which.
        snap: the state of it; None: as it is now.
        since: an older snapshot; None: everything that was ever written.
        whole_objects: more than what changed may be told, but faster.

    Raises:
        LvmsyncError: it cannot be told.
    """
    spec = image.spec if snap is None else f"{image.spec}@{snap}"
    words = ["diff", spec, *(["--from-snap", since] if since is not None else [])]
    words += ["--whole-object"] if whole_objects else []
    some, none = MapBuilder(), MapBuilder()
    with _memory("rbd") as err, _start(words, err) as process:
        assert process.stdout is not None
        rest = process.stdout.readline()[:0]  # the heading
        while piece := process.stdout.read(_PIECE):
            lines, newline, rest = (rest + piece).rpartition(b"\n")
            _add_lines(lines + newline, some, none)
        _add_lines(rest, some, none)
        status = process.wait(_LONG)
        err.seek(0)
        _require("diff", str(image), status, b"", err.read())
    return Extents(some.build(), none.build())


@dataclass(frozen=True, eq=False)
class Extents:
    """Ranges of an image that have data, and ranges that have none any more."""

    data: ChangeMap
    zeros: ChangeMap

    @property
    def is_empty(self) -> bool:
        """Whether there are none."""
        return not len(self.data) and not len(self.zeros)


def _add_lines(lines: bytes, some: MapBuilder, none: MapBuilder) -> None:
    """Take lines of offset, length and "data" or "zero"."""
    words = lines.split()
    if not words:
        return
    try:
        kinds = np.array([_TOLD[word] for word in words[2::3]]) == b"1"
        numbers = np.array([words[0::3], words[1::3]]).astype(np.uint64)
    except (KeyError, ValueError) as error:
        raise _unreadable("diff", error) from error
    for chosen, builder in ((kinds, some), (~kinds, none)):
        piece = ChangeMap.from_arrays(numbers[0][chosen], numbers[1][chosen])
        builder.add(piece.offsets, piece.ends)


def create(image: RbdImage, size: int) -> None:
    """Make an image of so many bytes."""
    _ask("create", "--size", f"{size}B", image.spec, about=image)


def make_snapshot(image: RbdImage, name: str) -> None:
    """Make a snapshot of an image as it is."""
    _ask("snap", "create", "--no-progress", f"{image.spec}@{name}", about=image)


def remove_snapshot(image: RbdImage, name: str) -> None:
    """Remove a snapshot."""
    _ask("snap", "rm", "--no-progress", f"{image.spec}@{name}", about=image, timeout=_LONG)


def roll_back(image: RbdImage, name: str) -> None:
    """Make an image what a snapshot of it holds."""
    _ask("snap", "rollback", "--no-progress", f"{image.spec}@{name}", about=image, timeout=_LONG)


def read_mark(image: RbdImage, key: str) -> str | None:
    """Return a word that was left on an image."""
    found = _parse(_ask("image-meta", "list", image.spec, "--format", "json", about=image).strip() or b"{}", dict)
    value = found.get(key)
    return None if value is None else str(value)


def set_mark(image: RbdImage, key: str, value: str) -> None:
    """Leave a word on an image."""
    _ask("image-meta", "set", image.spec, key, value, about=image)


def remove_mark(image: RbdImage, key: str) -> None:
    """Take a word off an image."""
    _ask("image-meta", "remove", image.spec, key, about=image)


def _ask(*words: str, about: RbdImage, timeout: float = _PATIENCE) -> bytes:
    command = words[0] if words[0] not in ("snap", "lock", "image-meta") else " ".join(words[:2])
    return _require(command, str(about), *_run(words, timeout))


def _run(words: Sequence[str], timeout: float = _PATIENCE) -> tuple[int, bytes, bytes]:
    try:
        done = subprocess.run(
            ["rbd", *words], stdin=subprocess.DEVNULL, capture_output=True, env=environment(), timeout=timeout
        )
    except OSError as error:
        raise cannot_run(error) from error
    except subprocess.TimeoutExpired as error:
        raise TransportError(
            f"'rbd {words[0]}' did not end within {timeout:g} s: is the cluster whole? Try it by hand"
        ) from error
    return done.returncode, done.stdout, done.stderr


def cannot_run(error: OSError) -> CommandError:
    """Return the error for an ``rbd`` that could not be started."""
    return CommandError(f"cannot run 'rbd': {error.strerror}; is it installed (ceph-common), and in PATH?")


def _require(command: str, about: str, status: int, out: bytes, err: bytes) -> bytes:
    if status:
        raise failure(command, about, status, err)
    return out


def failure(command: str, about: str, status: int, err: bytes) -> LvmsyncError:
    """Return what a failed ``rbd`` means.

    Args:
        command: what it was to do.
        about: the image, as its user named it.
        status: its exit status: an errno value, mostly.
        err: what it said.
    """
    lines = [line.strip() for line in err.decode(errors="replace").splitlines() if line.strip()]
    told = next((line for line in reversed(lines) if "(" in line), lines[-1] if lines else "it gave no reason")
    said = f"'rbd {command}': {told}"
    if status in _DENIED:
        return DeviceError(
            f"{about}: {said}: the cluster's user (CEPH_ARGS='--id NAME') may not do that, or there is no key for it",
            device=about,
        )
    if status in _AWAY or b"couldn't connect" in err or b"timed out" in err:
        return TransportError(
            f"{about}: {said}: the cluster is out of reach, or does not answer (CEPH_CONF says where it is); try again",
            device=about,
        )
    if status == _MISSING:
        return DeviceError(f"{about}: {said}", device=about)
    return CommandError(f"{about}: {said} (status {status})", device=about)


def _start(words: Sequence[str], err: Any) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(
            ["rbd", *words], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=err, env=environment()
        )
    except OSError as error:
        raise cannot_run(error) from error


def _memory(name: str) -> Any:
    return os.fdopen(os.memfd_create(name), "w+b")


def _parse(text: bytes, kind: type) -> Any:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise _unreadable("--format json", error) from error
    if not isinstance(found, kind):
        raise _unreadable("--format json", f"no {kind.__name__}")
    return found


def _unreadable(command: str, why: object) -> CommandError:
    return CommandError(f"what 'rbd {command}' says cannot be read: {why}")


def _time(text: object) -> str | None:
    """Read a time as ``ctime`` writes it."""
    try:
        return datetime.strptime(str(text), "%a %b %d %H:%M:%S %Y").replace(tzinfo=UTC).isoformat()
    except ValueError:
        return None

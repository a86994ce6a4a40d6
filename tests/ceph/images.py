"""Images with a history of random writes and discards, and what each of their points has to hold."""

from __future__ import annotations

import contextlib
import random
import struct
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from lvmsync.cli.classic import run
from lvmsync.extents import ChangeMap
from lvmsync.history import Point
from lvmsync.sources.source import Source
from tests.ceph.conftest import Ceph
from tests.fakes import Memory

MIB = 1 << 20


def lvmsync(line: str, status: int = 0) -> None:
    """Run a command line in this process; the test fails if it ends otherwise."""
    assert run(line.split()) == status, line


@dataclass
class State:
    """One point: its bytes, and how it differs from the one before."""

    data: bytes
    changes: ChangeMap
    holes: ChangeMap


@dataclass
class History:
    """States of a device, oldest first."""

    chance: random.Random
    states: list[State] = field(default_factory=list)
    name: str = field(default_factory=lambda: uuid.uuid4().hex)

    @classmethod
    def make(cls, seed: int, count: int = 20, size: int = 9 * MIB) -> History:
        """Make a history that begins half empty; sometimes its device grows, by sectors."""
        history = cls(random.Random(seed))
        first = history.chance.randbytes(size // 3) + bytes(size - size // 3)
        whole = ChangeMap.whole(size)
        history.states.append(State(first, whole, whole - ChangeMap.whole(size // 3)))
        while len(history.states) < count:
            history.step()
        return history

    def step(self) -> None:
        chance, data = self.chance, bytearray(self.states[-1].data)
        changed, holes = [], ChangeMap.empty()
        if chance.random() < 0.15:
            more = chance.choice([512, 65536, 3 * MIB])
            changed.append((len(data), more))
            holes = holes | ChangeMap.from_extents([(len(data), more)])
            data += bytes(more)
        for _ in range(chance.randrange(12)):
            length = chance.choice([512, 4096, 4096, 65536, MIB, 5 * MIB])
            offset = chance.randrange(0, len(data) - length, 512) if chance.random() < 0.9 else len(data) - length
            piece = ChangeMap.from_extents([(offset, length)])
            kind = chance.random()
            data[offset : offset + length] = bytes(length) if kind < 0.4 else chance.randbytes(length)
            holes = holes | piece if kind < 0.3 else holes - piece
            changed.append((offset, length))
        self.states.append(State(bytes(data), ChangeMap.from_extents(changed), holes))

    def source(self, number: int, since: int | None = None) -> Source:
        """Return the changes that lead to a state, from the one before or from ``since``; of the first, all of it."""
        state = self.states[number]
        since = number - 1 if since is None else since
        changes, holes = ChangeMap.empty(), ChangeMap.empty()
        for step in self.states[since + 1 : number + 1]:
            holes = (holes - step.changes) | step.holes
            changes = changes | step.changes
        if since < 0:
            changes = ChangeMap.whole(len(state.data))
            holes = holes | changes - self._written(number)
        return Source(
            kind="fake", name=f"state {number}", size=len(state.data), granularity=512,
            base=self.point(since) if since >= 0 else None, head=self.point(number), changes=changes, holes=holes,
            data=Memory(state.data), confirm=lambda: None, is_full=since < 0,
        )  # fmt: skip

    def point(self, number: int) -> Point:
        return Point(f"lv:{self.name}-{number}")

    def _written(self, number: int) -> ChangeMap:
        written = ChangeMap.empty()
        for step in self.states[: number + 1]:
            written = (written - step.holes) | (step.changes - step.holes)
        return written


def spoiled(source: Source, error: Exception) -> Source:
    """Return a source that does not confirm what was read."""

    def confirm() -> None:
        raise error

    return replace(source, confirm=confirm)


def write(ceph: Ceph, image: str, *pieces: tuple[int, bytes | int]) -> None:
    """Write to an image, as any client does; a number in the place of bytes discards so many."""
    records = b"".join(
        b"z" + struct.pack("<QQ", at, what)
        if isinstance(what, int)
        else b"w" + struct.pack("<QQ", at, len(what)) + what
        for at, what in pieces
    )
    ceph.rbd("import-diff", "--no-progress", "-", image, stdin=b"rbd diff v1\n" + records + b"e")


def export(ceph: Ceph, image: str) -> bytes:
    return ceph.rbd("export", "--no-progress", image, "-")


def remove(ceph: Ceph, image: str) -> None:
    ceph.rbd("snap", "purge", "--no-progress", image)
    ceph.rbd("rm", "--no-progress", image)


@contextlib.contextmanager
def fresh(ceph: Ceph, size: int | None = None) -> Iterator[str]:
    """Yield the name of an image that is gone afterwards; it is made if it has a size."""
    name = f"rbd/{uuid.uuid4().hex[:8]}"
    if size is not None:
        ceph.rbd("create", "--size", f"{size}B", name)
    yield name
    if name.removeprefix("rbd/") in ceph.rbd("ls").decode().split():
        remove(ceph, name)

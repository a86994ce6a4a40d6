"""A device with a history of random writes and discards, and archives of it that were made by the real jobs."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lvmsync.chain.catalogue import ArchivedPoint
from lvmsync.chain.pruning import plan_combination, plan_pruning
from lvmsync.chain.routes import list_restorable
from lvmsync.extents import ChangeMap
from lvmsync.history import Point
from lvmsync.interfaces import Store
from lvmsync.jobs.archive.prune import prune
from lvmsync.jobs.archive.restore import Mirror, open_point
from lvmsync.jobs.archive.shelf import Shelf
from lvmsync.jobs.archive.take import bring_in, take
from lvmsync.jobs.archive.verify import verify
from lvmsync.jobs.progress import Receipt, ignore
from lvmsync.jobs.receive import ReceiveOptions, receive
from lvmsync.jobs.send import StreamOptions
from lvmsync.sources.source import Source
from lvmsync.stores.folder import FolderStore
from tests.fakes import Memory, make_source, reader, send

K = 1024


@dataclass
class State:
    """One point: its id and bytes, and how it differs from the one before."""

    id: str
    data: bytes
    changes: ChangeMap
    holes: ChangeMap


@dataclass
class History:
    """Points of a device, oldest first."""

    chance: random.Random
    states: list[State] = field(default_factory=list)

    @classmethod
    def make(cls, seed: int, count: int = 20, size: int = 192 * K, *, may_resize: bool = True) -> History:
        history = cls(random.Random(seed))
        first = bytearray(history.chance.randbytes(size))
        first[16 * K : 48 * K] = bytes(32 * K)
        whole = ChangeMap.whole(size)
        history.states.append(State("lv:0", bytes(first), whole, ChangeMap.from_extents([(16 * K, 32 * K)])))
        for _ in range(count - 1):
            history.step(may_resize=may_resize)
        return history

    def step(self, *, may_resize: bool = True) -> None:
        """Write and discard here and there; sometimes nothing, sometimes all, sometimes the device grows."""
        chance, last = self.chance, self.states[-1]
        data = bytearray(last.data)
        changes: list[tuple[int, int]] = []
        holes: list[tuple[int, int]] = []
        if may_resize and chance.random() < 0.1:
            changes.append((len(data), 8 * K))
            data += chance.randbytes(8 * K)
        for _ in range(chance.choice((0, 1, 2, 5, 9, 30))):
            grain = chance.choice((512, 4 * K))
            at = chance.randrange(len(data) // grain) * grain
            length = min(chance.choice((512, 4 * K, 4 * K, 20 * K)), len(data) - at)
            kind = chance.random()
            if kind < 0.25:
                data[at : at + length] = bytes(length)
                holes.append((at, length))
            elif kind < 0.35:
                data[at : at + length] = bytes(length)
            else:
                data[at : at + length] = chance.randbytes(length)
                holes = [one for one in holes if one[0] + one[1] <= at or at + length <= one[0]]
            changes.append((at, length))
        unmapped = ChangeMap.from_extents(holes)
        for offset, length in unmapped:  # what was written into a hole again is none
            if any(data[offset : offset + length]):
                unmapped = unmapped - ChangeMap.from_extents([(offset, length)])
        self.states.append(
            State(f"lv:{len(self.states)}", bytes(data), ChangeMap.from_extents(changes) | unmapped, unmapped)
        )

    def full(self, number: int) -> Source:
        state = self.states[number]
        whole = [(0, len(state.data))]
        zeros = ChangeMap.from_extents(
            (at, 4 * K) for at in range(0, len(state.data), 4 * K) if not any(state.data[at : at + 4 * K])
        ).clip(len(state.data))
        return replace(
            make_source(Memory(state.data), whole), is_full=True, holes=zeros, head=self.point(number), name="vg/lv"
        )

    def delta(self, number: int) -> Source:
        state = self.states[number]
        source = make_source(Memory(state.data), [])
        return replace(
            source, changes=state.changes, holes=state.holes & state.changes, base=self.point(number - 1),
            head=self.point(number), name="vg/lv",
        )  # fmt: skip

    def point(self, number: int) -> Point:
        return Point(self.states[number].id, None, f"2026-03-{1 + number // 4:02}T{number % 4 * 6:02}:00:00+00:00")

    def data_of(self, point: ArchivedPoint) -> bytes:
        return next(one.data for one in self.states if one.id == point.id)


class Forward:
    """An archive of a full copy and deltas."""

    mirror: Mirror | None = None

    def __init__(self, folder: Path, history: History, level: int = 0, *, store: Store | None = None) -> None:
        self.history = history
        self.shelf = Shelf.init(store or FolderStore(folder / "archive"))
        self.options = StreamOptions(level=level)
        for number in range(len(history.states)):
            self.take(number)

    def take(self, number: int) -> Receipt:
        source = self.history.delta(number) if number else self.history.full(0)
        return take(self.shelf, source, self.options, ignore)


class Reverse:
    """An archive of the snapbacks of a mirror."""

    def __init__(self, folder: Path, history: History, *, store: Store | None = None) -> None:
        self.history = history
        self.folder = folder
        self.shelf = Shelf.init(store or FolderStore(folder / "archive"))
        self.image = folder / "mirror"
        self.at = ""
        for number in range(len(history.states)):
            self.sync(number)

    def sync(self, number: int) -> None:
        source = self.history.delta(number) if number else self.history.full(0)
        kept = self.folder / f"{number}.back"
        if number and source.size > self.image.stat().st_size:
            with self.image.open("r+b") as file:
                file.truncate(source.size)
        options = ReceiveOptions(
            str(self.image), self.folder / "state", kept if number else None, create=not number, undo=number > 0
        )
        receive(reader(send(source)), options, ignore)
        self.at = self.history.states[number].id
        if number:
            bring_in(self.shelf, reader(kept.read_bytes()), name=kept.name)

    @property
    def mirror(self) -> Mirror:
        return Mirror(Memory(self.image.read_bytes()), self.at)


class Both(Reverse):
    """An archive that has the forward members as well."""

    def sync(self, number: int) -> None:
        source = self.history.delta(number) if number else self.history.full(0)
        take(self.shelf, source, StreamOptions(level=number % 3), ignore)
        super().sync(number)


class Mirrored(Reverse):
    """An archive that each receive of the mirror adds to by itself."""

    def sync(self, number: int) -> None:
        source = self.history.delta(number) if number else self.history.full(0)
        if number and source.size > self.image.stat().st_size:
            with self.image.open("r+b") as file:
                file.truncate(source.size)
        self.send(source, create=not number)
        self.at = self.history.states[number].id

    def send(self, source: Source, **options: Any) -> Receipt:
        """Send a source to the mirror."""
        return self.give(send(source), **options)

    def give(self, stream: bytes, **options: Any) -> Receipt:
        """Give the mirror's receiver a stream."""
        wanted = {"archive": self.word, **options}
        return receive(reader(stream), replace(self.options, **wanted), ignore)

    def mirror_at(self, point: str) -> Mirror:
        """Return the mirror as it is, at some point."""
        return Mirror(Memory(self.image.read_bytes()), point)

    @property
    def word(self) -> str:
        """What names the archive."""
        return str(self.folder / "archive")

    @property
    def options(self) -> ReceiveOptions:
        return ReceiveOptions(str(self.image), self.folder / "state")


Archive = Forward | Reverse | Both | Mirrored


def require_points(archive: Archive, *, without_mirror: bool = False) -> None:
    """Hold every point of an archive, rebuilt, against what it was."""
    assert archive.shelf.catalogue.points
    for point in archive.shelf.catalogue.points:
        with open_point(archive.shelf, point, None if without_mirror else archive.mirror) as (past, holes):
            out = memoryview(bytearray(past.size))
            past.read([0], [past.size], out)
            wanted = archive.history.data_of(point)
            assert out == wanted[: past.size], f"point #{point.number}"
            assert past.size == len(wanted)
            for offset, length in holes:
                assert not any(wanted[offset : offset + length])


def require_whole(archive: Archive) -> None:
    """Every point is what it was, nothing is left over, and the archive says so itself."""
    archive.shelf = Shelf.open(archive.shelf.store)
    require_points(archive)
    verdict = verify(archive.shelf, ignore, is_restoring=True, mirror=archive.mirror)
    assert verdict.faults == []
    assert [note for note in verdict.notes if "mirror" not in note] == []
    assert verdict.restored == [point.number for point in archive.shelf.catalogue.points]
    archive.shelf = Shelf.open(archive.shelf.store)


def require_points_while_it_is_pruned(archive: Archive, seed: int) -> None:
    """Combine and prune at random until hardly anything is left; every point is what it was all the time."""
    require_whole(archive)
    assert len(archive.shelf.catalogue.points) == len(archive.history.states)
    chance = random.Random(seed)
    while len(archive.shelf.catalogue.points) > 2:
        catalogue = archive.shelf.catalogue
        points = [one.id for one in catalogue.points]
        if chance.random() < 0.5:
            first, last = sorted(chance.sample(range(len(points)), 2))
            plan = plan_combination(catalogue, points[first], points[last])
            kept = {*points[: first + 1], *points[last:]}
        else:
            kept = {points[-1], *chance.sample(points, chance.randrange(1, len(points)))}
            plan = plan_pruning(catalogue, kept)
        could = list_restorable(catalogue)
        prune(archive.shelf, plan, StreamOptions(level=chance.choice((0, 1))), ignore)
        assert kept <= {one.id for one in archive.shelf.catalogue.points}
        assert kept & could <= list_restorable(archive.shelf.catalogue)
        require_whole(archive)
    if isinstance(archive, Both):
        require_points(archive, without_mirror=True)

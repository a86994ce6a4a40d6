"""A resumable receive that dies at any operation: what is left goes back to exactly old, or on to exactly new."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lvmsync.errors import StreamError
from lvmsync.history import Point
from lvmsync.jobs import transaction
from lvmsync.jobs.progress import ignore
from lvmsync.jobs.receive import ReceiveOptions, receive
from lvmsync.jobs.recover import recover
from lvmsync.jobs.standing import standing
from lvmsync.stream.frames import FULL, Changes, Data, Frame, Header, Hole, Zero
from lvmsync.system import seen
from tests import fakes
from tests.fakes import MARK, Crash, Disk, Fate, change, data, hole, zero

SIZE = 40960
SEED = 5


def _noise(length: int, seed: int) -> bytes:
    return random.Random(seed).randbytes(length)


OLD = _noise(12288, 1) + bytes(8192) + _noise(SIZE - 20480, 2)  # with a hole
FRAMES: list[Frame] = [
    data((0, _noise(4096, 3)), (5000, _noise(777, 4))),
    zero((8192, 3000)),
    data((12000, _noise(2048, 5)), (16384, _noise(4096, 6))),
    MARK,
    hole((20480, 8192)),
    data((30000, _noise(5000, 7))),
    data((36864, _noise(4096, 8))),
]
NEW = change(OLD, FRAMES)
HEAD = Point("lv:head", "lv:base")


@pytest.fixture(autouse=True)
def _small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transaction, "WINDOW", 6000)


@pytest.fixture
def reboot(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Return what makes the machine another one as far as the kernel's memory goes."""
    lives = itertools.count()

    def start() -> None:
        life = f"boot {next(lives)}"
        monkeypatch.setattr(seen, "life", lambda fd: life)

    start()
    return start


class Site:
    """A disk with a target that is old, and a stream that makes it new."""

    def __init__(self, folder: Path, *, undo: bool = True) -> None:
        self.disk = Disk(folder / "disk")
        self.target = self.disk.root / "target.img"
        self.state = self.disk.root / "state"
        self.undo = undo
        with self.target.open("wb") as file:
            file.write(OLD[:12288])
            file.seek(20480)
            file.write(OLD[20480:])

    def receive(self, cut: int = 0, **options: Any) -> bool:
        """Begin, or go on, as the standing says; tell whether that was a success."""
        found = standing(str(self.target), self.state).transaction
        offset = found.offset if found else 0
        frames = [frame for frame in FRAMES if not isinstance(frame, (Data, Zero, Hole)) or _end(frame) > offset]
        assert all(int(one.table[0, 0]) >= offset for one in frames if isinstance(one, (Data, Zero, Hole)))
        header = Header(
            size=SIZE,
            changed_bytes=fakes.count_bytes(frames),
            base=Point("lv:base") if self.undo else None,
            head=HEAD,
            intent="delta" if self.undo else FULL,
            resume=offset if found else None,
            transaction=found.id if found else None,
        )
        stream = fakes.encode(frames, header)
        chosen = ReceiveOptions(str(self.target), self.state, undo=self.undo, resumable=True, **options)
        try:
            receive(fakes.reader(stream[: len(stream) - cut]), chosen, ignore)
        except StreamError:
            assert cut
            return False
        return True

    def check(self, *, forward: bool) -> None:
        """Go on or back, as a new process would, and look at all that is left."""
        content = self.target.read_bytes()
        found = standing(str(self.target), self.state).transaction
        if found is None:
            assert content == NEW if self.is_committed() else content == OLD
        elif forward or not self.undo:
            assert self.receive()
            assert self.target.read_bytes() == NEW
        else:
            recover(str(self.target), self.state, ignore)
            assert self.target.read_bytes() == OLD
        if not self.is_committed():
            assert self.receive()
            assert self.target.read_bytes() == NEW
        assert self.is_committed()
        recover(str(self.target), self.state, ignore)  # removes what a crash behind the commit has left
        assert [path for path in self.state.rglob("*.*") if path.name != "record.json"] == []

    def is_committed(self) -> bool:
        point = standing(str(self.target), self.state).point
        return point is not None and point.id == "lv:head"


def _end(frame: Changes) -> int:
    return int(frame.table[-1].sum())


def fates(number: int) -> list[Fate]:
    return ["kept", "lost", random.Random(SEED + number)]


@pytest.mark.parametrize("undo", [True, False], ids=["delta", "first-copy"])
def test_after_a_power_cut_at_any_operation_it_goes_on_or_back(
    undo: bool, fast_path: Path, reboot: Callable[[], None]
) -> None:
    site = Site(fast_path, undo=undo)
    with site.disk.recorded() as record:
        assert site.receive()
    for done, wreck in record.wrecks():
        for number, fate in enumerate(fates(done)):
            reboot()
            site.disk.lay_out(wreck.crash(fate))
            with site.disk.recorded():
                site.check(forward=bool((done + number) % 2))


@pytest.mark.parametrize("undo", [True, False], ids=["delta", "first-copy"])
@pytest.mark.parametrize("power", [True, False], ids=["power cut", "killed"])
def test_going_on_may_be_cut_off_at_any_operation_as_well(
    undo: bool, power: bool, fast_path: Path, reboot: Callable[[], None]
) -> None:
    """Each start is a run that was killed somewhere; what goes on with it dies somewhere, too."""
    site = Site(fast_path, undo=undo)
    with site.disk.recorded() as whole:
        assert site.receive()
    writes = [number for number, step in enumerate(whole.steps) if step.file == site.target.stat().st_ino]
    ends = 0
    for killed in (writes[1], writes[2] + 1, writes[-2], writes[-1] + 1):
        site.disk.lay_out(whole.before)
        with site.disk.recorded(site.disk.dying_at(killed)), pytest.raises(Crash):
            site.receive()
        with site.disk.recorded() as again:
            assert site.receive()
        assert site.target.read_bytes() == NEW
        for done, wreck in again.wrecks():
            if power:
                reboot()
            site.disk.lay_out(wreck.crash(fates(done)[done % 3] if power else "kept"))
            with site.disk.recorded():
                site.check(forward=bool(done // 3 % 2))
            ends += 1
    assert ends > 60


def test_a_killed_run_is_gone_on_with_behind_its_last_window(fast_path: Path, reboot: Callable[[], None]) -> None:
    site = Site(fast_path)
    with site.disk.recorded() as whole:
        site.receive()
    last = max(number for number, step in enumerate(whole.steps) if step.file == site.target.stat().st_ino)
    site.disk.lay_out(whole.before)
    with site.disk.recorded(site.disk.dying_at(last)), pytest.raises(Crash):
        site.receive()
    found = standing(str(site.target), site.state).transaction
    assert found
    assert found.offset > 28672  # behind the mark
    reboot()
    found = standing(str(site.target), site.state).transaction
    assert found
    assert found.offset == 20480  # the mark: what came behind it may be lost

"""A receiver that dies at any operation: after `recover` the target is exactly old or exactly new.

Each scenario runs once on a disk that records every operation. For every number of operations done, disks are
laid out as a crash may leave them, and recovered.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from lvmsync.errors import DeviceError, StreamError, SyncFailed
from lvmsync.history import Point
from lvmsync.jobs import transaction
from lvmsync.jobs.inspect import inspect
from lvmsync.jobs.progress import ignore
from lvmsync.jobs.receive import ReceiveOptions, receive
from lvmsync.jobs.recover import recover
from lvmsync.stream import v3
from lvmsync.stream.frames import Frame, Header
from tests import fakes
from tests.fakes import MARK, Crash, Disk, Fate, State, change, data, hole, zero

SEED = 20240611
SIZE = 40960


def _noise(length: int, seed: int) -> bytes:
    return random.Random(seed).randbytes(length)


# 8 KiB of it are a hole, which a receiver does not save as it does data.
OLD = _noise(12288, 1) + bytes(8192) + _noise(SIZE - 20480, 2)

V4: list[Frame] = [
    data((0, _noise(4096, 3)), (5000, _noise(777, 4))),
    zero((8192, 3000)),
    data((12000, _noise(2048, 5)), (16384, _noise(4096, 6))),
    MARK,
    hole((20480, 8192)),
    data((30000, _noise(5000, 7))),
    data((36864, _noise(4096, 8))),
]
V3: list[Frame] = [
    data(*[(at, _noise(2048, at)) for at in (28672, 0, 10000, 16384, 36864, 2048)]),
    data((12288, bytes(4096)), (SIZE - 100, _noise(100, 9))),
]
V3_TWICE: list[Frame] = [
    data(*[(at, _noise(2048, at)) for at in (28672, 0, 10000)]),
    data(*[(at, _noise(3000, at + 1)) for at in (0, 9000, 16384)]),  # 0 again, and a part of 10000
    data(*[(at, _noise(2048, at + 2)) for at in (0, 16000, 28672, 36864)]),
]


@dataclass(frozen=True)
class Scenario:
    """One receive on a disk of its own.

    Attributes:
        name: of the test.
        frames: of the stream.
        version: of the stream.
        options: "create", "atomic".
        snapback: whether what is overwritten is kept.
        cut: bytes taken off the end of the stream: the receiver rolls back.
    """

    name: str
    frames: list[Frame]
    version: int = 4
    options: tuple[str, ...] = ()
    snapback: bool = False
    cut: int = 0

    def __str__(self) -> str:
        return self.name

    @property
    def is_created(self) -> bool:
        return "create" in self.options

    @property
    def old(self) -> bytes | None:
        return None if self.is_created else OLD

    @property
    def new(self) -> bytes:
        return change(self.old or bytes(SIZE), self.frames)

    @property
    def stream(self) -> bytes:
        header = Header(
            size=SIZE,
            changed_bytes=fakes.count_bytes(self.frames),
            base=Point("point:before"),
            head=Point("point:after", "point:before"),
        )
        stream = fakes.encode(self.frames, header, self.version)
        return stream[: len(stream) - self.cut]


SCENARIOS = [
    Scenario("v4", V4),
    Scenario("v4-snapback", V4, snapback=True),
    Scenario("v4-atomic", V4, options=("atomic",)),
    Scenario("v4-atomic-snapback", V4, options=("atomic",), snapback=True),
    Scenario("v4-create", V4, options=("create",)),
    Scenario("v4-create-snapback", V4, options=("create",), snapback=True),
    Scenario("v4-create-atomic", V4, options=("create", "atomic")),
    Scenario("v3", V3, version=3),
    Scenario("v3-snapback", V3, version=3, snapback=True),
    Scenario("v3-atomic", V3, version=3, options=("atomic",)),
    Scenario("v3-twice", V3_TWICE, version=3),
    Scenario("v3-twice-snapback", V3_TWICE, version=3, snapback=True),
]
CUT = [
    Scenario("v4-cut", V4, cut=1),
    Scenario("v4-snapback-cut", V4, snapback=True, cut=1),
    Scenario("v4-atomic-cut", V4, options=("atomic",), cut=1),
    Scenario("v4-create-cut", V4, options=("create",), cut=1),
    Scenario("v4-create-snapback-cut", V4, options=("create",), snapback=True, cut=1),
    Scenario("v3-twice-cut", V3_TWICE, version=3, cut=1),
]


@pytest.fixture(autouse=True)
def _small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many windows and many frames of a few KiB, in place of a few of many MiB."""
    monkeypatch.setattr(transaction, "WINDOW", 6000)
    monkeypatch.setattr(v3, "_ROOM", 8192)


class Site:
    """A disk with a target, a state folder and a folder for snapbacks."""

    def __init__(self, folder: Path, scenario: Scenario) -> None:
        self.disk = Disk(folder / "disk")
        self.scenario = scenario
        self.target = self.disk.root / "target.img"
        self.snapback = self.disk.root / "kept" / "snapback"
        self.state = self.disk.root / "state"
        self.snapback.parent.mkdir()
        if scenario.old is not None:
            with self.target.open("wb") as file:
                file.write(OLD[:12288])
                file.seek(20480)
                file.write(OLD[20480:])

    def options(self) -> ReceiveOptions:
        chosen = self.scenario.options
        return ReceiveOptions(
            str(self.target),
            self.state,
            self.snapback if self.scenario.snapback else None,
            create="create" in chosen,
            atomic="atomic" in chosen,
        )

    def receive(self) -> bool:
        """Receive the stream; tell whether that was a success."""
        try:
            receive(fakes.reader(self.scenario.stream), self.options(), ignore)
        except StreamError:
            assert self.scenario.cut
            return False
        assert not self.scenario.cut
        return True

    def recover(self) -> str:
        """Recover as a new process would, and return what it says."""
        try:
            return recover(str(self.target), self.state, ignore).notes[0]
        except DeviceError:
            assert not self.target.exists()
            return "nothing to recover: no target"

    def content(self) -> bytes | None:
        return self.target.read_bytes() if self.target.exists() else None

    def is_old(self) -> bool:
        content = self.content()
        # A file that is made may be left without a byte, where not even the ledger knew of it yet.
        return content == self.scenario.old or (self.scenario.is_created and content == b"")

    def check(self, *, must_be_old: bool = False, must_be_new: bool = False) -> None:
        """Recover, and look at everything that is left."""
        said = self.recover()
        is_new = self.content() == self.scenario.new
        assert is_new or self.is_old(), said
        assert not (must_be_old and is_new), said
        assert not (must_be_new and not is_new), said
        assert self.recover().startswith("nothing to recover")
        left = [path for path in self.state.rglob("*.*") if path.suffix[1:].split("-")[0] in ("undo", "spool")]
        assert not left
        if is_new and self.scenario.snapback:
            back = self.disk.root / "back.img"
            shutil.copyfile(self.target, back)
            with self.snapback.open("rb") as file:
                stream = file.read()
            receive(fakes.reader(stream), ReceiveOptions(str(back), self.state, undo=False), ignore)
            assert back.read_bytes() == (self.scenario.old or bytes(SIZE))
            back.unlink()
        if not is_new and self.snapback.exists() and self.scenario.version == 4:
            with self.snapback.open("rb") as file, pytest.raises(StreamError):
                inspect(file.readinto, "snapback")  # never a whole stream: it has no END


def fates(number: int) -> list[Callable[[], Fate]]:
    """Return what may become of changes that are not durable; each gives the same again."""
    return [
        lambda: "kept",
        lambda: "lost",
        lambda: random.Random(SEED + number),
    ]


@pytest.mark.parametrize("scenario", [*SCENARIOS, *CUT], ids=str)
def test_a_crash_at_any_operation_leaves_old_or_new(scenario: Scenario, fast_path: Path) -> None:
    site = Site(fast_path, scenario)
    with site.disk.recorded() as record:
        succeeded = site.receive()
    assert (site.content() == scenario.new) if succeeded else site.is_old()
    assert len(record.steps) > 20
    for done, wreck in record.wrecks():
        for fate in fates(done):
            site.disk.lay_out(wreck.crash(fate()))
            with site.disk.recorded():
                site.check(must_be_old=done == 0 or not succeeded, must_be_new=succeeded and done == len(record.steps))


@pytest.mark.parametrize("scenario", [*SCENARIOS, *CUT], ids=str)
def test_a_receiver_that_dies_at_any_operation_does_nothing_more(scenario: Scenario, fast_path: Path) -> None:
    """Nothing that runs on the way out (finally, except) is needed, or does harm."""
    site = Site(fast_path, scenario)
    with site.disk.recorded() as record:
        site.receive()
    for number in range(0, len(record.steps), 4):
        site.disk.lay_out(record.before)
        with site.disk.recorded(site.disk.dying_at(number)) as cut_off, pytest.raises(Crash):
            site.receive()
        assert [step.kind for step in cut_off.steps] == [step.kind for step in record.steps[:number]]
        with site.disk.recorded():
            site.check(must_be_old=bool(scenario.cut))


@pytest.mark.parametrize("scenario", [*SCENARIOS, *CUT], ids=str)
def test_a_crash_of_recover_at_any_operation_leaves_old_or_new(scenario: Scenario, fast_path: Path) -> None:
    site = Site(fast_path, scenario)
    with site.disk.recorded() as record:
        site.receive()
    chance = random.Random(SEED + len(scenario.name))
    first_change = next(
        number for number, step in enumerate(record.steps) if step.kind == "rename" and step.new_name == "record.json"
    )
    chosen = set(chance.sample(range(first_change, len(record.steps)), 3))
    recovered = 0
    for done, wreck in record.wrecks():
        if done not in chosen:
            continue
        state = wreck.crash(chance.choice(fates(done))())
        site.disk.lay_out(state)
        with site.disk.recorded() as way_back:
            site.recover()
        recovered += len(way_back.steps)
        for again, second in way_back.wrecks():
            for fate in fates(again)[1:]:
                site.disk.lay_out(second.crash(fate()))
                with site.disk.recorded():
                    site.check(must_be_old=bool(scenario.cut))
    assert recovered


def test_the_wreck_of_a_run_without_a_crash_is_what_the_disk_holds(fast_path: Path) -> None:
    """The fake itself: what it believes to be on the disk is there."""
    for scenario in (SCENARIOS[1], SCENARIOS[2], CUT[0]):
        (fast_path / scenario.name).mkdir()
        site = Site(fast_path / scenario.name, scenario)
        with site.disk.recorded() as record:
            site.receive()
        *_, (_, wreck) = record.wrecks()
        found, believed = site.disk.read(), wreck.crash("kept")
        assert _named(found) == _named(believed)
        site.disk.lay_out(believed)
        assert _named(site.disk.read()) == _named(believed)


def _named(state: State) -> dict[str, bytes | None]:
    return {
        f"{folder}/{name}": None if inode == -1 else state.files.get(inode, b"")
        for folder, names in state.folders.items()
        for name, inode in names.items()
    }


@pytest.mark.parametrize("skip", [0, 1], ids=["at the mark", "at the end"])
def test_a_failed_sync_of_the_target_stops_everything_and_recover_brings_it_back(skip: int, fast_path: Path) -> None:
    site = Site(fast_path, SCENARIOS[0])
    failure = fakes.failing("sync", site.target, skip=skip, times=1)
    with site.disk.recorded(failure) as record, pytest.raises(SyncFailed):
        site.receive()
    last = [step for step in record.steps if step.file == site.target.stat().st_ino][-1]
    assert last.kind == "write" or last.kind == "zero"  # neither tried again, nor rolled back
    ledger = next(site.state.rglob("record.json")).read_text()
    assert '"dirty": true' in ledger
    assert '"phase": "applying"' in ledger
    with pytest.raises(Exception, match="unfinished transaction"):
        site.receive()
    for done, wreck in record.wrecks():
        if done == len(record.steps):
            for fate in fates(done):  # whatever the failed sync lost
                site.disk.lay_out(wreck.crash(fate()))
                with site.disk.recorded():
                    site.check(must_be_old=True)
    assert '"dirty": false' in next(site.state.rglob("record.json")).read_text()


def test_a_failed_sync_on_the_way_back_leaves_the_transaction_open(fast_path: Path) -> None:
    site = Site(fast_path, CUT[0])
    with site.disk.recorded(fakes.failing("sync", site.target, skip=1)), pytest.raises(StreamError) as caught:
        receive(fakes.reader(site.scenario.stream), site.options(), ignore)
    assert "rolling back failed as well" in caught.value.__notes__[0]
    assert "lvmsync recover" in caught.value.__notes__[0]
    with site.disk.recorded():
        site.check(must_be_old=True)

"""A volume whose snapshots lvmsync takes goes into an archive, run by run, whatever cuts one off."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from lvmsync.errors import CommandError, ConflictError
from lvmsync.jobs.archive import lag
from lvmsync.jobs.archive.managed import take_volume
from lvmsync.jobs.archive.restore import open_point
from lvmsync.jobs.archive.shelf import Shelf
from lvmsync.jobs.archive.verify import verify
from lvmsync.jobs.progress import Receipt, ignore
from lvmsync.jobs.replica.copy import PassOptions
from lvmsync.stores.folder import FolderStore
from lvmsync.system.fill import Fill
from lvmsync.system.lvm import LogicalVolume
from tests.replica_machine import SIZE, Killed, Machine, install


class World:
    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (folder / "volumes").mkdir()
        self.machine = Machine(folder / "volumes")
        install(self.machine, monkeypatch)
        self.volume = self.machine.add("lv")
        self.machine.path(self.volume).write_bytes(bytes(SIZE))
        self.machine.write(self.volume, *range(200))
        self.state = folder / "state"
        self.shelf = Shelf.init(FolderStore(folder / "archive"))
        self.past: dict[str, bytes] = {}

    def take(self, label: str | None = None, *, full: bool = False) -> Receipt:
        self.shelf = Shelf.open(self.shelf.store)
        now = self.machine.path(self.volume).read_bytes()
        receipt = take_volume(self.shelf, self.volume, self.state, PassOptions(full=full), ignore, label=label)
        self.shelf = Shelf.open(self.shelf.store)
        assert receipt.point is not None
        self.past[receipt.point] = now
        return receipt

    def require_whole(self) -> None:
        verdict = verify(self.shelf, ignore, is_restoring=True)
        assert verdict.faults == []
        assert {one.id for one in self.shelf.catalogue.points} <= set(self.past)
        for point in self.shelf.catalogue.points:
            with open_point(self.shelf, point) as (past, _):
                out = memoryview(bytearray(past.size))
                past.read([0], [past.size], out)
                assert out == self.past[point.id]
        (base,) = self.machine.ours()  # one snapshot is kept, whatever happened
        assert "lvmsync.role=base" in base.tags


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    return World(tmp_path, monkeypatch)


def test_all_is_taken_once_and_then_what_changed(world: World) -> None:
    first = world.take("first")
    assert (first.job, first.kind, first.bytes) == ("archive take", "first", SIZE)
    for number in range(3):
        world.machine.write(world.volume, number, 100 + number)
        receipt = world.take()
        assert (receipt.kind, receipt.bytes) == ("delta", 2 * 4096)
    assert world.take().kind == "nothing"
    assert [one.way for one in world.shelf.catalogue.members] == ["full", *["forward"] * 4]
    assert world.shelf.catalogue.points[0].label == "first"
    world.require_whole()
    again = world.take(full=True)
    assert (again.kind, again.bytes) == ("first", SIZE)
    world.require_whole()


def test_each_archive_has_a_snapshot_of_its_own(world: World, tmp_path: Path) -> None:
    world.take()
    other = Shelf.init(FolderStore(tmp_path / "other"))
    take_volume(other, world.volume, world.state, PassOptions(), ignore)
    assert len(world.machine.ours("base")) == 2


def test_a_run_that_is_killed_anywhere_is_followed_by_one_that_goes_on(world: World) -> None:
    world.take()
    for step in range(40):
        world.machine.write(world.volume, step)
        world.machine.steps.clear()
        world.machine.kill_at = step
        try:
            world.take()
        except Killed:
            # What was committed before it was killed is there; the next run finds that out.
            killed = world.machine.path(world.volume).read_bytes()
            for point in Shelf.open(world.shelf.store).catalogue.points:
                world.past.setdefault(point.id, killed)
        else:
            break
        finally:
            world.machine.kill_at = None
        world.take()
        world.require_whole()
    else:
        raise AssertionError("it never got to its end")
    world.require_whole()
    assert step > 4


def test_an_archive_that_was_made_anew_or_lost_its_point_is_told(world: World, tmp_path: Path) -> None:
    world.take()
    shutil.rmtree(tmp_path / "archive")
    world.shelf = Shelf.init(FolderStore(tmp_path / "archive"))
    with pytest.raises(ConflictError, match="is another device"):
        world.take()
    assert world.take(full=True).kind == "first"
    world.require_whole()


def test_how_far_a_volume_has_gone_on_is_told_by_the_store_of_the_snapshot_that_the_archive_holds(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:

    def found() -> int | None:
        return lag.find_lag_bytes(world.volume, world.shelf.catalogue)

    asked = []

    def fill(volume: LogicalVolume) -> Fill:
        asked.append(volume.id)
        return Fill(12288, 1 << 20)

    monkeypatch.setattr(lag, "store_fill", fill)
    assert found() is None  # nothing was taken yet
    world.take()
    assert found() is None  # a thin snapshot has no store
    assert asked == []
    (base,) = world.machine.ours("base")
    world.machine.volumes[base.id] = replace(base, role=frozenset({"public", "snapshot", "thicksnapshot"}))
    assert world.machine.volumes[base.id].is_classic_snapshot
    assert found() == 12288
    assert asked == [base.id]
    empty = replace(world.shelf.catalogue, points=())
    assert lag.find_lag_bytes(world.volume, empty) is None
    newer = replace(world.shelf.catalogue.points[0], id="another", number=2)  # taken by other means since
    more = replace(world.shelf.catalogue, points=(*world.shelf.catalogue.points, newer))
    assert lag.find_lag_bytes(world.volume, more) is None

    def fails(_: LogicalVolume) -> Fill:
        raise CommandError("no dmsetup")

    monkeypatch.setattr(lag, "store_fill", fails)
    assert found() is None

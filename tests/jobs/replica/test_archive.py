"""A managed sync whose mirror has an archive: killed at any step, or left by its archive, it loses no state."""

from __future__ import annotations

from pathlib import Path

import pytest

from lvmsync.errors import DeviceError
from lvmsync.jobs.archive.mirror import open_mirror
from lvmsync.jobs.archive.restore import open_point
from lvmsync.jobs.archive.shelf import Shelf
from lvmsync.jobs.archive.verify import verify
from lvmsync.jobs.progress import ignore
from lvmsync.jobs.replica.copy import PassOptions, PassResult
from lvmsync.stores.folder import FolderStore
from tests.jobs.replica.test_kill import World
from tests.replica_machine import SIZE


class Archived(World):
    """A world whose target has an archive, and every state that the target was seen to have."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__(folder, monkeypatch)
        self.store = FolderStore(folder / "archive")
        Shelf.init(self.store)
        self.past: dict[str, bytes] = {}

    def run(self, options: PassOptions | None = None) -> PassResult:
        result = super().run(options or PassOptions(create=True, orders={"archive": self.store.name}))
        assert result.receipt.point is not None
        self.past[result.receipt.point] = self.target.read_bytes()
        return result

    def require_past(self) -> None:
        """Every state that a run has ended with is in the archive, and its bytes are."""
        shelf = Shelf.open(self.store)
        assert self.past.keys() <= {one.id for one in shelf.catalogue.points}
        with open_mirror(str(self.target), self.far.state, shelf.catalogue) as mirror:
            for point in shelf.catalogue.points:
                with open_point(shelf, point, mirror) as (past, _):
                    out = memoryview(bytearray(SIZE))
                    past.read([0], [SIZE], out)
                    assert out == self.past.get(point.id, out)
            verdict = verify(shelf, ignore, is_repairing=True, is_restoring=True, mirror=mirror)
        assert (verdict.faults, verdict.adopted) == ([], [])


def test_a_run_that_is_killed_at_any_step_is_made_good_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = 0
    while True:
        (tmp_path / str(step)).mkdir()
        world = Archived(tmp_path / str(step), monkeypatch)
        for number in range(2):
            world.machine.write(world.volume, number, 7 * number)
            world.run()
        world.machine.write(world.volume, 3, 30, 200)
        was_killed = world.run_killed(step)
        world.machine.write(world.volume, 4, 31)
        world.run()  # perhaps no more than what the killed one had begun
        world.require_past()
        world.machine.write(world.volume, 5)
        world.require_whole(world.run())
        world.require_past()
        step += 1
        if not was_killed:
            break
    assert step > 5


def test_an_archive_that_fails_behind_the_commit_stops_further_runs_until_it_is_mended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = Archived(tmp_path, monkeypatch)
    world.run()
    world.machine.write(world.volume, 3, 30, 200)
    with monkeypatch.context() as patched:
        patched.setattr(FolderStore, "create", _fail)
        with pytest.raises(DeviceError, match="no more room") as caught:
            world.run()
        assert any("is wholly new and durable, and only" in note for note in caught.value.__notes__)
        assert world.target.read_bytes() == world.machine.path(world.volume).read_bytes()
        world.machine.write(world.volume, 5)
        copied = world.target.read_bytes()
        with pytest.raises(DeviceError, match="no more room"):
            world.run()
        assert world.target.read_bytes() == copied
    world.require_whole(world.run())
    assert len(Shelf.open(world.store).catalogue.points) == 3
    world.require_past()


def test_a_run_in_which_nothing_changed_adds_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = Archived(tmp_path, monkeypatch)
    first = world.run()
    world.past.clear()
    for _ in range(3):
        world.run()
    assert [one.id for one in Shelf.open(world.store).catalogue.points] == [first.receipt.point]
    world.past.clear()
    world.machine.write(world.volume, 5)
    world.run()
    assert len(Shelf.open(world.store).catalogue.members) == 1
    world.require_past()


def _fail(*_: object) -> None:
    raise DeviceError("there is no more room")

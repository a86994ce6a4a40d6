"""SIGKILL at every step of a receive whose archive has what it overwrites: no point is lost, and none is made up."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path

import pytest

from lvmsync.jobs.archive.shelf import Shelf
from lvmsync.jobs.archive.verify import verify
from lvmsync.jobs.progress import ignore
from lvmsync.jobs.recover import recover
from lvmsync.jobs.standing import standing
from lvmsync.stores.folder import FolderStore
from tests.archive_history import History, Mirrored, require_whole
from tests.killed import STEPS, killed_at

CALLS = (*STEPS, "fdatasync", "pwritev", "pwrite", "ftruncate")


def make_world(folder: Path, history: History, count: int) -> Mirrored:
    """Return a mirror, with its archive, that is at one of the first states; 0: it holds something else."""
    world = Mirrored(folder, History(history.chance, history.states[:count]))
    world.history = history
    if not count:
        world.image.write_bytes(bytes(len(history.states[0].data)))
    return world


def point_of(world: Mirrored) -> str | None:
    point = standing(str(world.image), world.folder / "state").point
    return point.id if point else None


def send_state(world: Mirrored, number: int) -> None:
    world.send(world.history.delta(number) if number else world.history.full(0))


@pytest.mark.parametrize(
    ("count", "mended_by", "first", "stride"),
    # What recovers is the same code whoever calls it: of these two, a third of the steps each
    [(0, "the next run", 0, 1), (2, "the next run", 0, 1), (2, "recover", 1, 3), (2, "repair", 2, 3)],
)
def test_a_receive_that_is_killed_at_any_step(
    count: int, mended_by: str, first: int, stride: int, tmp_path: Path
) -> None:
    history = History.make(21, 4, 64 << 10, may_resize=False)
    assert all(one.changes for one in history.states)
    ids = [one.id for one in history.states]
    ends = set()
    step = first
    while True:
        folder = tmp_path / str(step)
        folder.mkdir()
        world = make_world(folder, history, count)
        before = Shelf.open(world.shelf.store).catalogue
        was_killed = killed_at(step, partial(send_state, world, count), CALLS)

        listed = [one.id for one in Shelf.open(FolderStore(folder / "archive")).catalogue.points]
        assert listed in (ids[:count], ids[: count + 1])
        if len(listed) > count:  # it is committed then, and was before the archive heard of it
            assert point_of(world) == ids[count]
        if mended_by == "recover" or standing(str(world.image), folder / "state").transaction:
            recover(str(world.image), folder / "state", ignore)
        if mended_by == "repair":
            assert verify(Shelf.open(world.shelf.store), ignore, is_repairing=True).faults == []
        ends.add(found := point_of(world))
        if found != ids[count]:
            assert Shelf.open(world.shelf.store).catalogue == before
            assert not list(Path(world.word).glob("*.stream"))[max(count - 1, 0) :]
            send_state(world, count)
        send_state(world, count + 1)
        world.at = ids[count + 1]
        if mended_by != "repair":  # what was being written when it was killed
            verify(Shelf.open(world.shelf.store), ignore, is_repairing=True)
        require_whole(world)
        assert [one.id for one in world.shelf.catalogue.points] == ids[: count + 2]
        assert len(world.shelf.catalogue.members) == count + 1
        assert not list((folder / "state").glob("targets/*/*.undo*"))
        shutil.rmtree(folder)
        step += stride
        if not was_killed:
            break
    assert ends == {ids[count - 1] if count else None, ids[count]}
    assert step > (20 if count else 12)

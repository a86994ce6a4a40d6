"""SIGKILL at every step of what changes an archive: nothing that was listed is lost, and the next run goes on."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lvmsync.chain.pruning import plan_combination, plan_pruning
from lvmsync.interfaces import Store
from lvmsync.jobs.archive.prune import prune
from lvmsync.jobs.archive.restore import open_point
from lvmsync.jobs.archive.shelf import Shelf
from lvmsync.jobs.archive.take import bring_in, take
from lvmsync.jobs.archive.verify import verify
from lvmsync.jobs.progress import ignore
from lvmsync.jobs.send import StreamOptions
from lvmsync.stores.folder import FolderStore
from lvmsync.stores.sealed import SealedStore
from tests.archive_history import Both, History, require_points
from tests.fakes import reader, send
from tests.killed import killed_at


class World:
    """An archive of both kinds with five points, and a sixth that is not in it yet."""

    def __init__(self, folder: Path, *, is_sealed: bool) -> None:
        self.folder = folder
        self.history = History.make(11, 5, 64 << 10, may_resize=False)
        self.is_sealed = is_sealed
        self.archive = Both(folder, self.history, store=self.open(folder / "archive"))
        self.history.step(may_resize=False)
        self.shelf = self.archive.shelf
        self.stream = send(self.history.delta(5))

    def open(self, folder: Path) -> Store:
        return SealedStore(FolderStore(folder), bytes(32)) if self.is_sealed else FolderStore(folder)

    def take(self) -> None:
        take(Shelf.open(self.shelf.store), self.history.delta(5), StreamOptions(level=1), ignore)

    def bring_in(self) -> None:
        bring_in(Shelf.open(self.shelf.store), reader(self.stream), name="stream")

    def combine(self) -> None:
        shelf = Shelf.open(self.shelf.store)
        ids = [one.id for one in shelf.catalogue.points]
        prune(shelf, plan_combination(shelf.catalogue, ids[1], ids[-1]), StreamOptions(), ignore)

    def prune(self) -> None:
        shelf = Shelf.open(self.shelf.store)
        ids = [one.id for one in shelf.catalogue.points]
        prune(shelf, plan_pruning(shelf.catalogue, [ids[-2], ids[-1]]), StreamOptions(), ignore)

    def repair(self) -> None:
        verify(Shelf.open(self.shelf.store), ignore, is_repairing=True)


JOBS = [("take", False), ("bring_in", False), ("combine", False), ("prune", False), ("repair", False)]
SEALED = [("take", True), ("repair", True)]


@pytest.mark.parametrize(("job", "is_sealed"), JOBS + SEALED)
def test_a_job_that_is_killed_at_any_step_loses_nothing_and_is_repeated(
    job: str, is_sealed: bool, tmp_path: Path
) -> None:
    made = World(tmp_path / "made", is_sealed=is_sealed)
    step = 0
    while True:
        folder = tmp_path / str(step)
        folder.mkdir()
        shutil.copytree(made.folder / "archive", folder / "archive")
        if job == "repair":  # as if the last run had been killed before its catalogue was there
            max((folder / "archive").glob("catalogue-*")).unlink()
        world = made
        world.shelf = Shelf.open(world.open(folder / "archive"))
        before = {one.id for one in world.shelf.catalogue.points}
        kept = {"combine": {"lv:0", "lv:1", "lv:4"}, "prune": {"lv:3", "lv:4"}}.get(job, before)
        was_killed = killed_at(step, getattr(world, job))

        after = Shelf.open(world.shelf.store)
        assert kept <= {one.id for one in after.catalogue.points}
        require_sound(made, after)
        if not was_killed:
            break
        verify(after, ignore, is_repairing=True)
        getattr(world, job)()
        require_sound(made, Shelf.open(world.shelf.store), is_tidy=job != "bring_in")
        shutil.rmtree(folder)
        step += 1
    assert step >= (4 if job == "repair" else 12)


def require_sound(made: World, shelf: Shelf, *, is_tidy: bool = False) -> None:
    """Every point that is listed is what it was, and the archive finds no fault with itself."""
    made.archive.shelf = shelf
    require_points(made.archive)
    verdict = verify(shelf, ignore, is_restoring=True, mirror=made.archive.mirror)
    assert verdict.faults == []
    if is_tidy:
        assert verdict.notes == []
    for point in shelf.catalogue.points:
        with open_point(shelf, point, made.archive.mirror):
            pass


def test_an_object_is_durable_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    for name in ("fsync", "link"):
        call = getattr(os, name)

        def noted(*args: Any, call: Callable[..., Any] = call, name: str = name, **others: Any) -> Any:
            done.append(name)
            return call(*args, **others)

        monkeypatch.setattr(os, name, noted)
    store = FolderStore(tmp_path)
    with store.create("x") as blob:
        blob.write([b"data"])
    assert done == ["fsync", "link", "fsync"]

"""Random histories: every point of every kind of archive is what it was, whatever is combined and pruned."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from lvmsync.chain.pruning import plan_combination, plan_pruning
from lvmsync.chain.routes import list_restorable
from lvmsync.jobs.archive.prune import prune
from lvmsync.jobs.archive.shelf import Shelf
from lvmsync.jobs.archive.verify import verify
from lvmsync.jobs.progress import ignore
from lvmsync.jobs.send import StreamOptions
from tests.archive_history import Archive, Both, Forward, History, Reverse, require_points


def require_whole(archive: Archive) -> None:
    """Every point is what it was, nothing is left over, and the archive says so itself."""
    archive.shelf = Shelf.open(archive.shelf.store)
    require_points(archive)
    verdict = verify(archive.shelf, ignore, is_restoring=True, mirror=archive.mirror)
    assert verdict.faults == []
    assert [note for note in verdict.notes if "mirror" not in note] == []
    assert verdict.restored == [point.number for point in archive.shelf.catalogue.points]
    archive.shelf = Shelf.open(archive.shelf.store)


@pytest.mark.parametrize("kind", [Forward, Reverse, Both])
@pytest.mark.parametrize("seed", range(6))
def test_every_point_is_what_it_was_before_and_after_any_combining_and_pruning(
    kind: type[Forward] | type[Reverse] | type[Both], seed: int, tmp_path: Path
) -> None:
    archive = kind(tmp_path, History.make(seed, may_resize=kind is Forward))
    require_whole(archive)
    assert len(archive.shelf.catalogue.points) == 20
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
    if kind is Both:
        require_points(archive, without_mirror=True)


def test_a_history_goes_on_after_pruning(tmp_path: Path) -> None:
    history = History.make(3, 8)
    archive = Forward(tmp_path, history, level=1)
    newest = archive.shelf.catalogue.points[-1].id
    prune(archive.shelf, plan_pruning(archive.shelf.catalogue, [newest]), archive.options, ignore)
    assert len(archive.shelf.catalogue.members) == 1
    for number in range(8, 12):
        history.step()
        archive.take(number)
    require_whole(archive)
    assert [one.number for one in archive.shelf.catalogue.points] == [8, 9, 10, 11, 12]

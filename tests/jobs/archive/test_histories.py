"""Random histories: every point of every kind of archive is what it was, whatever is combined and pruned."""

from __future__ import annotations

from pathlib import Path

import pytest

from lvmsync.chain.pruning import plan_pruning
from lvmsync.jobs.archive.prune import prune
from lvmsync.jobs.progress import ignore
from tests.archive_history import Both, Forward, History, Reverse, require_points_while_it_is_pruned, require_whole


@pytest.mark.parametrize("kind", [Forward, Reverse, Both])
@pytest.mark.parametrize("seed", range(6))
def test_every_point_is_what_it_was_before_and_after_any_combining_and_pruning(
    kind: type[Forward] | type[Reverse] | type[Both], seed: int, tmp_path: Path
) -> None:
    archive = kind(tmp_path, History.make(seed, may_resize=kind is Forward))
    require_points_while_it_is_pruned(archive, seed)


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

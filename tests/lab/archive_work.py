"""What a guest does to an archive until its power goes, and what it finds there after the next boot.

    python -m tests.lab.archive_work work|check ARCHIVE SHARE SEED

``work`` takes the points of a history into it, combines and prunes at random, and tells the host before each step what
is listed and what may go. ``check`` writes every point that can be restored into the share, and takes one more.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Collection
from pathlib import Path

from lvmsync.chain.pruning import plan_combination, plan_pruning
from lvmsync.chain.routes import list_restorable
from lvmsync.jobs.archive.prune import prune
from lvmsync.jobs.archive.restore import open_point
from lvmsync.jobs.archive.shelf import Shelf
from lvmsync.jobs.archive.take import take
from lvmsync.jobs.progress import ignore
from lvmsync.jobs.send import StreamOptions
from lvmsync.stores.folder import FolderStore
from tests.archive_history import History

POINTS, SIZE = 150, 1 << 20


def make_history(seed: int) -> History:
    """Return the history of a seed, which the host and the guest know."""
    return History.make(seed, POINTS, SIZE)


def tell(share: Path, listed: Collection[str], dropping: Collection[str]) -> None:
    """Tell the host what can be restored, and what the step that begins may drop; one file, in one step."""
    new = share / "told.new"
    new.write_text(json.dumps({"listed": sorted(listed), "dropping": sorted(dropping)}))
    new.rename(share / "told")


def work(archive: Path, share: Path, seed: int) -> None:
    """Change the archive until the end of the history, or of the power."""
    history, chance = make_history(seed), random.Random(seed)
    shelf = Shelf.init(FolderStore(archive))
    (share / "started").touch()
    for number in range(POINTS):
        tell(share, list_restorable(shelf.catalogue), ())
        take(shelf, history.delta(number) if number else history.full(0), StreamOptions(level=number % 2), ignore)
        points = [one.id for one in shelf.catalogue.points]
        if len(points) < 4 or chance.random() < 0.5:
            continue
        if chance.random() < 0.5:
            first, last = sorted(chance.sample(range(len(points)), 2))
            plan = plan_combination(shelf.catalogue, points[first], points[last])
        else:
            # The newest stays: the next delta starts from it
            plan = plan_pruning(shelf.catalogue, {points[-1], *chance.sample(points, chance.randrange(2, len(points)))})
        tell(share, list_restorable(shelf.catalogue), plan.dropped)
        prune(shelf, plan, StreamOptions(level=1), ignore)


def check(archive: Path, share: Path, seed: int) -> None:
    """Write what can be restored into the share, and go on with the archive."""
    history = make_history(seed)
    shelf = Shelf.open(FolderStore(archive))
    there = list_restorable(shelf.catalogue)
    for point in shelf.catalogue.points:
        if point.id in there:
            with open_point(shelf, point) as (past, _):
                out = memoryview(bytearray(past.size))
                past.read([0], [past.size], out)
            (share / f"{point.id}.state").write_bytes(out)
    number = int(shelf.catalogue.points[-1].id.partition(":")[2]) + 1
    take(shelf, history.delta(number), StreamOptions(), ignore)
    if f"lv:{number}" not in list_restorable(Shelf.open(FolderStore(archive)).catalogue):
        raise AssertionError("the archive does not go on")


if __name__ == "__main__":
    {"work": work, "check": check}[sys.argv[1]](Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))

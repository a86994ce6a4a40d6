"""Power cuts at every operation of a receive whose archive has what it overwrites: mirror, ledger and archive."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from lvmsync.jobs import transaction
from lvmsync.jobs.archive.shelf import Shelf
from lvmsync.jobs.archive.verify import verify
from lvmsync.jobs.progress import ignore
from lvmsync.jobs.recover import recover
from lvmsync.jobs.standing import standing
from lvmsync.stores.folder import FolderStore
from lvmsync.system import seen
from tests.archive_history import History, Mirrored, require_points
from tests.fakes import Disk

SIZE = 32 << 10


@pytest.fixture(autouse=True)
def _as_after_a_reboot(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing tells whether a mirror was written to by others; windows are small."""
    monkeypatch.setattr(seen, "was_written", lambda *_: "unknown")
    monkeypatch.setattr(transaction, "WINDOW", 6000)


@pytest.mark.parametrize("count", [0, 2])
def test_a_power_cut_at_any_operation_loses_no_point_and_makes_none_up(count: int, fast_path: Path) -> None:
    history = History.make(32, 4, SIZE + (8 << 10), may_resize=False)
    assert all(one.changes for one in history.states)
    ids = [one.id for one in history.states]
    disk = Disk(fast_path / "disk")
    world = Mirrored.__new__(Mirrored)
    world.history, world.folder, world.image = history, disk.root, disk.root / "mirror"
    world.shelf = Shelf.init(FolderStore(disk.root / "archive"))
    world.image.write_bytes(random.Random(1).randbytes(len(history.states[0].data)))
    olds = [world.image.read_bytes(), *(one.data for one in history.states)]
    for number in range(count):
        world.send(world.history.delta(number) if number else world.history.full(0))

    def send() -> None:
        world.send(world.history.delta(count) if count else world.history.full(0))

    with disk.recorded() as record:
        send()
    assert len(record.steps) > 30
    ends = set()
    for done, wreck in record.wrecks():
        for fate in ("kept", "lost", random.Random(done)):
            disk.lay_out(wreck.crash(fate))
            with disk.recorded():
                listed = [one.id for one in Shelf.open(FolderStore(disk.root / "archive")).catalogue.points]
                assert listed in (ids[:count], ids[: count + 1])
                assert listed == ids[: count + 1] or done < len(record.steps)
                recover(str(world.image), disk.root / "state", ignore)
                point = standing(str(world.image), disk.root / "state").point
                is_new = point is not None and point.id == ids[count]
                ends.add(is_new)
                assert is_new or listed == ids[:count]
                assert world.image.read_bytes() == olds[count + is_new]
                if not is_new:
                    send()
                world.at = ids[count]
                world.shelf = Shelf.open(FolderStore(disk.root / "archive"))
                assert [one.id for one in world.shelf.catalogue.points] == ids[: count + 1]
                require_points(world)
                verdict = verify(world.shelf, ignore, is_repairing=True, is_restoring=True, mirror=world.mirror)
                assert verdict.faults == []
                assert verdict.adopted == []
                assert not list((disk.root / "state").glob("targets/*/*.undo*"))
    assert ends == {False, True}

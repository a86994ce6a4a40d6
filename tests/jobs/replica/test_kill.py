"""A run that is killed at any of its steps: the next one makes it right, and leaves one snapshot."""

from __future__ import annotations

from pathlib import Path

import pytest

from lvmsync.errors import ConflictError, DeviceError, TransportError
from lvmsync.jobs.create import create_file
from lvmsync.jobs.progress import ignore
from lvmsync.jobs.replica import copy
from lvmsync.jobs.replica.copy import PassOptions, PassResult, run_pass
from lvmsync.jobs.replica.record import Notebook, find_record
from lvmsync.jobs.replica.replica import open_replica
from lvmsync.system.fill import Fill
from lvmsync.system.fill_watch import FillWatch, Gauge
from lvmsync.system.lvm import LogicalVolume
from tests.replica_machine import SIZE, FarSide, Killed, Machine, as_agent, install


class World:
    """A volume of a machine, and its target elsewhere."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (folder / "volumes").mkdir()
        self.machine = Machine(folder / "volumes")
        install(self.machine, monkeypatch)
        self.volume: LogicalVolume = self.machine.add("lv")
        self.machine.path(self.volume).write_bytes(bytes(SIZE))
        self.machine.write(self.volume, *range(256))
        self.target = folder / "copy"
        self.state = folder / "here"
        self.far = FarSide(self.machine, folder / "there")

    def run(self, options: PassOptions | None = None) -> PassResult:
        agent = as_agent(self.far)
        with open_replica(agent, self.volume, str(self.target), "host:copy", self.state) as replica:
            return run_pass(replica, agent, options or PassOptions(create=True), ignore)

    def run_killed(self, step: int) -> bool:
        """Run until so many steps were taken; tell whether it was killed by then."""
        self.machine.steps.clear()
        self.machine.kill_at = step
        try:
            self.run()
        except Killed:
            return True
        finally:
            self.machine.kill_at = None
        return False

    def require_whole(self, result: PassResult) -> None:
        """Check what must be so after each good run."""
        assert self.target.read_bytes() == self.machine.path(self.volume).read_bytes()
        (base,) = self.machine.ours()
        assert base.full_name == result.snapshot
        assert "lvmsync.role=base" in base.tags
        record = find_record(self.state, self.volume.id, "host:copy")
        assert record is not None
        assert (record.base, record.head) == (base.id, None)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    return World(tmp_path, monkeypatch)


def test_the_first_run_copies_all_and_the_next_what_changed_and_the_next_nothing(world: World) -> None:
    first = world.run()
    world.require_whole(first)
    assert (first.kind, first.changed_bytes) == ("first", SIZE)

    world.machine.write(world.volume, 3, 4, 200)
    delta = world.run()
    world.require_whole(delta)
    assert (delta.kind, delta.changed_bytes) == ("delta", 3 * 4096)
    assert set(delta.seconds) == {"look", "snapshot", "map", "open", "send", "confirm", "commit", "promote"}

    before = world.far.sent
    nothing = world.run()
    world.require_whole(nothing)
    assert (nothing.kind, nothing.changed_bytes) == ("nothing", 0)
    assert world.far.sent - before < 64 << 10


def count_steps(world: World) -> int:
    world.machine.steps.clear()
    world.require_whole(world.run())
    return len(world.machine.steps)


def test_a_first_copy_that_is_killed_at_any_step_is_made_right_by_the_next_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "whole").mkdir()
    steps = count_steps(World(tmp_path / "whole", monkeypatch))
    assert steps > 10
    for step in range(steps):
        (tmp_path / str(step)).mkdir()
        world = World(tmp_path / str(step), monkeypatch)
        assert world.run_killed(step)
        world.machine.write(world.volume, 5, 250)  # the volume does not wait
        result = world.run()
        if result.kind == "resume":  # which brings it to the snapshot that was being sent
            result = world.run()
        world.require_whole(result)


def test_a_delta_that_is_killed_at_any_step_is_made_right_by_the_next_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "whole").mkdir()
    world = World(tmp_path / "whole", monkeypatch)
    world.run()
    world.machine.write(world.volume, 1, 100)
    steps = count_steps(world)
    assert steps > 10
    for step in range(steps):
        (tmp_path / str(step)).mkdir()
        world = World(tmp_path / str(step), monkeypatch)
        world.run()
        world.machine.write(world.volume, *range(1, 200, 3))
        assert world.run_killed(step)
        world.machine.write(world.volume, 5, 250)
        result = world.run()
        if result.kind == "resume":
            result = world.run()
        world.require_whole(result)


def test_runs_that_are_killed_twice_in_a_row_are_made_right_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, (one, other) in enumerate([(4, 2), (4, 5), (8, 2), (8, 6), (10, 3), (12, 1), (14, 14), (6, 9)]):
        (tmp_path / str(number)).mkdir()
        world = World(tmp_path / str(number), monkeypatch)
        world.run()
        for step in (one, other):
            world.machine.write(world.volume, *range(step, 200, 7))
            world.run_killed(step)
        result = world.run()
        if result.kind == "resume":
            result = world.run()
        world.require_whole(result)


def test_a_line_that_is_cut_leaves_the_head_and_the_next_run_goes_on_with_it(world: World) -> None:
    world.far.cut = 300_000
    with pytest.raises(TransportError):
        world.run()
    (head,) = world.machine.ours("head")
    held = world.machine.path(head).read_bytes()
    world.machine.write(world.volume, 0, 255)

    result = world.run()

    assert result.kind == "resume"
    assert result.snapshot == head.full_name
    assert result.head_time is None
    assert world.target.read_bytes() == held
    assert world.far.sent < 1.2 * SIZE


def test_each_time_that_a_head_is_gone_on_with_is_remembered_until_there_is_another(world: World) -> None:
    def count() -> int:
        record = find_record(world.state, world.volume.id, "host:copy")
        assert record is not None
        return record.cuts

    for cuts in range(3):
        world.far.cut = 300_000
        with pytest.raises(TransportError):
            world.run()
        assert count() == cuts
    assert world.run().kind == "resume"
    assert count() == 3
    world.machine.write(world.volume, 0)
    world.run()
    assert count() == 0


def test_a_head_that_cannot_be_remembered_is_not_kept(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.run()

    def fail(notebook: Notebook, **changes: object) -> None:
        raise DeviceError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(Notebook, "write", fail)
        with pytest.raises(DeviceError, match="the disk is full"):
            world.run()

    assert len(world.machine.ours()) == 1


@pytest.mark.parametrize("is_first", [True, False])
@pytest.mark.parametrize("is_resumed", [True, False])
def test_a_head_is_given_up_when_the_pool_of_the_volume_becomes_full(
    world: World, monkeypatch: pytest.MonkeyPatch, is_first: bool, is_resumed: bool
) -> None:
    if not is_first:
        world.run()
        world.machine.write(world.volume, *range(64))
    if is_resumed:
        world.far.cut = 100_000
        with pytest.raises(TransportError):
            world.run()
        world.far.cut = None
    bases = world.machine.ours("base")
    looks = [96, 50, 50]
    gauge = Gauge("vg/pool", lambda: ("the pool", Fill(looks.pop() if looks else 96, 100)), "lvextend vg/pool")
    with monkeypatch.context() as patch:
        patch.setattr(copy, "watch_fill", lambda *_: FillWatch([gauge], every=0))
        with pytest.raises(DeviceError, match=r"the pool is 96.0% full"):
            world.run()
    assert world.machine.ours() == bases
    world.machine.write(world.volume, 3)
    world.require_whole(world.run())


def test_the_target_that_is_made_is_known_again(world: World, tmp_path: Path) -> None:
    world.run()
    content = world.target.read_bytes()
    world.target.unlink()
    (tmp_path / "another").write_bytes(b"")  # so that it does not get the number of the old one
    world.target.write_bytes(content)

    with pytest.raises(ConflictError, match=r"another device .* than the one that held the copy"):
        world.run()


def test_a_state_folder_that_is_lost_is_found_again_by_the_tags(world: World, tmp_path: Path) -> None:
    first = world.run()
    (tmp_path / "here").rename(tmp_path / "lost")
    world.machine.write(world.volume, 7)

    result = world.run()

    world.require_whole(result)
    assert result.kind == "delta"
    assert first.snapshot != result.snapshot


def test_a_volume_that_was_renamed_is_the_same_volume(world: World) -> None:
    world.run()
    renamed = world.machine.volumes[world.volume.id].__class__(**{**vars(world.volume), "name": "new"})
    world.machine.volumes[world.volume.id] = world.volume = renamed
    world.machine.write(world.volume, 7)

    assert world.run().kind == "delta"


def test_two_targets_of_a_volume_have_a_base_each(world: World, tmp_path: Path) -> None:
    world.run()
    other = World.__new__(World)
    vars(other).update(vars(world), target=tmp_path / "second", far=FarSide(world.machine, tmp_path / "third"))
    world.machine.write(world.volume, 9)
    agent = as_agent(other.far)
    with open_replica(agent, world.volume, str(other.target), "host:second", world.state) as replica:
        assert run_pass(replica, agent, PassOptions(create=True), ignore).kind == "first"

    assert len(world.machine.ours("base")) == 2
    assert world.run().kind == "delta"
    assert len(world.machine.ours("base")) == 2


def test_one_run_at_a_time_works_on_a_replica(world: World) -> None:
    agent = as_agent(world.far)
    opened = open_replica(agent, world.volume, str(world.target), "host:copy", world.state)
    with opened, pytest.raises(ConflictError, match="another lvmsync works on vg/lv and its copy host:copy"):
        world.run()


def test_a_target_that_was_written_to_is_refused_and_no_snapshot_is_left(world: World) -> None:
    world.run()
    with world.target.open("r+b") as file:
        file.write(b"another")

    with pytest.raises(ConflictError, match=r"written to by something else.*lvmsync repair vg/lv host:copy"):
        world.run()

    assert len(world.machine.ours()) == 1


def test_a_full_copy_is_made_of_whatever_is_there(world: World) -> None:
    world.run()
    with world.target.open("r+b") as file:
        file.write(b"another")

    result = world.run(PassOptions(full=True))

    world.require_whole(result)
    assert result.kind == "first"


def test_a_file_that_was_being_made_when_its_side_was_killed_is_made_by_the_next_run(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.target.touch()
    with pytest.raises(DeviceError, match="too small"):
        world.run(PassOptions(create=False))
    monkeypatch.setattr(world.far, "create", lambda target, size, pool: create_file(target, size, world.far.state))

    world.require_whole(world.run())


def test_a_target_that_was_renamed_is_the_same_replica(world: World) -> None:
    world.run()
    world.machine.write(world.volume, 1)
    before = find_record(world.state, world.volume.id, "host:copy")
    assert before is not None
    agent = as_agent(world.far)
    with open_replica(agent, world.volume, str(world.target), "host:copy2", world.state) as replica:
        assert run_pass(replica, agent, PassOptions(), ignore).kind == "delta"
    after = find_record(world.state, world.volume.id, "host:copy2")
    assert after is not None
    assert after.id == before.id
    assert find_record(world.state, world.volume.id, "host:copy") is None

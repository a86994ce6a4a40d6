"""Volumes that are cut together and committed together, whatever fails or is killed at whichever step."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lvmsync.errors import ConflictError, DeviceError, LvmsyncError, PeerError, TransportError, UsageError
from lvmsync.jobs.progress import GroupReceipt, Receipt, ignore
from lvmsync.jobs.recover import recover
from lvmsync.jobs.replica.copy import PassOptions, run_pass
from lvmsync.jobs.replica.group import Member, foresee_group, sync_group
from lvmsync.jobs.replica.replica import open_replica
from lvmsync.jobs.replica.run import sync_volume
from lvmsync.jobs.replica.together import Stillness
from lvmsync.jobs.send import StreamOptions
from lvmsync.jobs.standing import standing
from lvmsync.system.lvm import LogicalVolume
from tests.replica_machine import BLOCK, SIZE, FarSide, Killed, Machine, as_agent, install

NAMES = ("a", "b", "c")


class World:
    """Volumes of a machine, each with the number of the moment in every block, and their targets."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, names: Sequence[str] = NAMES) -> None:
        (folder / "volumes").mkdir(parents=True)
        (folder / "copies").mkdir()
        self.folder = folder
        self.machine = Machine(folder / "volumes")
        install(self.machine, monkeypatch)
        self.volumes: dict[str, LogicalVolume] = {}
        self.moment = 0
        for name in names:
            self.add(name)
        self.state = folder / "here"
        self.far = FarSide(self.machine, folder / "there")

    def add(self, name: str) -> None:
        self.volumes[name] = self.machine.add(name)
        self.machine.path(self.volumes[name]).write_bytes(os.urandom(SIZE))
        self.pass_time()

    def pass_time(self, *blocks: int) -> None:
        """Write to all volumes, so that the copies of one moment can be told from those of any other."""
        self.moment += 1
        for volume in self.volumes.values():
            self.machine.write(volume, *(blocks or (7, 100)))
            with self.machine.path(volume).open("r+b") as file:
                file.write(self.moment.to_bytes(8, "little"))

    def member(self, name: str) -> Member:
        return Member(self.volumes[name], str(self.target(name)), f"host:vg2/{name}")

    def target(self, name: str) -> Path:
        return self.folder / "copies" / name

    def run(self, *names: str, options: PassOptions | None = None) -> GroupReceipt:
        members = [self.member(name) for name in names or self.volumes]
        return sync_group(
            "db", lambda: as_agent(self.far), members, self.state, options or PassOptions(create=True), Stillness(),
            ignore, wait=0,
        )  # fmt: skip

    def run_killed(self, step: int) -> None:
        self.machine.steps.clear()
        self.machine.kill_at = step
        with pytest.raises(Killed):
            self.run()
        self.machine.kill_at = None

    def run_killed_before(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """Run until a member is to be sent."""
        receive = self.far.receive

        def die(target: str, *args: Any, **more: Any) -> Receipt:
            if target.endswith(name):
                raise Killed(name)
            return receive(target, *args, **more)

        with monkeypatch.context() as patch:
            patch.setattr(self.far, "receive", die)
            with pytest.raises(Killed):
                self.run()

    def moments(self) -> set[int]:
        """Return the moments that the copies are at."""
        return {int.from_bytes(self.target(name).read_bytes()[:8], "little") for name in self.volumes}

    def recover(self) -> None:
        """Recover one target on the far side, the last one that has something to be recovered."""
        for name in self.volumes:
            if self.target(name).exists() and standing(str(self.target(name)), self.far.state).transaction:
                recover(str(self.target(name)), self.far.state, ignore)
                return

    def require_whole(self) -> None:
        for name, volume in self.volumes.items():
            assert self.target(name).read_bytes() == self.machine.path(volume).read_bytes(), name
        bases = self.machine.ours()
        assert sorted(one.origin for one in bases) == sorted(self.volumes)
        assert all("lvmsync.role=base" in one.tags for one in bases)
        assert len({tag for one in bases for tag in one.tags if tag.startswith("lvmsync.cut=")}) == 1
        assert not list((self.far.state / "groups").glob("*.json"))


@pytest.fixture
def world(fast_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    return World(fast_path, monkeypatch)


def test_a_group_is_copied_and_then_what_changed_and_then_nothing(world: World) -> None:
    first = world.run()
    world.require_whole()
    assert (first.kind, first.bytes, first.confirmed, len(first.members)) == ("first", 3 * SIZE, True, 3)
    world.pass_time()
    delta = world.run()
    world.require_whole()
    assert (delta.kind, delta.bytes) == ("delta", 9 * BLOCK)
    assert delta.cut != first.cut
    assert world.run().kind == "nothing"
    world.require_whole()


def count_steps(world: World) -> int:
    world.machine.steps.clear()
    world.run()
    world.require_whole()
    return len(world.machine.steps)


def test_first_copies_that_are_killed_at_any_step_are_made_right_by_the_next_run(
    fast_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = count_steps(World(fast_path / "whole", monkeypatch, "ab"))
    assert steps > 20
    for step in range(steps):
        world = World(fast_path / str(step), monkeypatch, "ab")
        world.run_killed(step)
        world.pass_time()
        world.run()
        world.require_whole()


def test_a_run_that_is_killed_at_any_step_is_made_right_by_the_next(
    fast_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = World(fast_path / "whole", monkeypatch)
    whole.run()
    whole.pass_time()
    for step in range(count_steps(whole)):
        world = World(fast_path / str(step), monkeypatch)
        world.run()
        world.pass_time(*range(1, 200, 3))
        world.run_killed(step)
        world.pass_time()
        world.run()
        world.require_whole()


def test_after_a_kill_at_any_step_recovering_one_target_leaves_all_of_them_old_or_all_new(
    fast_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = World(fast_path / "whole", monkeypatch, "ab")
    whole.run()
    whole.pass_time()
    seen = set()
    for step in range(count_steps(whole)):
        world = World(fast_path / str(step), monkeypatch, "ab")
        world.run()
        old = world.moment
        world.pass_time(*range(1, 200, 3))
        new = world.moment
        world.run_killed(step)
        world.recover()
        moments = world.moments()
        assert moments in ({old}, {new}), step
        seen |= {moment == new for moment in moments}
        world.pass_time()
        world.run()
        world.require_whole()
    assert seen == {False, True}


def test_a_line_that_is_cut_in_one_member_is_gone_on_with_and_nothing_is_sent_twice(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.run()
    world.pass_time(*range(256))
    before = world.far.sent
    receive, lines = world.far.receive, iter([None, 700_000])

    def cut(*args: Any, **more: Any) -> Receipt:
        world.far.cut = next(lines, None)
        return receive(*args, **more)

    monkeypatch.setattr(world.far, "receive", cut)
    receipt = world.run()
    assert receipt.kind == "resume"
    assert any("the line failed" in note for note in receipt.notes)
    world.require_whole()
    assert world.far.sent - before < 3 * SIZE * 1.1


def test_a_member_that_fails_brings_all_back(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.run()
    old = world.moment
    world.pass_time()
    receive = world.far.receive

    def fail(target: str, *args: Any, **more: Any) -> Receipt:
        if target.endswith("c"):
            raise DeviceError("its store is full")
        return receive(target, *args, **more)

    with monkeypatch.context() as patch:
        patch.setattr(world.far, "receive", fail)
        with pytest.raises(DeviceError, match="its store is full") as raised:
            world.run()
    assert "nothing of the group was committed: all of its copies are as they were" in raised.value.__notes__
    assert world.moments() == {old}
    assert not world.machine.ours("head")
    world.run()
    world.require_whole()


def test_what_is_refused_of_one_member_is_refused_of_all_before_anything_is_made(world: World) -> None:
    world.run()
    world.pass_time()
    with world.target("b").open("r+b") as file:
        file.write(b"spoilt!!")
    world.machine.steps.clear()
    with pytest.raises(ConflictError, match="host:vg2/b was written to by something else"):
        world.run()
    assert world.machine.steps == []


def test_a_copy_that_is_written_to_while_it_waits_for_the_others_is_not_committed(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.run()
    world.pass_time()
    receive = world.far.receive

    def spoil(target: str, *args: Any, **more: Any) -> Receipt:
        if target.endswith("c"):
            with world.target("a").open("r+b") as file:
                file.write(b"spoilt!!")
        return receive(target, *args, **more)

    with monkeypatch.context() as patch:
        patch.setattr(world.far, "receive", spoil)
        with pytest.raises(ConflictError, match="host:vg2/a was written to by something else while it waited"):
            world.run()
    with pytest.raises(ConflictError, match=r"nothing is known there of host:vg2/a.*lvmsync repair"):
        world.run()


def test_a_member_that_is_added_gets_its_first_copy_in_the_same_commit(world: World) -> None:
    world.run()
    world.add("d")
    receipt = world.run()
    assert [one.kind for one in receipt.members] == ["delta", "delta", "delta", "first"]
    world.require_whole()


def test_a_member_that_is_left_out_is_said_and_let_go_of(world: World) -> None:
    world.run()
    with pytest.raises(ConflictError, match=r"host:vg2/c is kept at one moment with other volumes, as group 'db'"):
        alone(world, "c")
    world.pass_time()
    receipt = world.run("a", "b")
    assert any(note.startswith("vg/c is no member of the group any more") for note in receipt.notes)
    assert alone(world, "c") == "delta"
    assert not any("no member" in note for note in world.run("a", "b").notes)


def alone(world: World, name: str) -> str | None:
    one = world.member(name)
    receipt = sync_volume(
        lambda: as_agent(world.far), one.volume, one.target, one.place, world.state, PassOptions(), ignore
    )
    return receipt.kind


def test_a_member_that_was_cut_with_the_others_must_be_named_until_that_cut_is_done(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.run()
    world.pass_time(*range(256))
    world.run_killed_before("b", monkeypatch)
    with pytest.raises(ConflictError, match="was of vg/c as well: name that, too"):
        world.run("a", "b")
    world.run()
    world.require_whole()


def test_a_head_that_is_lost_means_that_all_go_back_and_are_cut_anew(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.run()
    world.pass_time(*range(256))
    world.run_killed_before("c", monkeypatch)
    lost = next(one for one in world.machine.ours("head") if one.origin == "a")
    del world.machine.volumes[lost.id]
    world.pass_time()
    receipt = world.run()
    world.require_whole()
    assert any("brought back first" in note for one in receipt.members for note in one.notes)


def test_first_copies_whose_cut_is_lost_are_finished_by_themselves(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.run_killed_before("c", monkeypatch)
    lost = next(one for one in world.machine.ours("head") if one.origin == "c")
    del world.machine.volumes[lost.id]
    world.pass_time()
    receipt = world.run()
    world.require_whole()
    assert [one.kind for one in receipt.members] == ["delta", "delta", "first"]


@pytest.mark.parametrize("lost", ["a", "b"])
@pytest.mark.parametrize("is_cut", [False, True], ids=["killed between two", "killed in the middle of one"])
def test_a_first_copy_whose_head_is_lost_is_begun_anew_and_keeps_no_other_back(
    world: World, monkeypatch: pytest.MonkeyPatch, lost: str, is_cut: bool
) -> None:
    receive = world.far.receive

    def die(target: str, *args: Any, **more: Any) -> Receipt:
        world.far.cut = SIZE // 2 if is_cut and target.endswith("b") else None
        if target.endswith("c"):
            raise Killed("before c")
        try:
            return receive(target, *args, **more)
        except TransportError:
            raise Killed("in b") from None

    with monkeypatch.context() as patch:
        patch.setattr(world.far, "receive", die)
        with pytest.raises(Killed):
            world.run()
    world.far.cut = None
    del world.machine.volumes[next(one.id for one in world.machine.ours("head") if one.origin == lost)]
    world.pass_time()
    world.run()
    world.require_whole()


@pytest.mark.parametrize("is_spoilt", [False, True])
def test_a_copy_of_everything_goes_on_where_it_was_cut_off_unless_a_target_refuses_that(
    world: World, monkeypatch: pytest.MonkeyPatch, is_spoilt: bool
) -> None:
    world.run()
    world.pass_time()
    full = PassOptions(full=True, stream=StreamOptions(level=0))
    receive, sizes = world.far.receive, dict.fromkeys(NAMES, 0)

    def count(target: str, *args: Any, **more: Any) -> Receipt:
        before, is_first = world.far.sent, not sizes["b"]
        if target.endswith("b") and is_first:
            world.far.cut = 600_000
        elif target.endswith("b") and is_spoilt and sizes["b"] < 2 * SIZE:
            sizes["b"] = 2 * SIZE
            raise PeerError("it cannot be gone on with: begin anew, with --full", ConflictError.exit_code)
        try:
            return receive(target, *args, **more)
        finally:
            sizes[target[-1]] += world.far.sent - before

    monkeypatch.setattr(world.far, "receive", count)
    receipt = world.run(options=full)
    world.require_whole()
    assert receipt.kind == ("first" if is_spoilt else "resume")
    assert (sizes["a"] < 1.1 * SIZE) == (not is_spoilt)  # sent once


def test_a_copy_of_one_volume_alone_that_was_cut_off_is_finished_first(world: World) -> None:
    one = world.member("a")
    world.far.cut = 500_000
    with (
        open_replica(as_agent(world.far), one.volume, one.target, one.place, world.state) as replica,
        pytest.raises(TransportError),
    ):
        run_pass(replica, as_agent(world.far), PassOptions(create=True), ignore)
    world.pass_time()
    receipt = world.run()
    world.require_whole()
    assert [one.kind for one in receipt.members] == ["delta", "first", "first"]


def test_a_dry_run_tells_and_changes_nothing(world: World) -> None:
    world.machine.steps.clear()
    found = foresee_group(
        "db", as_agent(world.far), [world.member(name) for name in NAMES], world.state, PassOptions(create=True)
    )
    assert (found.kind, found.dry_run, len(found.members)) == ("first", True, 3)
    assert world.machine.steps == []
    with pytest.raises(LvmsyncError, match="there is no target"):
        foresee_group("db", as_agent(world.far), [world.member("a")], world.state, PassOptions())


def test_a_target_that_is_another_member_is_refused(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.run()
    standing_of = world.far.standing
    other = {"dm uuid": f"LVM-{world.volumes['a'].id}"}
    monkeypatch.setattr(
        world.far,
        "standing",
        lambda target: replace(standing_of(target), identity=other if target.endswith("b") else None),
    )
    world.machine.steps.clear()
    members = [world.member(name) for name in NAMES]
    with pytest.raises(UsageError, match=r"host:vg2/b and vg/a are the same volume"):
        world.run()
    with pytest.raises(UsageError, match=r"host:vg2/b and vg/a are the same volume"):
        foresee_group("db", as_agent(world.far), members, world.state, PassOptions())
    assert world.machine.steps == []

"""How often LVM is asked: each call takes a fifth of a second, and much longer where there are thousands of volumes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from lvmsync.cli.asked import Managing
from lvmsync.cli.replica import find_managed
from lvmsync.errors import ChangesLost, TransportError, UsageError
from lvmsync.jobs import plan
from lvmsync.jobs.agent.client import Agent
from lvmsync.jobs.progress import Receipt, ignore
from lvmsync.jobs.replica import snapshots
from lvmsync.jobs.replica.copy import PassOptions
from lvmsync.jobs.replica.run import foresee, sync_volume
from lvmsync.sources import Reading
from lvmsync.system import lvm, lvm_commands
from lvmsync.system.lvm import Group, LogicalVolume
from tests.jobs.replica.test_group import World as GroupWorld
from tests.jobs.replica.test_kill import World
from tests.replica_machine import FarSide, as_agent


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    made = World(tmp_path, monkeypatch)
    made.run()
    made.machine.write(made.volume, 3)
    return made


def sync(world: World, told: list[LogicalVolume] | None, agent: Agent | None = None) -> Receipt:
    chosen = agent or as_agent(world.far)
    return sync_volume(
        lambda: chosen, world.volume, str(world.target), "host:copy", world.state, PassOptions(), ignore, told=told,
        wait=0,
    )  # fmt: skip


def test_a_run_asks_once_when_its_replica_is_locked(world: World) -> None:
    told = world.machine.list_volumes()
    world.machine.asked = 0
    assert sync(world, told).kind == "delta"
    assert world.machine.asked == 1
    assert sync(world, None).kind == "nothing"
    assert world.machine.asked == 3


def test_so_does_a_dry_run(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: object, reading: Reading) -> None:
        assert reading.volumes is not None
        raise ChangesLost("no map")

    monkeypatch.setattr(plan, "open_source", refuse)
    told = world.machine.list_volumes()
    world.machine.asked = 0
    agent = as_agent(world.far)
    with pytest.raises(ChangesLost, match="no map"):
        foresee(agent, world.volume, str(world.target), "host:copy", world.state, PassOptions(), told)
    assert world.machine.asked == 1


def test_what_another_run_did_before_the_replica_was_locked_is_seen(world: World) -> None:
    told = world.machine.list_volumes()
    world.run()
    world.machine.write(world.volume, 9)

    assert sync(world, told).kind == "delta"

    assert world.target.read_bytes() == world.machine.path(world.volume).read_bytes()
    assert len(world.machine.ours()) == 1


def test_after_a_broken_line_all_is_asked_again(world: World) -> None:
    class Broken(FarSide):
        def standing(self, target: str) -> object:  # type: ignore[override]
            self.sent += 1
            if self.sent == 1:
                raise TransportError("the line was cut")
            return super().standing(target)

    told = world.machine.list_volumes()
    world.machine.asked = 0
    sync(world, told, as_agent(Broken(world.machine, world.far.state)))
    assert world.machine.asked == 2


def test_a_group_asks_once_for_all_its_members(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    group = GroupWorld(tmp_path, monkeypatch)
    group.run()
    group.pass_time()
    group.machine.asked = 0
    group.run()
    assert group.machine.asked == 2  # before its replicas were locked, and then


def test_what_a_group_has_free_comes_with_its_volumes(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[object] = []
    room = Group("vg", 1 << 30, 4 << 20)
    volume = replace(world.volume, thin_id=None, room=room)

    def take_snapshot(origin: LogicalVolume, name: str, **options: object) -> LogicalVolume:
        seen.append(options["group"])
        return origin

    monkeypatch.setattr(lvm_commands, "take_snapshot", take_snapshot)
    other = Group("vg", 1 << 40, 4 << 20)
    monkeypatch.setattr(lvm, "read_group", lambda name: other)
    snapshots.take_head(volume, "r", told=[volume])
    snapshots.take_head(volume, "r")  # the volume may have been looked at long ago
    snapshots.take_head(replace(volume, room=None), "r", told=[volume])
    assert seen == [room, other, other]


def test_a_volume_that_lvm_puts_back_is_said_to_be_one(world: World) -> None:
    assert find_managed("vg/lv", Managing(), [world.volume]) == world.volume
    with pytest.raises(UsageError, match="vg/lv is being merged with a snapshot, or will be"):
        find_managed("vg/lv", Managing(), [replace(world.volume, is_merging=True)])

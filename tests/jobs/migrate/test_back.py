"""The volume that a way back leads to: writable only for that, and fenced again if it does not come to the start."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from lvmsync.errors import DeviceError, TransportError
from lvmsync.jobs.agent.client import Agent
from lvmsync.jobs.migrate import back
from lvmsync.jobs.migrate.back import WayBack, open_way_back
from lvmsync.jobs.migrate.move import Cut, Ended
from lvmsync.jobs.migrate.users import Users
from lvmsync.jobs.progress import Receipt, ignore
from lvmsync.system import lvm
from lvmsync.system.lvm import LogicalVolume
from tests.replica_machine import Machine, install


class World:
    """A volume that was migrated away, and the machine that it comes home from."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        machine = Machine(folder)
        install(machine, monkeypatch)
        self.volume: LogicalVolume = replace(machine.add("lv"), attr="Vri-a-tz--")
        self.folder = folder
        self.done: list[str] = []
        self.fails: Exception | None = None
        self.is_reached = True
        monkeypatch.setattr(lvm, "find_volume_by_id", lambda *_: self.volume)
        monkeypatch.setattr(back, "set_writable", self.set_writable)

    def set_writable(self, _: LogicalVolume, *, is_writable: bool) -> None:
        self.done.append("writable" if is_writable else "read-only")

    def connect(self) -> Agent:
        if not self.is_reached:
            raise DeviceError("no lvmsync there")
        return cast(Agent, SimpleNamespace(pull=self.pull, settle=lambda: self.done.append("settle")))

    def pull(self, *_: object) -> Receipt:
        self.done.append("pass")
        if self.fails:
            raise self.fails
        return Receipt("sync", kind="delta", snapshot="vg/snap")

    def start(self) -> Ended:
        self.done.append("start")
        return Ended(0)

    def job(self) -> WayBack:
        users = Users(lambda: None, start=self.start)
        return WayBack(self.volume, "vg/lv", "far:vg/lv", "here:vg/lv", self.folder, {}, self.connect, users)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    return World(tmp_path, monkeypatch)


def test_a_far_side_that_does_not_answer_leaves_the_volume_read_only(world: World) -> None:
    world.is_reached = False
    with pytest.raises(DeviceError), open_way_back(world.job()) as move:
        move.run_pass(ignore)
    assert world.done == []


def test_a_pass_that_fails_leaves_it_read_only_again(world: World) -> None:
    world.fails = DeviceError("there is no volume vg/lv")
    with pytest.raises(DeviceError), open_way_back(world.job()) as move:
        move.run_pass(ignore)
    assert world.done == ["writable", "pass", "read-only"]


def test_once_the_start_may_have_begun_it_stays_writable(world: World) -> None:
    def bring_home() -> None:
        with open_way_back(world.job()) as move:
            move.run_pass(ignore)
            move.run_pass(ignore)
            assert move.start
            move.start()
            raise TransportError("the line died")

    with pytest.raises(TransportError):
        bring_home()
    assert world.done == ["writable", "pass", "settle", "pass", "settle", "start"]


def test_what_a_last_pass_puts_off_waits_until_its_volume_is_in_use(world: World) -> None:
    job = replace(world.job(), remove=lambda snapshot: world.done.append(f"remove {snapshot}"))
    with open_way_back(job) as move:
        move.run_pass(ignore)
        move.stop()
        carried = move.run_pass(ignore)
        assert move.start
        move.start()
        move.finish(Cut(carried, 1.0, {}, None, started=True))
    assert world.done == ["writable", "pass", "settle", "pass", "start", "settle", "remove vg/snap"]


def test_one_that_was_writable_stays_so(world: World) -> None:
    world.volume = replace(world.volume, attr="Vwi-a-tz--")
    world.fails = DeviceError("no")
    with pytest.raises(DeviceError), open_way_back(world.job()) as move:
        move.run_pass(ignore)
    assert "read-only" not in world.done


def test_the_journal_of_a_way_back_tells_of_the_guest_as_that_of_the_way_there_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = World(tmp_path, monkeypatch).job()
    assert (job.note.domain, job.note.restart) == ("", "")
    guest = replace(job.users, domain="web1", uri="qemu+ssh://far/system", how_to_restart="virsh start web1")
    note = replace(job, users=guest).note
    assert (note.domain, note.uri, note.restart, note.is_back) == ("web1", "qemu+ssh://far/system", "", True)

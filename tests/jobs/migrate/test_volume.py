"""A volume that is migrated by passes of its replica, on a machine that files play."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from lvmsync.errors import ConflictError, DeviceError, TransportError
from lvmsync.jobs.migrate import back, volume
from lvmsync.jobs.migrate.drive import migrate
from lvmsync.jobs.migrate.move import Ended, Options, Outcome
from lvmsync.jobs.migrate.state import list_cut_off, open_journal
from lvmsync.jobs.migrate.users import Users
from lvmsync.jobs.migrate.volume import Job, open_move
from lvmsync.jobs.progress import Progress, Receipt, Report
from lvmsync.jobs.replica.copy import PassOptions
from lvmsync.jobs.replica.record import find_record
from lvmsync.jobs.send import StreamOptions
from lvmsync.sources.source import Source
from lvmsync.system import lvm
from lvmsync.system.lvm import LogicalVolume
from tests.replica_machine import SIZE, FarSide, Machine, as_agent, install


@dataclass
class Side(FarSide):
    """The target's machine, whose line may fail, or be slow, from a stream on."""

    is_over: bool = True  # there is no transport to be patient with
    cuts: list[int | None] = field(default_factory=list)
    is_slow: bool = False

    def receive(
        self,
        target: str,
        source: Source,
        stream: StreamOptions,
        report: Report,
        *,
        orders: Mapping[str, Any],
        **sending: Any,
    ) -> Receipt:
        self.cut = self.cuts.pop(0) if self.cuts else None
        if self.is_slow:
            report(Progress("sending", 1, 1 << 50))
        return super().receive(target, source, stream, report, orders=orders, **sending)


class World:
    """A volume in use, its target elsewhere, and what was done."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (folder / "volumes").mkdir()
        self.machine = Machine(folder / "volumes")
        install(self.machine, monkeypatch)
        self.source: LogicalVolume = self.machine.add("lv")
        self.machine.path(self.source).write_bytes(bytes(SIZE))
        self.machine.write(self.source, *range(256))
        self.target = folder / "copy"
        self.state = folder / "here"
        self.far = Side(self.machine, folder / "there")
        self.done: list[str] = []
        monkeypatch.setattr(lvm, "find_volume", self.find_volume)
        monkeypatch.setattr(volume._Steps, "_count_writes", lambda _: None)
        for module in (volume, back):
            monkeypatch.setattr(module, "set_writable", self.set_writable)

    def find_volume(self, name: str) -> LogicalVolume:
        return next(one for one in self.machine.volumes.values() if one.full_name == name)

    def set_writable(self, _: LogicalVolume, *, is_writable: bool) -> None:
        self.done.append("writable" if is_writable else "read-only")

    def stop(self) -> None:
        self.machine.write(self.source, 3, 200)  # its last words
        self.done.append("stop")

    def start(self) -> Ended:
        assert self.target.read_bytes() == self.machine.path(self.source).read_bytes()
        self.done.append("start")
        return Ended(0)

    def run(self, options: Options | None = None, cuts: Iterable[int | None] = (), *, full: bool = False) -> Outcome:
        self.far.cuts = list(cuts)
        users = Users(self.stop, restart=lambda: self.done.append("restart"), start=self.start, how_to_restart="again")
        job = Job(
            self.source, str(self.target), "host:copy", self.state, PassOptions(create=True, full=full),
            lambda: as_agent(self.far), users,
        )  # fmt: skip
        with open_journal(self.state, job.note) as journal, open_move(job) as move:
            return migrate(move, options or Options(60.0), journal, lambda _: None)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    return World(tmp_path, monkeypatch)


def test_what_was_written_last_arrives_and_nothing_is_left_of_ours(world: World) -> None:
    outcome = world.run()
    assert world.done == ["stop", "read-only", "start"]
    assert [one["kind"] for one in outcome.passes] == ["first", "nothing", "delta"]
    assert outcome.passes[-1]["bytes"] == 2 * 4096
    assert world.machine.ours() == []
    assert find_record(world.state, world.source.id, "host:copy") is None
    assert list_cut_off(world.state) == []
    assert "vg/lv is read-only now" in outcome.notes[-1]


def test_a_line_that_fails_in_a_pass_is_opened_again(world: World) -> None:
    outcome = world.run(cuts=[100_000])
    assert outcome.passes[0]["kind"] == "resume"
    assert world.done == ["stop", "read-only", "start"]


def test_a_line_that_fails_in_the_downtime_starts_the_source_again_and_the_next_run_goes_on(world: World) -> None:
    with pytest.raises(TransportError) as caught:
        world.run(cuts=[None, None, 2000])
    assert world.done == ["stop", "read-only", "writable", "restart"]
    assert "the source was started again (again)" in caught.value.__notes__[-1]
    world.done.clear()
    outcome = world.run()
    assert world.done == ["stop", "read-only", "start"]
    assert "first" not in [one["kind"] for one in outcome.passes]
    assert world.machine.ours() == []


def test_all_is_copied_anew_once_where_that_is_asked_for(world: World) -> None:
    with pytest.raises(TransportError):
        world.run(cuts=[None, None, 2000])
    world.target.write_bytes(bytes(SIZE))  # by something else: its copy is spoilt
    with pytest.raises(ConflictError, match="copy it anew with --full"):
        world.run()
    outcome = world.run(full=True)
    assert [one["kind"] for one in outcome.passes] == ["first", "nothing", "delta"]
    assert world.machine.ours() == []


def test_a_last_pass_that_would_take_too_long_is_called_off_and_leaves_the_source_running(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop = world.stop

    def stop_and_slow() -> None:
        stop()
        world.far.is_slow = True

    monkeypatch.setattr(world, "stop", stop_and_slow)
    with pytest.raises(DeviceError, match="the downtime would come to") as caught:
        world.run(Options(60.0, max_stops=1))
    assert world.done == ["stop", "read-only", "writable", "restart"]
    assert "stopped 1 times" in "; ".join(caught.value.__notes__)
    (base,) = world.machine.ours()
    assert "lvmsync.role=base" in base.tags


def test_a_source_that_is_read_only_was_migrated_already(world: World) -> None:
    world.source = replace(world.source, attr="Vri-a-tz--")
    with pytest.raises(ConflictError, match="vg/lv is read-only: it was migrated already"):
        world.run()
    assert world.done == []
    assert world.machine.ours() == []


def test_a_volume_that_is_kept_at_one_moment_with_others_is_not_moved_alone(world: World) -> None:
    with pytest.raises(TransportError):
        world.run(cuts=[None, None, 2000])
    world.done.clear()
    for base in world.machine.ours("base"):
        world.machine.change_tags(base, ["lvmsync.group=shop"], [])
    with pytest.raises(ConflictError, match="is kept at one moment with other volumes, as group 'shop'"):
        world.run()
    assert world.done == []

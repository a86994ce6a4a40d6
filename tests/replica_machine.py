"""A machine with thin volumes and their snapshots, played by files; it can be killed at any step."""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from lvmsync.errors import LvmsyncError, TransportError
from lvmsync.extents import ChangeMap
from lvmsync.history import Point
from lvmsync.jobs.agent.client import Agent
from lvmsync.jobs.create import create_file
from lvmsync.jobs.prepared import abort_group, commit_group
from lvmsync.jobs.progress import Receipt, Report, ignore
from lvmsync.jobs.receive import ReceiveOptions, receive
from lvmsync.jobs.recover import recover
from lvmsync.jobs.replica import copy, group_run, snapshots
from lvmsync.jobs.replica.record import Notebook
from lvmsync.jobs.send import Sender, StreamOptions
from lvmsync.jobs.standing import Standing, standing
from lvmsync.sources.source import Source
from lvmsync.system import cut, lvm, lvm_commands
from lvmsync.system.device import open_device
from lvmsync.system.fill_watch import FillWatch
from lvmsync.system.lvm import LogicalVolume
from tests.fakes import reader

SIZE = 1 << 20
BLOCK = 4096


class Killed(BaseException):
    """The source's process is no more."""


@dataclass
class Machine:
    """Volumes, by LVM id; each is a file of that name.

    Attributes:
        folder: where the files are.
        volumes: what LVM knows.
        kill_at: number of the step at which the process is killed; None: it is not.
        steps: the names of the steps that were taken.
        asked: how often all volumes were listed.
    """

    folder: Path
    volumes: dict[str, LogicalVolume] = field(default_factory=dict)
    kill_at: int | None = None
    steps: list[str] = field(default_factory=list)
    asked: int = 0
    _ids: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def step(self, name: str) -> None:
        """Come by a place where a process may be killed; it stays dead."""
        if self.kill_at is not None and len(self.steps) >= self.kill_at:
            raise Killed(name)
        self.steps.append(name)

    def add(self, name: str, origin: LogicalVolume | None = None, tags: Iterable[str] = ()) -> LogicalVolume:
        number = next(self._ids)
        role = frozenset({"public", "snapshot", "thinsnapshot"} if origin else {"public"})
        volume = LogicalVolume(
            "vg", name, f"{number:064d}", "V", frozenset({"thin"}), role, SIZE, origin.name if origin else "",
            origin.id if origin else "", False, "", (253, number), 1_700_000_000 + number, "pool", "p" * 64, number,
            frozenset(tags),
        )  # fmt: skip
        self.volumes[volume.id] = volume
        return volume

    def path(self, volume: LogicalVolume) -> Path:
        return self.folder / volume.id

    def write(self, volume: LogicalVolume, *blocks: int) -> None:
        """Write random bytes to some blocks."""
        with self.path(volume).open("r+b") as file:
            for block in blocks:
                file.seek(block * BLOCK)
                file.write(os.urandom(BLOCK))

    def ours(self, role: str = "") -> list[LogicalVolume]:
        return [one for one in self.volumes.values() if "lvmsync" in one.tags and role in snapshots.role_of(one)]

    # What stands for LVM

    def list_volumes(self, group: str | None = None) -> list[LogicalVolume]:
        self.asked += 1
        return list(self.volumes.values())

    def find_volume_by_id(self, volume_id: str, volumes: object = None) -> LogicalVolume | None:
        return self.volumes.get(volume_id)

    def list_ours(self, group: str | None = None) -> list[LogicalVolume]:
        return self.ours()

    def take_snapshot(
        self, volume: LogicalVolume, name: str, *, tags: Iterable[str], size: int | None, chunk: int | None, **_: object
    ) -> LogicalVolume:
        self.step("before the snapshot")
        made = self.add(name, volume, {"lvmsync", *tags})
        shutil.copy(self.path(volume), self.path(made))
        self.step("after the snapshot")
        return made

    def remove_snapshot(self, volume: LogicalVolume) -> None:
        self.step("before a removal")
        assert "lvmsync" in self.volumes.pop(volume.id).tags
        self.path(volume).unlink()
        self.step("after a removal")

    def change_tags(self, volume: LogicalVolume, add: Iterable[str], drop: Iterable[str]) -> LogicalVolume:
        self.step("before the tags")
        changed = replace(volume, tags=(self.volumes[volume.id].tags | set(add)) - set(drop))
        self.volumes[volume.id] = changed
        self.step("after the tags")
        return changed

    def cut_together(
        self,
        orders: Sequence[cut.Order],
        *,
        limit: float,
        around: AbstractContextManager[None],
        tell_still: Callable[[float], None],
    ) -> list[LogicalVolume]:
        tell_still(0.1)
        with around:
            pending = [
                self.take_snapshot(one.volume, one.name, tags={*one.tags, cut.PENDING_TAG}, size=None, chunk=None)
                for one in orders
            ]
        return [self.change_tags(one, (), [cut.PENDING_TAG]) for one in pending]

    # What stands for the sources

    @contextmanager
    def open_first(self, volume: LogicalVolume, head: LogicalVolume, activity: object = None) -> Iterator[Source]:
        with open_device(str(self.path(head))) as data:
            yield Source(
                "full", volume.full_name, SIZE, BLOCK, None, Point(f"lv:{head.id}"), ChangeMap.whole(SIZE),
                ChangeMap.empty(), data, lambda: self.step("at the end of the data"), is_full=True,
            )  # fmt: skip

    @contextmanager
    def open_delta(
        self, volume: LogicalVolume, base: LogicalVolume, head: LogicalVolume, *_: object
    ) -> Iterator[Source]:
        one, other = (np.fromfile(self.path(snap), np.uint8).reshape(-1, BLOCK) for snap in (base, head))
        changed = np.flatnonzero((one != other).any(axis=1)) * BLOCK
        changes = ChangeMap.from_extents([(int(at), BLOCK) for at in changed])
        with open_device(str(self.path(head))) as data, open_device(str(self.path(base))) as old:
            yield Source(
                "thin", volume.full_name, SIZE, BLOCK, Point(f"lv:{base.id}"), Point(f"lv:{head.id}"), changes,
                ChangeMap.empty(), data, lambda: self.step("at the end of the data"), base_data=old,
            )  # fmt: skip


@dataclass
class FarSide:
    """The target's machine, asked without a line between.

    Attributes:
        machine: the source's, which may be killed while it asks.
        state: the state folder.
        cut: the line is cut when so many bytes of a stream have passed; None: it is not.
    """

    machine: Machine
    state: Path
    cut: int | None = None
    sent: int = 0

    def standing(self, target: str) -> Standing:
        return Standing.from_json(standing(target, self.state).to_json())

    def create(self, target: str, size: int, *, pool: str | None = None) -> None:
        self.machine.step("before the target is made")
        create_file(target, size, self.state)
        self.machine.step("after the target is made")

    def recover(self, target: str, *, back: bool = False, accept: bool = False) -> Receipt:
        self.machine.step("before the recovery")
        return recover(target, self.state, ignore, accept=accept, back=back)

    def commit_group(self, group: str, targets: Sequence[str]) -> None:
        self.machine.step("before the group's commit")
        commit_group(targets, self.state, group)
        self.machine.step("after the group's commit")

    def abort_group(self, group: str, targets: Sequence[str]) -> None:
        self.machine.step("before the group is given up")
        abort_group(targets, self.state, group, ignore)

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
        self.machine.step("before the stream")
        sent = bytearray()
        dead: Killed | None = None

        def send(buffers: Iterable[Any]) -> None:
            for buffer in buffers:
                sent.extend(buffer)

        sender = Sender(source, send, stream, report, **sending)
        try:
            receipt = sender.deliver()
        except Killed as killed:
            dead, receipt = killed, Receipt("send")
        options = ReceiveOptions(target, self.state, **{key: value for key, value in orders.items() if value})
        half = len(sent) // 2
        try:
            self.machine.step("in the middle of the stream")
        except Killed as killed:
            dead, sent = killed, sent[:half]
        if self.cut is not None:
            sent, self.cut = sent[: self.cut], None
            dead = dead or Killed("the line")
        self.sent += len(sent)
        try:
            far = receive(reader(bytes(sent)), options, ignore)
        except LvmsyncError as error:
            if isinstance(dead, Killed) and str(dead) == "the line":
                raise TransportError(f"the line was cut: {error}") from error
            if dead:
                raise dead from error
            raise
        self.machine.step("before the receipt is read")
        return replace(receipt, job="sync", target=target, point=far.point, confirmed=True, notes=far.notes)


def install(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the replica's modules use a machine."""
    monkeypatch.setattr(lvm, "find_volume_by_id", machine.find_volume_by_id)
    monkeypatch.setattr(lvm, "list_volumes", machine.list_volumes)
    monkeypatch.setattr(lvm, "read_group", lambda name: lvm.Group(name, 1 << 40, 4 << 20))
    for name in ("list_ours", "take_snapshot", "remove_snapshot", "change_tags"):
        monkeypatch.setattr(lvm_commands, name, getattr(machine, name))
    monkeypatch.setattr(copy, "open_first", machine.open_first)
    monkeypatch.setattr(copy, "open_delta", machine.open_delta)
    monkeypatch.setattr(cut, "cut_together", machine.cut_together)
    for module in (copy, group_run):
        monkeypatch.setattr(module, "look_at", lambda volume: None)
        monkeypatch.setattr(module, "watch_fill", lambda *_: FillWatch([]))
    write: Callable[..., None] = Notebook.write

    def stepped(notebook: Notebook, **changes: Any) -> None:
        machine.step("before the record")
        write(notebook, **changes)
        machine.step("after the record")

    monkeypatch.setattr(Notebook, "write", stepped)


def as_agent(side: FarSide) -> Agent:
    return cast(Agent, side)

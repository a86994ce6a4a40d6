"""A target that is its own source, under the name of another machine, is refused before anything is done."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from lvmsync.cli import delivery
from lvmsync.cli.asked import Orders, Way
from lvmsync.cli.delivery import Delivery
from lvmsync.errors import UsageError
from lvmsync.jobs.itself import refuse_itself
from lvmsync.jobs.progress import ignore
from lvmsync.jobs.replica.replica import open_replica
from lvmsync.jobs.standing import Standing
from lvmsync.system.lvm import LogicalVolume
from tests.replica_machine import FarSide, Machine, as_agent, install

ID, OTHER = "a" * 64, "b" * 64
STANDING = Standing("vg/lv", "1", "now", exists=True, identity={"dm uuid": f"LVM-{ID}"})


class SameDisks(FarSide):
    """A target's machine that sees the volumes of the source's."""

    volume_id = ""

    def standing(self, target: str) -> Standing:
        return replace(super().standing(target), identity={"dm uuid": f"LVM-{self.volume_id}"})


def test_a_replica_of_a_volume_with_itself_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(tmp_path)
    install(machine, monkeypatch)
    volume = machine.add("lv")
    machine.path(volume).write_bytes(bytes(4096))
    there = SameDisks(machine, tmp_path / "there")
    there.volume_id = volume.id
    with (
        pytest.raises(UsageError, match=f"far:vg/lv and vg/lv are the same volume, by LVM's id {volume.id}"),
        open_replica(as_agent(there), volume, str(machine.path(volume)), "far:vg/lv", tmp_path / "here"),
    ):
        pass
    assert not (tmp_path / "here").exists()
    there.volume_id = OTHER
    with open_replica(as_agent(there), volume, str(machine.path(volume)), "far:vg/lv", tmp_path / "here"):
        pass


def test_neither_a_snapshot_of_the_source_nor_what_it_is_a_snapshot_of_is_overwritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Machine(tmp_path)
    install(machine, monkeypatch)
    template = machine.add("template")
    guest = machine.add("guest", template)
    sibling = machine.add("sibling", template)
    there = SameDisks(machine, tmp_path / "there")
    for one in (template, guest, sibling):
        machine.path(one).write_bytes(bytes(4096))

    def open_it(source: LogicalVolume, target: LogicalVolume) -> None:
        there.volume_id = target.id
        with open_replica(as_agent(there), source, str(machine.path(target)), "far:vg/x", tmp_path / "here"):
            pass

    for source, target in ((guest, template), (template, guest)):
        with pytest.raises(UsageError, match=r"far:vg/x is not to be .*: vg/guest is a snapshot of vg/template"):
            open_it(source, target)
    assert not (tmp_path / "here").exists()
    open_it(guest, sibling)


def test_the_hidden_parts_of_a_volume_are_that_volume() -> None:
    below = replace(STANDING, identity={"dm uuid": f"LVM-{ID}-real"})
    with pytest.raises(UsageError, match="the same volume"):
        refuse_itself([(OTHER, "vg/other"), (ID, "vg/lv")], below, "far:/dev/mapper/vg-lv-real")


def test_what_is_no_volume_of_lvm_or_not_there_is_another() -> None:
    for one in (
        replace(STANDING, identity=None),
        replace(STANDING, identity={"dm uuid": "CRYPT-1"}),
        replace(STANDING, identity={"inode": ID}),
        replace(STANDING, exists=False),
    ):
        refuse_itself([(ID, "vg/lv")], one, "far:vg/lv")


def test_a_source_that_is_sent_or_compared_is_refused_too(monkeypatch: pytest.MonkeyPatch) -> None:
    agent = SimpleNamespace(standing=lambda target: STANDING, close=lambda: None)
    uuids = {"/dev/vg/lv": f"LVM-{ID}", "/dev/vg/snap": f"LVM-{OTHER}-cow"}
    monkeypatch.setattr(delivery, "find_dm_uuid", lambda path: uuids.get(path, ""))
    monkeypatch.setattr(Delivery, "agent", agent)
    with Delivery("far:vg/lv", Way(), Orders(), ignore) as way:
        way.refuse_itself("/dev/vg/snap", "/file", None)
        with pytest.raises(UsageError, match="far:vg/lv and /dev/vg/lv are the same volume"):
            way.refuse_itself("/dev/vg/snap", "/dev/vg/lv")

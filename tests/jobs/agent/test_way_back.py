"""The snapshot of a target for the way back, asked of an agent: made, and removed again."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from lvmsync.errors import DeviceError, PeerError
from lvmsync.jobs.agent import keeping
from lvmsync.jobs.agent.client import open_agent
from lvmsync.jobs.replica import snapshots
from lvmsync.system import lvm, lvm_commands
from lvmsync.system.lvm import LogicalVolume
from tests.agent_line import agent_peer
from tests.replica_machine import Machine, install

ID = "0123456789abcdef"


def test_only_the_snapshots_for_the_way_back_of_a_replica_are_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "volumes").mkdir()
    machine = Machine(tmp_path / "volumes")
    install(machine, monkeypatch)
    target = machine.add("copy")
    machine.path(target).write_bytes(b"")
    monkeypatch.setattr(snapshots, "find_source", lambda *_: target)
    tags = {role: ["lvmsync", f"lvmsync.replica={ID}", f"lvmsync.role={role}"] for role in ("back", "base")}
    made = [machine.add(f"s{number}", target, tags[role]) for number, role in enumerate(("back", "base", "back"))]
    other = machine.add("s3", target, ["lvmsync", "lvmsync.replica=ff", "lvmsync.role=back"])
    for one in (*made, other):
        machine.path(one).write_bytes(b"")
    with agent_peer(tmp_path / "state", "far:vg/copy") as (_, peer):
        open_agent(peer).drop_snapshot("vg/copy", ID)
    assert [one.id for one in machine.ours()] == [made[1].id, other.id]


def test_a_snapshot_is_kept_with_what_lvm_told_after_the_old_one_was_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "volumes").mkdir()
    machine = Machine(tmp_path / "volumes")
    install(machine, monkeypatch)
    target = machine.add("copy")
    name = f"copy-lvmsync-back-{ID[:8]}"
    told_of: list[list[str]] = []

    def take(_: object, short: str, *, tags: list[str], told: list[LogicalVolume]) -> LogicalVolume:
        told_of.append([one.name for one in told])
        return machine.add(short, target, ["lvmsync", *tags])

    monkeypatch.setattr(lvm_commands, "leave_snapshot", take)
    monkeypatch.setattr(keeping, "is_as_told", lambda _: True)
    monkeypatch.setattr(snapshots, "find_source", lambda *_: target)
    keeper = keeping.Keeper()
    for _ in range(2):
        keeper.drop("vg/copy", ID)
        asked = machine.asked
        assert keeper.keep("vg/copy", ID)["name"] == f"vg/{name}"
        assert machine.asked == asked
        for one in machine.ours():
            machine.path(one).write_bytes(b"")
    assert told_of == [["copy"], ["copy"]]
    assert [one.name for one in machine.ours()] == [name]


def test_a_volume_without_room_for_a_snapshot_is_refused_beforehand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "volumes").mkdir()
    machine = Machine(tmp_path / "volumes")
    install(machine, monkeypatch)
    target = replace(machine.add("copy"), layout=frozenset({"linear"}), size=4 << 30, number=None, thin_id=None)
    machine.volumes[target.id] = target
    machine.path(target).write_bytes(b"")
    monkeypatch.setattr(snapshots, "find_source", lambda *_: target)
    free = 4 << 20
    monkeypatch.setattr(lvm, "read_group", lambda name: lvm.Group(name, free, 4 << 20))
    with agent_peer(tmp_path / "state", "far:vg/copy") as (_, peer):
        agent = open_agent(peer)
        for ask in (agent.require_snapshot_room, partial(agent.drop_snapshot, room=True)):
            with pytest.raises(PeerError, match=r"'vg' has 4\.0 MiB free, and a snapshot of vg/copy") as caught:
                ask("vg/copy", ID)
            assert caught.value.exit_code == DeviceError.exit_code
        agent.drop_snapshot("vg/copy", ID)
        free = 1 << 30
        agent.require_snapshot_room("vg/copy", ID)
        free = 4 << 20  # what is kept makes room for the next one
        kept = machine.add("kept", target, ["lvmsync", f"lvmsync.replica={ID}", "lvmsync.role=back"])
        machine.path(kept).write_bytes(b"")
        agent.require_snapshot_room("vg/copy", ID)
    assert [one.name for one in machine.ours()] == ["kept"]

"""The snapshot of a target for the way back, asked of an agent: made, and removed again."""

from __future__ import annotations

from pathlib import Path

import pytest

from lvmsync.jobs.agent.client import open_agent
from lvmsync.jobs.replica import snapshots
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

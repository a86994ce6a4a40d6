"""A thin volume that was rolled back by a merge: LVM forgets of what its snapshots were taken, and the tags tell."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lvmsync.errors import ConflictError
from lvmsync.jobs.replica.record import find_record
from lvmsync.system import lvm_commands
from lvmsync.system.lvm import LogicalVolume
from tests.jobs.replica.test_kill import World


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    made = World(tmp_path, monkeypatch)
    made.run()
    return made


def roll_back(world: World, **facts: Any) -> LogicalVolume:
    """Write other content to the volume, and let LVM forget what its base is of; return that, changed by ``facts``."""
    (base,) = world.machine.ours()
    world.machine.write(world.volume, 1, 2, 3)
    lost = replace(base, role=frozenset({"public"}), origin="", origin_id="", **facts)
    world.machine.volumes[base.id] = lost
    return lost


def test_the_next_run_goes_on_with_a_delta_and_leaves_one_base(world: World) -> None:
    roll_back(world)
    result = world.run()
    assert (result.kind, result.changed_bytes) == ("delta", 3 * 4096)
    world.require_whole(result)


def test_it_does_so_without_a_record(world: World) -> None:
    roll_back(world)
    record = find_record(world.state, world.volume.id, "host:copy")
    assert record is not None
    (world.state / "replicas" / record.id / "record.json").unlink()
    result = world.run()
    assert result.kind == "delta"
    world.require_whole(result)


def lose(base: LogicalVolume, *beginnings: str) -> frozenset[str]:
    return frozenset(tag for tag in base.tags if not tag.startswith(beginnings))


@pytest.mark.parametrize("what", ["its id", "another's id", "its origin", "its pool", "read-only"])
def test_what_does_not_prove_to_be_ours_is_no_base(world: World, what: str) -> None:
    (base,) = world.machine.ours()
    facts: dict[str, dict[str, Any]] = {
        "its id": {"tags": lose(base, "lvmsync.id=")},
        "another's id": {"tags": lose(base, "lvmsync.id=") | {lvm_commands.id_tag("f" * 64)}},
        "its origin": {"tags": lose(base, "lvmsync.origin=")},
        "its pool": {"pool_id": "q" * 64},
        "read-only": {"attr": "Vwi-a-tz--"},
    }
    before = world.target.read_bytes()
    lost = roll_back(world, **facts[what])
    with pytest.raises(ConflictError, match="the base snapshots here are at none"):
        world.run()
    assert world.target.read_bytes() == before
    assert lost.id in world.machine.volumes

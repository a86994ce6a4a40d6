"""Pulls as the command line asks for them, of an agent in a thread whose machine has a volume."""

from __future__ import annotations

from pathlib import Path

import pytest

from lvmsync.cli.asked import Asked, Managing, Orders, Way
from lvmsync.cli.replica import pass_options, pull_options
from lvmsync.errors import ConflictError
from lvmsync.jobs.agent.client import open_agent
from lvmsync.jobs.agent.policy import POOL_LIMIT, Policy
from lvmsync.jobs.agent.requests import PUSH_OPTIONS
from lvmsync.jobs.progress import Receipt, ignore
from lvmsync.jobs.replica import snapshots
from lvmsync.jobs.replica.copy import PassOptions
from lvmsync.jobs.replica.run import sync_volume
from lvmsync.names import parse_target
from tests.agent_line import agent_peer
from tests.replica_machine import SIZE, Machine, install


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    (tmp_path / "volumes").mkdir()
    made = Machine(tmp_path / "volumes")
    install(made, monkeypatch)
    volume = made.add("lv")
    made.path(volume).write_bytes(bytes(SIZE))
    made.write(volume, *range(256))
    monkeypatch.setattr(snapshots, "find_source", lambda *_: volume)
    return made


def pull(folder: Path, orders: Orders) -> Receipt:
    to = parse_target(str(folder / "copy"))
    options = pass_options(to, Asked(Way(), orders, Managing()))
    policy = Policy.of_word(to.name, may_create=orders.create, pool_limit=orders.pool_limit or POOL_LIMIT)
    with agent_peer(folder / "there", "far:vg/lv") as (_, peer):
        agent = open_agent(peer)
        wanted = pull_options(options, to, dry_run=orders.dry_run)
        assert wanted.keys() <= PUSH_OPTIONS.keys()
        return agent.pull("vg/lv", to.name, wanted, policy, folder / "here", ignore)


@pytest.mark.parametrize("limit", [95.0, 100.0, 50.0])
def test_a_volume_is_pulled_with_what_the_user_says_of_his_own_pool(
    machine: Machine, tmp_path: Path, limit: float
) -> None:
    receipt = pull(tmp_path, Orders(create=True, pool_limit=limit))

    assert (receipt.kind, receipt.bytes) == ("first", SIZE)
    (base,) = machine.ours("base")
    assert (tmp_path / "copy").read_bytes() == machine.path(base).read_bytes()


def test_a_dry_run_says_what_would_be_pulled_and_makes_nothing(machine: Machine, tmp_path: Path) -> None:
    receipt = pull(tmp_path, Orders(create=True, dry_run=True))

    assert (receipt.kind, receipt.bytes, receipt.dry_run) == ("first", SIZE, True)
    assert machine.ours() == []
    assert not (tmp_path / "copy").exists()


def test_a_dry_run_of_several_passes_makes_nothing(machine: Machine, tmp_path: Path) -> None:
    copy = str(tmp_path / "copy")
    options = {"place": "here:copy", "passes": True, "create": True, "dry_run": True}
    with agent_peer(tmp_path / "there", "far:vg/lv") as (_, peer):
        policy = Policy.of_word(copy, may_create=True)
        receipt = open_agent(peer).pull("vg/lv", copy, options, policy, tmp_path / "here", ignore)
    assert receipt.dry_run
    assert machine.ours() == []


def test_of_several_passes_each_puts_off_what_the_next_request_can_wait_for(machine: Machine, tmp_path: Path) -> None:
    here, copy = tmp_path / "here", str(tmp_path / "copy")
    options = {"place": "here:copy", "passes": True, "create": True}
    policy = Policy.of_word(copy, may_create=True)
    (volume,) = machine.volumes.values()
    with agent_peer(tmp_path / "there", "far:vg/lv") as (_, peer):
        agent = open_agent(peer)

        def make_pass() -> Receipt:
            return agent.pull("vg/lv", copy, options, policy, here, ignore)

        assert make_pass().kind == "first"
        assert [snapshots.role_of(one) for one in machine.ours()] == ["head"]
        with pytest.raises(ConflictError, match="another lvmsync works on"):  # from one pass to the next, too
            sync_volume(lambda: agent, volume, copy, "here:copy", tmp_path / "there", PassOptions(), ignore, retries=0)
        agent.settle()
        assert [snapshots.role_of(one) for one in machine.ours()] == ["base"]
        machine.write(volume, 7)
        assert make_pass().kind == "delta"
        assert sorted(snapshots.role_of(one) for one in machine.ours()) == ["base", "head"]
        machine.write(volume, 8)
        last = make_pass()
        assert (last.kind, last.bytes) == ("delta", 4096)
    assert [one.full_name for one in machine.ours("base")] == [last.snapshot]  # done when the line ended, if not before
    assert len(machine.ours()) == 1
    assert (tmp_path / "copy").read_bytes() == machine.path(volume).read_bytes()

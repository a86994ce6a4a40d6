"""Pulls as the command line asks for them, of an agent in a thread whose machine has a volume."""

from __future__ import annotations

from pathlib import Path

import pytest

from lvmsync.cli.asked import Asked, Managing, Orders, Way
from lvmsync.cli.replica import pass_options, pull_options
from lvmsync.jobs.agent.client import open_agent
from lvmsync.jobs.agent.policy import POOL_LIMIT, Policy
from lvmsync.jobs.agent.requests import PUSH_OPTIONS
from lvmsync.jobs.progress import Receipt, ignore
from lvmsync.jobs.replica import snapshots
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

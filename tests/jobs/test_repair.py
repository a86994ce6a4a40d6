"""Repair, with an agent in a thread: what happens between the comparison and the first write."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lvmsync.errors import ConflictError, DeviceError, PeerError, StreamError
from lvmsync.extents import ChangeMap
from lvmsync.history import Point
from lvmsync.jobs import repair as job
from lvmsync.jobs.agent.client import Agent, open_agent
from lvmsync.jobs.leaves import Compared, compare_device
from lvmsync.jobs.progress import ignore
from lvmsync.jobs.receive import ReceiveOptions, receive
from lvmsync.jobs.repair import open_whole, repair
from lvmsync.jobs.send import Sender, StreamOptions
from lvmsync.jobs.standing import Standing, Unfinished, standing
from lvmsync.stream.frames import Header
from lvmsync.system.device import open_device
from tests import fakes
from tests.agent_line import agent_peer
from tests.fakes import reader

BLOCK = 4096
OLD = np.random.default_rng(3).bytes(2 << 20)


@contextmanager
def agent_in(state: Path) -> Iterator[Agent]:
    with agent_peer(state, "far:target") as (_, peer):
        yield open_agent(peer)


def make(folder: Path, *places: int) -> Path:
    """Make a source, and a target that differs at some places."""
    (folder / "source").write_bytes(OLD)
    data = bytearray(OLD)
    for place in places:
        data[place] ^= 1
    (folder / "target").write_bytes(data)
    return folder / "target"


def test_only_what_differs_is_sent_and_the_target_is_a_copy(tmp_path: Path) -> None:
    target = make(tmp_path, 5, len(OLD) - 1)
    with agent_in(tmp_path / "state") as agent, open_whole(str(tmp_path / "source")) as whole:
        receipt = repair(agent, str(target), whole, StreamOptions(), ignore)
    assert (receipt.bytes, receipt.extents) == (2 * BLOCK, 2)
    assert target.read_bytes() == OLD


def test_a_target_that_was_found_to_differ_takes_no_delta_until_it_is_mended(tmp_path: Path) -> None:
    target, state = make(tmp_path, 5), tmp_path / "state"
    with agent_in(state) as agent:
        agent.distrust(str(target))
        assert agent.standing(str(target)).dirty
    delta = fakes.encode([], Header(size=len(OLD), base=Point("lv:one"), head=Point("lv:two")))
    with pytest.raises(ConflictError, match="was found to differ"):
        receive(reader(delta), ReceiveOptions(str(target), state), ignore)
    with agent_in(state) as agent, open_whole(str(tmp_path / "source")) as whole:
        repair(agent, str(target), whole, StreamOptions(), ignore)
    assert target.read_bytes() == OLD
    assert not standing(str(target), state).dirty


def test_a_target_that_was_found_to_differ_is_so_still_when_a_copy_to_it_was_rolled_back(tmp_path: Path) -> None:
    target, state = make(tmp_path, 5), tmp_path / "state"
    with agent_in(state) as agent:
        agent.distrust(str(target))
    cut = fakes.encode([fakes.data((0, b"new"))], Header(size=len(OLD), intent="full"))[:-20]
    with pytest.raises(StreamError):
        receive(reader(cut), ReceiveOptions(str(target), state), ignore)
    found = standing(str(target), state)
    assert found.transaction is None
    assert found.dirty


def test_a_target_that_is_written_to_after_the_comparison_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = make(tmp_path, 9 * BLOCK)
    compare: Callable[..., Compared] = compare_device

    def compare_then_write(*args: object) -> Compared:
        found = compare(*args)
        target.write_bytes(np.random.default_rng(4).bytes(len(OLD)))
        return found

    monkeypatch.setattr(job, "compare_device", compare_then_write)
    with (
        agent_in(tmp_path / "state") as agent,
        open_whole(str(tmp_path / "source")) as whole,
        pytest.raises(PeerError, match="was written to in between"),
    ):
        repair(agent, str(target), whole, StreamOptions(), ignore)


def test_samples_are_never_of_what_differs(tmp_path: Path) -> None:
    make(tmp_path)
    differing = ChangeMap.from_extents([(0, BLOCK), (100 * BLOCK, 300 * BLOCK)])
    with open_whole(str(tmp_path / "source")) as whole:
        samples = job._unchanged_samples(whole, differing)
        assert len(samples) > 50
        for one in samples:
            assert not len(ChangeMap.from_extents([(one.offset, one.length)]) & differing)
        assert job._unchanged_samples(whole, ChangeMap.whole(len(OLD))) == []


def test_a_source_that_is_written_to_meanwhile_is_not_confirmed(tmp_path: Path) -> None:
    target = make(tmp_path, 9 * BLOCK)
    before = target.read_bytes()
    with agent_in(tmp_path / "state") as agent, open_whole(str(tmp_path / "source")) as whole:

        def confirm() -> None:
            raise ConflictError("it was written to")

        with pytest.raises(ConflictError, match="it was written to"):
            repair(agent, str(target), replace(whole, confirm=confirm), StreamOptions(), ignore)
    assert target.read_bytes() == before


def test_a_group_that_was_not_finished_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = make(tmp_path, 0)
    open_one = Unfinished("ab", "prepared", None, None, 0, None, False, True, "delta", "ff" * 8, "today")
    standing = Standing(str(target), "1", "now", exists=True, size=len(OLD), transaction=open_one)
    with agent_in(tmp_path / "state") as agent, open_whole(str(tmp_path / "source")) as whole:
        monkeypatch.setattr(agent, "standing", lambda _: standing)
        with pytest.raises(ConflictError, match="belongs to a group"):
            repair(agent, str(target), whole, StreamOptions(), ignore)
    with open_device(str(target)) as device:
        assert device.size == len(OLD)


def test_a_first_copy_that_was_cut_off_and_then_not_repaired_either_is_known_to_be_no_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, state = make(tmp_path, *range(0, len(OLD), BLOCK)), tmp_path / "state"
    with open_whole(str(tmp_path / "source")) as whole:
        first = replace(whole, head=Point("lv:one"))
        sent = bytearray()
        Sender(first, lambda some: sent.extend(b"".join(some)), StreamOptions(resumable=True), ignore).deliver()
        cut = ReceiveOptions(str(target), state, undo=False, resumable=True)
        with pytest.raises(StreamError):
            receive(reader(bytes(sent[: len(sent) // 2])), cut, ignore)

    def fail(*args: object) -> Compared:
        raise DeviceError("a disk that cannot be read")

    monkeypatch.setattr(job, "compare_device", fail)
    with (
        agent_in(state) as agent,
        open_whole(str(tmp_path / "source")) as whole,
        pytest.raises(DeviceError, match="cannot be read"),
    ):
        repair(agent, str(target), whole, StreamOptions(), ignore)

    found = standing(str(target), state)
    assert (found.dirty, found.point, found.transaction) == (True, None, None)
    delta = fakes.encode([], Header(size=len(OLD), base=Point("lv:one"), head=Point("lv:two")))
    with pytest.raises(ConflictError, match="is not whole: a copy to it was given up"):
        receive(reader(delta), ReceiveOptions(str(target), state), ignore)

    monkeypatch.setattr(job, "compare_device", compare_device)
    with agent_in(state) as agent, open_whole(str(tmp_path / "source")) as whole:
        repair(agent, str(target), whole, StreamOptions(), ignore)
    assert target.read_bytes() == OLD
    assert not standing(str(target), state).dirty

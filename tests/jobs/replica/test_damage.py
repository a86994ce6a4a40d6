"""A run whose tracker or store has failed without a word proves what it found, or fails; it never says OK."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lvmsync.errors import VerifyError
from lvmsync.extents import ChangeMap
from lvmsync.history import Point
from lvmsync.jobs.progress import Receipt
from lvmsync.jobs.replica import copy, opening
from lvmsync.jobs.replica.proof import guard_zeros
from lvmsync.sources.source import Source
from lvmsync.system import activation
from lvmsync.system.lvm import LogicalVolume
from tests.fakes import Memory, make_source
from tests.jobs.replica.test_kill import World
from tests.replica_machine import BLOCK, SIZE

LOOK = {"boot": "b", "diskseq": "1", "sectors written": "10", "sectors discarded": "0"}


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    made = World(tmp_path, monkeypatch)
    made.run()
    return made


def lose_the_map(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the map of changes be empty, whatever was written."""

    @contextmanager
    def lost(volume: LogicalVolume, base: LogicalVolume, head: LogicalVolume, *_: object) -> Iterator[Source]:
        with world.machine.open_delta(volume, base, head) as source:
            yield replace(source, changes=ChangeMap.empty())

    monkeypatch.setattr(copy, "open_delta", lost)


def test_an_empty_map_of_a_volume_that_was_written_to_fails_and_leaves_the_target(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = world.target.read_bytes()
    world.machine.write(world.volume, 7)
    with monkeypatch.context() as patch:
        lose_the_map(world, patch)
        with pytest.raises(VerifyError, match="differ"):
            world.run()
    assert world.target.read_bytes() == before
    assert len(world.machine.ours("head")) == 0
    world.require_whole(world.run())


def test_an_empty_map_is_proved_where_something_was_written_that_was_there_already(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = iter([LOOK, LOOK, {**LOOK, "sectors written": "18"}, {**LOOK, "sectors written": "18"}])
    monkeypatch.setattr(copy, "look_at", lambda volume: next(looks))
    world.machine.write(world.volume, 7)
    world.run()  # takes two of the looks
    sent: list[Source] = []
    receive = world.far.receive

    def keep(target: str, source: Source, *args: Any, **more: Any) -> Receipt:
        sent.append(source)
        return receive(target, source, *args, **more)

    monkeypatch.setattr(world.far, "receive", keep)
    assert world.run().kind == "nothing"
    assert any("was written to" in note and "nothing differs" in note for note in sent[0].notes)


def test_an_empty_map_of_a_delta_that_goes_on_is_held_against_the_base_as_well(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.machine.write(world.volume, *range(200))
    world.far.cut = 300_000
    with pytest.raises(Exception, match="cut"):
        world.run()
    with monkeypatch.context() as patch:
        lose_the_map(world, patch)
        with pytest.raises(VerifyError, match="differ"):
            world.run()
    assert world.far.standing(str(world.target)).transaction is not None
    result = world.run()
    assert result.kind == "resume"
    world.require_whole(result)


def read_zeros(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a head read as zeros wherever it changed, as of a damaged store, with the guard that `opening` sets."""

    @contextmanager
    def damaged(volume: LogicalVolume, base: LogicalVolume, head: LogicalVolume, *_: object) -> Iterator[Source]:
        with world.machine.open_delta(volume, base, head) as source:
            found = replace(source, data=Memory(bytes(SIZE)))
            origin = world.machine.path(volume).read_bytes()
            yield guard_zeros(found, lambda: Memory(origin), ChangeMap.empty)

    monkeypatch.setattr(copy, "open_delta", damaged)


def test_data_of_nothing_but_zeros_that_the_volume_does_not_hold_fails_and_the_target_is_as_it_was(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = world.target.read_bytes()
    world.machine.write(world.volume, 7, 9)
    with monkeypatch.context() as patch:
        read_zeros(world, patch)
        with pytest.raises(VerifyError, match="were read as zeros, and the volume itself holds other data"):
            world.run()
    assert world.target.read_bytes() == before
    assert len(world.machine.ours("head")) == 0
    world.require_whole(world.run())


def test_a_volume_that_was_really_discarded_passes(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.machine.path(world.volume).write_bytes(bytes(SIZE))
    read_zeros(world, monkeypatch)
    result = world.run()
    assert (result.kind, result.changed_bytes) == ("delta", SIZE)
    assert world.target.read_bytes() == bytes(SIZE)


def test_the_source_of_a_delta_is_guarded_by_the_volume_itself(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    (base,) = world.machine.ours()
    head = world.machine.add("head", world.volume)
    made = replace(
        make_source(bytes(SIZE), [(0, BLOCK)]),
        base=Point(f"lv:{base.id}"),
        head=Point(f"lv:{head.id}"),
        base_data=Memory(os.urandom(SIZE)),
    )

    def active(volumes: Sequence[LogicalVolume], **_: object) -> AbstractContextManager[list[LogicalVolume]]:
        return nullcontext(list(volumes))

    monkeypatch.setattr(opening, "open_source", lambda *_: nullcontext(made))
    monkeypatch.setattr(activation, "all_activated", active)
    volumes = {"/dev/vg/lv": Memory(os.urandom(SIZE))}
    monkeypatch.setattr(opening, "open_device", volumes.pop)
    monkeypatch.setattr(opening, "_changed_since", lambda head: ChangeMap.empty())
    with (
        opening.open_delta(world.volume, base, head) as source,
        pytest.raises(VerifyError, match="holds other data in 4096 bytes at 0"),
    ):
        source.confirm()
    assert not volumes

"""What a delta is held against before it is sent, and what is said of a target that nobody watched."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest

from lvmsync.extents import ChangeMap
from lvmsync.jobs import samples
from lvmsync.jobs.progress import ignore
from lvmsync.jobs.replica.opening import prepare_delta
from lvmsync.sources.source import Source
from lvmsync.stream.frames import MAX_SAMPLES
from tests.fakes import Memory, make_source

K = 1024
SIZE = 1024 * K


def a_delta() -> Source:
    base = os.urandom(SIZE)
    head = bytes(64 * K) + base[64 * K :]
    return replace(make_source(head, [(0, 128 * K)]), base_data=Memory(base))


def notes_of(written: str, *, is_new: bool = True) -> list[str]:
    return prepare_delta(a_delta(), None, written, ignore, is_new=is_new)[2]


def test_only_of_a_target_that_nobody_watched_it_is_said_how_much_was_looked_at(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert notes_of("unknown") == []  # all of it was
    monkeypatch.setattr(samples, "_PIECES", 4)
    (note,) = notes_of("unknown")
    assert "'lvmsync verify' proves them" in note
    assert "were held against the base and are the same" in note
    assert notes_of("no") == []
    assert notes_of("unknown", is_new=False) == []


def test_what_is_overwritten_need_not_be_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samples, "_PIECES", 0)  # both ends are
    (note,) = notes_of("unknown")
    assert "128.0 KiB of it were held" in note
    assert "896.0 KiB (87.5%) were neither" in note


def test_few_blocks_are_sent_without_what_is_the_same() -> None:
    source = a_delta()
    for minimal, is_new, sent in ((None, True, 64 * K), (False, True, 128 * K), (True, False, 128 * K)):
        found, held, _ = prepare_delta(source, minimal, "no", ignore, is_new=is_new)
        assert found.changes.total_bytes == sent
        assert held


def test_what_was_written_and_is_the_same_is_held_against_the_target() -> None:
    """Somebody who writes the same into the base and the volume would empty the map, and not the target."""
    source = a_delta()
    found, _, _ = prepare_delta(source, None, "no", ignore, is_new=True)
    looked = ChangeMap.from_extents([(one.offset, one.length) for one in found.samples])
    assert not len(source.changes - found.changes - looked)


def test_what_is_the_same_is_sent_where_that_takes_fewer_bytes_than_its_samples() -> None:
    base = os.urandom(3 * SIZE)
    scattered = [(at, 4 * K) for at in range(0, 3 * SIZE, 16 * K)]
    source = replace(make_source(base, scattered), base_data=Memory(base))
    found, _, _ = prepare_delta(source, None, "no", ignore, is_new=True)
    assert not len(found.changes)
    assert len(found.samples) == 192
    few = [(at, 4 * K) for at in range(0, 64 * SIZE, 64 * K)]  # 1024 of them, and nothing between them is to be read
    sparse = replace(make_source(bytes(64 * SIZE), few), base_data=Memory(bytes(64 * SIZE)))
    found, _, _ = prepare_delta(sparse, None, "no", ignore, is_new=True)
    assert len(found.samples) == 384
    assert found.changes.total_bytes == (1024 - 384) * 4 * K
    asked, held, _ = prepare_delta(sparse, True, "unknown", ignore, is_new=True)
    assert asked.changes.total_bytes == (1024 - 384) * 4 * K
    assert len(asked.samples) + len(held) <= MAX_SAMPLES

"""What a delta is held against before it is sent, and what is said of a target that nobody watched."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest

from lvmsync.jobs import samples
from lvmsync.jobs.progress import ignore
from lvmsync.jobs.replica.opening import prepare_delta
from lvmsync.sources.source import Source
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

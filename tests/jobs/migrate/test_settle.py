"""What --abort and --finish do about a migration that was cut off in its downtime."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from lvmsync.errors import ConflictError, LvmsyncError, PeerError, TransportError
from lvmsync.jobs.migrate import settle, state
from lvmsync.jobs.migrate.settle import abort, finish, take_leave
from lvmsync.jobs.migrate.state import Note, list_cut_off, open_journal
from lvmsync.jobs.migrate.users import Users
from lvmsync.jobs.replica.record import find_record
from tests.jobs.migrate.test_volume import World

NOTE = Note("vg/lv", "x" * 64, "far:vg/lv", restart="systemctl start it")


@pytest.mark.parametrize(("step", "is_done"), [(state.FENCED, False), (state.SENT, True), (state.STARTING, True)])
@pytest.mark.parametrize("fails", [False, True])
def test_an_abort_removes_the_snapshot_for_the_way_back_or_says_that_it_may_be_left(
    tmp_path: Path, step: str, *, is_done: bool, fails: bool
) -> None:
    done = []

    def drop() -> None:
        done.append("drop")
        if fails:
            raise TransportError("no way to far")

    users = Users(stop=lambda: None, restart=lambda: done.append("restart"))
    with open_journal(tmp_path, NOTE) as journal:
        journal.enter(step, is_fenced=True)
    with open_journal(tmp_path, NOTE) as journal:
        said = abort(journal, lambda: done.append("writable"), users, drop, is_forced=True)
    assert done == ["writable", "restart", *(["drop"] if is_done else [])]
    assert ("a snapshot for a way back (no way to far)" in said) == (is_done and fails)
    assert not list_cut_off(tmp_path)


def test_an_abort_says_nothing_of_a_snapshot_that_a_target_cannot_have(tmp_path: Path) -> None:
    with open_journal(tmp_path, NOTE) as journal:
        journal.enter(state.SENT)
    with open_journal(tmp_path, NOTE) as journal:
        assert "snapshot" not in abort(journal, lambda: None, Users(stop=lambda: None), is_forced=False)


@pytest.mark.parametrize("is_fenced", [False, True])
def test_a_finish_takes_leave_of_a_source_that_nothing_has_written_to_since(tmp_path: Path, *, is_fenced: bool) -> None:
    left = []

    def leave() -> list[str]:
        left.append("leave")
        return ["one thing is left"]

    with open_journal(tmp_path, NOTE) as journal:
        journal.enter(state.SENT, is_fenced=is_fenced)
    with open_journal(tmp_path, NOTE) as journal, pytest.raises(ConflictError, match="nothing runs on the target"):
        finish(journal, leave)
    with open_journal(tmp_path, NOTE) as journal:
        journal.enter(state.STARTING, is_fenced=is_fenced)
    with open_journal(tmp_path, NOTE) as journal:
        said = finish(journal, leave)
    assert left == (["leave"] if is_fenced else [])
    assert ("one thing is left" in said) == is_fenced
    assert ("stays read-only" in said) == is_fenced
    assert not list_cut_off(tmp_path)


@pytest.mark.parametrize("fails", [None, PeerError("there is no snapshot for the way back", 3)], ids=["kept", "not"])
def test_leave_is_taken_by_what_a_way_back_needs_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: LvmsyncError | None
) -> None:
    remembered = []
    asked = []

    def find_kept(replica: str) -> str:
        asked.append(replica)
        if fails:
            raise fails
        return "k" * 64

    monkeypatch.setattr(settle, "remember_way_back", lambda *words: remembered.append(words))
    world = World(tmp_path, monkeypatch)
    with pytest.raises(TransportError):
        world.run(cuts=[None, None, 2000])
    record = find_record(world.state, world.source.id, "host:copy")
    assert record
    assert len(world.machine.ours()) == 2
    left = take_leave(replace(world.source, attr="Vri"), "host:copy", world.state, find_kept)
    assert world.machine.ours() == []
    assert find_record(world.state, world.source.id, "host:copy") is None
    assert asked == [record.id]
    assert len(left) == bool(fails)
    assert [(words[0].id, *words[1:]) for words in remembered] == (
        [] if fails else [(world.source.id, "k" * 64, world.state)]
    )
    assert take_leave(world.source, "host:copy", world.state, find_kept) == []


def test_a_source_that_was_made_writable_meanwhile_is_not_remembered_as_what_was_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remembered: list[object] = []
    monkeypatch.setattr(settle, "remember_way_back", lambda *words: remembered.append(words))
    world = World(tmp_path, monkeypatch)
    with pytest.raises(TransportError):
        world.run(cuts=[None, None, 2000])
    left = take_leave(replace(world.source, attr="Vwi"), "host:copy", world.state, lambda _: "k" * 64)
    assert left == ["vg/lv was made writable since, so nothing is prepared for a way back"]
    assert remembered == []

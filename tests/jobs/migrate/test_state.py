"""The journal: one at a time, readable after a crash, and with the right advice in each step."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from lvmsync.errors import ConflictError, FormatError
from lvmsync.jobs.migrate import state
from lvmsync.jobs.migrate.state import Note, describe, list_cut_off, only_migration, open_journal, refuse_others

NOTE = Note("vg/lv", "x" * 64, "far:vg/lv", restart="systemctl start it")


def test_a_running_migration_is_not_told_as_cut_off_and_excludes_another(tmp_path: Path) -> None:
    with open_journal(tmp_path, NOTE) as journal:
        journal.enter(state.STOPPING)
        assert list_cut_off(tmp_path) == []
        with pytest.raises(ConflictError, match="is being migrated"), open_journal(tmp_path, NOTE):
            pass
    assert [one.step for one in list_cut_off(tmp_path)] == [state.STOPPING]


def test_what_was_left_is_there_for_the_next_and_gone_when_it_is_closed(tmp_path: Path) -> None:
    with open_journal(tmp_path, NOTE) as journal:
        assert journal.before is None
        journal.enter(state.STOPPED)
        journal.enter(state.FENCED, is_fenced=True)
    with open_journal(tmp_path, NOTE) as journal:
        assert journal.before is not None
        assert journal.before.is_fenced
        assert set(journal.before.times) == {state.STOPPED, state.FENCED}
        journal.close()
    assert list_cut_off(tmp_path) == []
    assert list_cut_off(tmp_path / "none") == []


def test_another_target_of_the_volume_has_its_own_journal(tmp_path: Path) -> None:
    other = Note("vg/lv", "x" * 64, "elsewhere:vg/lv")
    with open_journal(tmp_path, NOTE) as one, open_journal(tmp_path, other) as two:
        one.enter(state.PASSES)
        assert two.before is None


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        "[" * 100_000,
        '{"version": 2}',
        '{"version": 1, "source": "a"}',
        '{"version": 1, "source": "a", "volume_id": "b", "target": "c", "times": 5}',
        '{"version": 1, "source": "a", "volume_id": "b", "target": "c", "is_fenced": "no"}',
    ],
)
def test_a_damaged_journal_is_an_error_that_names_it(tmp_path: Path, text: str) -> None:
    with open_journal(tmp_path, NOTE) as journal:
        journal.enter(state.PASSES)
    next(tmp_path.glob("migrations/*/journal.json")).write_text(text)
    with pytest.raises(FormatError, match=r"journal\.json .*move it away"), open_journal(tmp_path, NOTE):
        pass


@pytest.mark.parametrize(
    ("step", "words", "not_words"),
    [
        (state.PASSES, "its source was never stopped", "--abort"),
        (state.STOPPING, "vg/lv far:vg/lv' makes vg/lv writable and starts it again (systemctl start it)", "--finish"),
        (state.STOPPED, "with its source stopped", "--finish"),
        (state.FENCED, "may have been made read-only", "--finish"),
        (state.SENT, "nothing runs on the target", "--finish"),
        (state.STARTING, "If it runs on the target, run 'lvmsync migrate --finish vg/lv far:vg/lv'", "starts it again"),
        (state.STARTED, "--finish", "starts it again"),
    ],
)  # fmt: skip
def test_each_step_has_its_way_out(tmp_path: Path, step: str, words: str, not_words: str) -> None:
    with open_journal(tmp_path, NOTE) as journal:
        journal.enter(step, is_fenced=step == state.FENCED)
    (note,) = list_cut_off(tmp_path)
    assert words in describe(note)
    assert not_words not in describe(note)


def test_a_domain_is_started_by_virsh_and_without_any_command_nothing_is_promised() -> None:
    plain = Note("vg/lv", "x", "far:vg/lv", step=state.STOPPED, times={state.STOPPED: "then"})
    assert "tells how to start it again" in describe(plain)
    domain = Note("vg/lv", "x", "far:vg/lv", step=state.STOPPED, times={state.STOPPED: "then"}, domain="guest")
    assert "virsh start guest" in describe(domain)


def test_another_migration_of_the_same_volume_is_held_off_whatever_its_target_is_called(tmp_path: Path) -> None:
    other, elsewhere = replace(NOTE, target="root@far:/dev/vg/lv"), replace(NOTE, volume_id="y" * 64)
    with only_migration(tmp_path, NOTE):
        with pytest.raises(ConflictError, match="vg/lv is being migrated by another lvmsync"):
            only_migration(tmp_path, other).__enter__()
        with only_migration(tmp_path, elsewhere):
            refuse_others(tmp_path, elsewhere)
        with open_journal(tmp_path, NOTE) as journal:
            journal.enter(state.PASSES)
    with only_migration(tmp_path, other):
        refuse_others(tmp_path, other)  # the other one had stopped nothing
        with open_journal(tmp_path, NOTE) as journal:
            journal.enter(state.STOPPING)
        with pytest.raises(ConflictError, match=f"--abort {NOTE.words}"):
            refuse_others(tmp_path, other)
        refuse_others(tmp_path, elsewhere)

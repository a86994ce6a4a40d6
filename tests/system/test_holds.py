"""Notes of what is frozen or suspended: who reads them changes nothing."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from lvmsync.system import holds
from lvmsync.system.holds import Hold, forget_old, list_holds
from lvmsync.system.identity import boot_id


@pytest.fixture
def notes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(holds, "run_folder", lambda: tmp_path)
    (tmp_path / "holds").mkdir()
    for name, boot in (("aa", boot_id()), ("bb", "an earlier one")):
        note = Hold(name, "frozen", ("/srv",), 1, None, boot, "today", 10.0)
        holds._note_path(note).write_text(json.dumps(asdict(note)))
    return tmp_path / "holds"


def test_notes_of_an_earlier_boot_are_not_told_and_stay_until_somebody_cleans_up(notes: Path) -> None:
    before = sorted(notes.iterdir())
    assert [hold.id for hold in list_holds()] == ["aa"]
    assert sorted(notes.iterdir()) == before

    forget_old()

    assert [hold.id for hold in list_holds()] == ["aa"]
    assert sorted(notes.iterdir()) == before[:1]

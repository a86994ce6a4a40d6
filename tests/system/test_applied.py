"""The note of how far a target is changed, written again and again."""

from __future__ import annotations

from pathlib import Path

from lvmsync.system.applied import AppliedNote, Place, read_applied


def note(path: Path, life: str, place: Place) -> None:
    applied = AppliedNote(path, life)
    applied.write(place)
    applied.close()


def test_a_note_counts_in_its_own_life_only_also_behind_one_with_a_longer_name(tmp_path: Path) -> None:
    path = tmp_path / "progress"
    note(path, "boot 254:1 112", Place(5000, 70))
    assert read_applied(path, "boot 254:1 112") == Place(5000, 70)
    assert read_applied(path, "boot 254:1 9") == Place(0, 0)
    note(path, "boot 254:1 9", Place(6000, 80))
    assert read_applied(path, "boot 254:1 9") == Place(6000, 80)
    assert read_applied(path, "boot 254:1 112") == Place(0, 0)
    path.write_bytes(path.read_bytes()[:30])
    assert read_applied(path, "boot 254:1 9") == Place(0, 0)

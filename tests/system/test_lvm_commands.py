"""What lvmsync changes in LVM, as far as programs that are played show it; the lab has the real ones."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from lvmsync.errors import CommandError, DeviceError
from lvmsync.system import lvm, lvm_commands
from lvmsync.system.lvm import LogicalVolume
from tests.fake_programs import FakeProgram
from tests.system.test_lvm import report, row

CHANGED = "  Logical volume vg/snap changed.\n"
REMOVED = '  Logical volume "snap" successfully removed.\n'


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, FakeProgram]:
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    return {name: FakeProgram(tmp_path, name) for name in ("lvs", "lvchange", "lvremove")}


def snapshot(tags: str) -> LogicalVolume:
    return lvm.parse_report(report(row(lv_attr="sri-a-s---", lv_tags=tags)))[0]


def test_what_lvchange_says_it_has_done_is_not_asked_for_again(programs: dict[str, FakeProgram]) -> None:
    programs["lvchange"].answer(CHANGED, "-y")
    programs["lvs"].fail("not now", "-a")
    volume = snapshot("lvmsync,old")
    assert lvm_commands.change_tags(volume, ["new"], ["old"]) == replace(volume, tags=frozenset({"lvmsync", "new"}))


@pytest.mark.parametrize("said", ["", "  Logical volume vg/snap not changed.\n", "  1 logical volumes changed?\n"])
def test_where_lvchange_does_not_say_so_the_tags_are_looked_at(programs: dict[str, FakeProgram], said: str) -> None:
    programs["lvchange"].answer(said, "-y")
    programs["lvs"].answer(report(row(lv_tags="lvmsync,new")), "-a")
    assert lvm_commands.change_tags(snapshot("lvmsync,old"), ["new"], ["old"]).tags == {"lvmsync", "new"}
    programs["lvs"].answer(report(row(lv_tags="lvmsync,old")), "-a")
    with pytest.raises(DeviceError, match="was not tagged as wanted: it has the tags lvmsync, old now"):
        lvm_commands.change_tags(snapshot("lvmsync,old"), ["new"], ["old"])


def test_what_lvremove_says_it_has_removed_is_not_asked_for_again(programs: dict[str, FakeProgram]) -> None:
    programs["lvremove"].answer(REMOVED, "-y")
    programs["lvs"].fail("not now", "-a")
    lvm_commands.remove_snapshot(snapshot("lvmsync"))
    assert "lv_uuid=Ny0mm5-tWeP-76kQ-d6Rm-vtf6-1Gnt-3yVijt" in programs["lvremove"].calls()[0]


def test_where_lvremove_does_not_say_so_it_is_looked_for(
    programs: dict[str, FakeProgram], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lvm_commands, "WAIT", 0.0)
    programs["lvremove"].answer("", "-y")
    programs["lvs"].answer(report(), "-a")
    lvm_commands.remove_snapshot(snapshot("lvmsync"))
    programs["lvs"].answer(report(row(lv_attr="sri-a-s---", lv_tags="lvmsync")), "-a")
    with pytest.raises(CommandError, match="lvremove says that it removed vg/snap, and it is there"):
        lvm_commands.remove_snapshot(snapshot("lvmsync"))


def test_what_a_group_has_free_is_read_with_its_volumes() -> None:
    (one,) = lvm.parse_report(report(row(vg_free="8388608", vg_extent_size="4194304")))
    assert one.room == lvm.Group("vg", 8 << 20, 4 << 20)
    assert snapshot("").room is None

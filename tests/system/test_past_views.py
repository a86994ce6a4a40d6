"""Views of past states: how they are made, and how a device that one holds is told from others."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lvmsync.errors import DeviceError
from lvmsync.system import dm, past_views
from lvmsync.targets.block import open_target
from tests.fake_programs import FakeProgram


@pytest.fixture
def dmsetup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeProgram:
    program = FakeProgram(tmp_path / "bin", "dmsetup")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    monkeypatch.setattr(dm, "is_in_kernel", lambda: True)
    program.answer("over|LVMSYNC-PAST-ab|253|7|0\nvg-lv|LVM-x|253|8|1\n", "info")
    return program


@pytest.fixture
def sysfs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A mirror that is a file, on /dev/loop9 (7:9), which a view's origin holds, and another device."""
    image = tmp_path / "image"
    image.write_bytes(bytes(4096))
    root = tmp_path / "sys"
    loop = root / "block/loop9"
    (loop / "loop").mkdir(parents=True)
    (loop / "loop/backing_file").write_text(f"{image}\n")
    (loop / "dev").write_text("7:9\n")
    holders = loop / "holders"
    for name, uuid, dm_name in (
        ("dm-1", "LVMSYNC-PAST-ab-origin", "lvmsync-web-3-origin"),
        ("dm-2", "LVM-other", "vg-lv"),
    ):
        (holders / name / "dm").mkdir(parents=True)
        (holders / name / "dm/uuid").write_text(f"{uuid}\n")
        (holders / name / "dm/name").write_text(f"{dm_name}\n")
    (root / "dev/block").mkdir(parents=True)
    (root / "dev/block/7:9").symlink_to(loop)
    monkeypatch.setattr(past_views, "BLOCKS", root / "block")
    monkeypatch.setattr(dm, "SYSFS_BLOCK", root / "dev/block")
    return image


def test_a_view_is_made_from_lines_and_read_only(dmsetup: FakeProgram) -> None:
    dmsetup.answer("", "create")
    found = past_views.create("over", "LVMSYNC-PAST-ab", ["0 8 zero"], read_only=True)
    assert found.number == (253, 7)
    assert dmsetup.calls()[0] == "create over --uuid LVMSYNC-PAST-ab --readonly"
    past_views.create("over", "LVMSYNC-PAST-ab", ["0 8 zero"], read_only=False)
    assert "create over --uuid LVMSYNC-PAST-ab" in dmsetup.calls()
    dmsetup.answer("", "remove")
    past_views.remove(found)
    assert dmsetup.calls()[-1] == "remove --retry over"


def test_only_ours_are_listed(dmsetup: FakeProgram) -> None:
    assert [one.name for one in past_views.list_views()] == ["over"]
    assert past_views.find("LVMSYNC-PAST-abc") is None


def test_a_file_below_a_view_is_refused_with_the_way_out(sysfs: Path) -> None:
    assert past_views.find_above(str(sysfs)) == ["/dev/mapper/lvmsync-web-3"]
    reason = past_views.refusal(str(sysfs))
    assert reason
    assert "lvmsync archive umount /dev/mapper/lvmsync-web-3" in reason
    with (
        sysfs.open(),
        pytest.raises(DeviceError, match="archive umount /dev/mapper/lvmsync-web-3"),
        open_target(str(sysfs)),
    ):
        pass


def test_what_no_view_holds_is_not_refused_by_this(sysfs: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_bytes(b"")
    assert past_views.refusal(str(other)) is None
    assert past_views.refusal(str(tmp_path / "missing")) is None
    for name in ("uuid", "name"):
        (tmp_path / f"sys/block/loop9/holders/dm-1/dm/{name}").unlink()  # it is removed just now
    assert past_views.refusal(str(sysfs)) is None


def test_several_views_are_all_named(sysfs: Path, tmp_path: Path) -> None:
    more = tmp_path / "sys/block/loop9/holders/dm-3/dm"
    more.mkdir(parents=True)
    (more / "uuid").write_text("LVMSYNC-PAST-cd-origin\n")
    (more / "name").write_text("lvmsync-web-4-origin\n")
    reason = past_views.refusal(str(sysfs))
    assert reason
    assert "lvmsync-web-3, /dev/mapper/lvmsync-web-4" in reason

"""``lvmsync archive mount | umount``, by the command line: what is printed, and how it ends."""

from __future__ import annotations

from pathlib import Path

import pytest

from lvmsync.system import past_views
from tests.cli.test_archive import Site
from tests.past_kernel import PastKernel


class Mounts(Site):
    """An archive of a mirror, on a machine with a device mapper."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str], patch: pytest.MonkeyPatch) -> None:
        super().__init__(folder, capsys)
        self.kernel = PastKernel(folder / "kernel", patch)
        self.run(f"archive init {self.archive}")
        self.run(f"sync full:{self.disk} {self.mirror} --create")
        for number in range(2):
            self.sync(number)
        self.mount = f"archive mount {self.archive} --mirror {self.mirror}"


@pytest.fixture
def mounts(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Mounts:
    monkeypatch.setenv("LVMSYNC_STATE", str(tmp_path / "state"))
    return Mounts(tmp_path, capsys, monkeypatch)


def test_the_device_is_on_standard_output_and_what_to_do_next_on_the_other(mounts: Mounts) -> None:
    said = mounts.run(f"{mounts.mount} --at 1")
    assert said.startswith("/dev/mapper/lvmsync-archive-1\n")
    assert "'lvmsync archive umount /dev/mapper/lvmsync-archive-1'" in said
    assert "is held" in said
    assert mounts.kernel.read("/dev/mapper/lvmsync-archive-1") == mounts.past[0]
    assert mounts.run(f"{mounts.mount} --at 2 -q") == "/dev/mapper/lvmsync-archive-2\n"


def test_what_was_mounted_is_one_json_object(mounts: Mounts) -> None:
    told = mounts.json(f"{mounts.mount} --at 2 --writable --room 8K")
    assert (told["job"], told["point"], told["writable"]) == ("archive mount", 2, True)
    assert told["store_bytes"] == Path(told["store"]).stat().st_size
    points = mounts.json(f"archive list {mounts.archive}")["points"]
    assert [one["mounted"] for one in points] == [[], [{"device": told["device"], "directory": None}], []]
    (gone,) = mounts.json(f"archive umount {told['device']}")["unmounted"]
    assert gone["device"] == told["device"]


def test_list_and_show_tell_what_is_mounted(mounts: Mounts, tmp_path: Path) -> None:
    mounts.run(f"{mounts.mount} {tmp_path} --at 1")
    line = f"point #1 is mounted: /dev/mapper/lvmsync-archive-1, on {tmp_path}\n"
    assert mounts.run(f"archive list {mounts.archive}").endswith(line)
    assert mounts.run(f"archive show {mounts.archive} 1").endswith(line)
    assert "is mounted" not in mounts.run(f"archive show {mounts.archive} 2")
    said = mounts.run(f"archive umount {tmp_path}")
    assert said.endswith(f"on {tmp_path}) is gone\n")
    assert "is mounted" not in mounts.run(f"archive list {mounts.archive}")


def test_a_record_that_cannot_be_read_does_not_hide_the_points(mounts: Mounts, tmp_path: Path) -> None:
    (tmp_path / "state/mounts").mkdir()
    (tmp_path / "state/mounts/0123456789ab.json").write_text("{")
    assert "LABEL" in mounts.run(f"archive list {mounts.archive}")


def test_all_are_taken_down_and_what_is_in_use_is_told(mounts: Mounts) -> None:
    for number in (1, 2):
        mounts.run(f"{mounts.mount} --at {number}")
    assert "no past state" not in mounts.run("archive umount --all")
    assert mounts.kernel.rows() == []
    assert mounts.run("archive umount --all") == "no past state is mounted\n"
    for number in (1, 2):
        mounts.run(f"{mounts.mount} --at {number}")
    for view in past_views.list_views():
        mounts.kernel.in_use.add(view.number)
    said = mounts.run("archive umount --all", 8)
    assert said.count("is in use") == 2
    mounts.kernel.in_use = {view.number for view in past_views.list_views() if "-1" in view.name}
    assert "lvmsync-archive-1 is in use" in mounts.run("archive umount --all", 3)
    assert "-2" not in {row["name"][-2:] for row in mounts.kernel.rows()}


def test_cleanup_shows_and_removes_what_a_killed_run_has_left(mounts: Mounts, tmp_path: Path) -> None:
    mounts.run(f"{mounts.mount} --at 1")
    assert "nothing" in mounts.run("cleanup")
    for view in past_views.list_views():
        mounts.kernel.remove(view)
    assert "lvmsync archive umount /dev/mapper/lvmsync-archive-1" in mounts.run("cleanup")
    assert [one["number"] for one in mounts.json("cleanup")["mounts"]] == [1]
    assert "and was removed" in mounts.run("cleanup --remove")
    assert list((tmp_path / "state/mounts").iterdir()) == []


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("--room 1G", "--writable"),
        ("--snapshot", "no volume of LVM"),
        ("--cow-size 1G", "--snapshot"),
        ("--writable --room x", "not a size"),
        ("--at 9", "no point '9'"),
    ],
)
def test_what_makes_no_sense_is_refused(words: str, found: str, mounts: Mounts) -> None:
    assert found in mounts.run(f"{mounts.mount} {words}", 2)
    assert mounts.kernel.rows() == []


@pytest.mark.parametrize("words", ["archive umount", "archive umount --all /dev/mapper/x"])
def test_umount_wants_to_know_what(words: str, mounts: Mounts) -> None:
    assert "give --all" in mounts.run(words, 2)


def test_a_dry_run_says_what_would_be(mounts: Mounts) -> None:
    said = mounts.run(f"{mounts.mount} --dry-run")
    assert "nothing was made" in said
    assert not said.startswith("/dev")
    assert mounts.kernel.rows() == []

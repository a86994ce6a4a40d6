"""What must not happen to a copy, a device or another program's files, whatever has become of the machine."""

from __future__ import annotations

import copy
import itertools
import json
import os
import shutil
import subprocess
import uuid
from pathlib import Path
from typing import Any

import pytest

from lvmsync.cli.classic import run
from lvmsync.system import dattobd as system
from tests.dattobd_driver import Driver
from tests.jobs.test_dattobd_cycle import Killed, Runner, driver, kill_at, runner

__all__ = ["driver", "runner"]


def record_of(state: Path) -> tuple[Path, Any]:
    (path,) = (state / "state" / "dattobd").glob("*.json")
    return path, json.loads(path.read_text())


def cow_files(driver: Driver) -> set[str]:
    return {path.name for path in driver.point.iterdir()} - {"lost+found", "a", "b"}


# ---- another device


def test_another_device_under_the_same_path_is_neither_set_up_nor_cleaned(
    runner: Runner, driver: Driver, tmp_path: Path
) -> None:
    driver.write("a", os.urandom(200_000))
    runner.cycle()
    path, values = record_of(tmp_path)
    path.write_text(json.dumps(values | {"identity": {"wwid": "another disk"}}))
    before = runner.target.read_bytes()
    runner.cycle()  # the driver tracks it
    assert runner.status == 8
    assert "is not the device that was tracked" in runner.errors
    assert "another disk" in runner.errors
    driver.reboot()
    driver.mount()
    for words in (["setup", str(driver.loop), "--no-unit"], ["cycle", str(driver.loop), str(runner.target)]):
        runner(*words)
        assert runner.status == 8
        assert "is not the device that was tracked" in runner.errors
    assert (runner.target.read_bytes(), driver.devices) == (before, {})
    runner("destroy", str(driver.loop))
    assert runner.status == 0
    assert "another device is" in runner.errors
    assert cow_files(driver) == {".lvmsync-cow.1"}
    runner("cycle", str(driver.loop), str(runner.target), "--no-unit")
    assert runner.status == 0, runner.errors
    assert ".lvmsync-cow.1" in cow_files(driver)


# ---- another program


def test_a_device_of_another_program_is_left_alone(runner: Runner, driver: Driver, tmp_path: Path) -> None:
    with system.Control(system.DATTOBD) as control:
        control.setup(str(driver.loop), str(driver.point / ".datto"), 0)
        driver.calls.clear()
        for words in (["to-incremental", "0"], ["cycle", str(driver.loop), str(runner.target), "--create"]):
            runner(*words)
            assert runner.status == 8
            assert "was taken by another program" in runner.errors
            assert "--take-over" in runner.errors
        control.to_incremental(0)
        runner("to-snapshot", "0")
        assert runner.status == 8
        control.to_snapshot(0, str(driver.point / ".datto2"))
    assert driver.calls == ["to_incremental", "to_snapshot"]
    assert not list((tmp_path / "state" / "dattobd").glob("*.json"))
    done = runner.cycle("--take-over")
    assert (runner.status, done["seqid"]) == (0, 3), runner.errors
    assert "another program took it" in done["steps"][0]
    assert runner.equals_snapshot()
    assert cow_files(driver) == {".datto", ".datto2", ".lvmsync-cow.3"}
    assert any(".datto2 stays: another program made it" in note for note in done["notes"])
    driver.write("a", os.urandom(100_000))
    assert (runner.cycle()["how"], runner.equals_snapshot()) == ("delta", True)


def test_a_snapshot_of_another_program_in_our_series_is_not_taken_for_ours(runner: Runner, driver: Driver) -> None:
    driver.write("a", os.urandom(200_000))
    runner.cycle()
    with system.Control(system.DATTOBD) as control:
        control.to_snapshot(0, str(driver.point / ".theirs"))
    for _ in range(2):
        runner.cycle()
        assert runner.status == 8
        assert "was taken by another program" in runner.errors
        assert driver.devices[0].seqid == 2
    runner("to-incremental", "0", "--force")
    assert runner.status == 8
    done = runner.cycle("--take-over")
    assert (runner.status, done["how"], done["seqid"]) == (0, "compare", 3), runner.errors
    assert not any("an earlier run" in step for step in done["steps"])
    assert runner.equals_snapshot()
    assert ".theirs" in cow_files(driver)


# ---- a machine that went back in time


def test_a_timeline_that_was_rolled_back_is_not_taken_for_the_one_of_the_copy(
    runner: Runner, driver: Driver, tmp_path: Path
) -> None:
    records, kept = tmp_path / "state" / "dattobd", tmp_path / "kept"
    driver.write("a", os.urandom(200_000))
    driver.write("b", bytes(50_000))
    runner.cycle()
    image, devices = driver.read(), copy.deepcopy(driver.devices)
    shutil.copytree(records, kept)
    driver.write("a", os.urandom(100_000), 50_000)
    assert runner.cycle()["how"] == "delta"
    subprocess.run(["umount", driver.point], check=True)
    driver.image.write_bytes(image)
    subprocess.run(["blockdev", "--flushbufs", driver.loop], check=True)
    subprocess.run(["mount", "-t", "ext4", "-o", "nodiscard", driver.loop, driver.point], check=True)
    driver.devices.clear()
    driver.devices.update(devices)
    driver._show()
    shutil.rmtree(records)
    shutil.copytree(kept, records)
    driver.write("b", os.urandom(20_000))
    before = runner.target.read_bytes()
    runner.cycle()
    assert runner.status == 8
    assert "--compare" in runner.errors
    assert runner.target.read_bytes() == before
    done = runner.cycle("--compare")
    assert (runner.status, done["how"], runner.equals_snapshot()) == (0, "compare", True), runner.errors


# ---- gaps


def test_after_an_update_by_force_the_next_run_compares(runner: Runner, driver: Driver) -> None:
    driver.write("a", os.urandom(200_000))
    runner.cycle()
    driver.umount()
    driver.mount()
    runner("to-snapshot", "0")
    cow = str(driver.point / ".lvmsync-cow.1")
    done = runner("update", system.DATTOBD.snapshot_path(0), cow, str(runner.target), "--force", "--json")
    assert runner.status == 0, runner.errors
    assert any("was unmounted meanwhile" in note for note in done["notes"])
    runner("to-incremental", "0")
    assert runner.status == 0, runner.errors
    driver.write("a", os.urandom(5000), 3000)
    done = runner.cycle()
    assert (runner.status, done["how"]) == (0, "compare"), runner.errors
    assert "by force" in done["why"]
    assert runner.equals_snapshot()
    driver.write("a", os.urandom(5000), 3000)
    assert (runner.cycle()["how"], runner.equals_snapshot()) == ("delta", True)


def test_sync_and_send_know_of_the_gaps_as_well(runner: Runner, driver: Driver, tmp_path: Path) -> None:
    driver.write("a", os.urandom(200_000))
    runner.cycle()
    driver.umount()
    driver.mount()
    runner("to-snapshot", "0")
    before, cow = runner.target.read_bytes(), f"dattobd:{driver.point}/.lvmsync-cow.1"
    for words in (["sync", cow, str(runner.target)], ["send", cow, "-o", str(tmp_path / "stream")]):
        assert run(words) == 5
        errors = runner.capfd.readouterr().err
        assert "was unmounted meanwhile" in errors
        assert "'lvmsync dattobd update' with --force" in errors
    assert (runner.target.read_bytes(), (tmp_path / "stream").exists()) == (before, False)


def test_sync_reads_the_blocks_that_were_noted_and_the_cycle_goes_on_from_it(runner: Runner, driver: Driver) -> None:
    driver.write("a", os.urandom(200_000))
    runner.cycle()
    driver.write("a", os.urandom(5000), 3000)
    runner("to-snapshot", "0")
    assert run(["sync", f"dattobd:{driver.point}/.lvmsync-cow.1", str(runner.target)]) == 0
    runner.capfd.readouterr()
    assert runner.equals_snapshot()
    assert (runner.cycle()["how"], runner.equals_snapshot()) == ("delta", True)
    driver.write("a", os.urandom(5000), 3000)
    assert (runner.cycle()["how"], runner.equals_snapshot()) == ("delta", True)


# ---- another size


@pytest.mark.parametrize("is_recorded", [True, False])
def test_a_device_that_was_resized_is_refused(
    runner: Runner, driver: Driver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_recorded: bool
) -> None:
    driver.write("a", os.urandom(200_000))
    runner.cycle()
    before, size = runner.target.read_bytes(), driver.size
    with driver.image.open("r+b") as file:
        file.truncate(size + (4 << 20))
    subprocess.run(["losetup", "-c", driver.loop], check=True)
    really = driver.read
    monkeypatch.setattr(driver, "read", lambda: really()[:size])  # the driver knows the old size
    if not is_recorded:
        path, values = record_of(tmp_path)
        path.write_text(json.dumps(values | {"size": None}))
    runner.cycle("--allow-smaller-target")
    assert runner.status == 5, runner.errors
    assert "was resized" in runner.errors
    assert "run 'lvmsync dattobd destroy'" in runner.errors
    assert runner.target.read_bytes() == before


# ---- targets


@pytest.mark.parametrize("option", [[], ["--dry-run"]])
def test_a_target_that_cannot_be_used_leaves_no_snapshot_behind(
    runner: Runner, driver: Driver, tmp_path: Path, option: list[str]
) -> None:
    small = tmp_path / "small"
    small.write_bytes(b"small")
    for target, status in ((tmp_path / "nowhere", 3), (small, 3), (driver.loop, 2), (driver.image, 2)):
        runner("cycle", str(driver.loop), str(target), "--no-unit", *option)
        assert runner.status == status, runner.errors
        assert (driver.calls, cow_files(driver)) == ([], set())
    runner("cycle", str(driver.loop), str(tmp_path / "nowhere" / "new"), "--create", "--no-unit", *option)
    assert (runner.status, driver.calls) == (3, []), runner.errors
    driver.write("a", os.urandom(200_000))
    runner.cycle()
    calls = list(driver.calls)
    for target in (tmp_path / "nowhere", small):
        runner("cycle", str(driver.loop), str(target), *option)
        assert (runner.status, driver.calls) == (3, calls), runner.errors
    other = tmp_path / "other"
    other.write_bytes(bytes(driver.size))
    assert run(["sync", f"full:{other}", str(runner.target)]) == 0
    runner("cycle", str(driver.loop), str(runner.target), *option)
    assert (runner.status, driver.calls) == (8, calls), runner.errors


# ---- records


def test_destroy_closes_a_record_only_if_nothing_is_tracked(runner: Runner, driver: Driver, tmp_path: Path) -> None:
    runner.cycle()
    proc = system.DATTOBD.proc
    text = proc.read_text()
    proc.unlink()
    proc.mkdir()
    runner("destroy", str(driver.loop))
    assert runner.status == 3
    assert "cannot read" in runner.errors
    assert cow_files(driver) == {".lvmsync-cow.1"}
    proc.rmdir()
    proc.write_text(text)
    assert record_of(tmp_path)[1]["ended"] is None
    driver.reboot()
    runner("destroy", str(driver.loop))
    assert runner.status == 0
    assert f".lvmsync-cow.1 stays, if it is there: {driver.loop} is not mounted" in runner.errors


def test_of_several_records_of_a_device_only_the_one_that_is_active_goes_on(
    runner: Runner, driver: Driver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = itertools.count(1)
    monkeypatch.setattr(uuid, "uuid4", lambda: uuid.UUID(int=next(count) << 96))  # records are read in this order
    runner.cycle()
    driver.reboot()
    driver.mount()
    with system.Control(system.DATTOBD) as control:
        control.setup(str(driver.loop), str(driver.point / ".datto"), 0)
    for options in (["--take-over"], []):
        runner.cycle(*options)
        assert runner.status == 0, runner.errors
    records = [json.loads(path.read_text()) for path in (tmp_path / "state" / "dattobd").glob("*.json")]
    assert sorted(one["ended"] is None for one in records) == [False, True]
    driver.reboot()
    runner("reload")
    assert runner.status == 0, runner.errors
    assert driver.devices[0].cow == "/.lvmsync-cow.3"
    driver.mount()
    runner.cycle()
    assert (runner.status, runner.equals_snapshot()) == (0, True), runner.errors


def test_a_reload_goes_on_past_a_damaged_record_and_tells_of_it(runner: Runner, driver: Driver, tmp_path: Path) -> None:
    runner.cycle()
    (tmp_path / "state" / "dattobd" / "00.json").write_text("")
    driver.reboot()
    runner("reload")
    assert runner.status == 4
    assert "00.json cannot be read" in runner.errors
    assert "was reloaded as minor 0" in runner.errors
    assert driver.devices[0].state == 4


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("periods", 0, "gaps"), None),
        (("periods", 0, "gaps"), [1]),
        (("periods", 0, "seqid"), "1"),
        (("periods", 0, "seqid"), True),
        (("periods", 0, "blocks"), [[1]]),
        (("periods", 0, "blocks"), [[-1, 4096]]),
        (("periods", 0, "blocks"), [["1", 4096]]),
        (("periods", 0, "path"), None),
        (("periods", 0, "nonce"), 5),
        (("copies", 0, "seqid"), "1"),
        (("copies", 0, "gaps"), None),
        (("boot",), None),
        (("mount_point",), None),
        (("block_device",), 5),
        (("uuid",), None),
        (("identity",), "x"),
        (("periods",), {}),
    ],
)
def test_a_record_with_values_of_another_kind_is_refused(
    runner: Runner, driver: Driver, tmp_path: Path, place: tuple[str | int, ...], value: object
) -> None:
    runner.cycle()
    path, values = record_of(tmp_path)
    part = values
    for key in place[:-1]:
        part = part[key]
    part[place[-1]] = value
    path.write_text(json.dumps(values))
    runner.cycle("--dry-run")
    assert runner.status == 4
    assert "cannot be read" in runner.errors


def test_a_link_where_the_cow_file_would_be_is_not_followed(runner: Runner, driver: Driver) -> None:
    runner.cycle()
    (driver.point / ".lvmsync-cow.2").symlink_to("evil")
    done = runner.cycle()
    assert (runner.status, done["how"]) == (0, "delta"), runner.errors
    assert cow_files(driver) == {".lvmsync-cow.2", ".lvmsync-cow.2.1"}


def test_a_dry_run_writes_nothing(runner: Runner, driver: Driver, tmp_path: Path) -> None:
    runner.cycle("--dry-run")
    runner("setup", str(driver.loop), "--dry-run", "--no-unit")
    assert runner.status == 0, runner.errors
    assert not (tmp_path / "state" / "dattobd").exists()
    runner.cycle()
    driver.umount()
    driver.mount()
    path, _ = record_of(tmp_path)
    before = path.read_text()
    runner.cycle("--dry-run")
    runner("to-snapshot", "0", "--dry-run")
    assert path.read_text() == before
    runner("to-snapshot", "0")
    before = path.read_text()
    runner("to-incremental", "0", "--dry-run", "--force")
    words = ["update", system.DATTOBD.snapshot_path(0), str(driver.point / ".lvmsync-cow.1"), str(runner.target)]
    runner(*words, "--dry-run", "--force")
    assert runner.status == 0, runner.errors
    assert path.read_text() == before


def test_a_first_run_that_was_killed_is_not_taken_for_another_programs(runner: Runner, driver: Driver) -> None:
    kill_at(driver, "after", "setup")
    with pytest.raises(Killed):
        runner.cycle()
    runner.cycle()
    assert (runner.status, runner.equals_snapshot()) == (0, True), runner.errors

"""The cycle of dattobd, end to end: a real file system, real sender and receiver, a driver that is played."""

from __future__ import annotations

import json
import os
import random
import shlex
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from lvmsync.cli.classic import run
from lvmsync.errors import DeviceError
from lvmsync.formats.dattobd import Header, count_sections, data_offset
from lvmsync.jobs import dattobd, dattobd_follow, dattobd_record
from lvmsync.jobs.send import Sender
from lvmsync.jobs.unit import path_unit
from lvmsync.system import dattobd as system
from lvmsync.system import ledger
from tests.dattobd_driver import Driver, blocks_of, differing, running
from tests.dattobd_store import BLOCK, find_case


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Driver]:
    monkeypatch.setenv("LVMSYNC_STATE", str(tmp_path / "state"))
    with running(tmp_path, monkeypatch) as one:
        yield one


class Runner:
    """Runs the cycle, and keeps what it said."""

    def __init__(self, driver: Driver, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
        self.driver, self.capfd = driver, capfd
        self.target = folder / "copy.img"
        self.status = 0
        self.out = self.errors = ""

    def __call__(self, *words: str) -> Any:
        self.status = run(["dattobd", *words])
        self.out, self.errors = self.capfd.readouterr()
        assert "Traceback" not in self.errors
        return json.loads(self.out) if self.out and "--json" in words else {}

    def cycle(self, *options: str) -> Any:
        create = [] if self.target.exists() else ["--create"]
        return self("cycle", str(self.driver.loop), str(self.target), "--json", "--no-unit", *create, *options)

    def equals_snapshot(self) -> bool:
        """Whether the copy is the device as it is now: nothing was written since the snapshot but by the driver."""
        return self.target.read_bytes() == self.driver.last


@pytest.fixture
def runner(driver: Driver, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Runner:
    return Runner(driver, tmp_path, capfd)


def test_the_first_run_copies_all_and_the_next_ones_what_changed(runner: Runner, driver: Driver) -> None:
    driver.write("a", os.urandom(300_000))
    done = runner.cycle()
    assert (runner.status, done["how"], done["seqid"]) == (0, "full", 1), runner.errors
    assert runner.equals_snapshot()
    for seqid in (2, 3, 4):
        driver.write("a", os.urandom(5000), 70_000)
        driver.write(f"b{seqid}", os.urandom(50_000))
        if seqid == 3:
            (driver.point / "b2").unlink()
        done = runner.cycle()
        assert (runner.status, done["how"], done["seqid"]) == (0, "delta", seqid), runner.errors
        assert runner.equals_snapshot()
        assert 0 < done["receipt"]["bytes"] < driver.size // 2
        assert [path.name for path in driver.point.glob(".lvmsync-cow*")] == [f".lvmsync-cow.{seqid}"]
        assert driver.devices[0].state == 2


# ---- runs that are cut short


class Killed(BaseException):
    """The end of the process, as by SIGKILL: nothing of ours may answer it."""


STEPS = [
    (when, name) for name in ("setup", "find_free_minor", "info", "to_incremental") for when in ("before", "after")
]
LATER = [(when, name) for name in ("to_snapshot", "to_incremental") for when in ("before", "after")]


def kill_at(driver: Driver, when: str, name: str) -> None:
    def fail(now: str, called: str) -> None:
        if (now, called) == (when, name):
            driver.fail = lambda *_: None
            raise Killed

    driver.fail = fail


@pytest.mark.parametrize(("when", "name"), STEPS)
def test_a_first_run_that_was_killed_is_gone_on_with(runner: Runner, driver: Driver, when: str, name: str) -> None:
    driver.write("a", os.urandom(200_000))
    kill_at(driver, when, name)
    with pytest.raises(Killed):
        runner.cycle()
    driver.write("a", os.urandom(10_000), 100_000)
    for _ in range(3):
        runner.cycle()
        assert runner.status == 0, runner.errors
        assert runner.equals_snapshot()
        driver.write("a", os.urandom(10_000), 20_000)


@pytest.mark.parametrize(("when", "name"), LATER)
def test_a_later_run_that_was_killed_is_gone_on_with(runner: Runner, driver: Driver, when: str, name: str) -> None:
    driver.write("a", os.urandom(200_000))
    runner.cycle()
    driver.write("a", os.urandom(10_000), 100_000)
    kill_at(driver, when, name)
    with pytest.raises(Killed):
        runner.cycle()
    driver.write("c", os.urandom(10_000))
    for _ in range(3):
        done = runner.cycle()
        assert runner.status == 0, runner.errors
        assert done["how"] == "delta"
        assert runner.equals_snapshot()
        driver.write("a", os.urandom(10_000), 20_000)


@pytest.mark.parametrize("at", range(1, 12))
def test_a_run_that_was_killed_at_any_write_of_its_record_is_gone_on_with(
    runner: Runner, driver: Driver, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    driver.write("a", os.urandom(200_000))
    runner.cycle()
    driver.write("a", os.urandom(10_000), 100_000)
    left = at
    really = ledger.replace_file

    def write(path: Path, text: str) -> None:
        nonlocal left
        left -= 1
        if not left:
            raise Killed
        really(path, text)

    with monkeypatch.context() as patch:
        patch.setattr(dattobd_record, "replace_file", write)
        try:
            runner.cycle()
        except Killed:
            driver.write("c", os.urandom(10_000))
        else:
            assert left > 0  # there are fewer writes than that
    for _ in range(2):
        runner.cycle()
        assert runner.status == 0, runner.errors
        assert runner.equals_snapshot()
        driver.write("a", os.urandom(10_000), 20_000)


def test_a_copy_that_fails_leaves_the_snapshot_to_the_next_run(
    runner: Runner, driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver.write("a", os.urandom(200_000))
    runner.cycle()
    driver.write("a", os.urandom(10_000), 100_000)
    really = Sender._send_changes

    def run_away(sender: Sender) -> Any:
        if driver.devices[0].seqid == 2:
            raise DeviceError("the disk went away")
        return really(sender)

    with monkeypatch.context() as patch:
        patch.setattr(Sender, "_send_changes", run_away)
        runner("cycle", str(driver.loop), str(runner.target))
    assert runner.status == 3
    assert "snapshot 2 of" in runner.errors
    assert "is kept, and the next run goes on from it" in runner.errors
    driver.write("a", os.urandom(10_000), 50_000)
    done = runner.cycle()
    assert (runner.status, done["how"], done["seqid"]) == (0, "delta", 2), runner.errors
    assert done["steps"][0] == "snapshot 2 is there already: an earlier run did not end"
    assert runner.equals_snapshot()
    done = runner.cycle()
    assert (done["how"], runner.equals_snapshot()) == ("delta", True)


# ---- what the driver misses


def test_a_reboot_makes_the_next_run_compare(runner: Runner, driver: Driver) -> None:
    driver.write("a", os.urandom(200_000))
    runner.cycle()
    driver.write("a", os.urandom(10_000), 100_000)
    driver.reboot()
    runner("reload")
    assert runner.status == 0, runner.errors
    assert driver.devices[0].state == 4
    assert driver.devices[0].cow == "/.lvmsync-cow.1"
    runner("cycle", str(driver.loop), str(runner.target))
    assert runner.status == 3
    assert "its COW file has not been read; mount" in runner.errors
    driver.mount()
    driver.write("b", os.urandom(10_000))
    done = runner.cycle()
    assert (runner.status, done["how"], done["seqid"]) == (0, "compare", 2), runner.errors
    assert "It was reloaded at" in done["why"]
    assert runner.equals_snapshot()
    driver.write("b", os.urandom(10_000))
    done = runner.cycle()
    assert (done["how"], runner.equals_snapshot()) == ("delta", True)


@pytest.mark.parametrize("is_hidden", [False, True])
def test_a_reload_by_another_program_is_known_by_the_boot_and_the_cow_file(
    runner: Runner, driver: Driver, monkeypatch: pytest.MonkeyPatch, is_hidden: bool
) -> None:
    driver.write("a", os.urandom(200_000))
    runner.cycle()
    driver.reboot()
    with system.Control(system.DATTOBD) as control:
        control.reload_incremental(str(driver.loop), "/.lvmsync-cow.1", 0)
    driver.mount()
    if is_hidden:
        monkeypatch.setattr(dattobd_follow, "is_fresh", lambda *_: True)
    done = runner.cycle()
    assert (runner.status, done["how"], runner.equals_snapshot()) == (0, "compare", True), runner.errors
    assert "The machine was started anew before" in done["why"]
    assert ("was unmounted meanwhile" in done["why"]) != is_hidden


def test_an_umount_that_nobody_told_of_makes_the_next_run_compare(runner: Runner, driver: Driver) -> None:
    driver.write("a", os.urandom(200_000))
    runner.cycle()
    driver.umount()
    runner("cycle", str(driver.loop), str(runner.target))
    assert runner.status == 3
    assert "it is not mounted; mount" in runner.errors
    driver.mount()
    driver.write("b", os.urandom(10_000))
    done = runner.cycle()
    assert (runner.status, done["how"]) == (0, "compare"), runner.errors
    assert "was unmounted meanwhile" in done["why"]
    assert runner.equals_snapshot()


def test_a_snapshot_over_an_umount_is_given_up_for_a_new_one(runner: Runner, driver: Driver) -> None:
    driver.write("a", os.urandom(200_000))
    runner("setup", str(driver.loop), "--no-unit")
    assert runner.status == 0, runner.errors
    driver.umount()
    driver.mount()
    done = runner.cycle()
    assert (runner.status, done["how"], done["seqid"]) == (0, "full", 2), runner.errors
    assert "no one state of the device any more" in done["steps"][0]
    assert runner.equals_snapshot()


def test_a_reload_that_was_left_out_begins_anew_and_compares(runner: Runner, driver: Driver) -> None:
    driver.write("a", os.urandom(200_000))
    runner.cycle()
    driver.reboot()
    driver.mount()
    driver.write("b", os.urandom(10_000))
    runner("reload")
    assert runner.status == 3
    assert "a reload comes before the mount" in runner.errors
    done = runner.cycle()
    assert (runner.status, done["how"], done["seqid"]) == (0, "compare", 1), runner.errors
    assert "what was tracked since is lost" in done["why"]
    assert runner.equals_snapshot()
    assert [path.name for path in driver.point.glob(".lvmsync-cow*")] == [".lvmsync-cow.1.1"]


# ---- refusals


def test_a_driver_that_gave_up_is_begun_anew_after_destroy(runner: Runner, driver: Driver) -> None:
    driver.write("a", os.urandom(200_000))
    runner.cycle()
    driver.overflow()
    runner("cycle", str(driver.loop), str(runner.target))
    assert runner.status == 5
    assert "failed with error -27: nothing is tracked any more (the COW file was full" in runner.errors
    runner("status")
    assert runner.status == 5
    runner("destroy", "0")
    assert runner.status == 0, runner.errors
    done = runner.cycle()
    assert (runner.status, done["how"], done["seqid"]) == (0, "compare", 1), runner.errors
    assert runner.equals_snapshot()


def test_a_snapshot_that_overflows_while_it_is_read_leaves_the_copy_as_it_was(
    runner: Runner, driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver.write("a", os.urandom(200_000))
    runner.cycle()
    before = runner.target.read_bytes()
    driver.write("a", os.urandom(10_000), 100_000)
    really = Sender.run

    def run_over(sender: Sender) -> Any:
        if driver.devices[0].state == 3:  # not when the target is looked at, before
            driver.overflow()
        return really(sender)

    monkeypatch.setattr(Sender, "run", run_over)
    runner("cycle", str(driver.loop), str(runner.target))
    assert runner.status == 5
    assert "did not last until it was read" in runner.errors
    assert "is kept" not in runner.errors
    assert runner.target.read_bytes() == before


def test_no_room_for_the_next_cow_file_leaves_tracking_as_it_was(runner: Runner, driver: Driver) -> None:
    driver.write("a", os.urandom(200_000))
    runner.cycle()
    runner("cycle", str(driver.loop), str(runner.target), "--space", "900M")
    assert runner.status == 3
    assert "no room for the COW file; tracking goes on as it was; make room" in runner.errors
    assert [path.name for path in driver.point.glob(".lvmsync-cow*")] == [".lvmsync-cow.1"]
    driver.write("b", os.urandom(10_000))
    done = runner.cycle()
    assert (runner.status, done["how"]) == (0, "delta"), runner.errors
    assert runner.equals_snapshot()


def test_a_snapshot_device_that_is_open_is_not_given_up(runner: Runner, driver: Driver) -> None:
    driver.write("a", os.urandom(200_000))
    runner.cycle()
    driver.write("a", os.urandom(10_000))
    runner("to-snapshot", str(driver.loop))
    with Path(system.DATTOBD.snapshot_path(0)).open("rb"):
        runner("cycle", str(driver.loop), str(runner.target))
    assert runner.status == 3
    assert "its snapshot device is open; close what reads it" in runner.errors
    done = runner.cycle()
    assert (runner.status, done["how"]) == (0, "delta"), runner.errors
    assert driver.devices[0].state == 2
    assert runner.equals_snapshot()


def test_a_target_that_was_brought_back_after_a_run_was_cut_short_is_not_taken_for_up_to_date(
    runner: Runner, driver: Driver, tmp_path: Path
) -> None:
    driver.write("a", os.urandom(200_000))
    runner.cycle()
    driver.write("a", os.urandom(10_000))
    runner("to-snapshot", str(driver.loop))
    with Path(system.DATTOBD.snapshot_path(0)).open("rb"):
        runner.cycle("-b", str(tmp_path / "undo"))
    assert runner.status == 3
    assert runner.equals_snapshot()
    assert run(["apply", str(tmp_path / "undo"), str(runner.target), "-q"]) == 0
    assert not runner.equals_snapshot()
    assert runner.cycle()["how"] == "delta"
    assert runner.equals_snapshot()


def test_a_first_run_that_could_not_be_ended_is_compared(runner: Runner, driver: Driver) -> None:
    driver.write("a", os.urandom(200_000))
    kill_at(driver, "before", "to_incremental")
    with pytest.raises(Killed):
        runner.cycle()
    runner.target.write_bytes(bytes(driver.size))
    assert runner.cycle()["how"] == "compare", runner.errors
    assert runner.equals_snapshot()


def test_a_target_that_was_changed_elsewhere_is_refused_until_compared(runner: Runner, driver: Driver) -> None:
    driver.write("a", os.urandom(200_000))
    runner.cycle()
    other = runner.target.with_name("other")
    other.write_bytes(bytes(driver.size))
    assert run(["sync", f"full:{other}", str(runner.target)]) == 0
    driver.write("a", os.urandom(10_000))
    runner("cycle", str(driver.loop), str(runner.target))
    assert runner.status == 8
    assert "run 'lvmsync dattobd cycle' with --compare" in runner.errors
    done = runner.cycle("--compare")
    assert (runner.status, done["how"], runner.equals_snapshot()) == (0, "compare", True)


def test_two_runs_at_a_time_are_refused(runner: Runner, tmp_path: Path) -> None:
    with dattobd_record.hold_records(tmp_path / "state"):
        runner.cycle()
    assert runner.status == 8
    assert "another 'lvmsync dattobd' is at work here" in runner.errors


def test_a_dry_run_changes_nothing(runner: Runner, driver: Driver) -> None:
    done = runner.cycle("--dry-run")
    assert (runner.status, done["how"], done["receipt"]) == (0, "full", None), runner.errors
    runner("setup", str(driver.loop), "--dry-run", "--no-unit")
    assert f"{driver.loop} would be tracked by dattobd, with {driver.point}/.lvmsync-cow.1" in runner.errors
    assert (driver.calls, runner.target.exists()) == ([], False)
    runner.cycle()
    calls = list(driver.calls)
    done = runner.cycle("--dry-run")
    assert (done["how"], done["steps"][0]) == ("delta", "snapshot 2 is taken")
    assert driver.calls == calls


# ---- the steps by hand


def test_the_steps_by_hand_are_update_img_with_a_way_back(runner: Runner, driver: Driver, tmp_path: Path) -> None:
    driver.write("a", os.urandom(200_000))
    runner("setup", str(driver.loop), str(driver.point / ".mine"), "--space", "2M", "--minor", "3", "--no-unit")
    assert runner.status == 0, runner.errors
    runner.target.write_bytes(driver.snapshot(3))
    before = runner.target.read_bytes()
    runner("to-incremental", "3")
    driver.write("a", os.urandom(10_000), 50_000)
    runner("to-snapshot", str(driver.loop))
    assert runner.status == 0, runner.errors
    assert driver.devices[3].cow == "/.lvmsync-cow.2"
    runner("to-incremental", "3")
    assert runner.status == 8
    assert ".mine was not taken over yet" in runner.errors
    snapshot = system.DATTOBD.snapshot_path(3)
    undo = tmp_path / "undo"
    runner("update", snapshot, str(driver.point / ".mine"), str(runner.target), "-b", str(undo))
    assert runner.status == 0, runner.errors
    assert runner.equals_snapshot()
    runner("update", snapshot, str(driver.point / ".lvmsync-cow.2"), str(runner.target))
    assert runner.status == 3  # the one that is in use
    runner("to-incremental", "3")
    assert runner.status == 0, runner.errors
    assert run(["apply", str(undo), str(runner.target)]) == 0
    assert runner.target.read_bytes() == before


def test_update_refuses_a_period_with_a_gap(runner: Runner, driver: Driver) -> None:
    driver.write("a", os.urandom(200_000))
    runner("setup", str(driver.loop), "--no-unit")
    runner.target.write_bytes(driver.snapshot(0))
    runner("to-incremental", "0")
    driver.umount()
    driver.mount()
    runner("to-snapshot", "0")
    words = ["update", system.DATTOBD.snapshot_path(0), str(driver.point / ".lvmsync-cow.1"), str(runner.target)]
    runner(*words)
    assert runner.status == 5
    assert "was unmounted meanwhile" in runner.errors
    runner(*words, "--force")
    assert runner.status == 0, runner.errors
    assert not runner.equals_snapshot()  # so the refusal was right


def test_update_takes_what_another_program_made(runner: Runner, driver: Driver) -> None:
    driver.write("a", os.urandom(200_000))
    with system.Control(system.DATTOBD) as control:
        control.setup(str(driver.loop), str(driver.point / ".datto"), 0)
        runner.target.write_bytes(driver.snapshot())
        control.to_incremental(0)
        driver.write("a", os.urandom(10_000), 50_000)
        control.to_snapshot(0, str(driver.point / ".datto2"))
    runner("update", system.DATTOBD.snapshot_path(0), str(driver.point / ".datto"), str(runner.target))
    assert runner.status == 0, runner.errors
    files = {block for path in driver.point.glob(".datto*") for block in blocks_of(path)}
    lost = differing(runner.target.read_bytes(), driver.last) - files
    assert lost <= driver.given_back  # what the first COW file gave back was not noted by anybody


def test_another_device_under_the_same_path_is_not_reloaded(
    runner: Runner, driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner.cycle()
    driver.reboot()
    monkeypatch.setattr(dattobd, "identify", lambda _: {"serial": "other"})
    runner("reload", str(driver.loop))
    assert runner.status == 8
    assert "is not the device that was tracked" in runner.errors
    assert not driver.devices


def test_a_failed_snapshot_does_not_keep_the_device_from_a_reload(runner: Runner, driver: Driver) -> None:
    runner.cycle()
    runner("to-snapshot", "0", "--space", "900M")
    assert runner.status == 3
    driver.reboot()
    runner("reload")
    assert runner.status == 0, runner.errors


def test_which_snapshot_was_cut_short_by_a_reboot_is_not_guessed(runner: Runner, driver: Driver) -> None:
    runner.cycle()
    kill_at(driver, "after", "to_snapshot")
    with pytest.raises(Killed):
        runner.cycle()
    driver.reboot()
    runner("reload")
    assert runner.status == 5
    assert "which COW file is the current one is not known" in runner.errors
    driver.mount()
    driver.write("a", os.urandom(10_000))
    done = runner.cycle()
    assert (runner.status, done["how"], runner.equals_snapshot()) == (0, "compare", True), runner.errors


@pytest.mark.parametrize(
    ("name", "key", "fresh"),
    [
        ("dattobd-64m", "cow.seq1.snapshot-live", True),
        ("dattobd-64m", "cow.seq1.incremental-live", True),
        ("elastio-64m-1k", "cow.seq1.snapshot-live", True),
        ("elastio-64m-1k", "cow.seq1.incremental-live", True),
        ("dattobd-odd-tail", "cow.seq1.incremental-live", True),
        ("dattobd-2304m-sparse", "cow.seq1.incremental-live", True),
        ("dattobd-unclean-incremental", "cow.live-before-kill", True),
        ("dattobd-unclean-snapshot", "cow.live-before-kill", True),
        ("dattobd-unclean-reopened", "cow.live-before-kill", False),
        ("dattobd-64m", "cow.seq1.incremental", False),
        ("dattobd-64m", "cow.snapshot-clean", False),
    ],
)
def test_a_cow_file_that_was_closed_meanwhile_is_known_by_its_header(name: str, key: str, fresh: bool) -> None:
    case = find_case(name)
    header = Header.parse(case.bytes(key))
    first = data_offset(count_sections(case.size)) // BLOCK
    assert dattobd_follow.is_fresh(header, first) == fresh


def test_status_tells_what_is_tracked_and_what_is_recorded(runner: Runner, driver: Driver) -> None:
    runner("status")
    assert runner.out == "nothing is tracked\n"
    runner.cycle()
    (found,) = runner("status", "--json")
    assert (found["state"], found["state_bits"], found["error"]) == ("active incremental", 2, None)
    assert (found["block_device"], found["minor"], found["driver"]) == (str(driver.loop), 0, "dattobd")
    assert (found["mount_point"], found["cow_file"]) == (str(driver.point), str(driver.point / ".lvmsync-cow.1"))
    assert (found["snapshot"], found["gaps"], found["notes"], found["cow_files"]) == (None, [], [], [])
    assert [(one["target"], one["seqid"]) for one in found["copies"]] == [(str(runner.target), 1)]
    runner("to-snapshot", "0")
    (found,) = runner("status", "--json")
    assert found["snapshot"] == system.DATTOBD.snapshot_path(0)
    assert found["cow_files"] == [{"seqid": 1, "path": str(driver.point / ".lvmsync-cow.1"), "taken": False}]
    runner("status")
    assert f"{runner.target} is at snapshot 1" in runner.out
    table = runner.out.splitlines()
    assert table[0].split()[:6] == ["DEVICE", "DRIVER", "MINOR", "STATE", "SNAPSHOT", "CHANGED"]
    assert table[1].split()[:6] == [str(driver.loop), "dattobd", "0", "active", "snapshot", "2"]
    assert "COW file of snapshot 1" in runner.out
    driver.reboot()
    (found,) = runner("status", "--json")
    assert (found["state"], found["state_bits"]) == ("not tracked", None)
    assert "run 'lvmsync dattobd reload'" in found["notes"][0]
    runner("reload", str(driver.loop))
    (found,) = runner("status", "--json")
    assert (found["state"], found["uuid"], found["cow_file"]) == ("unverified snapshot", None, "/.lvmsync-cow.2")
    driver.mount()
    driver.overflow()
    (found,) = runner("status", "--json")
    assert runner.status == 5
    assert (found["error"], found["snapshot"]) == (-27, None)


def test_a_device_that_another_program_set_up_is_taken_over(runner: Runner, driver: Driver) -> None:
    with system.Control(system.DATTOBD) as control:
        control.setup(str(driver.loop), str(driver.point / ".datto"), 5)
    (found,) = runner("status", "--json")
    assert "was set up by another program" in found["notes"][0]
    runner("setup", str(driver.loop))
    assert runner.status == 8
    assert "is tracked already, by dattobd as minor 5" in runner.errors
    driver.write("a", os.urandom(100_000))
    done = runner.cycle("--take-over")
    assert (runner.status, done["how"], done["seqid"]) == (0, "full", 2), runner.errors
    assert runner.equals_snapshot()
    driver.write("a", os.urandom(100_000))
    assert runner.cycle()["how"] == "delta"
    assert runner.equals_snapshot()


def test_destroy_removes_what_is_ours_and_says_what_stays(runner: Runner, driver: Driver) -> None:
    driver.write("a", os.urandom(100_000))
    runner.cycle()
    runner("to-snapshot", "0")
    first = driver.point / ".lvmsync-cow.1"
    content = bytearray(first.read_bytes())
    content[0x20] ^= 1  # of another series
    first.write_bytes(content)
    runner("destroy", "0", "--dry-run")
    assert 0 in driver.devices
    assert runner("reload", "--json") == {"done": [f"{driver.loop} is there already: minor 0, active snapshot"]}
    runner("destroy", str(driver.loop))
    assert runner.status == 0
    assert "is not tracked any more" in runner.errors
    assert ".lvmsync-cow.1 stays: it is the COW file of snapshot 1 of series" in runner.errors
    assert [path.name for path in driver.point.glob(".lvmsync-cow*")] == [first.name]
    runner("destroy", str(driver.loop))
    assert runner.status == 3
    assert "is not tracked; tracked are: nothing" in runner.errors


def test_setup_writes_a_unit_that_reloads_before_the_mount(runner: Runner, driver: Driver, tmp_path: Path) -> None:
    runner("setup", str(driver.loop), "--unit-dir", str(tmp_path / "units"))
    assert runner.status == 0, runner.errors
    (path,) = (tmp_path / "units").iterdir()
    text = path.read_text()
    mount = path_unit(str(driver.point), "mount")
    assert f"\nBefore={mount} shutdown.target\n" in text
    assert f"WantedBy={mount}\n" in text
    assert f'"dattobd" "reload" "{driver.loop}" "--state" "{tmp_path / "state"}"' in text
    assert "modprobe@dattobd.service" in text
    (after,) = (line for line in text.splitlines() if line.startswith("After="))
    assert after.endswith(" systemd-remount-fs.service")  # it writes the record
    assert f"systemctl enable {shlex.quote(str(path))}" in runner.errors
    runner("destroy", "0")
    assert not path.exists()


def test_a_state_folder_on_the_device_itself_gets_no_unit(runner: Runner, driver: Driver, tmp_path: Path) -> None:
    state = driver.point / "state"
    runner("setup", str(driver.loop), "--unit-dir", str(tmp_path / "units"), "--state", str(state))
    assert runner.status == 0, runner.errors
    assert "is on" in runner.errors
    assert "itself, so nothing can be read from it before the mount" in runner.errors
    assert not (tmp_path / "units").exists()


def test_a_damaged_record_is_refused(runner: Runner, tmp_path: Path) -> None:
    runner.cycle()
    (path,) = (tmp_path / "state" / "dattobd").glob("*.json")
    for text in ("", "[]", "{}", path.read_text().replace('"version": 1', '"version": 9')):
        path.write_text(text)
        runner.cycle()
        assert runner.status == 4
        assert "cannot be read" in runner.errors


def test_a_target_on_another_machine_goes_the_same_way(runner: Runner, driver: Driver, tmp_path: Path) -> None:
    line = tmp_path / "line"
    line.write_text(f'#!/bin/sh\nshift\nexport LVMSYNC_STATE={tmp_path}/far PATH={Path(sys.executable).parent}:$PATH\n'
                    'exec sh -c "$*"\n')  # fmt: skip
    line.chmod(0o755)
    words = ["cycle", str(driver.loop), f"there:{runner.target}", "-e", str(line), "--json", "--no-unit"]
    for how, options in (("full", ["--create"]), ("delta", []), ("compare", ["--compare"]), ("delta", [])):
        driver.write("a", os.urandom(100_000))
        done = runner(*words, *options)
        assert (runner.status, done["how"]) == (0, how), runner.errors
        assert runner.equals_snapshot()
    assert done["receipt"]["confirmed"]


EVENTS = [*["write"] * 4, *["cycle"] * 5, "delete", "kill", "kill", "remount", "reload", "lost", "steps", "full"]


@pytest.mark.parametrize("seed", range(int(os.environ.get("LVMSYNC_SEEDS", "3"))))
def test_whatever_happens_a_run_that_ends_well_leaves_the_snapshot(runner: Runner, driver: Driver, seed: int) -> None:
    chance = random.Random(seed)
    for event in [*(chance.choice(EVENTS) for _ in range(14)), "cycle"]:
        match event:
            case "write":
                driver.write(
                    f"f{chance.randrange(5)}", os.urandom(chance.randrange(1, 90_000)), chance.randrange(90_000)
                )
            case "delete":
                (driver.point / f"f{chance.randrange(5)}").unlink(missing_ok=True)
            case "kill":
                kill_at(driver, *chance.choice([*STEPS, *LATER]))
                with suppress(Killed):
                    runner.cycle()
                driver.fail = lambda *_: None
            case "remount":
                driver.umount()
                driver.mount()
            case "reload":
                driver.reboot()
                runner("reload")
                driver.mount()
            case "lost":
                driver.reboot()
                driver.mount()
            case "steps":
                runner(chance.choice(["to-snapshot", "to-incremental"]), str(driver.loop))
            case "full":
                if driver.devices and not driver.devices[min(driver.devices)].error:
                    driver.overflow(min(driver.devices))
            case _:
                done = runner.cycle()
                if runner.status:
                    assert runner.status == 5, runner.errors
                    runner("destroy", str(driver.loop))
                    assert runner.status == 0, runner.errors
                    done = runner.cycle()
                assert runner.status == 0, runner.errors
                assert runner.equals_snapshot(), done


def test_elastio_snap_goes_the_same_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LVMSYNC_STATE", str(tmp_path / "state"))
    with running(tmp_path, monkeypatch, system.ELASTIO) as driver:
        runner = Runner(driver, tmp_path, capfd)
        for how in ("full", "delta", "delta"):
            driver.write("a", os.urandom(100_000))
            assert runner.cycle()["how"] == how, runner.errors
            assert runner.equals_snapshot()

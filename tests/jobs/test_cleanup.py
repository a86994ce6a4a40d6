"""What is left behind in the kernel: told by whom, given back only when nobody works with it."""

from __future__ import annotations

import fcntl
import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from lvmsync.cli.classic import run
from lvmsync.errors import ConflictError, DeviceError
from lvmsync.jobs.cleanup import find_leftovers, give_back
from lvmsync.system import dm, reservation
from lvmsync.system.reservation import Owner
from tests.fake_programs import FakeProgram

POOL = "LVM-AFRDyDkPK0Y6LyvpH4SyOEh91K7k8fDrcGc3caX1bx14bfvtMEvqeF610TCs1Q31-tpool"
OURS = Owner("vg-pool-tpool", "send vg/monday", 4711, "boot", "2026-01-02T03:04:05+00:00", root=106, content="c0ffee")


def status(root: object) -> str:
    return f"0 65536 thin-pool 8 15/512 46/256 {root} rw discard_passdown queue_if_no_space - 1024\n"


@pytest.fixture
def dmsetup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeProgram:
    """A machine with one pool, whose metadata snapshot is at block 106."""
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setenv("LVMSYNC_STATE", str(tmp_path / "state"))
    monkeypatch.setattr(dm, "MISC_DEVICES", tmp_path / "misc")
    (tmp_path / "misc").write_text("236 device-mapper\n")
    monkeypatch.setattr(reservation, "_read_content", lambda *_: "c0ffee")
    program = FakeProgram(tmp_path, "dmsetup")
    program.answer(f"vg-pool-tpool|{POOL}|254|2|1\nvg-other|LVM-x|254|3|0\n", "info")
    program.answer(
        "vg-pool-tpool: 0 65536 thin-pool 254:0 254:1 128 1024 0\nvg-other: 0 8192 linear 8:0 2048\n", "table"
    )
    program.answer(status(106), "status", "-j", "254", "-m", "2")
    program.answer("", "message")
    return program


def leave_note(owner: Owner) -> Path:
    path = reservation._path(dm.list_devices()[0])
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(asdict(owner)))
    return path


def test_says_whose_it_is(dmsetup: FakeProgram) -> None:
    (found,) = find_leftovers()
    assert "by another program, or a run of lvmsync whose note is lost" in str(found.held)
    leave_note(OURS)
    (found,) = find_leftovers()
    assert found.held.is_ours
    assert "by lvmsync process 4711 (send vg/monday, 2026-01-02T03:04:05+00:00)" in str(found.held)


def test_a_note_of_another_block_is_not_ours(dmsetup: FakeProgram) -> None:
    leave_note(replace(OURS, root=99))
    (found,) = find_leftovers()
    assert not found.held.is_ours
    assert "by another program" in str(found.held)


def test_another_metadata_snapshot_in_the_block_of_the_note_is_not_ours(dmsetup: FakeProgram) -> None:
    leave_note(replace(OURS, content="0ddba11"))
    (found,) = find_leftovers()
    assert not found.held.is_ours
    assert "by another program" in str(found.held)


def test_one_that_was_being_taken_when_its_run_ended_is_perhaps_ours(dmsetup: FakeProgram) -> None:
    leave_note(replace(OURS, root=None, content=None))
    (found,) = find_leftovers()
    assert not found.held.is_ours
    assert "perhaps by lvmsync process 4711" in str(found.held)


def test_nothing_is_there(dmsetup: FakeProgram, capsys: pytest.CaptureFixture[str]) -> None:
    dmsetup.answer(status("-"), "status", "-j", "254", "-m", "2")
    assert find_leftovers() == []
    assert run(["cleanup"]) == 0
    assert "nothing is left behind" in capsys.readouterr().out
    assert run(["cleanup", "-q"]) == 0
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("word", ["vg-pool-tpool", "/dev/mapper/vg-pool-tpool"])
def test_gives_back_the_one_that_is_named(dmsetup: FakeProgram, word: str) -> None:
    note = leave_note(OURS)
    give_back(word)
    assert "message vg-pool-tpool 0 release_metadata_snap" in dmsetup.calls()
    assert not note.exists()


def test_gives_nothing_back_under_another_name(dmsetup: FakeProgram) -> None:
    with pytest.raises(DeviceError, match=r"'vg-other': .*; these have: vg-pool-tpool"):
        give_back("vg-other")
    assert not any(call.startswith("message") for call in dmsetup.calls())


def test_gives_nothing_back_that_a_run_works_with(dmsetup: FakeProgram) -> None:
    lock = leave_note(OURS).with_suffix(".lock")
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(ConflictError, match="still works with it"):
            give_back("vg-pool-tpool")
    assert not any(call.startswith("message") for call in dmsetup.calls())


def test_the_command_offers_the_release_and_does_it(dmsetup: FakeProgram, capsys: pytest.CaptureFixture[str]) -> None:
    leave_note(OURS)
    assert run(["cleanup"]) == 0
    assert "'lvmsync cleanup --release vg-pool-tpool' gives it back" in capsys.readouterr().out
    assert run(["cleanup", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["metadata_snapshots"]
    assert row["device"] == "/dev/mapper/vg-pool-tpool"
    assert row["owner"]["pid"] == 4711
    assert row["is_ours"]
    assert run(["cleanup", "--release", "vg-pool-tpool"]) == 0
    assert "was given back" in capsys.readouterr().out

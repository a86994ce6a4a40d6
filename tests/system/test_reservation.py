"""The metadata snapshot: there is only one, so it is taken and given back in order, and nobody else's is touched."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lvmsync.errors import ChangesLost, CommandError, ConflictError, DeviceError
from lvmsync.formats.thin import parse_pool_status
from lvmsync.system import dm, reservation
from lvmsync.system.reservation import Tracker, find_held, read_held, release, reserve
from tests.fake_pool import FakePool, is_locked, notes
from tests.fixture_files import find_case
from tests.sources.loops import loop_of
from tests.test_layers import ROOT

HELD = 106  # the block of the metadata snapshot in the recorded image
TRACKER = Tracker(
    "thin-pool",
    "reserve_metadata_snap",
    "release_metadata_snap",
    lambda text, name: parse_pool_status(text, name).held_root,
)
TAKEN, GIVEN_BACK = "reserve_metadata_snap", "release_metadata_snap"


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LVMSYNC_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    (tmp_path / "misc").write_text("236 device-mapper\n")
    monkeypatch.setattr(dm, "MISC_DEVICES", tmp_path / "misc")
    return tmp_path / "state"


@pytest.fixture
def pool(tmp_path: Path, state: Path) -> Iterator[FakePool]:
    image = find_case("thin", "c64k-basic").image("meta-reserved.img", tmp_path)
    with loop_of(image) as metadata:
        yield FakePool(tmp_path, metadata, HELD)


def device() -> dm.Mapped:
    return dm.list_devices()[0]


def take(purpose: str = "a test") -> None:
    """Take it and give it back."""
    with reserve(device(), TRACKER, purpose):
        pass


def leave_behind(pool: FakePool, state: Path) -> dict[str, object]:
    """Let a run die while it has the metadata snapshot, and return its note."""
    with reserve(device(), TRACKER, "a run that died"):
        (note,) = notes(state)
    pool.hold(HELD)
    (path,) = (state / "reservations").glob("*.lock")
    path.with_suffix(".json").write_text(json.dumps(note))
    (pool.folder / "calls").unlink()
    return note


def test_it_is_noted_then_taken_and_given_back_under_a_lock(pool: FakePool, state: Path) -> None:
    pool.put("on-reserve", f"say $(cat {shlex.quote(str(state))}/reservations/*.json)")
    with reserve(device(), TRACKER, "send vg/monday") as found:
        assert (found.root, found.notes) == (HELD, ())
        assert "106 rw" in found.status
        (note,) = notes(state)
        assert (note["root"], note["pid"], note["purpose"]) == (HELD, os.getpid(), "send vg/monday")
        assert pool.held == str(HELD)
        assert is_locked(state)
    taken, before, given = pool.messages()
    assert (taken, given) == (TAKEN, GIVEN_BACK)
    assert json.loads(before)["root"] is None  # the note was there before the metadata snapshot
    assert (pool.held, notes(state)) == ("-", [])
    assert not is_locked(state)


def test_it_is_given_back_after_an_error(pool: FakePool, state: Path) -> None:
    with pytest.raises(ZeroDivisionError), reserve(device(), TRACKER, "x"):
        raise ZeroDivisionError
    assert (pool.messages(), pool.held, notes(state)) == ([TAKEN, GIVEN_BACK], "-", [])


def test_an_error_keeps_its_own_words_when_it_cannot_be_given_back(pool: FakePool) -> None:
    pool.put("on-release", "echo No such device or address >refusal; cat refusal >&2; exit 1")
    with pytest.raises(ZeroDivisionError) as caught, reserve(device(), TRACKER, "x"):
        raise ZeroDivisionError
    assert "could not be given back" in caught.value.__notes__[0]
    assert "lvmsync cleanup" in caught.value.__notes__[0]


def test_another_programs_is_not_touched(pool: FakePool, state: Path) -> None:
    pool.hold(77)
    with pytest.raises(ConflictError, match="by another program") as caught:
        take()
    assert "'lvmsync cleanup --release vg-pool-tpool'" in str(caught.value)
    assert (pool.messages(), pool.held, notes(state)) == ([], "77", [])


def test_one_that_is_taken_at_the_same_moment_is_not_touched(pool: FakePool, state: Path) -> None:
    pool.put("on-reserve", "echo 77 >held")
    with pytest.raises(ConflictError, match="another program has just taken the metadata snapshot"):
        take()
    assert (pool.messages(), pool.held, notes(state)) == ([TAKEN], "77", [])


def test_a_refusal_of_the_kernel_is_told_and_leaves_no_note(pool: FakePool, state: Path) -> None:
    pool.put("refusal", "message ioctl failed: No space left on device")
    with pytest.raises(CommandError, match="No space left on device"):
        take()
    assert (pool.held, notes(state)) == ("-", [])


def test_it_is_given_back_when_its_note_cannot_be_finished(pool: FakePool, state: Path) -> None:
    pool.put("root", "999999\n")  # a block that is not there: what it holds cannot be noted
    with pytest.raises(DeviceError):
        take()
    assert (pool.messages(), pool.held, notes(state)) == ([TAKEN, GIVEN_BACK], "-", [])


def test_a_message_that_did_nothing_is_noticed(pool: FakePool, state: Path) -> None:
    pool.put("root", "-\n")
    with pytest.raises(DeviceError, match="no metadata snapshot, though it was taken just now"):
        take()
    assert notes(state) == []


def test_what_a_dead_run_of_ours_left_is_given_back_and_told(pool: FakePool, state: Path) -> None:
    leave_behind(pool, state)
    with reserve(device(), TRACKER, "the next") as found:
        assert len(found.notes) == 1
        assert "a run that died" in found.notes[0]
        assert "was given back now" in found.notes[0]
    assert pool.messages() == [GIVEN_BACK, TAKEN, GIVEN_BACK]
    assert (pool.held, notes(state)) == ("-", [])


@pytest.mark.parametrize(
    "change",
    [{"root": None, "content": None}, {"root": HELD + 1}, {"content": "0" * 64}, {"content": None}, {"bogus": 1}],
)
def test_one_that_may_be_another_programs_is_not_given_back(
    pool: FakePool, state: Path, change: dict[str, object]
) -> None:
    note = leave_behind(pool, state)
    (path,) = (state / "reservations").glob("*.json")
    path.write_text(json.dumps(note | change))
    with pytest.raises(ConflictError, match="there can be only one"):
        take()
    assert (pool.messages(), pool.held) == ([], str(HELD))


def test_a_note_without_a_metadata_snapshot_is_of_no_weight(pool: FakePool, state: Path) -> None:
    leave_behind(pool, state)
    pool.put("held", "-\n")
    take()
    assert pool.messages() == [TAKEN, GIVEN_BACK]
    assert notes(state) == []


@pytest.mark.parametrize("now", ["-", "77"])
def test_one_that_another_program_gave_back_meanwhile_makes_what_was_read_worthless(
    pool: FakePool, state: Path, now: str
) -> None:
    with pytest.raises(ConflictError, match="another program gave it back meanwhile") as caught:  # noqa: SIM117
        with reserve(device(), TRACKER, "x"):
            pool.put("held", now + "\n")
    assert "run this again" in str(caught.value)
    assert (pool.messages(), pool.held, notes(state)) == ([TAKEN], now, [])


def test_a_second_run_waits_for_the_lock_and_then_says_who_has_it(
    pool: FakePool, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reservation, "LOCK_TRIES", 3)
    monkeypatch.setattr(reservation, "LOCK_WAIT", 0.001)
    with reserve(device(), TRACKER, "the first"):
        with pytest.raises(ConflictError, match=rf"lvmsync process {os.getpid()} \(the first, "):
            take("the second")
        assert pool.held == str(HELD)
    assert pool.messages() == [TAKEN, GIVEN_BACK]
    take("the third")


def test_a_run_whose_predecessor_ends_while_it_waits_goes_on(
    pool: FakePool, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = reserve(device(), TRACKER, "the first")
    first.__enter__()
    waiting = [first]

    def end(_: float) -> None:
        if waiting:
            waiting.pop().__exit__(None, None, None)

    monkeypatch.setattr(time, "sleep", end)
    take("the second")
    assert pool.messages() == [TAKEN, GIVEN_BACK] * 2


def test_a_state_folder_that_cannot_be_used_stops_before_anything_is_taken(pool: FakePool, state: Path) -> None:
    state.write_text("a file")
    with pytest.raises(DeviceError, match="cannot use the state folder"):
        take()
    assert not (pool.folder / "calls").exists() or pool.messages() == []


@pytest.mark.parametrize("word", ["Fail", "Error"])
def test_a_pool_that_has_failed_is_told(pool: FakePool, word: str) -> None:
    pool.put("status", f"0 32768 thin-pool {word}\n")
    with pytest.raises(ChangesLost, match="has failed"):
        take()


@pytest.mark.parametrize("status", ["", "0 32768 linear \n", "0 8 thin-pool Fail\n8 8 linear \n"])
def test_a_device_that_became_another_is_told(pool: FakePool, status: str) -> None:
    pool.put("status", status)
    with pytest.raises(CommandError, match="changed or removed meanwhile"):
        read_held(device(), TRACKER)


def test_what_is_held_is_found_with_its_owner_and_released_on_demand(pool: FakePool, state: Path) -> None:
    assert find_held(TRACKER) == []
    leave_behind(pool, state)
    (held,) = find_held(TRACKER)
    assert (held.root, held.is_ours, held.is_running) == (HELD, True, False)
    release(held, TRACKER)
    assert (pool.messages(), pool.held, notes(state)) == ([GIVEN_BACK], "-", [])
    pool.hold(77)
    with pytest.raises(ConflictError, match=r"block 77, not 106"):
        release(held, TRACKER)
    pool.put("held", "-\n")
    with reserve(device(), TRACKER, "running"):
        (held,) = find_held(TRACKER)
        assert held.is_running


_CHILD = """
import sys, time
from pathlib import Path
from lvmsync.system import dm
from tests.system.test_reservation import TRACKER
from lvmsync.system.reservation import reserve
dm.MISC_DEVICES = Path(sys.argv[1])
import signal
def stop(number, frame):
    raise KeyboardInterrupt
for one in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(one, stop)
try:
    with reserve(dm.list_devices()[0], TRACKER, "child"):
        print("inside", flush=True)
        time.sleep(60)
except KeyboardInterrupt:
    sys.exit(77)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("moment", ["on-reserve", "on-release", "inside"])
def test_a_signal_at_any_moment_leaves_nothing_behind(
    pool: FakePool, state: Path, tmp_path: Path, number: signal.Signals, moment: str
) -> None:
    if moment != "inside":  # the fake dmsetup itself sends it, while the message is on its way
        pool.put(moment, f"kill -{int(number)} $PPID; sleep 0.05")
    words = [sys.executable, "-c", _CHILD, str(tmp_path / "misc")]
    with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        if moment != "on-reserve":
            assert child.stdout.readline() == "inside\n"
            child.send_signal(number if moment == "inside" else signal.SIGINT)
        child.wait(30)
    assert child.returncode == 77
    assert pool.messages() == [TAKEN, GIVEN_BACK]
    assert (pool.held, notes(state)) == ("-", [])

"""What `recover` finds after a crash, does about it, and refuses."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lvmsync.errors import ConflictError, DeviceError, LvmsyncError, VerifyError
from lvmsync.jobs import transaction
from lvmsync.jobs.progress import Receipt, ignore
from lvmsync.jobs.receive import ReceiveOptions, receive
from lvmsync.jobs.recover import recover
from lvmsync.stream.checks import ENTRY_SIZE
from lvmsync.stream.frames import Frame, Header
from tests import fakes
from tests.fakes import MARK, Crash, Disk, Step, change, data, reader, zero

SIZE = 16384
OLD = random.Random(11).randbytes(SIZE)
FRAMES: list[Frame] = [
    data((0, b"first" * 100)),
    MARK,
    data((4096, b"second" * 100)),
    zero((8192, 700)),
    data((12288, b"third" * 100)),
]
NEW = change(OLD, FRAMES)
STREAM = fakes.encode(FRAMES, Header(size=SIZE))


class Place:
    """A target on a disk of its own, left by a crash."""

    def __init__(self, folder: Path) -> None:
        self.disk = Disk(folder / "disk")
        self.target = self.disk.root / "target.img"
        self.state = self.disk.root / "state"
        self.target.write_bytes(OLD)

    def crash(self, when: Callable[[Step], bool], **options: Any) -> None:
        """Receive, and die before the first step that ``when`` chooses."""
        dead = False

        def die(_: int, step: Step) -> None:
            nonlocal dead
            dead = dead or when(step)
            if dead:
                raise Crash

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(transaction, "WINDOW", 1)
            with self.disk.recorded(die), pytest.raises(Crash):
                receive(reader(STREAM), ReceiveOptions(str(self.target), self.state, **options), ignore)

    def crash_in_the_middle(self, **options: Any) -> None:
        """Die when the target is half changed, and its undo has begun to save a piece more."""
        inode = self.target.stat().st_ino
        self.crash(lambda step: step.file == inode and step.offset == 12288, **options)
        assert self.target.read_bytes() not in (OLD, NEW)

    def recover(self, **options: bool) -> Receipt:
        return recover(str(self.target), self.state, ignore, **options)

    def find(self, pattern: str) -> Path:
        (path,) = self.state.rglob(pattern)
        return path

    def record(self) -> dict[str, Any]:
        record: dict[str, Any] = json.loads(self.find("record.json").read_text())
        return record


@pytest.fixture
def place(fast_path: Path) -> Place:
    return Place(fast_path)


def test_there_may_be_nothing_to_recover(place: Place) -> None:
    assert "nothing to recover" in place.recover().notes[0]
    receive(reader(STREAM), ReceiveOptions(str(place.target), place.state), ignore)
    for options in ({}, {"accept": True}, {"back": True}):
        assert "nothing to recover" in place.recover(**options).notes[0]
    assert place.target.read_bytes() == NEW


@pytest.mark.parametrize("options", [{}, {"accept": True}, {"back": True}], ids=str)
def test_what_was_half_changed_is_rolled_back(place: Place, options: dict[str, bool]) -> None:
    """Where there is a way back, --accept does not throw it away."""
    place.crash_in_the_middle()
    assert "rolled back" in place.recover(**options).notes[0]
    assert place.target.read_bytes() == OLD
    assert not list(place.state.rglob("*.undo*"))


def test_the_target_stays_at_its_point_when_it_is_rolled_back(place: Place) -> None:
    receive(
        reader(fakes.encode([data((5, b"x"))], Header(size=SIZE))),
        ReceiveOptions(str(place.target), place.state),
        ignore,
    )
    point = place.record()["point"]
    place.crash_in_the_middle()
    receipt = place.recover()
    assert place.record()["point"] == point
    assert receipt.point == point["id"]


def is_staged(place: Place) -> Callable[[Step], bool]:
    """Tell the step that makes the undo file of a staged stream."""
    return lambda step: step.kind == "link" and step.name.endswith(".undo-check")


@pytest.mark.parametrize("moment", ["staged", "applying"])
def test_a_staged_stream_is_finished(place: Place, moment: str, fast_path: Path) -> None:
    if moment == "staged":
        place.crash(is_staged(place), atomic=True)
        assert place.target.read_bytes() == OLD
    else:
        place.crash_in_the_middle(atomic=True)
    assert "rolled forward" in place.recover().notes[0]
    assert place.target.read_bytes() == NEW
    assert place.record()["transaction"] is None
    assert place.record()["point"]["id"].startswith("state:")


@pytest.mark.parametrize("moment", ["staged", "applying"])
def test_a_staged_stream_is_taken_back_if_that_is_asked_for(place: Place, moment: str) -> None:
    if moment == "staged":
        place.crash(is_staged(place), atomic=True)
    else:
        place.crash_in_the_middle(atomic=True)
    assert "rolled back" in place.recover(back=True).notes[0]
    assert place.target.read_bytes() == OLD
    assert not list(place.state.rglob("*.spool*"))


def test_a_half_staged_stream_is_dropped(place: Place) -> None:
    place.crash(lambda step: step.kind == "write" and len(step.data) == 600, atomic=True)
    assert place.record()["transaction"]["phase"] == "staging"
    assert "rolled back" in place.recover().notes[0]
    assert place.target.read_bytes() == OLD
    assert not list(place.state.rglob("*.spool*"))


def test_a_staged_stream_that_is_finished_keeps_its_snapback(place: Place, fast_path: Path) -> None:
    kept = place.disk.root / "kept"
    place.crash_in_the_middle(atomic=True, snapback=kept)
    assert "rolled forward" in place.recover().notes[0]
    assert place.target.read_bytes() == NEW
    receive(reader(kept.read_bytes()), ReceiveOptions(str(place.target), place.state), ignore)
    assert place.target.read_bytes() == OLD


def test_without_an_undo_there_is_no_way_back_but_the_users_word(place: Place) -> None:
    whole = fakes.encode([data((0, OLD[:1]))], Header(size=SIZE))
    receive(reader(whole), ReceiveOptions(str(place.target), place.state), ignore)
    assert place.record()["point"]
    place.crash_in_the_middle(undo=False)
    half = place.target.read_bytes()
    with pytest.raises(VerifyError, match="without an undo") as caught:
        place.recover()
    assert caught.value.exit_code == 9
    with pytest.raises(VerifyError):
        place.recover(back=True)
    assert "on your word" in place.recover(accept=True).notes[0]
    assert place.target.read_bytes() == half
    assert place.record()["transaction"] is None
    assert place.record()["point"] is None  # which state it is in, nobody knows


@pytest.mark.parametrize("options", [{}, {"atomic": True}, {"undo": False}, {"dry_run": True}], ids=str)
def test_a_new_receive_leaves_an_unfinished_transaction_to_recover(place: Place, options: dict[str, bool]) -> None:
    """Nor does it roll back on its way out what is not its own."""
    place.crash_in_the_middle()
    half, record = place.target.read_bytes(), place.record()
    chosen = replace(ReceiveOptions(str(place.target), place.state), **options)  # type: ignore[arg-type]
    with pytest.raises(ConflictError, match="lvmsync recover"):
        receive(reader(STREAM), chosen, ignore)
    assert place.target.read_bytes() == half
    assert place.record() == record
    place.recover()
    assert place.target.read_bytes() == OLD


def test_a_target_that_is_gone_cannot_be_recovered(place: Place) -> None:
    place.crash_in_the_middle()
    place.target.rename(place.disk.root / "elsewhere.img")
    with pytest.raises(DeviceError, match="no such"):
        place.recover()
    assert place.record()["transaction"]
    (place.disk.root / "elsewhere.img").rename(place.target)
    place.recover()
    assert place.target.read_bytes() == OLD


def test_a_file_that_was_half_made_is_removed(place: Place) -> None:
    place.target.unlink()
    place.crash(lambda step: step.kind == "write" and step.offset == 12288, create=True)
    assert place.target.stat().st_size == SIZE
    assert "rolled back" in place.recover().notes[0]
    assert not place.target.exists()
    with pytest.raises(DeviceError):
        place.recover()


def test_a_half_made_file_that_is_gone_is_forgotten(place: Place) -> None:
    place.target.unlink()
    place.crash(lambda step: step.kind == "write" and step.offset == 12288, create=True)
    place.target.unlink()
    assert "not made" in place.recover().notes[0]
    assert place.record()["transaction"] is None


def test_any_damaged_byte_of_the_undo_that_counts_is_found_before_anything_is_written(place: Place) -> None:
    place.crash_in_the_middle()
    undo, check = place.find("*.undo"), place.find("*.undo-check")
    half, good = place.target.read_bytes(), undo.read_bytes()
    counts = int.from_bytes(check.read_bytes()[-ENTRY_SIZE:][:8], "little")
    assert 0 < counts <= len(good)
    for at in range(counts):
        bad = bytearray(good)
        bad[at] ^= 1 << at % 8
        undo.write_bytes(bad)
        with pytest.raises(VerifyError) as caught:
            place.recover()
        assert caught.value.exit_code == 9
        assert place.target.read_bytes() == half, at
    for length in range(0, counts, 50):
        undo.write_bytes(good[:length])
        with pytest.raises(VerifyError):
            place.recover()
        assert place.target.read_bytes() == half
    assert place.record()["transaction"]["phase"] == "applying"
    undo.write_bytes(good)
    place.recover()
    assert place.target.read_bytes() == OLD


def test_any_damaged_byte_of_the_check_is_found_before_anything_is_written(place: Place) -> None:
    place.crash_in_the_middle()
    check = place.find("*.undo-check")
    half, good = place.target.read_bytes(), check.read_bytes()
    assert len(good) >= 3 * ENTRY_SIZE
    for at in range(len(good)):
        bad = bytearray(good)
        bad[at] ^= 1 << at % 8
        check.write_bytes(bad)
        with pytest.raises(VerifyError):
            place.recover()
        assert place.target.read_bytes() == half, at
    for bad_check in (b"", b"\0" * 31, bytes(ENTRY_SIZE), bytes(len(good))):
        check.write_bytes(bad_check)
        with pytest.raises(VerifyError, match="empty"):
            place.recover()
        assert place.target.read_bytes() == half
    check.write_bytes(good)
    place.recover()
    assert place.target.read_bytes() == OLD


@pytest.mark.parametrize("name", ["*.undo", "*.undo-check", "*.spool", "*.spool-check"])
def test_a_missing_file_of_the_transaction_is_refused(place: Place, name: str) -> None:
    place.crash_in_the_middle(atomic="spool" in name)
    half = place.target.read_bytes()
    path = place.find(name)
    path.rename(path.with_name("elsewhere"))
    with pytest.raises(LvmsyncError) as caught:
        place.recover()
    assert place.target.read_bytes() == (OLD if "spool" in name else half)
    path.with_name("elsewhere").rename(path)
    place.recover(back=True)
    assert place.target.read_bytes() == OLD
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("tail", [b"\0", bytes(1000), b"\xff" * 31, b"\x17" * 5000])
def test_what_is_torn_behind_the_last_window_of_the_undo_is_ignored(place: Place, tail: bytes) -> None:
    place.crash_in_the_middle()
    with place.find("*.undo").open("ab") as file:
        file.write(tail)
    place.recover()
    assert place.target.read_bytes() == OLD


@pytest.mark.parametrize("tail", [b"\x05", bytes(16), bytes(ENTRY_SIZE), b"\xff" * (ENTRY_SIZE - 1)])
def test_what_is_torn_at_the_end_of_the_check_is_ignored(place: Place, tail: bytes) -> None:
    place.crash_in_the_middle()
    with place.find("*.undo-check").open("ab") as file:
        file.write(tail)
    place.recover()
    assert place.target.read_bytes() == OLD


@pytest.mark.parametrize("kind", ["spool", "spool-check"])
def test_a_damaged_spool_is_never_applied(place: Place, kind: str) -> None:
    place.crash(is_staged(place), atomic=True)
    spool = place.find(f"*.{kind}")
    good = spool.read_bytes()
    for at in range(0, len(good), 7):
        bad = bytearray(good)
        bad[at] ^= 1 << at % 8
        spool.write_bytes(bad)
        with pytest.raises(VerifyError):
            place.recover()
        assert place.target.read_bytes() == OLD
    place.recover(back=True)
    assert place.target.read_bytes() == OLD
    assert place.record()["transaction"] is None


def test_a_snapback_of_an_unfinished_transaction_is_no_stream(place: Place, fast_path: Path) -> None:
    kept = place.disk.root / "kept"
    place.crash_in_the_middle(snapback=kept)
    copy = fast_path / "copy.img"
    shutil.copyfile(place.target, copy)
    half = copy.read_bytes()
    with pytest.raises(LvmsyncError) as caught:
        receive(reader(kept.read_bytes()), ReceiveOptions(str(copy), place.state), ignore)
    assert caught.value.exit_code == 6
    assert copy.read_bytes() == half
    place.recover()
    assert place.target.read_bytes() == OLD
    assert not kept.exists()


def test_recover_of_a_damaged_target_file_is_told_as_it_is(place: Place) -> None:
    place.target.unlink()
    place.target.mkdir()
    with pytest.raises(DeviceError, match="directory"):
        place.recover()

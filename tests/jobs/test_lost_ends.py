"""Ways back and forward that are not whole: what is missing is never taken for what never was, nor half for done."""

from __future__ import annotations

import errno
import itertools
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from lvmsync.errors import ConflictError, DeviceError, LvmsyncError, VerifyError
from lvmsync.jobs import receive as receiving
from lvmsync.jobs.transaction import Transaction
from lvmsync.jobs.way_back import find_place
from lvmsync.stream.checks import ENTRY_SIZE, parse_windows
from lvmsync.stream.frames import Changes
from lvmsync.system import ledger
from lvmsync.targets.block import BlockTarget
from tests.fakes import Memory
from tests.jobs.test_resume import BASE, BLOCK, Pair, pair

__all__ = ["pair"]


class Killed(BaseException):
    pass


def find(pair: Pair, pattern: str) -> Path:
    (path,) = pair.state.rglob(pattern)
    return path


def kill(pair: Pair, monkeypatch: pytest.MonkeyPatch, stream: bytes, length: int) -> None:
    """Receive a stream, and die when ``length`` bytes of it have come."""

    def die(job: object, transaction: Transaction, error: BaseException) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(receiving._Job, "_end_badly", die)
        with pytest.raises(Killed):
            pair.receive(stream[:length])


def lose_entries(check: Path, count: int) -> None:
    """Take entries from the end of a check file, and all that they count from the file that it is the check of."""
    os.truncate(check, check.stat().st_size // ENTRY_SIZE * ENTRY_SIZE - count * ENTRY_SIZE)
    left = parse_windows(check.read_bytes())
    os.truncate(check.with_name(check.name.removesuffix("-check")), left[-1].end)


@pytest.mark.parametrize("ends", ["stopped", "killed"])
@pytest.mark.parametrize("lost", [1, 2, 5])
def test_an_undo_whose_end_is_lost_brings_nothing_back_and_is_not_gone_on_with(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, ends: str, lost: int
) -> None:
    stream = pair.stream()
    if ends == "stopped":
        pair.cut(stream, len(stream) // 2)
    else:
        kill(pair, monkeypatch, stream, len(stream) // 2)
    half = pair.target.read_bytes()
    lose_entries(find(pair, "*.undo-check"), lost)

    for attempt in (pair.recover, lambda: pair.receive(pair.stream()), pair.recover):
        with pytest.raises(VerifyError, match=r"undo-check has lost its end: it counts \d+ bytes .* and \d+ were"):
            attempt()
        assert pair.target.read_bytes() == half
        assert pair.stand().transaction


def test_one_that_was_gone_on_with_is_held_to_its_new_end(pair: Pair) -> None:
    for part in (3, 2):
        stream = pair.stream()
        pair.cut(stream, len(stream) // part)
    half = pair.target.read_bytes()
    lose_entries(find(pair, "*.undo-check"), 1)

    with pytest.raises(VerifyError, match="has lost its end"):
        pair.recover()

    assert pair.target.read_bytes() == half


def test_what_the_last_mark_saw_is_held_to_after_a_power_cut(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    stream, marks, mark = pair.stream(), itertools.count(), Transaction._mark
    monkeypatch.setattr(Transaction, "_mark", lambda job, frame: None if next(marks) > 1 else mark(job, frame))
    kill(pair, monkeypatch, stream, len(stream) * 3 // 4)
    find(pair, "*.progress").unlink()  # it counts no more than if it were not there
    target = ledger.peek_record(pair.state, str(pair.target), None, 0)[0]
    assert target.transaction
    check = find(pair, "*.undo-check")
    windows = parse_windows(check.read_bytes())
    behind = sum(window.end > target.transaction.undo_size for window in windows)
    assert 0 < target.transaction.undo_size < windows[-1].end
    lose_entries(check, behind + 1)

    with pytest.raises(VerifyError, match="has lost its end"):
        pair.recover()


def test_the_undo_of_what_is_prepared_is_held_to_its_whole_length(pair: Pair) -> None:
    pair.receive(pair.stream(), prepare=True, group="00ff")
    new = pair.target.read_bytes()
    lose_entries(find(pair, "*.undo-check"), 1)  # the END alone

    with pytest.raises(VerifyError, match="has lost its end"):
        pair.recover()

    assert pair.target.read_bytes() == new == pair.new


def test_a_spool_whose_end_is_lost_is_not_taken_for_the_whole(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Transaction, "start", die)
        patch.setattr(receiving._Job, "_end_badly", die)
        with pytest.raises(Killed):
            pair.receive(pair.stream(), atomic=True)
    lose_entries(find(pair, "*.spool-check"), 2)

    with pytest.raises(VerifyError, match="spool-check has lost its end"):
        pair.recover()

    assert pair.target.read_bytes() == pair.old
    assert "as it was" in pair.recover(back=True)


def test_the_noted_length_is_never_more_than_what_is_durable(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever it is cut, what is noted lies within what the check counts, so nothing is refused that is whole."""
    whole = len(pair.stream())
    for length in range(2 * BLOCK, whole, 7 * BLOCK):
        stream = pair.stream()
        with pytest.raises(LvmsyncError):
            pair.receive(stream[: min(length, len(stream) - 1)])
        record, folder, _ = ledger.peek_record(pair.state, str(pair.target), None, 0)
        assert record.transaction
        counted = parse_windows(find(pair, "*.undo-check").read_bytes())[-1].end
        assert find_place(record, folder, "") == (record.transaction.offset, record.transaction.undo_size)
        assert record.transaction.undo_size <= counted
    assert pair.recover() == "rolled back: the target is as it was"
    assert pair.target.read_bytes() == pair.old


def test_a_place_with_too_little_room_to_go_on_says_what_is_there_and_what_to_do(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = pair.stream()
    pair.cut(stream, len(stream) // 2)
    half = pair.target.read_bytes()
    room = SimpleNamespace(f_bavail=1, f_frsize=4096)
    with monkeypatch.context() as patch:
        patch.setattr("lvmsync.jobs.transaction.os.statvfs", lambda folder: room)
        with pytest.raises(DeviceError) as caught:
            pair.receive(pair.stream(), pool_limit=100)
    assert str(caught.value).endswith("are needed; make room, and run the same sync again to go on")
    assert pair.target.read_bytes() == half
    pair.receive(pair.stream())
    assert pair.target.read_bytes() == pair.new


@pytest.mark.parametrize("left", [0, 70, 140], ids="{} KiB left".format)
@pytest.mark.parametrize("kept", [False, True], ids=["undo", "snapback"])
def test_without_room_for_its_end_a_transaction_is_not_begun(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, left: int, kept: bool
) -> None:
    """The disk has room for the undo's beginning, and not for the ledger's reserve, or not for the record as well."""
    room = left << 10

    def allocate(fd: int, offset: int, length: int) -> None:
        nonlocal room
        if length > room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        room -= length

    def write(path: Path, text: str) -> None:
        nonlocal room
        if (path.parent / "reserve").exists() and len(text) > room - (12 << 10):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        original(path, text)

    original = ledger.replace_file
    back = pair.target.parent / "back"
    stream = pair.stream()
    with monkeypatch.context() as patch:
        patch.setattr("lvmsync.system.ledger.os.posix_fallocate", allocate)
        patch.setattr(ledger, "replace_file", write)
        with pytest.raises(DeviceError, match=r"cannot write the ledger in .*: No space left.*; make room there"):
            pair.receive(stream, snapback=back if kept else None)

    assert pair.target.read_bytes() == pair.old
    assert not back.exists()
    assert pair.stand().transaction is None
    assert {path.name for path in pair.state.rglob("*") if path.is_file()} <= {"lock", "reserve", "record.json"}


@pytest.mark.parametrize("name", ["*.undo", "*.undo-check"])
@pytest.mark.parametrize("way", ["accept", "give_up"])
def test_a_target_whose_way_back_is_gone_can_be_taken_as_it_is_or_given_up(pair: Pair, name: str, way: str) -> None:
    stream = pair.stream()
    pair.cut(stream, len(stream) // 2)
    find(pair, name).unlink()
    half = pair.target.read_bytes()
    with pytest.raises(DeviceError, match="is gone, and without it the target cannot be brought back"):
        pair.recover()

    assert pair.recover(**{way: True}).startswith("taken as good" if way == "accept" else "given up")

    found = pair.stand()
    assert (found.transaction, found.point, found.dirty) == (None, None, way == "give_up")
    assert pair.target.read_bytes() == half
    assert pair.left() == []


def test_one_whose_undo_is_whole_goes_back_whatever_the_user_would_accept(pair: Pair) -> None:
    stream = pair.stream()
    pair.cut(stream, len(stream) // 2)
    assert pair.recover(accept=True) == "rolled back: the target is as it was"
    assert pair.target.read_bytes() == pair.old


@pytest.mark.parametrize("ends", ["stopped", "killed"])
def test_a_way_back_that_was_cut_off_is_not_gone_on_from_and_is_nobody_elses_writing(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, ends: str
) -> None:
    stream = pair.stream()
    if ends == "stopped":
        pair.cut(stream, len(stream) // 2)
    else:
        kill(pair, monkeypatch, stream, len(stream) // 2)
    place = pair.place()
    written = BlockTarget.write
    left = 2

    def write(target: BlockTarget, batch: Sequence[Changes]) -> None:
        nonlocal left
        if not left:
            raise Killed
        left -= 1
        written(target, batch)

    with monkeypatch.context() as patch:
        patch.setattr(BlockTarget, "write", write)
        with pytest.raises(Killed):
            pair.recover()
    assert not pair.unfinished().resumable
    with monkeypatch.context() as patch:
        patch.setattr(pair, "place", lambda: place)
        with pytest.raises(ConflictError, match="cannot be gone on with: run 'lvmsync recover"):
            pair.receive(pair.stream())

    assert pair.recover() == "rolled back: the target is as it was"

    assert pair.target.read_bytes() == pair.old
    pair.receive(pair.stream())
    assert pair.target.read_bytes() == pair.new


def test_what_somebody_wrote_is_told_also_after_a_way_back_that_was_cut_off(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = pair.stream()
    pair.cut(stream, len(stream) // 2)
    pair.target.write_bytes(pair.target.read_bytes())

    def write(target: BlockTarget, batch: Sequence[Changes]) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(BlockTarget, "write", write)
        with pytest.raises(Killed):
            pair.recover()
    with pytest.raises(VerifyError, match="somebody else wrote to it meanwhile"):
        pair.recover()
    assert pair.target.read_bytes() == pair.old
    assert pair.stand().point is None


def test_a_staged_stream_is_not_applied_to_what_somebody_else_wrote(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: object) -> None:
        raise Killed

    pair.receive(pair.stream(replace(pair.whole, head=BASE, data=Memory(pair.old))))  # from here on all is known
    with monkeypatch.context() as patch:
        patch.setattr(Transaction, "start", die)
        patch.setattr(receiving._Job, "_end_badly", die)
        with pytest.raises(Killed):
            pair.receive(pair.stream(), atomic=True)
    theirs = bytes(len(pair.old))
    pair.target.write_bytes(theirs)

    with pytest.raises(ConflictError, match=r"written to since the stream of .* was staged.*recover --back"):
        pair.recover()

    assert "rolled back" in pair.recover(back=True)
    assert pair.target.read_bytes() == theirs
    assert pair.stand().written == "yes"


@pytest.mark.parametrize("resumable", [True, False])
def test_a_target_that_was_made_smaller_is_not_called_old(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, *, resumable: bool
) -> None:
    stream = pair.stream()
    with monkeypatch.context() as patch:
        patch.setattr(receiving._Job, "_end_badly", lambda *_: None)
        with pytest.raises(LvmsyncError):
            pair.receive(stream[: len(stream) * 3 // 4], resumable=resumable)
    os.truncate(pair.target, len(pair.old) // 4)
    half = pair.target.read_bytes()

    with pytest.raises(VerifyError, match=f"had {len(pair.old)} bytes when .* and has {len(pair.old) // 4} now"):
        pair.recover()
    assert pair.target.read_bytes() == half

    assert "on your word" in pair.recover(accept=True)
    assert pair.stand().point is None

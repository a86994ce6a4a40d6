"""What the ledger knows of a target, and what it refuses because of that."""

from __future__ import annotations

import fcntl
import json
import os
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lvmsync.errors import ConflictError, FormatError, StreamError
from lvmsync.history import Point
from lvmsync.jobs.progress import Receipt, ignore
from lvmsync.jobs.receive import ReceiveOptions, receive
from lvmsync.jobs.recover import recover
from lvmsync.stream.frames import Header
from lvmsync.system import ioctl
from tests import fakes
from tests.fakes import data, reader

SIZE = 8192
OLD = random.Random(7).randbytes(SIZE)


class Place:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.target = folder / "target.img"
        self.state = folder / "state"
        self.target.write_bytes(OLD)

    def receive(self, stream: bytes, **options: Any) -> Receipt:
        return receive(reader(stream), replace(ReceiveOptions(str(self.target), self.state), **options), ignore)

    def step(self, number: int) -> bytes:
        """Return the delta from point ``number`` to the next."""
        header = Header(size=SIZE, base=Point(f"point:{number}"), head=Point(f"point:{number + 1}", f"point:{number}"))
        return fakes.encode([data((number * 512, bytes([number + 1]) * 700))], header)

    @property
    def record_path(self) -> Path:
        (path,) = self.state.rglob("record.json")
        return path

    def record(self) -> dict[str, Any]:
        record: dict[str, Any] = json.loads(self.record_path.read_text())
        return record


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_points_form_a_chain(place: Place) -> None:
    first = place.receive(place.step(0), snapback=place.folder / "back1")
    assert any("is your word" in note for note in first.notes)
    assert first.point == "point:1"
    second = place.receive(place.step(1), snapback=place.folder / "back2")
    assert not second.notes
    assert place.record()["point"] == {"id": "point:2", "parent": "point:1", "time": None}
    assert place.record()["transaction"] is None
    for number, name in ((1, "back2"), (0, "back1")):
        back = place.receive((place.folder / name).read_bytes())
        assert back.point == f"point:{number}"
        assert not back.notes
    assert place.target.read_bytes() == OLD


def test_streams_without_points_get_points_of_their_own(place: Place) -> None:
    plain = fakes.encode([data((0, b"new"))], version=3)
    first = place.receive(plain)
    second = place.receive(plain)
    assert first.point
    assert second.point
    assert first.point != second.point
    assert place.record()["point"]["parent"] == first.point


def delta(source: str, base: str, head: str = "new", **more: Any) -> bytes:
    header = Header(size=SIZE, source=source, base=Point(base), head=Point(head, base), **more)
    return fakes.encode([data((0, b"x"))], header)


@pytest.mark.parametrize(
    ("source", "base", "more", "is_taken"),
    [
        # a target that is one delta behind the base
        ("snapshot", "old", {}, True),  # exceptions only grow: the second delta holds the first
        ("snapshot", "old", {"minimal": True}, False),  # what came and went is not in it
        ("thin", "old", {}, False),  # what was mapped and is unmapped again is not in it
        ("thin", "old", {"minimal": True}, False),
        # at the base, and at quite another point
        ("thin", "point", {"minimal": True}, True),
        ("thin", "other", {}, False),
        ("snapshot", "other", {"minimal": True}, False),
    ],
)
def test_a_delta_that_does_not_lead_from_the_targets_point_is_refused(
    place: Place, source: str, base: str, more: dict[str, Any], is_taken: bool
) -> None:
    place.receive(delta("snapshot", "old", "point"))
    before = place.target.read_bytes()
    again = delta(source, base, **more)
    if is_taken:
        assert place.receive(again).notes == []
        return
    with pytest.raises(ConflictError, match="is at point point, and the stream starts from") as caught:
        place.receive(again)
    assert caught.value.exit_code == 8
    assert place.target.read_bytes() == before
    assert any("is your word" in note for note in place.receive(again, ignore_base=True).notes)


def snapshots(*numbers: int) -> bytes:
    """Return the delta between two snapshots of LVM, each taken an hour after the one before."""
    base, head = (
        Point(f"lv:{number}", f"lv:{number - 1}", f"2026-01-01T{number:02}:00:00+00:00") for number in numbers
    )
    return fakes.encode(
        [data((0, b"x"))], Header(size=SIZE, source="snapshot", base=base, head=replace(head, parent=base.id))
    )


@pytest.mark.parametrize(
    ("base", "head", "is_taken"),
    [
        (3, 5, True),  # the target is at 5, from 3
        (3, 6, True),  # from its parent, and further
        (5, 6, True),
        (2, 6, True),  # more than it needs: the user's word
        (3, 4, False),  # back: what came between 4 and 5 would stay
        (2, 4, False),
        (6, 7, False),  # what came between 5 and 6 was never sent
    ],
)
def test_deltas_of_snapshots_are_not_skipped_nor_applied_out_of_order(
    place: Place, base: int, head: int, is_taken: bool
) -> None:
    place.receive(snapshots(3, 5))
    if is_taken:
        place.receive(snapshots(base, head))
        return
    before = place.target.read_bytes()
    with pytest.raises(ConflictError, match=f"is at point lv:5, and the stream starts from lv:{base}"):
        place.receive(snapshots(base, head))
    assert place.target.read_bytes() == before
    assert any("is your word" in note for note in place.receive(snapshots(base, head), ignore_base=True).notes)


@pytest.mark.parametrize("time", [None, "then", "2026-01-01T00:00:00"])
def test_snapshots_of_unknown_times_are_the_users_word(place: Place, time: str | None) -> None:
    place.receive(snapshots(3, 5))
    header = Header(size=SIZE, source="snapshot", base=Point("lv:6", None, time), head=Point("lv:7", "lv:6", time))
    assert any("is your word" in note for note in place.receive(fakes.encode([data((0, b"x"))], header)).notes)


@pytest.mark.parametrize("minimal", [False, True])
def test_what_a_full_copy_or_a_comparison_left_is_its_users_word(place: Place, minimal: bool) -> None:
    place.receive(delta("compare", "old", "state:1234"))
    assert any("is your word" in note for note in place.receive(delta("thin", "lv:a", minimal=minimal)).notes)


@pytest.mark.parametrize("at", ["state:1234", "lv:a"])
def test_what_starts_from_a_state_of_its_own_name_is_for_no_other_one(place: Place, at: str) -> None:
    """An archive exports such deltas: on another state they would make a mixture that is called by the head's name."""
    place.receive(delta("compare", "old", at))
    before = place.target.read_bytes()
    with pytest.raises(ConflictError, match=f"is at point {at}, and the stream starts from state:5678"):
        place.receive(delta("archive", "state:5678", "state:9", minimal=True))
    assert place.target.read_bytes() == before


@pytest.mark.parametrize("history", ["era:life", "dattobd:" + "ab" * 16, "blksnap:generation"])
@pytest.mark.parametrize(
    ("base", "head", "minimal", "is_taken"),
    [
        (5, 7, False, True),
        (4, 7, False, True),  # more than it needs
        (4, 5, False, True),  # once again
        (4, 7, True, False),
        (6, 7, False, False),  # what was written in between is not in it
        (3, 4, False, False),  # an old stream: its data is older than what the target holds
    ],
)
def test_changes_that_are_counted_are_taken_from_their_base_up_to_their_head(
    place: Place, history: str, base: int, head: int, minimal: bool, is_taken: bool
) -> None:
    kind = history.partition(":")[0]
    place.receive(delta(kind, f"{history}:1", f"{history}:5"))
    stream = delta(kind, f"{history}:{base}", f"{history}:{head}", minimal=minimal)
    if is_taken:
        assert place.receive(stream).notes == []
    else:
        step = "send all of it with since=0" if kind == "era" else "bring it up to date with 'compare:'"
        with pytest.raises(ConflictError, match=step):
            place.receive(stream)


@pytest.mark.parametrize("head", ["era:other:7", "new"])
def test_a_head_of_another_history_says_nothing_of_the_targets_point(place: Place, head: str) -> None:
    place.receive(delta("era", "era:life:1", "era:life:5"))
    with pytest.raises(ConflictError):
        place.receive(delta("era", "era:life:4", head))


@pytest.mark.parametrize(
    ("base", "head", "minimal", "is_taken"),
    [
        ("2/first", "3/then", False, True),
        ("1/zero", "2/first", False, True),  # once again, onto the very head
        ("1/zero", "2/first", True, False),
        ("2/other", "3/then", False, False),
        ("1/zero", "2/other", False, False),  # the same number on another timeline
        ("1/zero", "3/then", False, False),
    ],
)
def test_one_very_snapshot_is_no_other_of_its_number(
    place: Place, base: str, head: str, minimal: bool, is_taken: bool
) -> None:
    place.receive(delta("dattobd", "dattobd/series/1/zero", "dattobd/series/2/first"))
    stream = delta("dattobd", f"dattobd/series/{base}", f"dattobd/series/{head}", minimal=minimal)
    if is_taken:
        assert place.receive(stream, require_base=True).notes == []
    else:
        with pytest.raises(ConflictError):
            place.receive(stream)


def test_a_head_that_may_have_changed_since_is_not_taken_again(place: Place) -> None:
    place.receive(delta("thin", "lv:a", "lv:b"))
    with pytest.raises(ConflictError):
        place.receive(delta("thin", "lv:a", "lv:b"))


@pytest.mark.parametrize("kind", ["dattobd", "blksnap"])
def test_a_tracker_of_another_history_does_not_lead_from_the_targets_point(place: Place, kind: str) -> None:
    place.receive(delta(kind, f"{kind}:one:1", f"{kind}:one:2"))
    with pytest.raises(ConflictError):
        place.receive(delta(kind, f"{kind}:two:2", f"{kind}:two:3"))


def test_an_era_of_another_history_is_its_users_word_unless_it_was_remembered(place: Place) -> None:
    place.receive(delta("era", "era:life:1", "era:life:5"))
    other = delta("era", "era:other:5", "era:other:6")
    with pytest.raises(ConflictError):
        place.receive(other, require_base=True)
    assert any("is your word" in note for note in place.receive(other).notes)


def test_a_remembered_base_is_not_believed_of_a_target_that_is_not_known(place: Place) -> None:
    with pytest.raises(ConflictError, match="is at no point that is known"):
        place.receive(delta("era", "era:life:5"), require_base=True)
    assert place.receive(delta("era", "era:life:5"), require_base=True, ignore_base=True)


def test_a_snapback_onto_the_wrong_point_is_refused(place: Place) -> None:
    for number in range(3):
        place.receive(place.step(number), snapback=place.folder / f"back{number}")
    before = place.target.read_bytes()
    record = place.record_path.read_bytes()
    wrong = (place.folder / "back0").read_bytes()
    with pytest.raises(ConflictError, match="apply the newer snapbacks first") as caught:
        place.receive(wrong)
    assert caught.value.exit_code == 8
    assert "point:3" in str(caught.value)
    assert "point:1" in str(caught.value)
    assert place.target.read_bytes() == before
    assert place.record_path.read_bytes() == record
    assert any("is your word" in note for note in place.receive(wrong, ignore_base=True).notes)


def test_a_snapback_cannot_be_applied_twice(place: Place) -> None:
    place.receive(place.step(0), snapback=place.folder / "back0")
    place.receive((place.folder / "back0").read_bytes())
    assert place.target.read_bytes() == OLD
    place.receive(place.step(0))
    place.receive(place.step(1))
    place.receive(place.step(2))
    with pytest.raises(ConflictError):
        place.receive((place.folder / "back0").read_bytes())


def test_an_unfinished_transaction_is_refused(place: Place) -> None:
    with pytest.raises(StreamError):
        place.receive(place.step(0)[:-1], undo=False)
    half = place.target.read_bytes()
    assert half != OLD
    with pytest.raises(ConflictError, match="lvmsync recover") as caught:
        place.receive(place.step(0))
    assert caught.value.exit_code == 8
    with pytest.raises(ConflictError):
        place.receive(place.step(0), dry_run=True)
    assert place.target.read_bytes() == half
    assert place.record()["transaction"]["phase"] == "applying"


def test_the_ledger_of_a_target_is_for_one_at_a_time(place: Place) -> None:
    place.receive(place.step(0))
    with (place.record_path.parent / "lock").open("r+b") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ConflictError, match="another lvmsync") as caught:
            place.receive(place.step(1))
        assert caught.value.exit_code == 8
        with pytest.raises(ConflictError, match="another lvmsync"):
            recover(str(place.target), place.state, ignore)
    place.receive(place.step(1))


def test_another_file_of_the_same_name_begins_anew(place: Place) -> None:
    place.receive(place.step(0))
    place.target.rename(place.folder / "elsewhere.img")
    place.target.write_bytes(OLD)
    assert any("nothing is known" in note for note in place.receive(place.step(0)).notes)


def test_an_unfinished_transaction_of_another_file_of_the_same_name_is_kept(place: Place) -> None:
    with pytest.raises(StreamError):
        place.receive(place.step(0)[:-1], undo=False)
    place.target.rename(place.folder / "elsewhere.img")
    place.target.write_bytes(OLD)
    with pytest.raises(ConflictError, match="was another device"):
        place.receive(place.step(0))
    with pytest.raises(ConflictError, match="was another device"):
        recover(str(place.target), place.state, ignore)
    assert place.target.read_bytes() == OLD
    assert place.record()["transaction"]


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '{"version": 99}', '{"version": 1, "point": {"x": 1}}', "\xff"]
)
def test_a_damaged_ledger_is_refused(place: Place, text: str) -> None:
    place.receive(place.step(0))
    before = place.target.read_bytes()
    place.record_path.write_bytes(text.encode("latin-1"))
    with pytest.raises(FormatError, match="ledger"):
        place.receive(place.step(1))
    assert place.target.read_bytes() == before


def test_an_empty_transaction_is_damage_and_not_taken_for_none(place: Place) -> None:
    with pytest.raises(StreamError):
        place.receive(place.step(0)[:-1], undo=False)
    place.record_path.write_text(json.dumps({**place.record(), "transaction": {}}))
    with pytest.raises(FormatError, match="are missing"):
        recover(str(place.target), place.state, ignore)


def test_what_a_crash_left_is_swept_by_the_next_receive(place: Place) -> None:
    place.receive(place.step(0))
    folder = place.record_path.parent
    for suffix in ("undo", "undo-check", "spool", "spool-check"):
        (folder / f"0123456789abcdef.{suffix}").write_bytes(b"old")
    place.receive(place.step(1))
    assert {path.name for path in folder.iterdir()} == {"lock", "record.json", "reserve"}


def test_the_state_is_for_its_owner_only(place: Place) -> None:
    os.umask(os.umask(0o022))
    with pytest.raises(StreamError):
        place.receive(place.step(0)[:-1], undo=False)
    place.state.joinpath("targets").stat()
    modes = {path.stat().st_mode & 0o077 for path in [place.state, *place.state.rglob("*")] if path.is_dir()}
    assert modes == {0}


def test_what_was_dropped_is_missed_when_the_target_has_grown(place: Place) -> None:
    def larger(source: str, base: str, head: str, **more: Any) -> bytes:
        header = Header(size=SIZE + 4096, source=source, base=Point(base), head=Point(head, base), **more)
        return fakes.encode([data((0, b"x"))], header)

    place.receive(larger("thin", "point:0", "point:1"), allow_smaller=True)
    place.receive(larger("thin", "point:1", "point:2"), allow_smaller=True)
    with place.target.open("r+b") as file:
        file.truncate(SIZE + 4096)
    before = place.target.read_bytes()
    step = larger("thin", "point:2", "point:3")
    with pytest.raises(ConflictError, match=f"had {SIZE} bytes when what lay behind them was dropped"):
        place.receive(step)
    assert place.target.read_bytes() == before
    assert any("is your word" in note for note in place.receive(step, ignore_base=True).notes)
    place.receive(larger("compare", "point:3", "point:4"))  # which finds the new part as well
    assert place.receive(larger("thin", "point:4", "point:5")).notes == []


def test_a_file_made_anew_is_not_the_one_that_the_ledger_knows(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    generations = iter([7, 7, 8])  # of an inode whose number the file system has given to the next file
    monkeypatch.setattr(ioctl, "get_inode_generation", lambda _: next(generations))
    place.receive(place.step(0))
    assert place.receive(place.step(1)).notes == []
    assert any("nothing is known" in note for note in place.receive(place.step(2)).notes)

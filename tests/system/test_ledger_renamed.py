"""A target that was renamed is known by its LVM ids, and its record goes with it."""

from __future__ import annotations

import fcntl
import json
from pathlib import Path

import pytest

from lvmsync.errors import ConflictError, FormatError
from lvmsync.history import Point
from lvmsync.system.ledger import Ledger, file_name, open_ledger, peek_record
from lvmsync.system.record import Owed, Record, Transaction

OLD, NEW = "/dev/mapper/vg-copy", "/dev/mapper/vg-copy2"
IDENTITY = {"dm uuid": f"LVM-{'a' * 64}"}


@pytest.fixture
def state(tmp_path: Path) -> Path:
    with open_ledger(tmp_path, OLD, IDENTITY, 4096) as ledger:
        ledger.write(point=Point("lv:1"))
    return tmp_path


def peek(state: Path, name: str = NEW, identity: dict[str, str] | None = None) -> Record:
    return peek_record(state, name, identity or IDENTITY, 4096)[0]


def folder_of(state: Path, name: str) -> Path:
    return state / "targets" / file_name(name)


def test_it_is_known_by_its_new_name_and_looking_changes_nothing(state: Path) -> None:
    found = peek(state)
    assert (found.target, found.point) == (NEW, Point("lv:1"))
    assert (folder_of(state, OLD) / "record.json").exists()
    assert not folder_of(state, NEW).exists()


def test_work_on_it_moves_its_record_so_that_there_is_one(state: Path) -> None:
    with open_ledger(state, NEW, IDENTITY, 4096) as ledger:
        assert ledger.record.point == Point("lv:1")
    assert not (folder_of(state, OLD) / "record.json").exists()
    with open_ledger(state, NEW, IDENTITY, 4096) as ledger:
        ledger.write(point=Point("lv:2"))
    assert peek(state, OLD).point == Point("lv:2")  # and back
    with open_ledger(state, OLD, IDENTITY, 4096) as ledger:
        assert (ledger.record.target, ledger.record.point) == (OLD, Point("lv:2"))
    assert not (folder_of(state, NEW) / "record.json").exists()


def test_what_its_archive_is_owed_goes_with_it(state: Path) -> None:
    owed = Owed("ab12", "/archive", Point("lv:1"), Point("lv:0"), 4096)
    with open_ledger(state, OLD, IDENTITY, 4096) as ledger:
        ledger.write(owed=(owed,))
        ledger.path(owed.id, "undo").write_text("snapback")
    with open_ledger(state, NEW, IDENTITY, 4096) as ledger:
        ledger.sweep()
        assert ledger.record.owed == (owed,)
        assert ledger.path(owed.id, "undo").read_text() == "snapback"
        ledger.write(owed=())
        ledger.sweep()
        assert not ledger.path(owed.id, "undo").exists()
    assert not list(folder_of(state, OLD).glob("*.undo"))


@pytest.mark.parametrize(
    "damage", [{"owed": [{"id": "../x"}]}, {"owed": 5}, {"same": [5]}, {"owed": [{"id": "a", "archive": 1}]}]
)
def test_a_record_whose_debts_make_no_sense_is_refused(state: Path, damage: dict[str, object]) -> None:
    path = folder_of(state, OLD) / "record.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **damage}))
    with pytest.raises(FormatError, match="is not understood"):
        peek(state, OLD)


def test_a_record_without_debts_is_one_that_an_older_lvmsync_reads(state: Path) -> None:
    assert not {"owed", "same"} & json.loads((folder_of(state, OLD) / "record.json").read_text()).keys()


def test_another_volume_or_what_is_none_of_lvm_is_not_taken_for_it(state: Path) -> None:
    assert peek(state, identity={"dm uuid": f"LVM-{'b' * 64}"}).point is None
    with open_ledger(state, "/disk", {"serial": "1"}, 4096) as ledger:
        ledger.write(point=Point("x"))
    assert peek(state, "/other", {"serial": "1"}).point is None


def test_where_two_records_could_be_meant_neither_is(state: Path) -> None:
    def write(name: str, number: str) -> None:
        folder = folder_of(state, name)
        folder.mkdir(parents=True, exist_ok=True)
        Ledger(folder, Record(name, IDENTITY, 4096)).write(point=Point(number))

    write("/dev/mapper/vg-third", "lv:3")
    assert peek(state).point is None
    with open_ledger(state, NEW, IDENTITY, 4096) as ledger:
        assert ledger.record.point is None
    assert peek(state, OLD).point == Point("lv:1")


def test_a_record_that_cannot_be_read_is_another_targets_matter(state: Path) -> None:
    other = folder_of(state, "/other")
    other.mkdir()
    (other / "record.json").write_text("{")
    assert peek(state).point == Point("lv:1")


def test_what_is_in_the_middle_of_something_stays_where_it_is(state: Path) -> None:
    with open_ledger(state, OLD, IDENTITY, 4096) as ledger:
        ledger.write(transaction=Transaction("0123", "applying"))
    assert peek(state).point is None


def test_it_waits_for_who_works_on_the_old_name(state: Path) -> None:
    with (folder_of(state, OLD) / "lock").open("r+b") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ConflictError, match="what had the name"), open_ledger(state, NEW, IDENTITY, 4096):
            pass
    assert peek(state, OLD).point == Point("lv:1")

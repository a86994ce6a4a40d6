"""Targets that hold another state than their transaction was begun for: told, and never called what they are not."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import xxhash

from lvmsync.errors import ConflictError, DeviceError, LvmsyncError
from lvmsync.history import Point
from lvmsync.jobs.create import create_file
from lvmsync.jobs.progress import Receipt, ignore
from lvmsync.jobs.receive import ReceiveOptions, receive
from lvmsync.jobs.recover import recover
from lvmsync.jobs.standing import Standing, standing
from lvmsync.jobs.transaction import Transaction
from lvmsync.stream.frames import FULL, Header, Sample
from lvmsync.system import identity
from tests.fakes import data, encode, reader

MIB = 1 << 20
SIZE = 8 * MIB
ONE, TWO, THREE = Point("lv:1"), Point("lv:2"), Point("lv:3")


class Killed(BaseException):
    """The process is no more."""


class Place:
    """A target, and its state folder."""

    def __init__(self, folder: Path) -> None:
        self.target = folder / "target"
        self.state = folder / "state"

    def receive(self, stream: bytes, **options: Any) -> Receipt:
        return receive(reader(stream), ReceiveOptions(str(self.target), self.state, **options), ignore)

    def standing(self) -> Standing:
        return standing(str(self.target), self.state)

    def copy(self, letter: bytes, head: Point, blocks: int = 8, *, is_whole: bool = True, **options: Any) -> Receipt:
        """Take a first copy of so many blocks, which all hold a letter."""
        frames = [data((at * MIB, letter * MIB)) for at in range(blocks)]
        return self.receive(encode(frames, Header(size=SIZE, intent=FULL, head=head), end=is_whole), **options)

    def overwrite(self, letter: bytes) -> None:
        """Bring another state back, times and all."""
        times = self.target.stat()
        with self.target.open("r+b") as file:
            file.write(letter * SIZE)
        os.utime(self.target, ns=(times.st_atime_ns, times.st_mtime_ns))


@pytest.fixture
def place(tmp_path: Path) -> Place:
    found = Place(tmp_path)
    found.target.write_bytes(b"A" * SIZE)
    return found


def delta(base: Point, head: Point, **more: Any) -> bytes:
    return encode([data((4096, b"C" * 4096))], Header(size=SIZE, base=base, head=head, **more))


def staged(place: Place, monkeypatch: pytest.MonkeyPatch, stream: bytes) -> None:
    """Stage a stream for the target, and be killed before it is applied."""

    def die(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Transaction, "start", die)
        patch.setattr(Transaction, "roll_back", die)
        with pytest.raises(Killed):
            place.receive(stream, atomic=True)
    open_one = place.standing().transaction
    assert open_one is not None
    assert open_one.phase == "staged"


@pytest.mark.parametrize("by", ["samples", "traces"])
def test_what_is_staged_is_not_applied_to_a_state_that_it_is_not_for(
    place: Place, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    place.copy(b"B", ONE)
    samples = (Sample(4 * MIB, 65536, xxhash.xxh3_128_hexdigest(b"B" * 65536)),) if by == "samples" else ()
    staged(place, monkeypatch, delta(ONE, TWO, samples=samples))
    if by == "samples":
        record = next((place.state / "targets").glob("*/record.json"))
        content = json.loads(record.read_text())
        record.write_text(json.dumps(content | {"traces": []}))
    place.overwrite(b"Z")
    with pytest.raises(ConflictError, match="does not hold what that starts from any more"):
        recover(str(place.target), place.state, ignore)
    assert place.target.read_bytes() == b"Z" * SIZE
    assert recover(str(place.target), place.state, ignore, back=True).notes == ["rolled back: the target is as it was"]


def test_what_is_staged_is_applied_to_the_state_that_it_is_for(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.copy(b"B", ONE)
    staged(place, monkeypatch, delta(ONE, TWO))
    assert recover(str(place.target), place.state, ignore).point == "lv:2"
    assert place.target.read_bytes() == b"B" * 4096 + b"C" * 4096 + b"B" * (SIZE - 8192)


def test_a_receive_that_is_refused_leaves_what_is_staged_alone(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.copy(b"B", ONE)
    staged(place, monkeypatch, delta(ONE, TWO))
    before = place.standing().transaction
    with pytest.raises(ConflictError, match="has an unfinished transaction") as caught:
        place.receive(delta(ONE, THREE), require_base=True)
    assert not hasattr(caught.value, "__notes__")
    assert place.standing().transaction == before
    assert recover(str(place.target), place.state, ignore).point == "lv:2"


def test_a_snapback_of_half_a_copy_leads_back_to_what_is_no_copy(place: Place, tmp_path: Path) -> None:
    place.copy(b"B", ONE)
    with pytest.raises(LvmsyncError):
        place.copy(b"E", TWO, 4, is_whole=False, resumable=True, undo=False)
    with pytest.raises(LvmsyncError):
        place.copy(b"F", THREE, 2, is_whole=False, resumable=True, restart=True, snapback=tmp_path / "back")
    said = recover(str(place.target), place.state, ignore, back=True).notes[0]
    assert said.startswith("rolled back: the target is as it was, and that was no whole copy")
    assert place.target.read_bytes() == b"E" * 4 * MIB + b"B" * 4 * MIB
    assert place.standing().dirty
    with pytest.raises(ConflictError, match="is not whole"):
        place.receive(delta(ONE, TWO), require_base=True)


def test_a_target_that_was_made_is_not_blank_behind_half_a_copy(place: Place, tmp_path: Path) -> None:
    place.target.unlink()
    create_file(str(place.target), SIZE, place.state)
    with pytest.raises(LvmsyncError):
        place.copy(b"E", TWO, 4, is_whole=False, resumable=True)
    with pytest.raises(LvmsyncError):
        place.copy(b"F", THREE, 2, is_whole=False, resumable=True, restart=True, snapback=tmp_path / "back")
    recover(str(place.target), place.state, ignore, back=True)
    found = place.standing()
    assert (found.made, found.dirty) == (False, True)


@pytest.mark.parametrize("path", ["/dev/lvmsync-no-such-group", "/dev/lvmsync-no-such-volume", "/dev/disk/none"])
def test_no_file_is_made_where_devices_are(tmp_path: Path, path: str) -> None:
    stream = encode([data((0, b"B" * 4096))], Header(size=4096, intent=FULL, head=ONE))
    for options in (
        ReceiveOptions(path, tmp_path, create=True),
        ReceiveOptions(path, tmp_path, create=True, dry_run=True),
    ):
        with pytest.raises(DeviceError, match=r"there is no device|there is no such folder"):
            receive(reader(stream), options, ignore)
    with pytest.raises(DeviceError, match="there is no device"):
        create_file(path, 4096, tmp_path)
    assert not Path(path).exists()


@pytest.mark.parametrize("names", [{"device number": "254:16"}, {"dm name": "disk", "partition": "1"}])
def test_nothing_is_brought_back_to_a_disk_that_has_the_number_of_another(
    place: Place, monkeypatch: pytest.MonkeyPatch, names: dict[str, str]
) -> None:
    monkeypatch.setattr(identity, "identify", lambda _: names)
    with pytest.raises(LvmsyncError):
        place.copy(b"B", ONE, 4, is_whole=False, resumable=True)
    place.overwrite(b"Z")
    with pytest.raises(ConflictError, match="it may be another device, so nothing was brought back"):
        recover(str(place.target), place.state, ignore)
    assert place.target.read_bytes() == b"Z" * SIZE
    place.overwrite(b"B")  # and what lies behind 4 MiB was A, which is not in the undo: nobody knows
    assert "rolled back" in recover(str(place.target), place.state, ignore).notes[0]


def test_on_the_word_of_the_user_a_disk_of_a_weak_name_is_taken_as_it_is(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(identity, "identify", lambda _: {"device number": "254:16"})
    with pytest.raises(LvmsyncError):
        place.copy(b"B", ONE, 4, is_whole=False, resumable=True)
    place.overwrite(b"Z")
    assert recover(str(place.target), place.state, ignore, accept=True).notes == ["taken as good, on your word"]
    assert place.target.read_bytes() == b"Z" * SIZE

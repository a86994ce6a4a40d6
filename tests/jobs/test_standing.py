"""What a target's machine tells of it, and whether it is still what it was: looks, samples, and what follows."""

from __future__ import annotations

import json
import os
import random
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lvmsync.errors import ConflictError, DeviceError, TransportError
from lvmsync.extents import ChangeMap
from lvmsync.history import Point
from lvmsync.jobs import receive_checks
from lvmsync.jobs.progress import Receipt, ignore
from lvmsync.jobs.receive import ReceiveOptions, receive
from lvmsync.jobs.samples import check_samples, take_samples
from lvmsync.jobs.standing import FENCED_TAG, Standing, standing
from lvmsync.stream.frames import FULL, Frame, Header, Sample
from lvmsync.system import dm, ioctl, lvm, seen
from tests import fakes
from tests.fakes import Memory, data, reader

SIZE = 1 << 20
OLD = random.Random(1).randbytes(SIZE)
FRAMES: list[Frame] = [data((65536, b"new" * 1000))]


class Place:
    """A target that is at a point, and streams from there."""

    def __init__(self, folder: Path) -> None:
        self.target = folder / "target.img"
        self.state = folder / "state"
        self.target.write_bytes(OLD)

    def receive(self, base: str | None, head: str, samples: tuple[Sample, ...] = (), **options: Any) -> Receipt:
        header = Header(
            size=SIZE,
            changed_bytes=fakes.count_bytes(FRAMES),
            base=Point(base) if base else None,
            head=Point(head),
            intent="delta" if base else FULL,
            samples=samples,
        )
        chosen = ReceiveOptions(str(self.target), self.state, **options)
        return receive(reader(fakes.encode(FRAMES, header)), chosen, ignore)

    def stand(self) -> Standing:
        return standing(str(self.target), self.state)

    def write(self, at: int = 500_000) -> None:
        with self.target.open("r+b") as file:
            file.seek(at)
            file.write(bytes([self.target.read_bytes()[at] ^ 1]))


@pytest.fixture
def place(tmp_path: Path) -> Place:
    made = Place(tmp_path)
    made.receive(None, "lv:1")
    return made


def test_asking_makes_nothing(tmp_path: Path) -> None:
    made = Place(tmp_path)
    found = made.stand()
    assert (found.exists, found.kind, found.size, found.point, found.written) == (True, "file", SIZE, None, "unknown")
    assert found.undo_free
    assert found.undo_free > 0
    assert not standing(str(tmp_path / "nothing"), made.state).exists
    assert [path.name for path in tmp_path.iterdir()] == ["target.img"]


def test_what_is_told_arrives_on_another_machine(place: Place) -> None:
    found = place.stand()
    assert found.point == Point("lv:1")
    assert Standing.from_json(json.loads(json.dumps({**found.to_json(), "later": 1}))) == found


@pytest.mark.parametrize(
    "change",
    [
        {"size": "1"},
        {"size": -1},
        {"size": True},
        {"point": {"id": 5}},
        {"point": []},
        {"identity": {"a": 1}},
        {"exists": None},
        {"target": None},
        {"transaction": {"id": "x"}},
        {"pool": {"name": "x"}},
    ],
    ids=str,
)
def test_a_standing_that_cannot_be_is_refused(place: Place, change: dict[str, Any]) -> None:
    with pytest.raises(TransportError, match="not readable"):
        Standing.from_json({**place.stand().to_json(), **change})


def test_a_target_that_is_in_use_is_told(place: Place) -> None:
    with place.target.open("rb"):
        in_use = place.stand().in_use
        assert in_use
        assert "open in another program" in in_use
    assert place.stand().in_use is None


@pytest.mark.parametrize(
    ("is_read_only", "attr", "tags", "is_fenced"),
    [
        (True, "Vri-a-tz--", {FENCED_TAG}, True),
        (True, "Vri-a-tz--", {"lvmsync"}, False),  # by somebody, for a reason that we do not know
        (True, "Vwi-a-tz--", {FENCED_TAG}, False),
        (False, "Vri-a-tz--", {FENCED_TAG}, False),
    ],
)
def test_a_volume_that_a_way_back_has_left_read_only_is_known_by_its_tag(
    place: Place,
    monkeypatch: pytest.MonkeyPatch,
    *,
    is_read_only: bool,
    attr: str,
    tags: set[str],
    is_fenced: bool,
) -> None:
    monkeypatch.setattr(ioctl, "is_read_only", lambda fd: is_read_only)
    monkeypatch.setattr(lvm, "find_named", lambda name: SimpleNamespace(attr=attr, tags=frozenset(tags)))
    assert not place.stand().fenced  # it can be written to
    with place.target.open("rb"):
        assert place.stand().fenced == is_fenced


def test_a_target_that_nobody_wrote_to_is_known_to_be_that(place: Place) -> None:
    place.target.read_bytes()
    assert place.stand().written == "no"
    assert place.receive("lv:1", "lv:2", require_base=True).notes == []
    assert place.stand().written == "no"


def test_a_target_that_somebody_wrote_to_is_refused_where_that_is_asked_for(place: Place) -> None:
    place.write()
    assert place.stand().written == "yes"
    with pytest.raises(ConflictError, match=r"was written to since \(its mtime .* starts from lv:1.*repair"):
        place.receive("lv:1", "lv:2", require_base=True)
    (note,) = place.receive("lv:1", "lv:2").notes
    assert "was written to since" in note
    assert "is your word" in note
    assert place.stand().written == "no"  # since that


def test_a_time_that_was_put_back_proves_nothing(place: Place) -> None:
    before = place.target.stat()
    place.write()
    os.utime(place.target, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert place.stand().written == "unknown"


def test_a_receive_that_was_undone_leaves_what_was_known(place: Place) -> None:
    with pytest.raises(Exception, match="announced"):
        receive(
            reader(fakes.encode(FRAMES, Header(size=SIZE, changed_bytes=1, base=Point("lv:1"), head=Point("lv:2")))),
            ReceiveOptions(str(place.target), place.state),
            ignore,
        )
    assert place.stand().written == "no"
    place.write()
    with pytest.raises(Exception, match="announced"):
        receive(
            reader(fakes.encode(FRAMES, Header(size=SIZE, changed_bytes=1, base=Point("lv:1"), head=Point("lv:2")))),
            ReceiveOptions(str(place.target), place.state),
            ignore,
        )
    assert place.stand().written == "yes"


@pytest.mark.parametrize(
    ("before", "now", "answer"),
    [
        (None, {"mtime": "1"}, "unknown"),
        ({"mtime": "1"}, None, "unknown"),
        ({"mtime": "1"}, {"boot": "1"}, "unknown"),
        ({"boot": "1", "sectors": "5"}, {"boot": "2", "sectors": "5"}, "unknown"),
        ({"boot": "1", "diskseq": "1", "sectors": "5"}, {"boot": "1", "diskseq": "2", "sectors": "5"}, "unknown"),
        ({"boot": "1", "diskseq": "1", "sectors": "5"}, {"boot": "1", "diskseq": "1", "sectors": "5"}, "no"),
        ({"boot": "1", "diskseq": "1", "sectors": "5"}, {"boot": "1", "diskseq": "1", "sectors": "6"}, "yes"),
        (
            {"sectors": "5", "tables": "a", "snapshots": "none"},
            {"sectors": "5", "tables": "b", "snapshots": "none"},
            "unknown",
        ),
        (
            {"sectors": "5", "tables": "a", "snapshots": "none"},
            {"sectors": "6", "tables": "b", "snapshots": "none"},
            "yes",
        ),
        (
            {"sectors": "5", "tables": "a", "snapshots": "none"},
            {"sectors": "5", "tables": "a", "snapshots": "none"},
            "no",
        ),
        (
            {"sectors": "5", "tables": "a", "snapshots": "snapshot-origin"},
            {"sectors": "5", "tables": "a", "snapshots": "snapshot-origin"},
            "unknown",
        ),
    ],
)
def test_two_looks_tell(before: dict[str, str] | None, now: dict[str, str] | None, answer: str) -> None:
    assert seen.was_written(before, now) == answer


def test_what_a_mapped_target_is_made_of_belongs_to_its_look(monkeypatch: pytest.MonkeyPatch) -> None:
    def device(minor: int) -> dm.Mapped:
        return dm.Mapped(f"x{minor}", "", (253, minor), 0)

    below = {(253, 1): [(253, 2)], (253, 2): [(8, 1)]}
    tables = [dm.Line(device(one), 0, 512, "linear", "8:1 0") for one in (1, 2, 3)]
    with monkeypatch.context() as patch:
        patch.setattr(seen, "look", lambda fd: {"sectors": "5"})
        patch.setattr(dm, "is_mapped", lambda number: number[0] == 253)
        patch.setattr(dm, "list_below", lambda number: below.get(number, []))
        patch.setattr(os, "fstat", lambda fd: type("State", (), {"st_rdev": os.makedev(253, 1)}))
        patch.setattr(dm, "list_tables", lambda: tables)
        before = seen.look_at_target(0)
        assert before
        tables[2] = dm.Line(device(3), 0, 512, "snapshot-origin", "8:1 0")  # of another one
        assert seen.was_written(before, seen.look_at_target(0)) == "no"
        tables[1] = dm.Line(device(2), 0, 512, "linear", "8:1 8")
        assert seen.was_written(before, seen.look_at_target(0)) == "unknown"
        tables[1] = dm.Line(device(2), 0, 512, "snapshot-origin", "8:1 0")
        origin = seen.look_at_target(0)
        assert seen.was_written(origin, seen.look_at_target(0)) == "unknown"
        assert seen.was_written(before, origin) == "unknown"


def test_samples_are_all_over_the_device_and_mostly_in_what_does_not_change() -> None:
    size = (64 << 20) - 100
    changes = ChangeMap.from_extents([(0, size // 2)])
    device = Memory(random.Random(2).randbytes(size))
    found = take_samples(device, changes, size, seed=1)
    assert found == take_samples(device, changes, size, seed=1)
    assert 200 < len(found) <= 256
    assert (found[0].offset, found[0].length) == (0, 65536)
    assert (found[-1].offset, found[-1].length) == (size - 65536, 65536)
    assert sum(one.offset >= size // 2 for one in found) > 180
    assert sum(one.offset < size // 2 for one in found) > 10
    check_samples(device, found)


@pytest.mark.parametrize("size", [1, 100, 4097, 65536, 65537])
def test_samples_fit_devices_of_any_size(size: int) -> None:
    device = Memory(random.Random(2).randbytes(size))
    for changes in (ChangeMap.empty(), ChangeMap.whole(size)):
        found = take_samples(device, changes, size)
        assert all(one.length and one.offset + one.length <= size for one in found)
        check_samples(device, found)


def test_samples_are_all_of_a_small_device_that_nobody_watched() -> None:
    size = (4 << 20) - 100
    content = random.Random(2).randbytes(size)
    found = take_samples(Memory(content), ChangeMap.empty(), size, is_unwatched=True)
    assert ChangeMap.from_extents([(one.offset, one.length) for one in found]) == ChangeMap.whole(size)
    for place in (0, 1_000_000, size - 1):  # wherever somebody wrote, it is seen
        spoilt = bytearray(content)
        spoilt[place] ^= 1
        with pytest.raises(ConflictError, match="was written to in between"):
            check_samples(Memory(bytes(spoilt)), found)


def test_samples_of_a_large_device_that_nobody_watched_are_32_mib() -> None:
    size = 40 << 20
    found = take_samples(Memory(bytes(size)), ChangeMap.empty(), size, is_unwatched=True)
    assert 32 << 20 <= sum(one.length for one in found) <= (32 << 20) + (128 << 10)


WRITTEN = (
    r"was written to in between: the \d+ bytes at \d+ have the digest [0-9a-f]{32}, and those of the base lv:1"
    r" that the changes start from have [0-9a-f]{32} "
)


def test_a_target_that_does_not_hold_the_samples_is_refused_before_the_first_write(place: Place) -> None:
    samples = tuple(take_samples(Memory(place.target.read_bytes()), ChangeMap.empty(), SIZE))
    at = samples[len(samples) // 2].offset
    place.write(at)
    before = place.target.read_bytes()
    with pytest.raises(ConflictError, match=WRITTEN) as caught:
        place.receive("lv:1", "lv:2", samples)
    assert caught.value.offset is not None
    assert caught.value.offset <= at
    assert place.target.read_bytes() == before
    place.write(at)
    place.receive("lv:1", "lv:2", samples)


def test_a_file_system_that_has_no_room_is_told_before_the_first_write(place: Place) -> None:
    os.truncate(place.target, 0)
    os.truncate(place.target, 1 << 43)
    header = Header(size=1 << 43, changed_bytes=1 << 42, head=Point("lv:2"))
    with pytest.raises(DeviceError, match=r"file system of .* bytes free, and up to 4398046511104 are needed"):
        receive(reader(fakes.encode([], header)), ReceiveOptions(str(place.target), place.state), ignore)


def test_a_line_that_goes_on_is_not_read_past_the_end_of_the_stream(place: Place) -> None:
    """Read by read, as from a line on which the next word comes only when it is answered."""
    header = Header(size=SIZE, changed_bytes=fakes.count_bytes(FRAMES), head=Point("lv:2"))
    far, near = os.pipe()
    os.write(near, fakes.encode(FRAMES, header) + b"next")

    def take(buffer: memoryview) -> int:
        return os.readv(far, [buffer])

    options = ReceiveOptions(str(place.target), place.state)
    done = threading.Event()

    def run() -> None:
        receive(take, options, ignore, line_goes_on=True)
        done.set()

    threading.Thread(target=run, daemon=True).start()
    assert done.wait(30)
    assert os.read(far, 100) == b"next"
    os.close(far)
    os.close(near)


def test_a_number_that_no_counter_reaches_is_no_number(tmp_path: Path) -> None:
    made = Place(tmp_path)
    made.receive(None, "era:x:5")
    with pytest.raises(ConflictError, match="is at point era:x:5"):
        made.receive("era:x:" + "9" * 900, "era:x:7", require_base=True)
    assert receive_checks._counted(Point("era:x:" + "9" * 5000)) is None

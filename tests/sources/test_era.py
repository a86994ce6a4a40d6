"""What dm-era saw written: of copies of metadata, and of an era device in use."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from lvmsync.errors import ChangesLost, ConflictError, DeviceError, FormatError, UsageError
from lvmsync.extents import ChangeMap
from lvmsync.names import parse_source
from lvmsync.sources import Reading, Source, open_source
from lvmsync.sources.era import TRACKER, find_live
from tests.era_machine import G4K, UUID, EraMachine, running
from tests.fixture_files import find_case
from tests.formats.test_era import answers

MAP = Reading(with_data=False)


def ranges(view: str, since: int) -> ChangeMap:
    return ChangeMap.from_extents([(begin, end - begin) for begin, end in answers(G4K)[view][str(since)]])


def read_all(source: Source) -> bytes:
    out = memoryview(bytearray(source.changes.total_bytes))
    at = 0
    for extent in source.changes:
        source.data.read([extent.offset], [extent.length], out[at : at + extent.length])
        at += extent.length
    return bytes(out)


# ---- copies of metadata


@pytest.fixture
def meta(tmp_path: Path) -> Path:
    return G4K.image("meta-snap2.img", tmp_path)


def test_a_file_is_read_as_its_live_superblock_shows_it(meta: Path) -> None:
    with open_source(parse_source(f"era:{meta},since=3"), MAP) as source:
        assert source.changes == ranges("meta-snap2.img:live", 3)
        assert (source.kind, source.size, source.granularity) == ("era", 16 << 20, 4096)
        assert (source.base, source.head, len(source.holes)) == (None, None, 0)
        assert "may be shorter" in source.notes[0]
        assert "was not shut down" in source.notes[1]
        source.confirm()
        with pytest.raises(UsageError):
            source.data.read([0], [512], memoryview(bytearray(512)))


def test_the_metadata_snapshot_in_a_file_is_read_where_it_is_asked_for(tmp_path: Path, meta: Path) -> None:
    path = G4K.image("meta-after-snap-writes.img", tmp_path)
    for view, word in (("live", "snap=live"), ("metadata-snapshot", "snap=held")):
        with open_source(parse_source(f"era:{path},since=7,{word},size=16M"), MAP) as source:
            assert source.changes == ranges(f"meta-after-snap-writes.img:{view}", 7)
    clean = G4K.image("meta-clean.img", tmp_path)
    with pytest.raises(DeviceError, match="no metadata snapshot is taken; leave snap=held away"):
        open_source(parse_source(f"era:{clean},since=1,snap=held"), MAP).__enter__()
    with open_source(parse_source(f"era:{clean},since=1,size=16M"), MAP) as source:
        assert source.notes == ()


def test_an_increment_brings_a_copy_from_one_state_to_the_next(tmp_path: Path, meta: Path) -> None:
    before, after = (G4K.image(f"origin-{when}.img", tmp_path) for when in ("at-snap", "after"))
    facts = G4K.facts["incremental"]
    word = f"era:{meta},since={facts['written_since']},snap=held"
    with open_source(parse_source(word), Reading(data_source=str(after))) as source:
        copy = bytearray(before.read_bytes())
        data, at = read_all(source), 0
        for extent in source.changes:
            copy[extent.offset : extent.end] = data[at : at + extent.length]
            at += extent.length
        source.confirm()
        assert "is your word" in source.notes[-1]
    assert copy == after.read_bytes()


def test_a_copy_of_metadata_does_not_say_where_data_is(meta: Path) -> None:
    with pytest.raises(UsageError, match="no device uses this metadata now, so where is the data"):
        open_source(parse_source(f"era:{meta},since=3"), Reading()).__enter__()


def test_the_era_must_be_said(meta: Path) -> None:
    with pytest.raises(UsageError, match=r"since which era\? Write era:.*,since=N"):
        open_source(parse_source(f"era:{meta}"), MAP).__enter__()


def test_an_era_to_come_is_empty_with_a_warning_and_refused_where_data_is_sent(tmp_path: Path, meta: Path) -> None:
    name = parse_source(f"era:{meta},since=11,size=16M")
    with open_source(name, MAP) as source:
        assert len(source.changes) == 0
        assert "since=11 is past the current era 10" in source.notes[-1]
    data = G4K.image("origin-after.img", tmp_path)
    with pytest.raises(ConflictError, match=r"since=11 is past the current era 10.*'compare:' .* since=0"):
        open_source(name, Reading(data_source=str(data))).__enter__()


def test_the_base_is_read_only_where_it_is_said_to_be(tmp_path: Path, meta: Path) -> None:
    data = G4K.image("origin-after.img", tmp_path)
    name = parse_source(f"era:{meta},since=8")
    with pytest.raises(UsageError, match="an era keeps no old data; name the base with --base-data"):
        open_source(name, Reading(data_source=str(data), with_base=True)).__enter__()
    reading = Reading(data_source=str(data), with_base=True, base_source=str(data))
    with open_source(name, reading) as source:
        assert source.base_data
        assert source.base_data.size == 16 << 20


@pytest.mark.parametrize(
    ("size", "message"),
    [
        (16 << 20 | 1, "size= has 16777217 bytes, and the metadata is of a device of 16773121 to 16777216"),
        ((16 << 20) - 4096, "they do not belong together"),
    ],
)
def test_a_size_that_cannot_be_is_refused(meta: Path, size: int, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        open_source(parse_source(f"era:{meta},since=3,size={size}"), MAP).__enter__()


def test_data_of_another_size_is_refused(tmp_path: Path, meta: Path) -> None:
    data = tmp_path / "data"
    data.write_bytes(bytes(1 << 20))
    with pytest.raises(UsageError, match=r"data has 1048576 bytes, and the metadata"):
        open_source(parse_source(f"era:{meta},since=3"), Reading(data_source=str(data))).__enter__()
    with pytest.raises(UsageError, match=r"data has 1048576 bytes, less than the 16777216"):
        open_source(parse_source(f"era:{meta},since=3,size=16M"), Reading(data_source=str(data))).__enter__()


@pytest.mark.parametrize("content", [b"", bytes(4096), bytes(1 << 20), b"x" * 5000])
def test_what_is_no_metadata_is_refused_and_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "meta"
    path.write_bytes(content)
    with pytest.raises(FormatError, match=f"{path}: .*no era metadata"):
        open_source(parse_source(f"era:{path},since=3"), MAP).__enter__()


def test_metadata_that_was_cut_short_is_refused(tmp_path: Path) -> None:
    path = find_case("era", "g4k-multi-bitset").image("meta-clean.img", tmp_path)
    os.truncate(path, 128 << 10)
    with pytest.raises(FormatError, match=r"meta-clean\.img: .*"):
        open_source(parse_source(f"era:{path},since=3"), MAP).__enter__()


# ---- an era device in use


@pytest.fixture
def era(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[EraMachine]:
    with running(tmp_path, monkeypatch) as machine:
        yield machine


def test_a_metadata_snapshot_is_taken_read_and_dropped_before_data_is_read(era: EraMachine) -> None:
    for path in (era.node, str(era.metadata)):
        with open_source(parse_source(f"era:{path},since=3"), Reading()) as source:
            assert not era.is_held
            assert source.changes == ranges("meta-snap.img:metadata-snapshot", 3)
            assert source.base
            assert source.head
            assert (source.base.id, source.head.id) == (f"era:{UUID}:3", f"era:{UUID}:8")
            assert source.head.parent == source.base.id
            assert source.data.name == era.node
            assert source.notes == ()
            source.confirm()
    assert [line.split()[-1] for line in era.calls("message")] == ["take_metadata_snap", "drop_metadata_snap"] * 2


def test_all_that_is_has_no_base(era: EraMachine) -> None:
    with open_source(parse_source(f"era:{era.node},since=0"), Reading()) as source:
        assert source.base is None
        assert source.changes == ChangeMap.whole(16 << 20)


def test_a_device_in_use_gives_its_map_but_no_data(era: EraMachine) -> None:
    era.open_count = 1
    era.set_up()
    with pytest.raises(DeviceError, match="is open: unmount it or stop what uses it"):
        open_source(parse_source(f"era:{era.node},since=3"), Reading()).__enter__()
    assert not era.calls("message")
    with open_source(parse_source(f"era:{era.node},since=3"), MAP):
        pass
    with open_source(parse_source(f"era:{era.node},since=3"), Reading(frozen=True)) as source:
        source.confirm()


def test_the_device_is_held_while_it_is_read(era: EraMachine) -> None:
    with open_source(parse_source(f"era:{era.node},since=3"), Reading()), pytest.raises(OSError, match="busy"):
        os.open(era.node, os.O_RDONLY | os.O_EXCL)


def test_a_write_while_it_is_read_is_noticed(era: EraMachine) -> None:
    with open_source(parse_source(f"era:{era.node},since=3"), Reading(frozen=True)) as source:
        fd = os.open(era.origin, os.O_WRONLY | os.O_DSYNC)
        os.pwrite(fd, bytes(4096), 0)
        os.close(fd)
        with pytest.raises(DeviceError, match="was written to while it was read"):
            source.confirm()


def test_data_from_elsewhere_leads_to_no_newer_era(era: EraMachine, tmp_path: Path) -> None:
    data = G4K.image("origin-after.img", tmp_path)
    with open_source(parse_source(f"era:{era.node},since=3"), Reading(data_source=str(data))) as source:
        assert source.head == source.base
        assert "holds what" in source.notes[0]
    with open_source(parse_source(f"era:{era.node},since=3"), Reading(data_source=era.node)) as source:
        assert source.head != source.base


def test_the_reserved_metadata_snapshot_is_read_and_left(era: EraMachine) -> None:
    word = f"era:{era.node},since=3,snap=held"
    with pytest.raises(DeviceError, match="no metadata snapshot is taken"):
        open_source(parse_source(word), MAP).__enter__()
    era.hold()
    with open_source(parse_source(word), MAP) as source:
        assert source.changes == ranges("meta-snap.img:metadata-snapshot", 3)
    assert era.is_held
    assert not era.calls("message")


def test_the_metadata_snapshot_of_another_program_is_left_alone(era: EraMachine) -> None:
    era.hold()
    with pytest.raises(ConflictError, match=r"taken by another program.*'lvmsync cleanup --release er'"):
        open_source(parse_source(f"era:{era.node},since=3"), MAP).__enter__()
    assert era.is_held


def test_the_live_metadata_of_a_device_in_use_is_not_read(era: EraMachine) -> None:
    with pytest.raises(UsageError, match="is active: its live metadata changes while it is read"):
        open_source(parse_source(f"era:{era.node},since=3,snap=live"), MAP).__enter__()


def test_a_device_that_failed_is_refused_at_once_and_at_the_end(era: EraMachine) -> None:
    with open_source(parse_source(f"era:{era.node},since=3"), Reading()) as source:
        era.set_raw_status("Error")
        with pytest.raises(ChangesLost, match="has failed"):
            source.confirm()
    with pytest.raises(ChangesLost, match="has failed"):
        open_source(parse_source(f"era:{era.node},since=3"), MAP).__enter__()


def test_a_device_that_was_changed_meanwhile_is_refused_at_the_end(era: EraMachine) -> None:
    with open_source(parse_source(f"era:{era.node},since=3"), Reading()) as source:
        era.uuid = "another"
        era.set_up()
        with pytest.raises(ChangesLost, match=r"the table of .* was changed meanwhile"):
            source.confirm()
        (era.folder / "status").write_text("0 32768 linear\n")
        with pytest.raises(ChangesLost, match="changed or removed meanwhile"):
            source.confirm()


def test_metadata_that_gets_full_is_told(era: EraMachine) -> None:
    era.set_status(8, G4K.facts["images"]["meta-snap.img"]["views"]["live"]["superblock"]["metadata_snap"], 70, 100)
    with open_source(parse_source(f"era:{era.node},since=3"), MAP) as source:
        assert "is 70 % full (70 of 100 blocks)" in source.notes[0]


def test_other_metadata_than_the_tables_is_refused(era: EraMachine) -> None:
    text = (era.folder / "table").read_text()
    (era.folder / "table").write_text(text.rsplit(" ", 1)[0] + " 64\n")
    with pytest.raises(FormatError, match="this is not its metadata"):
        open_source(parse_source(f"era:{era.node},since=3"), MAP).__enter__()
    assert not era.is_held


def test_a_size_is_not_needed_where_the_kernel_knows_it(era: EraMachine) -> None:
    with pytest.raises(UsageError, match=r"size=4096: .* has 16777216 bytes; leave size= away"):
        open_source(parse_source(f"era:{era.node},since=3,size=4K"), MAP).__enter__()


def test_a_device_without_uuid_is_known_by_its_metadata(era: EraMachine) -> None:
    era.uuid = ""
    era.set_up()
    with open_source(parse_source(f"era:{era.node},since=3"), MAP) as source:
        assert source.base
        assert source.base.id == f"era:backing file {era.folder / 'meta-snap.img'}:3"


def test_an_idle_metadata_device_is_read_so_that_no_one_starts_it(era: EraMachine) -> None:
    era.take_down()
    with open_source(parse_source(f"era:{era.metadata},since=3,size=16M"), MAP) as source:
        assert source.changes == ranges("meta-snap.img:live", 3)
        assert "was not shut down" in source.notes[0]
    assert find_live(None) is None
    assert TRACKER.kind == "era"

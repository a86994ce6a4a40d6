from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from lvmsync.errors import ChangesLost, CommandError, DeviceError, FormatError, UsageError
from lvmsync.names import SnapshotStore, Volume, parse_source
from lvmsync.sources import Reading, Source, open_source
from tests.fixture_files import Case, find_case, list_cases
from tests.sources.machine import Machine

CASES = list_cases("snapshot")
# By its files alone: invalid is in the header; overflow, and a merge, are not (the kernel and LVM tell).
READABLE = [case for case in CASES if case.facts["header"]["valid"] and case.facts["kind"] != "merge"]
INVALID = [case for case in CASES if not case.facts["header"]["valid"]]
FEW = find_case("snapshot", "c4k-few")


def origin_of(case: Case, folder: Path) -> Path:
    return find_case("snapshot", case.facts.get("see", case.name)).image("origin_after", folder)


def store_name(case: Case, folder: Path, *, key: str = "cow") -> SnapshotStore:
    name = parse_source(f"snapshot:{case.image(key, folder)},origin={origin_of(case, folder)}")
    assert isinstance(name, SnapshotStore)
    return name


def ranges(source: Source) -> list[list[int]]:
    return [[extent.offset, extent.end] for extent in source.changes]


@pytest.mark.parametrize("case", READABLE, ids=str)
def test_a_store_gives_exactly_the_ranges_that_were_written(case: Case, tmp_path: Path) -> None:
    with open_source(store_name(case, tmp_path)) as source:
        assert ranges(source) == case.facts["changed_ranges"]
        assert source.size == case.facts["origin_size"]
        assert source.granularity == case.facts["header"]["chunk_sectors"] * 512
        assert (source.kind, source.base, source.head, len(source.holes)) == ("snapshot", None, None, 0)
        assert len(source.notes) == 1
        source.confirm()


@pytest.mark.parametrize("case", [case for case in READABLE if "origin_before" in case.facts["files"]], ids=str)
def test_the_ranges_bring_the_old_origin_to_the_new(case: Case, tmp_path: Path) -> None:
    before = bytearray(case.image("origin_before", tmp_path).read_bytes())
    with open_source(store_name(case, tmp_path)) as source:
        for offset, length in source.changes:
            source.data.read([offset], [length], memoryview(before)[offset : offset + length])
    assert before == origin_of(case, tmp_path).read_bytes()


def test_a_second_snapshot_of_the_same_origin_has_its_own_changes(tmp_path: Path) -> None:
    case = find_case("snapshot", "c16k-two-snaps")
    with open_source(store_name(case, tmp_path, key="cow_b")) as source:
        assert ranges(source) == case.facts["second"]["changed_ranges"]


@pytest.mark.parametrize("case", INVALID, ids=str)
def test_an_invalid_store_is_refused_with_its_name(case: Case, tmp_path: Path) -> None:
    name = store_name(case, tmp_path)
    with pytest.raises(ChangesLost, match="marked invalid") as caught, open_source(name):
        pass
    assert caught.value.device == name.store.path
    assert name.store.path in str(caught.value)


def test_the_kinds_that_no_file_can_tell_are_among_the_cases() -> None:
    assert {case.name for case in CASES} - {case.name for case in READABLE + INVALID} == {
        "c4k-merging",
        "c8k-merging-cut",
        "c4k-merge-pending",
    }


def test_a_size_can_be_given_and_clips_the_last_chunk(tmp_path: Path) -> None:
    case = find_case("snapshot", "c512k-odd-end")
    name = store_name(case, tmp_path)
    with open_source(SnapshotStore(name.store, name.origin, 16973824 - 512)) as source:
        assert source.size == source.changes.end == 16973824 - 512
    with pytest.raises(FormatError, match="has only 32 chunks") as caught:
        open_source(SnapshotStore(name.store, name.origin, 16 << 20)).__enter__()
    assert name.store.path in str(caught.value)
    with pytest.raises(UsageError, match="less than the 1073741824 of the origin"):
        open_source(SnapshotStore(name.store, name.origin, 1 << 30)).__enter__()


def test_data_of_a_file_can_be_read_elsewhere_on_the_users_word(tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    name = store_name(FEW, tmp_path)
    copy.write_bytes(origin_of(FEW, tmp_path).read_bytes())
    with open_source(name, Reading(data_source=str(copy))) as source:
        assert source.data.name == str(copy)
        assert "is your word" in source.notes[-1]
        source.confirm()


def test_a_store_without_an_origin_is_refused(tmp_path: Path) -> None:
    name = SnapshotStore(Volume(str(FEW.image("cow", tmp_path))), None, None)
    with pytest.raises(UsageError, match="which origin"):
        open_source(name).__enter__()


def test_a_plain_file_is_no_snapshot(tmp_path: Path) -> None:
    path = FEW.image("cow", tmp_path)
    with pytest.raises(UsageError, match="is a plain file; write snapshot:"):
        open_source(Volume(str(path))).__enter__()
    with pytest.raises(DeviceError, match="no such device or file"):
        open_source(Volume(str(tmp_path / "nope"))).__enter__()


def test_an_exception_that_comes_while_data_is_read_is_noticed(tmp_path: Path) -> None:
    name = store_name(FEW, tmp_path)
    with open_source(name) as source:
        source.confirm()
        with Path(name.store.path).open("r+b") as store:
            store.seek(4096 + 10 * 16)
            store.write((77).to_bytes(8, "little") + (12).to_bytes(8, "little"))
        with pytest.raises(DeviceError, match="was written to while it was read"):
            source.confirm()


@pytest.mark.parametrize(("byte", "message"), [(4, "marked invalid"), (12, "header of the store changed")])
def test_a_header_that_changes_while_data_is_read_is_noticed(tmp_path: Path, byte: int, message: str) -> None:
    name = store_name(FEW, tmp_path)
    with open_source(name) as source:
        with Path(name.store.path).open("r+b") as store:
            store.seek(byte)
            store.write(bytes([0 if byte == 4 else 16]))
        with pytest.raises(ChangesLost, match=message):
            source.confirm()


# With a kernel that runs the snapshot ------------------------------------------------------------------------


@pytest.fixture
def few(machine: Callable[[Case], Machine], tmp_path: Path) -> Machine:
    """The machine of ``c4k-few``: vg/data, vg/snap."""
    return make(machine, FEW, tmp_path)


def make(machine: Callable[[Case], Machine], case: Case, folder: Path) -> Machine:
    made = machine(case)
    snapshot = next(name for name in made.devices if f"{name}-cow" in made.devices)
    origin = next(name for name in made.devices if f"{name}-real" in made.devices)
    made.put(origin, case.image("origin_after", folder))
    made.put(f"{snapshot}-cow", case.image("cow", folder))
    made.put(snapshot, case.image("origin_before", folder))
    made.start()
    return made


def test_a_snapshot_is_opened_by_each_of_its_names(few: Machine) -> None:
    store = few.node("vg-snap-cow")
    for word in ("vg/snap", "/dev/vg/snap", few.node("vg-snap"), str(few.loops[2])):
        with open_source(parse_source(word)) as source:
            assert ranges(source) == FEW.facts["changed_ranges"]
            assert source.name == word
            assert source.data.name == few.node("vg-data")
            source.confirm()
    with open_source(parse_source(f"snapshot:{store},origin={few.node('vg-data')}")) as source:
        assert ranges(source) == FEW.facts["changed_ranges"]
        assert source.notes == ()
        source.confirm()


def test_the_points_are_the_ids_of_lvm(few: Machine) -> None:
    with open_source(parse_source("vg/snap")) as source:
        assert source.base
        assert source.head
        assert f"LVM-{source.base.id.removeprefix('lv:')}|" in few.info
        assert source.base.time == "2026-11-21T09:45:16+00:00"
        assert source.head.id.startswith("origin:")
        assert source.head.parent == source.base.id
    with open_source(parse_source("vg/snap")) as again:
        assert again.base == source.base
        assert again.head
        assert again.head.id != source.head.id


def test_hyphens_in_names_do_not_matter(machine: Callable[[Case], Machine], tmp_path: Path) -> None:
    case = find_case("snapshot", "c4k-hyphens")
    make(machine, case, tmp_path)
    with open_source(parse_source("my-vg/snap-1")) as source:
        assert ranges(source) == case.facts["changed_ranges"]


def test_an_origin_that_is_open_is_refused_unless_frozen(few: Machine) -> None:
    few.set_open_count("vg-data", 1)
    with pytest.raises(DeviceError, match=r"vg-data is open: unmount it .* -r with a later snapshot, or --frozen"):
        open_source(parse_source("vg/snap")).__enter__()
    with open_source(parse_source("vg/snap"), Reading(frozen=True)) as source:
        source.confirm()


def test_an_origin_that_is_held_is_refused_unless_frozen(few: Machine) -> None:
    holder = os.open(few.node("vg-data"), os.O_RDONLY | os.O_EXCL)
    try:
        with pytest.raises(DeviceError, match=r"mounted, or held .* -r with a later snapshot"):
            open_source(parse_source("vg/snap")).__enter__()
        with open_source(parse_source("vg/snap"), Reading(frozen=True)) as source:
            source.confirm()
    finally:
        os.close(holder)


def test_an_origin_is_held_while_it_is_read(few: Machine) -> None:
    with open_source(parse_source("vg/snap")), pytest.raises(OSError, match="busy"):
        os.open(few.node("vg-data"), os.O_RDONLY | os.O_EXCL)


@pytest.mark.parametrize("frozen", [False, True])
def test_a_write_to_the_origin_is_noticed_even_to_a_chunk_that_changed_before(few: Machine, frozen: bool) -> None:
    with open_source(parse_source("vg/snap"), Reading(frozen=frozen)) as source:
        fd = os.open(few.loops[0], os.O_WRONLY | os.O_DSYNC)
        os.pwrite(fd, bytes(4096), 0)
        os.close(fd)
        with pytest.raises(DeviceError, match="vg-data was written to while it was read"):
            source.confirm()


@pytest.mark.parametrize("frozen", [False, True])
def test_growth_by_the_kernels_count_is_noticed(few: Machine, frozen: bool) -> None:
    with open_source(parse_source("vg/snap"), Reading(frozen=frozen)) as source:
        few.set_status("vg-snap", "0 32768 snapshot 104/2048 16\n")
        with pytest.raises(DeviceError, match="was written to while it was read"):
            source.confirm()


def test_a_snapshot_that_becomes_invalid_on_the_way_is_noticed(few: Machine) -> None:
    with open_source(parse_source("vg/snap")) as source:
        few.set_status("vg-snap", "0 32768 snapshot Invalid\n")
        with pytest.raises(ChangesLost, match="status 'Invalid'"):
            source.confirm()
        few.set_status("vg-snap", "0 32768 error \n")
        with pytest.raises(ChangesLost, match="changed or removed meanwhile"):
            source.confirm()


@pytest.mark.parametrize("name", ["c4k-overflow", "c4k-full-258", "c4k-full-515"])
def test_an_invalid_snapshot_is_refused_by_name_and_by_store(
    machine: Callable[[Case], Machine], tmp_path: Path, name: str
) -> None:
    made = make(machine, find_case("snapshot", name), tmp_path)
    for word in ("vg/snap", f"snapshot:{made.node('vg-snap-cow')},origin={made.node('vg-data')}"):
        with pytest.raises(ChangesLost):
            open_source(parse_source(word)).__enter__()


@pytest.mark.parametrize("status", ["Invalid", "Overflow", "Merge failed", "Unknown"])
def test_the_kernels_word_counts_although_header_and_lvm_say_valid(few: Machine, status: str) -> None:
    few.set_status("vg-snap", f"0 32768 snapshot {status}\n")
    for word in ("vg/snap", f"snapshot:{few.node('vg-snap-cow')},origin={few.node('vg-data')}"):
        with pytest.raises(ChangesLost, match=f"status '{status}'"):
            open_source(parse_source(word)).__enter__()


def test_a_pending_merge_is_refused_although_the_kernel_still_tracks(few: Machine) -> None:
    for row in few.report["report"][0]["lv"]:
        row["lv_merging"] = "merging"
    few.report["report"][0]["lv"][1]["lv_name"] = "[snap]"
    few.answer_lvs()
    for word in ("vg/snap", few.node("vg-snap"), f"snapshot:{few.node('vg-snap-cow')},origin=vg/data"):
        with pytest.raises(ChangesLost, match="being merged into vg/data, or will be"):
            open_source(parse_source(word)).__enter__()


def test_a_merge_that_runs_is_refused_by_its_store(few: Machine) -> None:
    few.set_table("0 32768 snapshot-origin 254:1", "0 32768 snapshot-merge 254:1 254:2 P 8")
    with pytest.raises(ChangesLost, match="is being merged"):
        open_source(parse_source(f"snapshot:{few.node('vg-snap-cow')},origin={few.node('vg-data')}")).__enter__()


def test_a_store_that_is_shorter_than_the_kernel_says_is_damaged(few: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lvmsync.sources.snapshot_map.MAP_WAIT", 0)
    few.set_status("vg-snap", "0 32768 snapshot 104/2048 16\n")
    with pytest.raises(FormatError, match="has 10 exceptions, the kernel says 11"):
        open_source(parse_source("vg/snap")).__enter__()
    few.set_status("vg-snap", "0 32768 snapshot 88/2048 16\n")
    with pytest.raises(FormatError, match="has 10 exceptions, the kernel says 9"):
        open_source(parse_source("vg/snap")).__enter__()
    few.set_status("vg-snap", "0 32768 snapshot 89/2048 16\n")
    with pytest.raises(FormatError, match="does the store belong to it"):
        open_source(parse_source("vg/snap")).__enter__()


def test_a_store_with_the_wrong_origin_is_refused(few: Machine) -> None:
    word = f"snapshot:{few.node('vg-snap-cow')},origin={few.node('vg-snap')}"
    with pytest.raises(UsageError, match=r"is the store of a snapshot of .*vg-data, not of .*vg-snap"):
        open_source(parse_source(word)).__enter__()


def test_a_store_that_the_kernel_uses_needs_no_origin_named(few: Machine) -> None:
    with open_source(SnapshotStore(Volume(few.node("vg-snap-cow")), None, None)) as source:
        assert source.data.name == few.node("vg-data")


def test_an_origin_that_cannot_be_opened_is_an_error_of_its_own(few: Machine) -> None:
    (few.nodes / "vg-data").unlink()
    with pytest.raises(DeviceError, match="no such device or file") as caught:
        open_source(parse_source("vg/snap")).__enter__()
    assert "--frozen" not in str(caught.value)


def test_the_origin_or_a_part_of_a_volume_is_no_snapshot(few: Machine) -> None:
    with pytest.raises(UsageError, match="vg/data is a plain volume, not a snapshot; its snapshots: vg/snap"):
        open_source(parse_source(few.node("vg-data"))).__enter__()
    with pytest.raises(UsageError, match="is a part of a volume"):
        open_source(parse_source(few.node("vg-snap-cow"))).__enter__()


def test_a_device_that_the_mapper_does_not_know_is_no_snapshot(few: Machine, tmp_path: Path) -> None:
    few.dmsetup.answer("x||254|77|0\n", "info")
    with pytest.raises(UsageError, match="is not a snapshot: nothing tracks"):
        open_source(parse_source(str(few.loops[0]))).__enter__()


@pytest.mark.parametrize(
    ("old", "new", "error", "message"),
    [
        ("P 8", "N 8", ChangesLost, "transient"),
        ("real: 0 32768 linear 98:0 2048", "real: 0 32768 zero ", UsageError, "an origin of zeros"),
        ("snapshot-origin 254:1", "linear 254:1 0", UsageError, "writes to it are not tracked"),
        ("snapshot 254:1 254:2", "snapshot 254:1 254:9", DeviceError, "store is not the one of vg/snap"),
        ("32768 snapshot 254:1 254:2 P 8", "32768 linear 254:1 0", DeviceError, "lvchange --refresh"),
    ],
)
def test_a_table_that_cannot_give_the_changes_is_refused(
    few: Machine, old: str, new: str, error: type[Exception], message: str
) -> None:
    few.set_table(old, new)
    with pytest.raises(error, match=message):
        open_source(parse_source("vg/snap")).__enter__()


def test_dmsetup_that_fails_is_an_error_not_a_valid_snapshot(few: Machine) -> None:
    few.dmsetup.fail("Device does not exist.\nCommand failed.\n", "status")
    with pytest.raises(CommandError, match="Device does not exist"):
        open_source(parse_source("vg/snap")).__enter__()
    few.dmsetup.fail("/dev/mapper/control: open failed: Permission denied\nCommand failed.\n", "info")
    with pytest.raises(CommandError, match="Permission denied"):
        open_source(parse_source(f"snapshot:{few.node('vg-snap-cow')},origin={few.node('vg-data')}")).__enter__()


def test_without_a_device_mapper_a_store_on_a_device_is_read_by_its_header(few: Machine) -> None:
    few.lose_dm()
    with open_source(parse_source(f"snapshot:{few.loops[1]},origin={few.loops[0]}")) as source:
        assert ranges(source) == FEW.facts["changed_ranges"]
        assert len(source.notes) == 1
        source.confirm()


# With a later snapshot as the place to read ------------------------------------------------------------------


@pytest.fixture
def two(machine: Callable[[Case], Machine], tmp_path: Path) -> Machine:
    """The machine of ``c16k-two-snaps``: vg/snap, and the later vg/snapb."""
    case = find_case("snapshot", "c16k-two-snaps")
    made = machine(case)
    made.put("vg-data", case.image("origin_after", tmp_path))
    made.put("vg-snap-cow", case.image("cow", tmp_path))
    made.put("vg-snap", case.image("origin_before", tmp_path))
    made.put("vg-snapb", case.image("origin_mid", tmp_path))
    made.start()
    made.set_open_count("vg-data", 1)  # in use, as it should be with -r
    return made


def test_data_comes_from_the_later_snapshot_while_the_origin_is_in_use(two: Machine) -> None:
    with open_source(parse_source("vg/snap"), Reading(data_source=two.node("vg-snapb"))) as source:
        assert source.data.name == two.node("vg-snapb")
        assert source.head
        assert source.base
        assert source.head.id.startswith("lv:")
        assert source.head.id != source.base.id
        assert source.head.parent == source.base.id
        assert source.notes == ()
        two.set_status("vg-snap", "0 32768 snapshot 1376/4096 64\n")
        source.confirm()  # growth is normal
        two.set_status("vg-snapb", "0 32768 snapshot Invalid\n")
        with pytest.raises(ChangesLost, match="vg-snapb is invalid"):
            source.confirm()


def test_a_later_snapshot_is_watched_although_nobody_uses_the_store(two: Machine, tmp_path: Path) -> None:
    word = f"snapshot:{tmp_path / 'cow.img'},origin={tmp_path / 'origin-after.img'}"
    with open_source(parse_source(word), Reading(data_source=two.node("vg-snapb"))) as source:
        assert (source.base, source.head, len(source.notes)) == (None, None, 2)
        source.confirm()
        two.set_status("vg-snapb", "0 32768 snapshot Invalid\n")
        with pytest.raises(ChangesLost, match="vg-snapb is invalid"):
            source.confirm()


def test_the_snapshot_itself_is_no_place_to_read(two: Machine) -> None:
    with pytest.raises(UsageError, match="is the snapshot itself"):
        open_source(parse_source("vg/snap"), Reading(data_source=two.node("vg-snap"))).__enter__()


def test_an_older_snapshot_is_no_place_to_read(two: Machine) -> None:
    two.report["report"][0]["lv"][2]["lv_time"] = "1795254315"
    two.answer_lvs()
    with pytest.raises(UsageError, match=r"was made at 2026-11-21T09:45:15\+00:00, before vg/snap"):
        open_source(parse_source("vg/snap"), Reading(data_source=two.node("vg-snapb"))).__enter__()


def test_a_snapshot_that_is_known_to_be_later_is_read_though_the_clock_was_set_back(two: Machine) -> None:
    two.report["report"][0]["lv"][2]["lv_time"] = "1795254315"
    two.answer_lvs()
    reading = Reading(data_source=two.node("vg-snapb"), is_later=True)
    with open_source(parse_source("vg/snap"), reading) as source:
        assert source.head


def test_a_snapshot_of_another_origin_is_no_place_to_read(two: Machine) -> None:
    two.set_table("snapshot 254:1 254:4", "snapshot 254:77 254:4")
    with pytest.raises(UsageError, match="a snapshot of another origin"):
        open_source(parse_source("vg/snap"), Reading(data_source=two.node("vg-snapb"))).__enter__()


def test_an_invalid_later_snapshot_is_no_place_to_read(two: Machine) -> None:
    two.set_status("vg-snapb", "0 32768 snapshot Invalid\n")
    with pytest.raises(ChangesLost, match="vg-snapb is invalid"):
        open_source(parse_source("vg/snap"), Reading(data_source=two.node("vg-snapb"))).__enter__()


def test_the_origin_given_as_the_place_to_read_is_still_a_live_origin(two: Machine) -> None:
    with pytest.raises(DeviceError, match="vg-data is open"):
        open_source(parse_source("vg/snap"), Reading(data_source=two.node("vg-data"))).__enter__()
    with open_source(parse_source("vg/snap"), Reading(data_source=two.node("vg-data"), frozen=True)) as source:
        source.confirm()


def test_another_place_to_read_is_taken_as_the_users_word(two: Machine, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.write_bytes(bytes(16 << 20))
    with open_source(parse_source("vg/snap"), Reading(data_source=str(copy))) as source:
        assert "is your word" in source.notes[0]
    copy.write_bytes(bytes((16 << 20) - 512))
    with pytest.raises(UsageError, match="has 16776704 bytes, less than the 16777216"):
        open_source(parse_source("vg/snap"), Reading(data_source=str(copy))).__enter__()

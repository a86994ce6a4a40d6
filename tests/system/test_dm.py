from __future__ import annotations

from pathlib import Path

import pytest

from lvmsync.errors import ChangesLost, CommandError, DeviceError
from lvmsync.system import dm
from tests.fake_programs import FakeProgram
from tests.fixture_files import Case, find_case, list_cases

RECORDED = [case for case in list_cases("snapshot") if case.has_text("dmsetup-info.txt")]


def columns_to_fields(text: str) -> str:
    """Turn the recorded columns of ``dmsetup info -c`` into what it prints with --separator."""
    rows = []
    for line in text.splitlines()[1:]:
        name, major, minor, _, count, _, _, *uuid = line.split()
        rows.append(f"{name}|{''.join(uuid)}|{major}|{minor}|{count}\n")
    return "".join(rows)


def one_status(text: str, name: str) -> str:
    """Return the recorded status of one device, as dmsetup prints it for that alone."""
    return "".join(line.split(": ", 1)[1] + "\n" for line in text.splitlines() if line.startswith(f"{name}: "))


@pytest.fixture
def dmsetup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeProgram:
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(dm, "MISC_DEVICES", tmp_path / "misc")
    (tmp_path / "misc").write_text("236 device-mapper\n237 loop-control\n")
    monkeypatch.setattr(dm, "CLOSE_WAIT", 0.001)
    return FakeProgram(tmp_path, "dmsetup")


def record(dmsetup: FakeProgram, case: Case) -> None:
    dmsetup.answer(columns_to_fields(case.text("dmsetup-info.txt")), "info")
    dmsetup.answer(case.text("dmsetup-table.txt"), "table")
    for device in dm.list_devices():
        status = one_status(case.text("dmsetup-status.txt"), device.name)
        dmsetup.answer(status, "status", "-j", str(device.number[0]), "-m", str(device.number[1]))


def test_devices_have_name_uuid_number_and_open_count(dmsetup: FakeProgram) -> None:
    record(dmsetup, find_case("snapshot", "c4k-hyphens"))
    device = dm.find_device((254, 2))
    assert device == dm.Mapped(
        "my--vg-snap--1-cow",
        "LVM-AFRDyDkPK0Y6LyvpH4SyOEh91K7k8fDrcGc3caX1bx14bfvtMEvqeF610TCs1Q31-cow",
        (254, 2),
        1,
    )
    assert device.path == "/dev/mapper/my--vg-snap--1-cow"
    assert dm.find_device((254, 9)) is None
    assert dm.find_device(None) is None


@pytest.mark.parametrize("case", RECORDED, ids=str)
def test_a_snapshot_is_found_by_its_own_number_and_by_its_stores(dmsetup: FakeProgram, case: Case) -> None:
    record(dmsetup, case)
    lines = [line for line in dm.list_tables() if line.kind in ("snapshot", "snapshot-merge")]
    assert lines
    for line in lines:
        store = tuple(int(part) for part in line.text.split()[1].split(":"))
        found = dm.find_snapshot_of_store((store[0], store[1]))
        assert found
        assert found.line == line
        assert found.store
        assert found.store.number == store
        assert not found.is_virtual
        if line.kind == "snapshot":
            assert dm.find_snapshot(line.device.number) == found
            assert found.origin
            assert found.size == case.facts["origin_size"]
        else:  # what is merged is the origin's own target
            assert dm.find_snapshot(line.device.number) is None


def test_the_origin_is_the_device_whose_writes_are_tracked(dmsetup: FakeProgram) -> None:
    record(dmsetup, find_case("snapshot", "c4k-po-overflow"))
    found = dm.find_snapshot((254, 3))
    assert found
    assert found.origin
    assert (found.origin.name, found.store and found.store.name, found.table.mode) == ("po-org", "vg-cow", "PO")


def test_usage_is_read_from_the_snapshots_own_status(dmsetup: FakeProgram) -> None:
    record(dmsetup, find_case("snapshot", "c4k-few"))
    found = dm.find_snapshot((254, 3))
    assert found
    assert found.read_usage().allocated == 96


@pytest.mark.parametrize("name", ["c4k-overflow", "c4k-po-overflow", "c4k-po-overflow-origin", "c4k-full-258"])
def test_an_invalid_snapshot_is_lost(dmsetup: FakeProgram, name: str) -> None:
    record(dmsetup, find_case("snapshot", name))
    found = dm.find_snapshot((254, 3))
    assert found
    with pytest.raises(ChangesLost, match="compare the whole device"):
        found.read_usage()


def test_a_snapshot_whose_target_changed_is_an_error(dmsetup: FakeProgram) -> None:
    record(dmsetup, find_case("snapshot", "c4k-few"))
    found = dm.find_snapshot((254, 3))
    assert found
    dmsetup.answer("0 32768 error \n", "status", "-j", "254", "-m", "3")
    with pytest.raises(CommandError, match="was 'snapshot' and is 'error'"):
        found.read_usage()
    dmsetup.fail("Device does not exist.\nCommand failed.\n", "status", "-j", "254", "-m", "3")
    with pytest.raises(CommandError, match="Device does not exist"):
        found.read_usage()


def test_a_sparse_snapshot_has_a_virtual_origin(dmsetup: FakeProgram) -> None:
    dmsetup.answer("o||254|0|0\nreal||254|1|0\ncow||254|2|0\ns||254|3|0\n", "info")
    dmsetup.answer(
        "o: 0 8 snapshot-origin 254:1\nreal: 0 8 zero \ncow: 0 8 linear 8:0 0\ns: 0 8 snapshot 254:1 254:2 P 8\n",
        "table",
    )
    found = dm.find_snapshot((254, 3))
    assert found
    assert found.is_virtual


def test_no_device_at_all_is_not_an_error(dmsetup: FakeProgram) -> None:
    dmsetup.answer("No devices found\n", "info")
    assert dm.list_devices() == []
    assert dm.list_tables() == []


def test_without_a_device_mapper_in_the_kernel_dmsetup_is_not_asked(dmsetup: FakeProgram, tmp_path: Path) -> None:
    (tmp_path / "misc").write_text("237 loop-control\n")
    assert dm.list_devices() == []
    (tmp_path / "misc").unlink()
    with pytest.raises(CommandError):  # not known: dmsetup tells
        dm.list_devices()


@pytest.mark.parametrize("line", ["x", "a|b|c|d|e", "a|b|1|2|3|4"])
def test_devices_that_cannot_be_read_are_an_error(dmsetup: FakeProgram, line: str) -> None:
    dmsetup.answer(f"{line}\n", "info")
    with pytest.raises(CommandError, match="cannot read"):
        dm.list_devices()


def test_a_table_that_cannot_be_read_is_an_error(dmsetup: FakeProgram) -> None:
    dmsetup.answer("a||254|0|0\nb||254|1|0\n", "info")
    dmsetup.answer("a: \nnew: 0 8 zero \nb: zero\n", "table")
    with pytest.raises(CommandError, match="b: cannot read 'zero'"):
        dm.list_tables()
    dmsetup.answer("a: \nnew: 0 8 zero \nb: 0 8 zero \nb: 8 16 linear 8:0 0\n", "table")
    assert [(line.start, line.length, line.kind, line.text) for line in dm.list_tables()] == [
        (0, 4096, "zero", ""),
        (4096, 8192, "linear", "8:0 0"),
    ]


def test_a_device_is_waited_for_until_it_is_closed(dmsetup: FakeProgram) -> None:
    dmsetup.answer("a||254|0|1\nb||254|1|0\n", "info")
    assert not dm.wait_until_closed((254, 0))
    assert len(dmsetup.calls()) == dm.CLOSE_TRIES
    assert dm.wait_until_closed((254, 1))
    assert dm.wait_until_closed((8, 1))


def test_a_node_of_another_device_is_refused(
    dmsetup: FakeProgram, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dmsetup.answer("a||254|0|0\n", "info")
    monkeypatch.setattr(dm, "NODES", tmp_path)
    (tmp_path / "a").write_bytes(bytes(512))
    with pytest.raises(DeviceError, match="stale node"):
        dm.open_number((254, 0))


def test_writes_are_counted_where_the_kernel_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dm, "SYSFS_BLOCK", tmp_path)
    (tmp_path / "254:0").mkdir()
    stat = tmp_path / "254:0" / "stat"
    stat.write_text("  1 2 3 4 55 6 7 8 9 10 11 12 13\n")
    assert dm.count_writes((254, 0)) == (55, 12)
    stat.write_text("1 2 3 4 5 6 7 8 9 10 11\n")
    assert dm.count_writes((254, 0)) == (5, 0)
    stat.write_text("")
    assert dm.count_writes((254, 0)) is None
    assert dm.count_writes((254, 1)) is None

"""What doctor says of volumes, of the state folder, and of tools; each finding has the command that mends it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from lvmsync.errors import DeviceError
from lvmsync.jobs.doctor import records, tools, volumes
from lvmsync.jobs.doctor.records import check_clock, check_far_clock, check_migrations, check_state, check_targets
from lvmsync.jobs.doctor.volumes import check_before, check_room, check_suspended, check_volumes
from lvmsync.jobs.migrate.state import Note, open_journal
from lvmsync.jobs.replica.record import Record
from lvmsync.system import dm, lvm
from lvmsync.system.ledger import open_ledger
from lvmsync.system.lvm import Group, LogicalVolume
from lvmsync.system.record import Transaction
from tests.fake_programs import FakeProgram

GIB = 1 << 30


def volume(name: str, *, layout: str = "linear", role: str = "public", **facts: object) -> LogicalVolume:
    made = LogicalVolume(
        "vg", name, f"id-{name}", "-wi-a-----", frozenset(layout.split()), frozenset(role.split()), 10 * GIB, "", "",
        False, "", None, None,
    )  # fmt: skip
    return replace(made, **facts)  # type: ignore[arg-type]


def pool(data: float, metadata: float) -> list[LogicalVolume]:
    hidden = volume("pool_tmeta", role="private", size=64 << 20)
    return [volume("pool", layout="thin pool", data_percent=data, metadata_percent=metadata), hidden]


def store(percent: float, **facts: object) -> list[LogicalVolume]:
    snapshot = volume(
        "snap", role="snapshot thicksnapshot", attr="sri-a-s---", origin="lv", origin_id="id-lv", size=GIB,
        data_percent=percent,
    )  # fmt: skip
    return [volume("lv"), replace(snapshot, **facts)]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("there", "remedies", "is_fatal"),
    [
        (pool(79.9, 79.9), [], False),
        (pool(80, 10), ["lvextend -l +25%LV vg/pool"], False),
        (pool(95, 10), ["lvextend -l +25%LV vg/pool"], True),
        (pool(10, 81), ["lvextend --poolmetadatasize +32M vg/pool"], False),
        (pool(10, 99), ["lvextend --poolmetadatasize +32M vg/pool"], True),
        (pool(90, 90), ["lvextend -l +25%LV vg/pool", "lvextend --poolmetadatasize +32M vg/pool"], False),
        (
            [volume("pool", layout="thin pool", metadata_percent=90.0)],
            ["lvextend --poolmetadatasize +4M vg/pool"],
            False,
        ),
        (store(79), [], False),
        (store(81), ["lvextend -l +25%LV vg/snap"], False),
        (store(99, size=11 * GIB), [], False),  # it holds all of its origin
        (store(100, trouble="snapshot invalid"), ["lvremove vg/snap"], False),
        (
            store(100, trouble="snapshot invalid", tags=frozenset(["lvmsync"])),
            ["'lvmsync repair SOURCE TARGET' makes a new base"],
            False,
        ),
        ([volume("lv", data_percent=99.0)], [], False),
    ],
)
def test_what_fills_up_and_what_is_broken_is_found(
    there: Sequence[LogicalVolume], remedies: list[str], is_fatal: bool
) -> None:
    found = list(check_volumes(there))
    assert [one.remedy for one in found] == remedies
    assert any(one.is_fatal for one in found) == is_fatal


def test_a_replica_without_room_for_its_next_snapshot_or_without_its_source_is_found() -> None:
    record = Record("ab" * 8, "id-lv", "vg/lv", "host:vg/lv")
    gone = replace(record, id="cd" * 8, source_id="id-gone", source="vg/gone")
    thin = replace(record, source_id="id-thin")
    there = [volume("lv"), volume("thin", thin_id=4)]
    found = list(check_room([record, gone, thin], there, [Group("vg", 1 << 20, 4 << 20)]))
    assert [(one.what, one.remedy) for one in found] == [
        ("vg", "vgextend vg DISK"),
        ("vg/gone", f"lvmsync cleanup --replica {'cd' * 8}"),
    ]
    assert not list(check_room([record], there, [Group("vg", 100 * GIB, 4 << 20)]))


def test_what_is_left_of_a_volume_that_is_gone_is_named_before_anything_is_removed() -> None:
    record = Record("cd" * 8, "id-gone", "vg/gone", "host:vg/gone")
    tags = frozenset({"lvmsync", f"lvmsync.replica={'cd' * 8}", "lvmsync.id=id-left"})
    left = volume("left", thin_id=4, attr="Vri---tz-k", tags=tags)
    (found,) = check_room([record], [left, volume("lv", tags=tags)], [])
    assert found.problem.endswith("is gone, and vg/left is left of it")
    assert found.remedy == f"if it is not needed any more, for good: lvmsync cleanup --replica {'cd' * 8}"


def test_a_suspended_device_is_found() -> None:
    devices = [dm.Mapped("vg-lv", "", (253, 0), 1), dm.Mapped("vg-b", "", (253, 1), 1)]
    found = list(check_suspended(devices, lambda number: number == (253, 1)))
    assert [(one.what, one.remedy, one.is_fatal) for one in found] == [
        ("/dev/mapper/vg-b", "dmsetup resume vg-b", True)
    ]


def test_before_a_job_a_full_pool_stops_it_and_a_filling_store_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    thin = volume("thin", pool="pool", thin_id=1)
    monkeypatch.setattr(lvm, "list_volumes", lambda group: [thin, *pool(96, 5)])
    with pytest.raises(DeviceError, match=r"vg/pool: .* 96.0% full.*mend that first: lvextend -l \+25%LV vg/pool"):
        check_before(thin)
    monkeypatch.setattr(lvm, "list_volumes", lambda group: [thin, *pool(85, 5)])
    assert [line.partition(":")[0] for line in check_before(thin)] == ["vg/pool"]
    monkeypatch.setattr(lvm, "list_volumes", lambda group: [volume("other", layout="thin pool", data_percent=99.0)])
    assert check_before(thin) == []  # another pool of the group
    ours = store(85, tags=frozenset(["lvmsync"]))
    monkeypatch.setattr(lvm, "list_volumes", lambda group: ours)
    assert [line.partition(":")[0] for line in check_before(ours[0])] == ["vg/snap"]
    monkeypatch.setattr(lvm, "list_volumes", lambda group: store(85))  # not ours
    assert check_before(ours[0]) == []
    monkeypatch.setattr(volumes, "is_suspended", lambda number: True)
    with pytest.raises(DeviceError, match=r"suspended.*dmsetup resume /dev/vg/lv"):
        check_before(replace(ours[0], number=(253, 7)))


# The state folder


def note_target(state: Path, name: str, **fields: object) -> None:
    with open_ledger(state, name, {"inode": name}, 10) as ledger:
        ledger.write(**fields)


def test_targets_that_are_unfinished_or_unknown_are_found(tmp_path: Path) -> None:
    open_one = Transaction("ab", began="2026-01-02", undo="/u")
    note_target(tmp_path, "/a", transaction=open_one)
    note_target(tmp_path, "/b", transaction=replace(open_one, resumable=True))
    note_target(tmp_path, "/c", transaction=replace(open_one, undo=None, resumable=True), dirty=True)
    note_target(tmp_path, "/d", dirty=True)
    note_target(tmp_path, "/e", point=None)
    note_target(tmp_path, "/f", transaction=replace(open_one, phase="prepared", group="ff"))
    found = {one.what: one for one in check_targets(tmp_path)}
    assert {what: one.remedy for what, one in found.items()} == {
        "/a": "lvmsync recover /a",
        "/b": "lvmsync recover /b, or run that sync again to go on with it",
        "/c": "run that sync again to go on with it",
        "/d": "run 'lvmsync repair SOURCE /d' where its source is",
        "/f": "lvmsync recover /f",
    }
    with open_ledger(tmp_path, "/a", {"inode": "/a"}, 10):
        assert "/a" not in {one.what for one in check_targets(tmp_path)}  # somebody works on it


def test_a_ledger_that_cannot_be_read_is_found(tmp_path: Path) -> None:
    note_target(tmp_path, "/a", dirty=False)
    path = next(tmp_path.glob("targets/*/record.json"))
    whole = path.read_text()
    for text in ("{", "[]", whole.replace('"version": 1', '"version": 99')):
        path.write_text(text)
        (found,) = check_targets(tmp_path)
        assert (found.what, found.remedy) == (str(path), f"mv {path} {path}.broken")


def test_a_migration_that_was_cut_off_is_found(tmp_path: Path) -> None:
    assert not list(check_migrations(tmp_path))
    with open_journal(tmp_path, Note("vg/lv", "id", "host:vg/lv")) as journal:
        journal.enter("passes")
        assert not list(check_migrations(tmp_path))  # it runs
    (found,) = check_migrations(tmp_path)
    assert found.what == "vg/lv"
    assert found.remedy


def test_a_state_folder_that_forgets_or_is_full_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "_file_system", lambda folder: "ext4")
    assert not list(check_state(tmp_path / "not" / "there"))
    monkeypatch.setattr(records, "_file_system", lambda folder: "tmpfs")
    assert "forgotten at the next boot" in next(check_state(tmp_path)).problem
    monkeypatch.setattr(records, "_LEAST_FREE", 1 << 62)
    assert [one.problem.split()[0] for one in check_state(tmp_path)] == ["its", "it"]
    monkeypatch.setattr("os.access", lambda path, mode: False)
    assert [one.problem for one in check_state(tmp_path)] == ["the state folder cannot be written"]


def test_the_file_system_of_a_folder_is_that_of_the_nearest_mount() -> None:
    assert records._file_system(Path("/proc/self")) == "proc"


def test_clocks_that_go_wrong_are_found() -> None:
    now = datetime(2026, 5, 1, tzinfo=UTC)
    record = Record("ab" * 8, "id", "vg/lv", "t", committed="2026-05-01T00:01:00+00:00")
    assert not list(check_clock([record], now))
    (found,) = check_clock([record, replace(record, committed="2026-06-01T00:00:00+00:00")], now)
    assert found.kind == "clock"
    assert not list(check_clock([replace(record, committed="nonsense")], now))
    assert not list(check_clock([], now))
    assert not list(check_far_clock((now + timedelta(seconds=90)).isoformat(), now, "host:"))
    for told in ((now - timedelta(hours=1)).isoformat(), "2026-05-01T01:00:00"):
        assert [one.what for one in check_far_clock(told, now, "host:")] == ["host:"]
    assert not list(check_far_clock("nonsense", now, "host:"))


# Tools


def test_tools_that_are_missing_or_too_old_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert [one.remedy for one in tools.check_programs()] == ["apt-get install lvm2", "apt-get install dmsetup"]
    assert not list(tools.check_modules())
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    for name in ("lvs", "lvm", "dmsetup"):
        FakeProgram(tmp_path, name)
    answers = tmp_path / "lvm.answers"
    (answers / "say.version").write_text("  LVM version:     2.03.16(2) (2022-05-18)\n")
    assert not list(tools.check_programs())
    (answers / "say.version").write_text("  LVM version:     2.02.98(2) (2012-10-15)\n")
    assert [one.problem for one in tools.check_programs()] == ["version 2.2.98 has no reports in JSON"]
    (answers / "say.version").unlink()
    assert ["no answer for" in one.problem for one in tools.check_programs()] == [True]


def test_modules_that_the_kernel_lacks_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    dmsetup = FakeProgram(tmp_path, "dmsetup")
    dmsetup.answer("snapshot         v1.16.0\nlinear           v1.4.0\n", "targets")
    modules = tmp_path / "modules"
    assert not list(tools.check_modules(modules))  # not known
    modules.mkdir()
    (modules / "modules.dep").write_text("kernel/drivers/md/dm-era.ko:\n")
    assert [one.what for one in tools.check_modules(modules)] == ["dm-thin-pool"]
    (modules / "modules.builtin").write_text("kernel/drivers/md/dm-thin-pool.ko\n")
    assert not list(tools.check_modules(modules))


def test_packages_that_are_missing_or_too_old_are_found() -> None:
    assert not list(tools.check_packages())
    wanted = ["numpy>=99", "no-such-package-of-ours>=1", "rich", "numpy >= 1.0", 'pytest>=99 ; extra == "dev"']
    found = list(tools.check_packages(wanted))
    assert [one.remedy for one in found] == ["pip install 'numpy>=99'", "pip install 'no-such-package-of-ours>=1'"]

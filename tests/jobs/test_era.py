"""Era devices: made, started, watched, removed; and what a sync remembers of them."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from lvmsync.errors import ChangesLost, ConflictError, DeviceError, FormatError, LvmsyncError, UsageError
from lvmsync.extents import ChangeMap
from lvmsync.jobs import era
from lvmsync.jobs import unit as unit_files
from lvmsync.jobs.era_points import Memory, forget, life_folder, list_remembered
from lvmsync.jobs.progress import Receipt
from lvmsync.names import parse_source
from lvmsync.sources import Reading, Source
from tests.era_machine import G4K, UUID, EraMachine, running

DONE = Receipt(job="sync", confirmed=True, durable=True)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[EraMachine]:
    with running(tmp_path, monkeypatch) as one:
        yield one


@pytest.fixture
def state(machine: EraMachine) -> Path:
    return machine.folder / "state"


def sync(machine: EraMachine, word: str = "", *, receipt: Receipt = DONE, reading: Reading | None = None,
         target: str = "host:/dev/x") -> tuple[Source, Receipt]:  # fmt: skip
    """Do what a sync does, without the sending."""
    memory = Memory(machine.folder / "state", target)
    name = parse_source(f"era:{machine.node}{word}")
    with memory.open(name, reading or Reading()) as source:
        source.confirm()
    return source, memory.remember(receipt)


def remembered(state: Path, life: str = UUID) -> dict[str, int]:
    return {one.target: one.era for one in list_remembered(state, life)}


# ---- what a sync remembers


def test_the_first_sync_sends_everything_and_the_next_what_was_written(machine: EraMachine, state: Path) -> None:
    source, receipt = sync(machine)
    assert source.changes == ChangeMap.whole(16 << 20)
    assert source.base is None
    assert source.notes == ("No era is remembered for host:/dev/x: everything is sent.",)
    assert receipt.notes == ["host:/dev/x is at era 8 now; the next sync sends what was written since then."]
    assert remembered(state) == {"host:/dev/x": 8}
    machine.show("meta-snap2.img")
    source, _ = sync(machine)
    assert source.base
    assert source.base.id == f"era:{UUID}:8"
    wanted = G4K.facts["incremental"]["content_changed_ranges"]
    assert not len(ChangeMap.from_extents([(begin, end - begin) for begin, end in wanted]) - source.changes)
    assert 0 < source.changes.total_bytes < 2 << 20
    assert remembered(state) == {"host:/dev/x": 10}


def test_each_target_has_its_own_era(machine: EraMachine, state: Path) -> None:
    sync(machine, target="a")
    machine.show("meta-snap2.img")
    source, _ = sync(machine, target="b")
    assert source.changes == ChangeMap.whole(16 << 20)
    assert remembered(state) == {"a": 8, "b": 10}
    forget(state, UUID)
    forget(state, UUID)
    assert remembered(state) == {}


@pytest.mark.parametrize(
    "receipt", [replace(DONE, dry_run=True), replace(DONE, durable=False), replace(DONE, confirmed=False)]
)
def test_nothing_is_remembered_of_a_copy_that_is_not_durable(
    machine: EraMachine, state: Path, receipt: Receipt
) -> None:
    assert sync(machine, receipt=receipt)[1] == receipt
    assert remembered(state) == {}


def test_a_failed_sync_remembers_nothing(machine: EraMachine, state: Path) -> None:
    memory = Memory(state, "x")
    with pytest.raises(DeviceError), memory.open(parse_source(f"era:{machine.node}"), Reading()):
        raise DeviceError("the target is gone")
    assert remembered(state) == {}


def test_data_from_elsewhere_leaves_the_era_as_it_was(machine: EraMachine, state: Path, tmp_path: Path) -> None:
    data = str(G4K.image("origin-after.img", tmp_path))
    _, receipt = sync(machine, reading=Reading(data_source=data))
    assert "era of this target was left as it was" in receipt.notes[-1]
    assert remembered(state) == {}
    sync(machine)
    machine.show("meta-snap2.img")
    source, _ = sync(machine, reading=Reading(data_source=data))
    assert source.head == source.base
    assert remembered(state) == {"host:/dev/x": 8}


def test_an_era_that_is_said_is_used_and_the_new_one_remembered(machine: EraMachine, state: Path) -> None:
    source, _ = sync(machine, ",since=5")
    assert source.base
    assert source.base.id == f"era:{UUID}:5"
    assert remembered(state) == {"host:/dev/x": 8}
    machine.show("meta-snap2.img")
    source, _ = sync(machine, ",since=0")
    assert source.changes == ChangeMap.whole(16 << 20)
    assert remembered(state) == {"host:/dev/x": 10}


def test_a_target_of_another_history_is_refused_until_everything_is_sent(machine: EraMachine, state: Path) -> None:
    sync(machine)
    machine.uuid = "another"
    machine.set_up()
    with pytest.raises(ConflictError, match=rf"was at era 8 of another era device \({UUID}.*'compare:'.*since=0"):
        sync(machine)
    sync(machine, ",since=0")
    assert (remembered(state), remembered(state, "another")) == ({}, {"host:/dev/x": 8})


def test_an_era_that_has_not_been_yet_is_refused(machine: EraMachine) -> None:
    machine.show("meta-snap2.img")
    sync(machine)
    machine.show("meta-snap.img")
    with pytest.raises(ChangesLost, match=r"is at era 10 .*, and the current era is 8: the metadata was made anew"):
        sync(machine)


def test_a_history_that_does_not_go_on_is_refused(machine: EraMachine, state: Path) -> None:
    sync(machine)
    path = next(life_folder(state, UUID).iterdir())
    record = json.loads(path.read_text())
    assert len(record["blocks"]) > 1000
    at = next(at for at, era in enumerate(record["eras"]) if era == 3)
    record["eras"][at] = 2
    path.write_text(json.dumps(record))
    machine.show("meta-snap2.img")
    with pytest.raises(ChangesLost, match=r"does not go on from there .*, 1 have another era\).*'compare:'"):
        sync(machine)
    record["eras"][at], record["granularity"] = 3, 8192
    path.write_text(json.dumps(record))
    with pytest.raises(ChangesLost, match="does not go on from there"):
        sync(machine)


def test_a_device_that_grew_has_its_new_part_among_the_changes(machine: EraMachine, state: Path) -> None:
    sync(machine)
    path = next(life_folder(state, UUID).iterdir())
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | {"size": 12 << 20}))
    for word in ("", ",since=8"):
        source, _ = sync(machine, word, receipt=replace(DONE, dry_run=True))
        assert ChangeMap.from_extents([(12 << 20, 4 << 20)]) - source.changes == ChangeMap.empty()
        assert "grew from 12582912 to 16777216" in source.notes[0]
    path.write_text(json.dumps(record | {"size": 32 << 20}))
    assert "shrank" in sync(machine)[0].notes[0]


@pytest.mark.parametrize("text", ["", "[]", '{"era": 8}', "null"])
def test_a_record_that_cannot_be_read_is_refused(machine: EraMachine, state: Path, text: str) -> None:
    sync(machine)
    next(life_folder(state, UUID).iterdir()).write_text(text)
    with pytest.raises(FormatError, match=r"cannot be read .*move it away, and give since=0 once"):
        sync(machine)


def test_values_of_a_record_that_cannot_be_are_refused(machine: EraMachine, state: Path) -> None:
    sync(machine)
    path = next(life_folder(state, UUID).iterdir())
    record = json.loads(path.read_text())
    wrongs: list[dict[str, object]] = [
        {"era": -1},
        {"eras": []},
        {"size": "x"},
        {"blocks": ["x"] * len(record["eras"])},
    ]
    for wrong in wrongs:
        path.write_text(json.dumps(record | wrong))
        with pytest.raises(FormatError, match="cannot be read"):
            sync(machine)


def test_metadata_that_is_not_in_use_has_no_era_remembered(machine: EraMachine, state: Path, tmp_path: Path) -> None:
    machine.take_down()
    data = str(G4K.image("origin-after.img", tmp_path))
    memory = Memory(state, "x")
    with pytest.raises(UsageError, match="no device uses this metadata now, so no era is remembered"):
        memory.open(parse_source(f"era:{machine.metadata}"), Reading(data_source=data)).__enter__()
    with memory.open(parse_source(f"era:{machine.metadata},since=3"), Reading(data_source=data)) as source:
        assert source.changes.total_bytes
    assert memory.remember(DONE) == DONE


def test_a_source_of_another_kind_is_none_of_its_business(machine: EraMachine, state: Path, tmp_path: Path) -> None:
    data = G4K.image("origin-after.img", tmp_path)
    memory = Memory(state, "x")
    with memory.open(parse_source(f"full:{data}"), Reading()) as source:
        assert source.kind == "full"
    assert memory.remember(DONE) == DONE
    assert not (state / "era").exists()


def test_an_era_that_cannot_be_written_down_is_told_after_the_copy(machine: EraMachine, state: Path) -> None:
    sync(machine)
    folder = life_folder(state, UUID)
    forget(state, UUID)
    folder.write_text("in the way")
    with pytest.raises(DeviceError, match="the copy is right, but its era 8 cannot be written"):
        sync(machine)


# ---- making, starting and removing


def make(machine: EraMachine, *, force: bool = True, granularity: int = 4096, units: Path | None = None,
         name: str = "er") -> tuple[era.State, list[str]]:  # fmt: skip
    machine.take_down()
    state = machine.folder / "state"
    found = era.create(state, name, str(machine.origin), str(machine.metadata), granularity, force=force, units=units)
    # The kernel gave the device the uuid that it was made with.
    machine.uuid = json.loads((state / "era" / f"{name}.json").read_text())["uuid"]
    machine.set_up()
    return found


def first_block(machine: EraMachine) -> bytes:
    return (machine.folder / "meta-snap.img").read_bytes()[:4096]


def test_a_device_is_made_with_a_table_file_and_a_unit(machine: EraMachine, state: Path) -> None:
    units = machine.folder / "units"
    made, steps = make(machine, units=units)
    assert (made.is_active, made.era, made.granularity, made.size) == (True, 7, 4096, 16 << 20)
    table = json.loads((state / "era" / "er.json").read_text())
    assert re.fullmatch(r"LVMSYNC-ERA-[0-9a-f]{32}", table["uuid"])
    assert (table["era"], table["origin"]["path"]) == (7, str(machine.origin))
    assert machine.calls("create") == [
        f"create er --uuid {table['uuid']} --table 0 32768 era {machine.metadata} {machine.origin} 8"
    ]
    assert first_block(machine) == bytes(4096)
    text = (units / "lvmsync-era-er.service").read_text()
    assert f'lvmsync" "era" "start" "er" "--state" "{state}"\n' in text
    assert f"After=dev-{machine.metadata.name}.device dev-{machine.origin.name}.device" in text
    assert "Before=local-fs.target" in text
    assert "systemd does not know of it yet: run 'systemctl enable" in steps[0]


def test_without_a_unit_it_says_what_to_do_after_a_reboot(machine: EraMachine) -> None:
    assert "run 'lvmsync era start er' before its origin is used" in make(machine)[1][0]


def test_a_metadata_device_that_holds_something_is_refused(machine: EraMachine, state: Path) -> None:
    before = first_block(machine)
    with pytest.raises(DeviceError, match=r"holds something .* give --force"):
        make(machine, force=False)
    assert first_block(machine) == before
    assert not (state / "era").exists()


def test_a_metadata_device_without_room_is_refused(machine: EraMachine, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.write_bytes(bytes(40 * 4096))
    machine.metadata = machine.add_loop(small)
    with pytest.raises(DeviceError, match=r"has 40 blocks of 4 KiB, and era metadata for .* may need 53"):
        make(machine, force=False)
    os.truncate(small, 4096)
    machine.metadata = machine.add_loop(small)
    with pytest.raises(DeviceError, match="has 1 blocks"):  # the kernel could not even begin
        make(machine, force=True)


def test_a_device_that_is_in_use_is_refused(machine: EraMachine) -> None:
    fd = os.open(machine.origin, os.O_RDONLY | os.O_EXCL)
    try:
        with pytest.raises(DeviceError, match="mounted, or held"):
            make(machine)
    finally:
        os.close(fd)
    machine.set_up()
    machine.open_count = 1
    machine.name = "other"
    machine.set_up()
    with pytest.raises(DeviceError, match="is open: unmount it"):
        era.create(machine.folder / "s", "er", str(machine.origin), str(machine.metadata), 4096, force=True, units=None)


def test_what_cannot_be_made_is_refused(machine: EraMachine, state: Path, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(bytes(1 << 20))
    with pytest.raises(UsageError, match="is a plain file; make a loop device of it first"):
        era.create(state, "x", str(file), str(machine.metadata), 4096, force=True, units=None)
    with pytest.raises(ConflictError, match="there is a device called er already"):
        era.create(state, "er", str(machine.origin), str(machine.metadata), 4096, force=True, units=None)
    for name in ("", "-x", "a/b", "a b", "x" * 101):
        with pytest.raises(UsageError, match="is no name for an era device"):
            era.create(state, name, str(machine.origin), str(machine.metadata), 4096, force=True, units=None)
    machine.take_down()
    with pytest.raises(LvmsyncError, match=r"same device|mounted, or held"):
        era.create(state, "x", str(machine.origin), str(machine.origin), 4096, force=True, units=None)


def test_a_device_that_the_kernel_refuses_leaves_no_table_file(machine: EraMachine, state: Path) -> None:
    machine.fail("create")
    with pytest.raises(LvmsyncError, match="it does not want to"):
        make(machine)
    assert list((state / "era").iterdir()) == []


def test_a_device_that_fails_at_once_is_removed_again(machine: EraMachine, state: Path) -> None:
    machine.set_raw_status("Error")
    with pytest.raises(ChangesLost, match="has failed"):
        make(machine)
    assert machine.calls("remove") == ["remove er"]


def restore(machine: EraMachine, state: Path, **changes: object) -> None:
    """Let the machine have an era device of lvmsync that is not active, as after a reboot."""
    make(machine)
    machine.show("meta-snap.img")
    machine.set_status(8, 0)
    path = state / "era" / "er.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    machine.take_down()


def test_a_device_is_started_again_once(machine: EraMachine, state: Path) -> None:
    restore(machine, state)
    found, steps = era.start(state, "er")
    assert (found.is_active, found.era, steps) == (True, 7, [])
    assert len(machine.calls("create")) == 2
    assert era.start(state, "er")[0].era == 7
    assert len(machine.calls("create")) == 2


def test_a_device_whose_metadata_is_gone_is_not_started(machine: EraMachine, state: Path) -> None:
    restore(machine, state)
    fd = os.open(machine.metadata, os.O_WRONLY | os.O_DSYNC)
    os.pwrite(fd, bytes(4096), 0)
    with pytest.raises(ChangesLost, match=r"is gone \(its first block is zeros\), and the kernel would begin a new"):
        era.start(state, "er")
    os.pwrite(fd, b"x" * 4096, 0)
    os.close(fd)
    with pytest.raises(FormatError, match="no era metadata"):
        era.start(state, "er")
    assert len(machine.calls("create")) == 1


def test_a_device_whose_metadata_is_older_or_of_another_is_not_started(machine: EraMachine, state: Path) -> None:
    restore(machine, state, era=9)
    with pytest.raises(ChangesLost, match="is at era 8, and was at 9: it was restored from an older copy"):
        era.start(state, "er")
    path = state / "era" / "er.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"era": 7, "granularity": 8192}))
    with pytest.raises(FormatError, match="blocks of 4096 bytes, not 8192: this is other metadata"):
        era.start(state, "er")


def test_another_device_under_the_same_path_is_not_used(machine: EraMachine, state: Path) -> None:
    restore(machine, state)
    path = state / "era" / "er.json"
    table = json.loads(path.read_text())
    for part, changes, message in (
        ("metadata", {"identity": {"serial": "7"}}, "is not the device that er was made of"),
        ("origin", {"size": 32 << 20}, "has 16777216 bytes, and had 33554432"),
        ("origin", {"path": "/dev/nowhere"}, "cannot open /dev/nowhere"),
    ):
        path.write_text(json.dumps(table | {part: table[part] | changes}))
        with pytest.raises(DeviceError, match=message):
            era.start(state, "er")
    path.write_text(json.dumps(table | {"origin": table["origin"] | {"size": 8 << 20}}))
    assert "grew to 16777216 bytes; er still has 8388608" in era.start(state, "er")[1][0]


def test_a_creation_that_was_cut_short_is_not_started(machine: EraMachine, state: Path) -> None:
    restore(machine, state, era=0)
    with pytest.raises(DeviceError, match="making er was cut short; run 'lvmsync era remove er'"):
        era.start(state, "er")
    era.remove(state, "er", wipe=False, force=False)


def test_another_device_of_the_same_name_is_left_alone(machine: EraMachine, state: Path) -> None:
    restore(machine, state)
    machine.uuid = "another"
    machine.set_up()
    for do in (lambda: era.start(state, "er"), lambda: era.remove(state, "er", wipe=False, force=True)):
        with pytest.raises(ConflictError, match="another device is called er"):
            do()
    assert [one.uuid for one in era.show(state, None)] == ["another"]


@pytest.mark.parametrize("text", ["", "{}", '{"version": 2}', '{"version": 1, "metadata": 3}'])
def test_a_table_file_that_cannot_be_read_is_refused(machine: EraMachine, state: Path, text: str) -> None:
    restore(machine, state)
    (state / "era" / "er.json").write_text(text)
    with pytest.raises(FormatError, match=r"er\.json cannot be read"):
        era.start(state, "er")


def test_a_device_that_lvmsync_did_not_make_is_shown_but_not_removed(machine: EraMachine, state: Path) -> None:
    assert [(one.name, one.era) for one in era.show(state, None)] == [("er", 7)]
    with pytest.raises(DeviceError, match=r"lvmsync made no era device called er .*; it made: none"):
        era.remove(state, "er", wipe=False, force=False)
    with pytest.raises(DeviceError, match="there is no era device called x; there are: er"):
        era.show(state, "x")


def test_the_state_tells_who_holds_the_metadata_snapshot_and_where_copies_are(machine: EraMachine, state: Path) -> None:
    make(machine)
    machine.show("meta-snap.img")
    sync(machine)
    machine.hold()
    (found,) = era.show(state, "er")
    assert found.held
    assert "taken by another program" in found.held
    assert [(one["target"], one["era"]) for one in found.targets] == [("host:/dev/x", 8)]
    assert json.loads((state / "era" / "er.json").read_text())["era"] == 8
    machine.take_down()
    (found,) = era.show(state, None)
    assert (found.is_active, found.era) == (False, None)
    assert "start it with 'lvmsync era start er'" in found.notes[0]


def test_metadata_that_gets_full_is_told(machine: EraMachine, state: Path) -> None:
    machine.set_status(8, 0, used=60, total=100)
    assert "is 60 % full" in era.show(state, None)[0].notes[0]
    machine.set_status(8, 0, used=59, total=100)
    assert era.show(state, None)[0].notes == []


def test_a_checkpoint_tells_whether_there_is_a_new_era(machine: EraMachine, state: Path) -> None:
    make(machine)
    machine.set_status(8, 0)
    done = era.checkpoint(state, "er")
    assert (done.before, done.era, done.advanced) == (7, 8, True)
    done = era.checkpoint(state, "er")
    assert (done.era, done.advanced) == (8, False)
    assert json.loads((state / "era" / "er.json").read_text())["era"] == 8
    machine.take_down()
    with pytest.raises(DeviceError, match="er is not active; start it"):
        era.checkpoint(state, "er")


def test_removing_forgets_everything(machine: EraMachine, state: Path) -> None:
    units = machine.folder / "units"
    make(machine, units=units)
    machine.show("meta-snap.img")
    sync(machine)
    machine.set_status(8, 0)
    assert "was removed" in era.remove(state, "er", wipe=True, force=False)[0]
    assert list((state / "era").iterdir()) == list(units.iterdir()) == []
    assert first_block(machine) == bytes(4096)
    assert machine.calls("remove") == ["remove er"]


def test_a_device_in_use_is_not_removed(machine: EraMachine, state: Path) -> None:
    make(machine)
    machine.open_count = 1
    machine.set_up()
    with pytest.raises(DeviceError, match="er is open"):
        era.remove(state, "er", wipe=False, force=True)
    machine.open_count = 0
    machine.set_up()
    machine.hold()
    with pytest.raises(ConflictError, match=r"taken by another program.*give it back first"):
        era.remove(state, "er", wipe=False, force=False)
    machine.set_raw_status("Error")
    with pytest.raises(DeviceError, match="Removing it now may crash the kernel"):
        era.remove(state, "er", wipe=False, force=False)
    assert not machine.calls("remove")
    era.remove(state, "er", wipe=False, force=True)
    assert machine.calls("remove")


def test_systemd_is_told_where_it_runs(machine: EraMachine, monkeypatch: pytest.MonkeyPatch, state: Path) -> None:
    units, program = machine.folder / "units", machine.folder / "systemctl"
    program.write_text(f'#!/bin/sh\necho "$*" >>{machine.folder}/systemctl.calls\n')
    program.chmod(0o755)
    monkeypatch.setattr(unit_files, "UNITS", units)
    monkeypatch.setattr(unit_files, "SYSTEMD", machine.folder)
    assert make(machine, units=units)[1] == []
    assert era.remove(state, "er", wipe=False, force=False) == []
    calls = (machine.folder / "systemctl.calls").read_text().splitlines()
    unit = "lvmsync-era-er.service"
    assert calls == ["daemon-reload", f"enable {unit}", f"disable {unit}", "daemon-reload"]


def test_a_unit_that_cannot_be_written_is_told(machine: EraMachine) -> None:
    with pytest.raises(DeviceError, match=r"er was made, but /proc/.* cannot be written"):
        make(machine, units=Path("/proc/units"))


def test_names_are_escaped_for_systemd() -> None:
    assert unit_files.path_unit("/dev/mapper/vg-a--b", "device") == "dev-mapper-vg\\x2da\\x2d\\x2db.device"
    assert unit_files.path_unit("/dev/disk/by-id/%é", "device") == "dev-disk-by\\x2did-\\x25\\xc3\\xa9.device"
    assert unit_files.quote('a "b" $c %d') == '"a \\"b\\" $$c %%d"'


# ---- words


@pytest.mark.parametrize("text", ["0", "512", "6K", "8T", "x", ""])
def test_a_granularity_that_the_kernel_refuses_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        era.parse_granularity(text)


def test_a_plan_takes_a_size_or_a_device(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(bytes(1 << 20))
    assert era.plan(str(file), 4096)[1] == era.plan("1M", 4096)[1]
    for word in ("0", "7E"):
        with pytest.raises(UsageError, match="not what dm-era can track"):
            era.plan(word, 4096)

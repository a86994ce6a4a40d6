"""Taking past states down: what is refused, what is told, and what a run that is killed leaves."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from lvmsync.errors import ConflictError, DeviceError, FormatError
from lvmsync.jobs.archive.mount_plan import MountOptions
from lvmsync.jobs.archive.mounted import Mounted, list_mounted, lock_mount, record_path
from lvmsync.jobs.archive.umount import (
    clear_stale,
    describe_stale,
    find_stale,
    find_trouble,
    is_there,
    list_strangers,
    umount,
)
from lvmsync.jobs.doctor.records import check_mounts
from lvmsync.system import past_views
from tests.killed import killed_at
from tests.past_kernel import World


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    return World(tmp_path, monkeypatch)


def test_what_is_in_use_is_not_taken_down(world: World) -> None:
    receipt = world.mount(1)
    (record,) = list_mounted(world.state)
    view = past_views.find(past_views.uuid_of(record.id))
    assert view is not None
    world.kernel.in_use.add(view.number)
    with pytest.raises(DeviceError, match="is in use"):
        umount(world.state, record)
    assert world.kernel.read(receipt.device) == world.wanted(1)
    assert list_mounted(world.state) == [record]


def test_a_mount_that_is_being_made_is_left_alone(world: World) -> None:
    world.mount(1)
    (record,) = list_mounted(world.state)
    world.kernel.rows()
    with lock_mount(world.state, record.id), pytest.raises(ConflictError, match="wait for it"):
        umount(world.state, record)


def test_a_store_that_ran_full_is_told(world: World) -> None:
    world.mount(1)
    (record,) = list_mounted(world.state)
    world.kernel.texts[record.name] = "Invalid"
    assert [one for one, _ in find_trouble(world.state)] == [record]
    (finding,) = check_mounts(world.state)
    assert (finding.kind, finding.remedy) == ("full", f"lvmsync archive umount {record.path}")
    assert "ran full" in umount(world.state, record).notes[0]
    world.require_tidy()


def test_a_view_that_no_record_tells_of_is_found(world: World) -> None:
    world.mount(1)
    (record,) = list_mounted(world.state)
    record_path(world.state, record.id).unlink()
    assert len(list_strangers(world.state)) == 2
    findings = list(check_mounts(world.state))
    assert f"dmsetup remove {record.name}" in findings[0].remedy


def test_after_a_reboot_the_store_is_found_and_nothing_is_held(world: World) -> None:
    world.mount(1)
    (record,) = list_mounted(world.state)
    for row in list(world.kernel.list_devices()):
        world.kernel.remove(row)
    path = record_path(world.state, record.id)
    path.write_text(path.read_text().replace(record.boot, "another"))
    (stale,) = find_stale(world.state)
    assert "before the machine was started" in describe_stale(stale)
    (finding,) = check_mounts(world.state)
    assert finding.remedy == f"lvmsync archive umount {record.path}"
    assert clear_stale(world.state, [stale]) == []
    world.require_tidy()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"version": 1, "id": "x"}', '{"version": 2}'])
def test_a_damaged_record_is_told(text: str, world: World) -> None:
    world.mount(1)
    (record,) = list_mounted(world.state)
    record_path(world.state, record.id).write_text(text)
    with pytest.raises(FormatError, match="move it away"):
        list_mounted(world.state)


@pytest.mark.parametrize("options", [MountOptions(), MountOptions(directory="/tmp", is_writable=True)])
def test_a_mount_that_is_killed_at_any_step_is_taken_down(options: MountOptions, world: World) -> None:
    def run() -> None:
        world.mount(1, options)

    before, step = world.look(), 0
    while killed_at(step, run):
        records = list_mounted(world.state)
        assert [one for one in records if not is_there(one)] == find_stale(world.state)
        assert all(world.kernel.read(one.path) == world.wanted(1) for one in records if is_there(one))
        assert {row["uuid"][13:25] for row in world.kernel.rows()} <= {one.id for one in records}
        assert len(list((world.state / "mounts").glob("*.cow"))) <= len(records)
        assert clear_stale(world.state, records) == []
        world.require_tidy()
        step += 1
    (record,) = list_mounted(world.state)
    assert is_there(record)
    assert world.kernel.read(record.path) == world.wanted(1)
    assert world.look() == before
    assert step >= 8


def test_an_umount_that_is_killed_at_any_step_is_gone_on_with(world: World) -> None:
    step = 0
    while True:
        world.mount(1)
        (record,) = list_mounted(world.state)

        def run(record: Mounted = record) -> None:
            umount(world.state, record)

        if not killed_at(step, run):
            break
        for left in list_mounted(world.state):
            umount(world.state, left)
        world.require_tidy()
        step += 1
    world.require_tidy()
    assert step >= 4


def test_a_record_is_text_for_people(world: World) -> None:
    world.mount(2)
    (record,) = list_mounted(world.state)
    assert str(record) == f"/dev/mapper/lvmsync-archive-2 (point #2 of {world.shelf.store.name})"
    assert str(replace(record, directory="/mnt")).endswith(", on /mnt)")
    assert isinstance(record, Mounted)

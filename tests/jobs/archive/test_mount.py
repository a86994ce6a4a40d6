"""Past states as devices: what a view shows, what is refused, and what a run that is killed leaves."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from lvmsync.errors import ConflictError, DeviceError, LvmsyncError, StreamError, UsageError, VerifyError
from lvmsync.history import Point
from lvmsync.jobs.archive.mount import mount
from lvmsync.jobs.archive.mount_plan import MountOptions
from lvmsync.jobs.archive.mounted import list_mounted
from lvmsync.jobs.archive.umount import (
    choose,
    is_there,
    umount,
)
from lvmsync.jobs.progress import Progress
from lvmsync.system import dm, past_views, seen
from lvmsync.system.ledger import open_ledger
from lvmsync.targets.block import open_target
from tests.archive_history import Archive, Both, Forward, Reverse
from tests.past_kernel import Taken, World


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    return World(tmp_path, monkeypatch)


@pytest.mark.parametrize("kind", [Forward, Reverse, Both])
@pytest.mark.parametrize("seed", [0, 1, 4, 5])
def test_every_point_is_shown_as_it_was(
    kind: type[Archive], seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(tmp_path, monkeypatch, kind, seed)
    before = world.look()
    for point in world.shelf.catalogue.points:
        receipt = world.mount(point.number, MountOptions(is_writable=bool(seed % 2)))
        assert world.kernel.read(receipt.device) == world.wanted(point.number)
        (record,) = list_mounted(world.state)
        assert is_there(record)
        assert Path(record.store).stat().st_mode & 0o777 == 0o600
        assert umount(world.state, record).notes == []
        world.require_tidy()
    assert world.look() == before


def test_a_point_that_is_larger_than_the_mirror_ends_in_zeros(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mirror at an older point, and forward members that lead on to one of a device that has grown."""
    world = World(tmp_path, monkeypatch, Both, 4)
    states = world.archive.history.states
    sizes = [len(one.data) for one in states]
    assert sizes[0] < sizes[-1], "a history in which the device grew"
    assert world.image
    with open(world.image, "r+b") as file:  # back to what it was: as if the later syncs had been undone
        file.write(states[0].data)
        file.truncate(sizes[0])
    with (
        open_target(world.image) as target,
        open_ledger(world.state, target.canonical, target.identity, target.size) as ledger,
    ):
        look = seen.look_when_settled(target.fd)
        ledger.write(point=Point(states[0].id, None, None), seen=look, traces=(), held=None)
    receipt = world.mount(len(states))
    assert world.kernel.read(receipt.device) == states[-1].data


def test_a_mirror_that_is_not_needed_is_not_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(tmp_path, monkeypatch, Both)
    shelf = world.shelf
    full = next(one for one in shelf.catalogue.members if one.way == "full")
    reverse = [one for one in shelf.catalogue.members if one.way == "reverse"]
    monkeypatch.setattr(
        shelf, "catalogue", replace(shelf.catalogue, members=(full, *(replace(one, stored=1 << 40) for one in reverse)))
    )
    receipt = world.mount(1)
    assert receipt.mirror is None
    assert "is not needed" in receipt.notes[0]
    assert all("linear" not in line for row in world.kernel.rows() for line in row["lines"])


def test_a_mirror_that_is_missing_is_named(world: World) -> None:
    world.image = None
    with pytest.raises(ConflictError, match="--mirror DEVICE"):
        world.mount(1)


def test_a_dry_run_makes_nothing(world: World) -> None:
    receipt = world.mount(1, MountOptions(dry_run=True))
    assert receipt.dry_run
    assert receipt.exceptions > 0
    world.require_tidy()


def test_progress_is_told(world: World) -> None:
    told: list[Progress] = []
    point = world.shelf.catalogue.points[0]
    receipt = mount(world.shelf, point, world.image, world.state, MountOptions(), told.append)
    assert told[-1].done <= (told[-1].total or 0) == receipt.exceptions * receipt.chunk_size


def test_zeros_take_no_room_in_a_store_that_is_only_read(world: World) -> None:
    receipt = world.mount(1)
    assert receipt.written_bytes < receipt.exceptions * receipt.chunk_size


def test_several_points_have_names_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(tmp_path, monkeypatch, Forward)
    names = [world.mount(number).device.rpartition("/")[2] for number in (1, 2, 1)]
    assert names == ["lvmsync-archive-1", "lvmsync-archive-2", "lvmsync-archive-1-2"]
    assert choose(world.state, []) == choose(world.state, [world.shelf.store.name]) == list_mounted(world.state)
    assert [one.name for one in choose(world.state, ["/dev/mapper/lvmsync-archive-2"])] == names[1:2]
    with pytest.raises(DeviceError, match="lvmsync-archive-1-2"):
        choose(world.state, ["/dev/mapper/other"])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (MountOptions(directory="/nonexistent"), "no directory"),
        (MountOptions(store="/nonexistent/folder", room=1 << 62, is_writable=True), None),
        (MountOptions(cow_size=1 << 30), "--snapshot"),
        (MountOptions(with_snapshot=True), "no volume of LVM"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_made(
    options: MountOptions, words: str | None, world: World
) -> None:
    with pytest.raises(LvmsyncError, match=words):
        world.mount(1, options)
    world.require_tidy()


def test_a_snapshot_without_a_mirror_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(tmp_path, monkeypatch, Forward)
    with pytest.raises(UsageError, match="--mirror VG/LV"):
        world.mount(1, MountOptions(with_snapshot=True))


def test_too_little_room_is_refused(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.statvfs

    def full(path: Path) -> os.statvfs_result:
        return os.statvfs_result([4096 if at in (0, 1) else 5 for at in range(len(real(path)))])

    monkeypatch.setattr(os, "statvfs", full)
    with pytest.raises(DeviceError, match=r"20\.0 KiB free, and the store of that state may need"):
        world.mount(1)
    world.require_tidy()


def test_a_kernel_without_a_device_mapper_is_told(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lvmsync.system.dm.is_in_kernel", lambda: False)
    with pytest.raises(DeviceError, match="modprobe dm-mod"):
        world.mount(1)


@pytest.mark.parametrize("part", ["-origin", "lvmsync-archive-1"])
def test_what_fails_half_way_is_taken_down_again(part: str, world: World) -> None:
    world.kernel.refuses = part
    with pytest.raises(LvmsyncError, match="dmsetup"):
        world.mount(1)
    world.require_tidy()


def test_a_damaged_member_shows_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(tmp_path, monkeypatch, Forward)
    path = max((tmp_path / "archive").glob("*.stream"), key=lambda one: one.stat().st_size)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.chmod(0o600)
    path.write_bytes(data)
    with pytest.raises(StreamError):
        world.mount(1)
    world.require_tidy()


def test_a_mirror_that_is_written_to_at_this_very_moment_is_refused(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = world.kernel.create

    def writing(name: str, *args: object, **others: object) -> object:
        assert world.image
        with open(world.image, "r+b") as file:
            file.write(b"x")
        return create(name, *args, **others)  # type: ignore[arg-type]

    monkeypatch.setattr(past_views, "create", writing)
    with pytest.raises(ConflictError, match="at this very moment"):
        world.mount(1)
    world.require_tidy()


def test_a_kernel_that_finds_another_number_of_chunks_is_not_believed(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = world.kernel.find_snapshot

    def short(number: dm.Number) -> Taken:
        usage = told(number).usage
        return Taken(replace(usage, allocated=usage.allocated - 8))

    monkeypatch.setattr(dm, "find_snapshot", short)
    with pytest.raises(VerifyError, match="were written"):
        world.mount(1)
    world.require_tidy()


def test_a_mirror_that_another_view_holds_is_read_below_it(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    assert world.image
    with open(world.image, "rb"):  # as a loop device has it open
        with pytest.raises(DeviceError, match="open in another program"):
            world.mount(1)
        monkeypatch.setattr(past_views, "find_above", lambda _: ["/dev/mapper/lvmsync-archive-2"])
        receipt = world.mount(1)
    assert world.kernel.read(receipt.device) == world.wanted(1)

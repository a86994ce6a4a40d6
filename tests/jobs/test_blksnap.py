"""What is done with blksnap by hand, over the simulated module."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path

import pytest

from lvmsync.errors import ConflictError, DeviceError, FormatError, UsageError
from lvmsync.formats.blksnap_abi import Abi
from lvmsync.jobs import blksnap, blksnap_place, blksnap_storage
from lvmsync.jobs.blksnap_storage import Room, choose_storage
from lvmsync.system.blksnap import DeviceName, name_device, open_control
from tests.blksnap_kernel import Disk
from tests.blksnap_machine import GENERATIONS, SIZE, Machine, machine


@pytest.fixture(params=GENERATIONS)
def here(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    with machine(tmp_path, monkeypatch, request.param) as one:
        yield one


def add_part(here: Machine, disk: Disk, name: str, number: str) -> Path:
    """Make a partition of a disk in the fake sysfs."""
    folder = here.kernel.root / f"sys/dev/block/{disk.number[0]}:{disk.number[1]}" / name
    folder.mkdir()
    (folder / "partition").write_text("1\n")
    (folder / "dev").write_text(f"{number}\n")
    (here.kernel.root / f"sys/dev/block/{number}").symlink_to(folder.resolve())
    return folder


def folder_of(here: Machine, disk: Disk) -> Path:
    return here.kernel.root / f"sys/dev/block/{disk.number[0]}:{disk.number[1]}"


def mount(here: Machine, number: str) -> None:
    (here.kernel.root / "proc/self/mountinfo").write_text(f"36 35 {number} / /mnt rw - ext4 /dev/x rw\n")


# ---- attach and detach


def test_a_device_is_attached_once_and_detached(here: Machine) -> None:
    notes = blksnap.attach([here.disk.node], force=False)
    if here.kernel.generation == "v1":
        assert "with its first snapshot" in notes[0]
        return
    assert here.disk.tracker
    assert notes == [f"{here.disk.node} was not tracked; it is from now on."]
    assert blksnap.attach([here.disk.node], force=False) == []
    blksnap.detach([here.disk.node])
    assert here.disk.tracker is None
    with pytest.raises(DeviceError, match="is not tracked by blksnap; run 'lvmsync blksnap attach"):
        blksnap.detach([here.disk.node])


def test_a_device_that_a_snapshot_holds_is_not_detached(here: Machine) -> None:
    here.kernel_take(keep=True)
    with pytest.raises(ConflictError, match=r"is held by a snapshot .* would silently change"):
        blksnap.detach([here.disk.node])
    assert here.disk.tracker
    here.kernel.destroy_all()
    blksnap.detach([here.disk.node])
    assert here.disk.tracker is None


@pytest.mark.parametrize("use", ["mounted", "held"])
def test_a_disk_whose_partition_is_in_use_is_refused(here: Machine, use: str) -> None:
    part = add_part(here, here.disk, "sda1", "8:1")
    blksnap.attach([here.disk.node], force=False)
    if use == "mounted":
        mount(here, "8:1")
    else:
        (part / "holders/dm-0").mkdir(parents=True)
    for attempt in (
        lambda: blksnap.attach([here.disk.node], force=False),
        lambda: here.sync(),
        lambda: blksnap.take(here.state, [here.disk.node], here.room, force=False),
    ):
        with pytest.raises(DeviceError, match=r"its partition sda1 is in use.*track /dev/sda1.*--force"):
            attempt()
    assert any("sda1 is in use" in note for note in blksnap.attach([here.disk.node], force=True))
    here.sync(force=True)
    assert here.is_equal()


def test_what_lies_on_a_device_is_seen_by_up_only(here: Machine) -> None:
    (folder_of(here, here.disk) / "holders/dm-3").mkdir(parents=True)
    if here.kernel.generation == "up":
        blksnap.attach([here.disk.node], force=False)
        return
    with pytest.raises(DeviceError, match=r"dm-3 lies on it, and this module does not see .*: track that"):
        blksnap.attach([here.disk.node], force=False)


def test_what_is_not_seen_is_said_when_tracking_begins(here: Machine) -> None:
    one, two = here.disks
    (folder_of(here, one) / "partition").write_text("1\n")
    add_part(here, two, "sda1", "8:1")
    assert any("is a partition" in note for note in blksnap.attach([one.node], force=False))
    assert any("has partitions (sda1)" in note for note in blksnap.attach([two.node], force=False))
    here.kernel_attach()
    assert not any("is a partition" in note for note in blksnap.attach([one.node], force=False))


# ---- take and release


def test_a_snapshot_that_is_taken_stays_until_it_is_released(here: Machine) -> None:
    one, two = here.disks
    taken = blksnap.take(here.state, [one.node, two.node], here.room, force=False)
    before = one.content
    here.scribble(one)
    assert Path(taken.images[one.node]).read_bytes() == before
    assert taken.numbers == {one.node: 1, two.node: 1}
    assert here.kernel.held() == [taken.id]
    with pytest.raises(ConflictError, match="is held"):
        here.sync()
    if here.kernel.generation == "v1":
        assert (
            sum(length for _, _, length in here.kernel.snapshots[next(iter(here.kernel.snapshots))].ranges) == 1 << 14
        )
    assert blksnap.release(here.state, [], force=False) == [f"The snapshot {taken.id} was released."]
    assert here.kernel.held() == []
    assert here.noted() == []
    assert blksnap.release(here.state, [], force=False) == ["There is no snapshot of lvmsync."]


def test_a_take_that_fails_leaves_nothing(here: Machine) -> None:
    def fail(name: str) -> None:
        if name == "SNAPSHOT_TAKE":
            raise OSError(errno.ENOMEM, "Out of memory")

    here.kernel.before = fail
    with pytest.raises(DeviceError, match="cannot take snapshot"):
        blksnap.take(here.state, [here.disk.node], here.room, force=False)
    assert here.kernel.held() == []
    assert here.noted() == []


def test_a_take_without_room_on_v1_is_an_error_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with machine(tmp_path, monkeypatch, "v1") as here:
        monkeypatch.setattr(blksnap_storage.Storage, "append", lambda *_: 0)
        with pytest.raises(DeviceError, match="room for old content"):
            blksnap.take(here.state, [here.disk.node], here.room, force=False)
        assert here.kernel.held() == []
        assert here.noted() == []


def test_what_others_hold_is_released_only_by_force_and_by_its_id(here: Machine) -> None:
    foreign = here.kernel_take(keep=True)
    assert blksnap.release(here.state, [], force=True) == ["There is no snapshot of lvmsync."]
    with pytest.raises(ConflictError, match=f"did not make the snapshot {foreign}"):
        blksnap.release(here.state, [foreign], force=False)
    with pytest.raises(UsageError, match="no id"):
        blksnap.release(here.state, ["all"], force=True)
    with pytest.raises(DeviceError, match="there is no snapshot"):
        blksnap.release(here.state, [foreign.replace(foreign[0], "0" if foreign[0] != "0" else "1")], force=True)
    assert here.kernel.held() == [foreign]
    blksnap.release(here.state, [foreign], force=True)
    assert here.kernel.held() == []


def test_the_snapshot_of_a_sync_that_runs_is_not_released(here: Machine) -> None:
    def release() -> None:
        (snapshot,) = here.kernel.held()
        assert blksnap.release(here.state, [], force=False) == ["There is no snapshot of lvmsync."]
        with pytest.raises(ConflictError, match="is using the snapshot"):
            blksnap.release(here.state, [snapshot], force=True)
        (held,) = blksnap.show(here.state).snapshots
        assert held.is_ours
        assert held.whose.startswith("of a run of lvmsync since")
        here.writes += 100

    here.during = release
    here.sync()
    assert here.writes == 100
    assert here.is_equal()


def test_a_kept_snapshot_is_not_left_over_and_ends_with_the_boot(here: Machine) -> None:
    taken = blksnap.take(here.state, [here.disks[1].node], here.room, force=False)
    assert blksnap.show(here.state).snapshots[0].whose.startswith("taken by 'lvmsync blksnap take'")
    if here.kernel.generation != "v1":
        here.sync()
        assert here.kernel.held() == [taken.id]
    here.kernel.boot()
    here.sync()
    assert here.noted() == []


def test_a_state_folder_that_cannot_be_used_is_said_before_a_snapshot_is_made(here: Machine) -> None:
    here.state.write_text("a file")
    with pytest.raises(DeviceError, match=r"cannot use the state folder .*--state"):
        blksnap.take(here.state, [here.disk.node], here.room, force=False)
    assert here.kernel.held() == []


def test_a_note_that_cannot_be_read_is_an_error(here: Machine) -> None:
    here.sync()
    (here.state / "blksnap/snapshots/x.json").write_text("{}")
    with pytest.raises(FormatError, match="cannot be read"):
        here.sync()
    assert here.kernel.held() == []


# ---- status and mark


def test_the_state_of_all_is_shown(here: Machine) -> None:
    empty = blksnap.show(here.state)
    assert empty.devices == []
    assert empty.abi == here.kernel.generation
    here.sync()
    here.scribble()
    taken = blksnap.take(here.state, [here.disk.node], here.room, force=False)
    foreign = here.kernel_take(here.disks[1], keep=True) if here.kernel.generation != "v1" else None
    found = blksnap.show(here.state)
    device = next(one for one in found.devices if one.path == here.disk.node)
    assert device.number == 2
    assert device.size == here.disk.size
    assert device.changed
    assert device.changed >= 1 << 16
    assert device.image == taken.images[here.disk.node]
    assert device.targets[0]["snapshot"] == 1
    assert device.targets[0]["current"]
    assert {one.id: one.is_ours for one in found.snapshots} == {taken.id: True} | ({foreign: False} if foreign else {})
    blksnap.release(here.state, [], force=False)
    here.kernel.boot()
    assert blksnap.show(here.state).devices == []


@pytest.mark.parametrize("here", ["v7", "up"], indirect=True)
def test_what_is_wrong_with_a_device_is_shown(here: Machine) -> None:
    here.kernel_take()
    assert here.disk.tracker
    here.disk.tracker.is_corrupted = True
    (device,) = blksnap.show(here.state).devices
    assert device.changed is None
    assert device.error
    assert "map" in device.error
    here.disk.tracker.is_corrupted = False
    here.kernel_take(keep=True)
    here.kernel.overflow()
    (device,) = blksnap.show(here.state).devices
    assert device.error == "its snapshot is lost (No space left on device): the difference storage ran over"


def test_a_range_that_is_marked_is_sent(here: Machine) -> None:
    here.sync()
    here.kernel.write_unseen(here.disk, 5 * 65536 + 100, b"unseen")
    notes = blksnap.mark(here.disk.node, 5 * 65536 + 100, 6)
    assert "count as written now" in notes[0]
    here.sync()
    assert here.sent[-1].changes.total_bytes == 65536
    assert here.is_equal()
    for offset, length in (0, 0), (here.disk.size, 1), (0, here.disk.size + 1):
        with pytest.raises(UsageError, match="not a range of"):
            blksnap.mark(here.disk.node, offset, length)


# ---- storage


def test_storage_on_what_is_held_is_refused(here: Machine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    room = Room(str(tmp_path / "room"), 1 << 20)
    part = add_part(here, here.disk, "sda1", "8:1")
    mapped = here.kernel.root / "sys/devices/virtual/dm-0"
    (mapped / "slaves").mkdir(parents=True)
    (mapped / "slaves/sda1").symlink_to(part)
    (here.kernel.root / "sys/dev/block/253:0").symlink_to(mapped)
    for number in here.disk.number, (8, 1), (253, 0):
        monkeypatch.setattr(blksnap_storage, "find_file_device", lambda _, number=number: number)
        with pytest.raises(DeviceError, match=r"difference storage .* lies on"):
            choose_storage(Abi.UP, room, [name_device(here.disk.node)], here.state)
    with pytest.raises(DeviceError, match="lies on"):
        blksnap_place.require_apart(here.disk.number, [DeviceName("/dev/sda1", (8, 1))], "x")
    monkeypatch.setattr(blksnap_storage, "find_file_device", lambda _: None)
    assert choose_storage(Abi.UP, room, [name_device(here.disk.node)], here.state).limit == 1 << 20


def test_a_spare_device_must_be_spare(here: Machine) -> None:
    devices = [name_device(here.disk.node)]
    with pytest.raises(DeviceError, match="lies on"):
        choose_storage(Abi.V1, Room(here.disk.node, None, overwrite=True), devices, here.state)
    other = here.disks[1]
    with pytest.raises(DeviceError, match="holds something"):
        choose_storage(Abi.V1, Room(other.node, None), devices, here.state)
    storage = choose_storage(Abi.V1, Room(other.node, None, overwrite=True), devices, here.state)
    assert storage.left == [(1 << 20, SIZE - (1 << 20))]
    assert choose_storage(Abi.V7, Room(other.node, None, overwrite=True), devices, here.state).limit == SIZE
    mount(here, f"{other.number[0]}:{other.number[1]}")
    with pytest.raises(DeviceError, match="is in use"):
        choose_storage(Abi.V1, Room(other.node, None, overwrite=True), devices, here.state)


def test_storage_has_a_limit_within_what_is_free(here: Machine, tmp_path: Path) -> None:
    devices = [name_device(here.disk.node)]
    found = choose_storage(Abi.UP, Room(str(tmp_path / "room"), None), devices, here.state)
    assert found.limit == here.disk.size // 10
    with pytest.raises(DeviceError, match="bytes free"):
        choose_storage(Abi.UP, Room(str(tmp_path / "room"), 1 << 60), devices, here.state)
    with pytest.raises(UsageError, match="at the least"):
        choose_storage(Abi.UP, Room(str(tmp_path / "room"), 100), devices, here.state)
    (tmp_path / "file").write_bytes(b"precious")
    with pytest.raises(UsageError, match="name a folder"):
        choose_storage(Abi.UP, Room(str(tmp_path / "file"), None), devices, here.state)
    with pytest.raises(DeviceError, match="cannot open"):
        choose_storage(Abi.UP, Room(str(tmp_path / "none"), None), devices, here.state)


def test_a_machine_without_the_module_says_so(here: Machine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(blksnap, "connect", lambda: open_control(tmp_path))
    with pytest.raises(DeviceError, match="modprobe"):
        blksnap.show(here.state)

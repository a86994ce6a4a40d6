"""What must never happen to storage, targets and other programs' data, over the simulated module."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import struct
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lvmsync.errors import ChangesLost, ConflictError, DeviceError, FormatError, LvmsyncError, UsageError
from lvmsync.extents import ChangeMap
from lvmsync.jobs import blksnap, blksnap_notes, blksnap_storage, blksnap_sync
from lvmsync.jobs.blksnap_storage import Room
from lvmsync.jobs.outlet import Outlet
from lvmsync.jobs.progress import Receipt
from lvmsync.system.blksnap import DeviceName
from lvmsync.system.ledger import replace_file
from tests.blksnap_kernel import Crash
from tests.blksnap_machine import GENERATIONS, Machine, machine


@pytest.fixture(params=GENERATIONS)
def here(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    with machine(tmp_path, monkeypatch, request.param) as one:
        yield one


only_v1 = pytest.mark.parametrize("here", ["v1"], indirect=True)
all_but_v1 = pytest.mark.parametrize("here", ["v7", "up"], indirect=True)


def once(here: Machine, request: str, act: Callable[[], None]) -> None:
    """Have something happen after the first request of a name."""
    done: list[str] = []

    def after(name: str) -> None:
        if name == request and not done:
            done.append(name)
            act()

    here.kernel.after = after


# ---- blksnap 6 forgets a snapshot when another program makes one


def forget(here: Machine) -> None:
    """Make a snapshot of the second disk, as another program does: v1 forgets what it had."""
    numbers = ctypes.create_string_buffer(struct.pack("<II", *here.disks[1].number))
    request = bytearray(32)
    struct.pack_into("<I4xQ", request, 0, 1, ctypes.addressof(numbers))
    here.kernel._snapshot_create(memoryview(request))


@only_v1
def test_the_storage_of_a_forgotten_snapshot_is_left_alone_until_the_next_boot(
    here: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    extents = ChangeMap.from_extents([(1 << 20, 8 << 20)])
    monkeypatch.setattr(blksnap_storage, "find_file_extents", lambda _: extents)
    monkeypatch.setattr(blksnap_storage, "_device_of", lambda _: DeviceName("/dev/x", (8, 200)))
    folder = here.folder / "room"
    here.room = Room(str(folder), 8 << 20)
    once(here, "SNAPSHOT_TAKE", lambda: forget(here))
    with pytest.raises(LvmsyncError) as caught:
        here.sync()
    assert any("still writes to its difference storage" in note for note in caught.value.__notes__)
    (file,) = folder.iterdir()
    here.kernel.snapshots.clear()  # the other program gave its own back
    assert any(str(file) in note for note in blksnap.show(here.state).notes)
    (receipt,) = here.sync()
    assert any(str(file) in note for note in receipt.notes)
    assert list(folder.iterdir()) == [file]
    here.kernel.boot()
    (receipt,) = here.sync()
    assert not any("still writes" in note for note in receipt.notes)
    assert list(folder.iterdir()) == []
    assert here.noted() == []


@only_v1
def test_a_spare_device_that_a_forgotten_snapshot_writes_to_is_not_used(here: Machine) -> None:
    once(here, "SNAPSHOT_TAKE", lambda: forget(here))
    with pytest.raises(LvmsyncError):
        here.sync()
    (orphan,) = here.kernel.held()[1:]
    here.kernel.snapshots.clear()
    for disk in here.disks:
        with pytest.raises(ConflictError, match=rf"may still be written to.*--force {orphan}"):
            here.sync(disk)
    other = here.spare("other.img", 16 << 20)
    used, here.room = here.room, Room(other, 8 << 20)
    here.sync()
    assert here.is_equal()
    here.room = used
    (said,) = blksnap.release(here.state, [orphan], force=True)
    assert f"noted of the snapshot {orphan} was removed" in said
    here.sync()
    assert here.noted() == []


@only_v1
def test_a_snapshot_that_we_destroyed_before_a_crash_is_not_forgotten(here: Machine) -> None:
    def die(name: str) -> None:
        if name == "SNAPSHOT_DESTROY":
            raise KeyboardInterrupt

    here.kernel.after = die
    with pytest.raises(KeyboardInterrupt):
        here.sync()
    here.kernel.after = lambda _: None
    assert here.noted() != []
    (receipt,) = here.sync()
    assert not any("still writes" in note for note in receipt.notes)
    assert here.noted() == []


def test_a_snapshot_that_cannot_be_noted_as_kept_is_not_kept(here: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(path: Path, text: str) -> None:
        if '"keep": true' in text:
            raise OSError(errno.ENOSPC, "No space left on device")
        replace_file(path, text)

    monkeypatch.setattr(blksnap_notes, "replace_file", write)
    with pytest.raises(DeviceError, match="No space left on device"):
        blksnap.take(here.state, [here.disk.node], here.room, force=False)
    assert here.kernel.held() == []
    assert here.noted() == []


# ---- a device that is detached under way


@all_but_v1
def test_a_device_that_is_attached_anew_right_after_the_snapshot_is_no_copy(here: Machine) -> None:
    one, two = here.disks
    here.sync(one, two)

    def renew() -> None:
        here.kernel._detach(two, memoryview(b""))
        here.kernel._attach(two, memoryview(b""))
        here.scribble(two)

    here.scribble(two)
    before = here.target(two).read_bytes()
    once(here, "SNAPSHOT_TAKE", renew)
    with pytest.raises(ChangesLost, match="was detached while its snapshot was taken"):
        here.sync(one, two)
    assert here.target(two).read_bytes() == before
    assert here.kernel.held() == []


@all_but_v1
def test_a_second_device_that_is_renewed_while_the_first_is_sent_is_no_copy(here: Machine) -> None:
    one, two = here.disks
    here.sync(one, two)
    before = here.target(two).read_bytes()

    def renew() -> None:
        here.during = lambda: None
        here.kernel._detach(two, memoryview(b""))
        here.kernel._attach(two, memoryview(b""))
        here.scribble(two)

    here.during = renew
    with pytest.raises(ChangesLost, match="did not last"):
        here.sync(one, two)
    assert here.target(two).read_bytes() == before


@all_but_v1
def test_a_snapshot_that_is_older_than_the_tracking_is_no_source(here: Machine) -> None:
    here.kernel_take(keep=True)
    here.kernel._detach(here.disk, memoryview(b""))
    here.kernel._attach(here.disk, memoryview(b""))
    with pytest.raises(ChangesLost, match="was attached anew since the snapshot"), here.open_everything():
        pass


# ---- places that are one


def alias(here: Machine, path: str) -> str:
    link = here.folder / f"alias-{len(list(here.folder.iterdir()))}"
    link.symlink_to(path)
    return str(link)


def to(here: Machine, *targets: str) -> list[Outlet]:
    """Return outlets of the disks to other targets than their copies."""
    found = [here.outlet(disk) for disk in here.disks]
    return [replace(outlet, target=target) for outlet, target in zip(found, targets, strict=False)]


def test_a_device_is_no_target_of_itself_by_any_path(here: Machine) -> None:
    one, two = here.disks
    for target in one.node, alias(here, one.node), str(one.file):
        with pytest.raises(UsageError, match="the copy would be itself"):
            blksnap_sync.sync(here.state, to(here, target), here.room)
    with pytest.raises(UsageError, match="the copy would be itself"):
        blksnap_sync.sync(here.state, to(here, alias(here, two.node), str(here.target())), here.room)
    assert here.kernel.calls == []


def test_two_devices_have_no_target_in_common(here: Machine) -> None:
    target = str(here.target())
    with pytest.raises(UsageError, match="name a target of its own"):
        blksnap_sync.sync(here.state, to(here, target, alias(here, target)), here.room)
    assert here.kernel.calls == []


def test_a_part_of_a_device_is_no_target_of_it(here: Machine) -> None:
    node = here.spare("part.img", 1 << 20)
    part = Path(node).stat().st_rdev
    folder = here.kernel.root / f"sys/dev/block/{here.disk.number[0]}:{here.disk.number[1]}" / "part1"
    folder.mkdir()
    (folder / "partition").write_text("1\n")
    link = here.kernel.root / f"sys/dev/block/{os.major(part)}:{os.minor(part)}"
    link.symlink_to(folder.resolve())
    (folder.resolve().parent / "dev").write_text(f"{here.disk.number[0]}:{here.disk.number[1]}\n")
    with pytest.raises(UsageError, match="one is a part of the other"):
        blksnap_sync.sync(here.state, to(here, node), here.room)


def test_a_source_that_is_held_knows_its_device(here: Machine) -> None:
    here.kernel_take(keep=True)
    with here.open_everything() as source:
        assert source.origin == here.disk.node


def test_the_comparison_that_is_sent_knows_its_device(here: Machine) -> None:
    here.sync()
    here.sync(compare=True)
    assert here.sent[-1].origin == here.disk.node


def test_difference_storage_is_no_target(here: Machine) -> None:
    spare = here.spare("both.img", 16 << 20)
    for target in spare, alias(here, spare), str(here.folder / "both.img"):
        with pytest.raises(UsageError, match="each would overwrite the other"):
            blksnap_sync.sync(here.state, to(here, target), Room(spare, 8 << 20))
    assert here.kernel.held() == []


def test_a_base_file_is_of_one_target_even_if_it_is_not_used(here: Machine) -> None:
    base = here.folder / "base.json"
    here.sync(base=base)
    before = base.read_text()
    with pytest.raises(ConflictError, match="is of the target"):
        blksnap_sync.sync(here.state, to(here, str(here.folder / "other")), here.room, base=base, compare=True)
    assert base.read_text() == before


# ---- partitions that somebody uses


def add_part(here: Machine, node: str) -> str:
    """Make a loop device a partition of the first disk, and return its name."""
    part = Path(node).stat().st_rdev
    folder = here.kernel.root / f"sys/dev/block/{here.disk.number[0]}:{here.disk.number[1]}" / Path(node).name
    folder.mkdir()
    (folder / "partition").write_text("1\n")
    (folder / "dev").write_text(f"{os.major(part)}:{os.minor(part)}\n")
    link = here.kernel.root / f"sys/dev/block/{os.major(part)}:{os.minor(part)}"
    link.symlink_to(folder.resolve())
    (here.kernel.root / "dev" / Path(node).name).symlink_to(node)
    return Path(node).name


def test_a_partition_that_is_claimed_is_in_use_whatever_the_mounts_say(here: Machine) -> None:
    node = here.spare("part.img", 1 << 20)
    name = add_part(here, node)
    claim = os.open(node, os.O_RDONLY | os.O_EXCL)  # as swap space, btrfs, and mounts of other namespaces
    try:
        with pytest.raises(DeviceError, match=f"its partition {name} is in use"):
            here.sync()
    finally:
        os.close(claim)
    for _ in range(2):
        (receipt,) = here.sync()
        assert any(f"has partitions ({name})" in note for note in receipt.notes)


def test_a_partition_that_a_mount_tells_by_its_name_is_in_use(here: Machine) -> None:
    name = add_part(here, here.spare("part.img", 1 << 20))
    mounts = here.kernel.root / "proc/self/mountinfo"
    mounts.write_text(f"36 35 0:45 / /mnt rw - btrfs /dev/{name} rw\n")
    with pytest.raises(DeviceError, match=f"its partition {name} is in use"):
        here.sync()


# ---- a disk that was away


@pytest.mark.parametrize("is_part", [False, True])
def test_a_disk_that_was_away_is_compared(here: Machine, *, is_part: bool) -> None:
    folder = (here.kernel.root / f"sys/dev/block/{here.disk.number[0]}:{here.disk.number[1]}").resolve()
    file = (folder.parent if is_part else folder) / "diskseq"
    file.write_text("7\n")
    here.sync()
    here.kernel.write_unseen(here.disk, 1 << 20, b"written elsewhere")
    file.write_text("9\n")
    (receipt,) = here.sync()
    assert any("was away since" in note for note in receipt.notes)
    assert here.is_equal()
    here.sync()
    assert here.sent[-1].base


# ---- records and dry runs


@pytest.mark.parametrize("identity", [None, ["x"], {"wwid": 1}, "x"])
def test_a_base_with_a_wrong_identity_cannot_be_read(here: Machine, identity: object) -> None:
    here.sync()
    here.rewrite_base(identity=identity)
    with pytest.raises(FormatError, match="cannot be read"):
        here.sync()


def test_a_note_that_cannot_be_read_hides_nothing_and_bars_no_release_by_force(here: Machine) -> None:
    taken = blksnap.take(here.state, [here.disk.node], here.room, force=False)
    (path,) = (here.state / "blksnap/snapshots").glob("*.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"version": 2}))
    status = blksnap.show(here.state)
    assert [one.id for one in status.snapshots] == [taken.id]
    assert any(f"{path} cannot be read" in note for note in status.notes)
    for ids, force in ([], False), ([], True), ([taken.id], False):
        with pytest.raises(FormatError, match="cannot be read"):
            blksnap.release(here.state, ids, force=force)
    said = blksnap.release(here.state, [taken.id], force=True)
    assert any(f"{path} cannot be read" in one for one in said)
    assert here.kernel.held() == []


def test_a_dry_run_begins_no_tracking(here: Machine) -> None:
    with pytest.raises(UsageError, match=r"--dry-run: .* is not tracked yet"):
        here.sync(dry_run=True)
    assert here.disk.tracker is None
    assert here.kernel.held() == []
    assert here.noted() == []


def test_a_receipt_is_told_although_another_device_failed(here: Machine) -> None:
    one, two = here.disks
    here.target(two).unlink()
    (here.folder / f"copy-of-{two.file.name}").mkdir()
    told: list[Receipt] = []
    with pytest.raises(DeviceError, match="is a directory"):
        here.sync(one, two, tell=told.append)
    assert [receipt.target for receipt in told] == [str(here.target(one))]
    assert here.is_equal(one)


# ---- a spare device is used again


@all_but_v1
def test_a_spare_device_of_ours_is_used_again_as_long_as_nobody_else_writes_to_it(here: Machine) -> None:
    file = here.folder / "again.img"
    here.room = Room(here.spare(file.name, 16 << 20), 8 << 20)

    def save(name: str) -> None:
        if name == "SNAPSHOT_TAKE":
            with file.open("r+b") as opened:
                opened.write(b"old content")

    here.kernel.after = save
    here.sync()
    here.sync()
    here.kernel.crash_after = here.requests_until("SNAPSHOT_TAKE") + 2
    with pytest.raises(Crash):
        here.sync()
    here.kernel.revive()
    here.sync()
    assert here.is_equal()
    with file.open("r+b") as opened:
        opened.write(b"somebody's")
    for force in False, True:
        with pytest.raises(DeviceError, match=r"holds something .*--overwrite-storage"):
            here.sync(force=force)
    here.room = replace(here.room, overwrite=True)
    here.sync()


def test_what_a_crashed_run_left_is_given_back_before_room_is_looked_for(
    here: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    here.kernel.crash_after = here.requests_until("SNAPSHOT_TAKE") + 2
    with pytest.raises(Crash):
        here.sync()
    here.kernel.revive()
    assert here.kernel.held() != []
    held: list[list[str]] = []

    def choose(*words: Any) -> Any:
        held.append(here.kernel.held())
        return blksnap_storage.choose_storage(*words)

    monkeypatch.setattr(blksnap_sync, "choose_storage", choose)
    here.sync()
    assert held == [[]]

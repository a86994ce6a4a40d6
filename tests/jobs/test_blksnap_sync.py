"""Copies kept up to date over the simulated module, of all three generations, through the real sender and receiver."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lvmsync.errors import ChangesLost, ConflictError, DeviceError, FormatError, UsageError
from lvmsync.extents import ChangeMap
from lvmsync.jobs import blksnap_storage
from lvmsync.jobs.blksnap_points import Memory
from lvmsync.jobs.blksnap_storage import Room
from lvmsync.jobs.progress import Receipt
from lvmsync.names import parse_source
from lvmsync.sources import Reading
from lvmsync.system.blksnap import DeviceName
from tests.blksnap_kernel import Crash
from tests.blksnap_machine import BLOCK, GENERATIONS, SIZE, Machine, machine


@pytest.fixture(params=GENERATIONS)
def here(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    with machine(tmp_path, monkeypatch, request.param) as one:
        yield one


def test_the_first_sync_sends_everything_and_the_next_ones_what_was_written(here: Machine) -> None:
    (receipt,) = here.sync()
    assert here.is_equal()
    assert here.sent[-1].is_full
    assert receipt.bytes == here.disk.size
    for _ in range(6):
        here.scribble()
        (receipt,) = here.sync()
        assert here.is_equal()
        assert here.sent[-1].base
        assert 0 < receipt.bytes <= 8 * BLOCK
    assert here.kernel.held() == []
    assert here.noted() == []


def compared(here: Machine) -> bool:
    """Tell whether the last copy was found by comparing."""
    return here.sent[-1].kind == "compare"


def remembered(here: Machine) -> int | None:
    """Return the number of the snapshot that the first disk's copy is remembered at."""
    base = Memory(here.state, str(here.target())).read()
    return base.tracking.number if base else None


def test_snapshots_that_came_between_lose_nothing(here: Machine) -> None:
    here.sync()
    for _ in range(3):
        here.scribble()
        here.kernel_take()
    here.scribble()
    here.sync()
    assert here.sent[-1].base
    assert here.is_equal()


def test_writes_while_the_snapshot_is_read_come_with_the_next_sync(here: Machine) -> None:
    here.sync()
    here.scribble()
    before = here.disk.content
    here.during = here.scribble
    here.sync()
    assert here.target().read_bytes() == before
    here.during = lambda: None
    here.sync()
    assert here.sent[-1].base
    assert here.is_equal()


@pytest.mark.parametrize("event", ["boot", "reload", "attach", "resize"])
def test_another_generation_is_compared_whole(here: Machine, event: str) -> None:
    here.sync()
    here.scribble()
    if event == "attach":
        here.disk.tracker = None
    elif event == "resize":
        here.resize(SIZE + 8192)
        with here.target().open("r+b") as file:
            file.truncate(SIZE + 8192)
    else:
        getattr(here.kernel, event)()
    here.kernel.write_unseen(here.disk, 3 << 20, b"unseen" * 100)
    (receipt,) = here.sync()
    assert compared(here)
    assert any("the target is compared with all of it" in note for note in receipt.notes)
    assert receipt.bytes < here.disk.size / 2
    assert here.is_equal()
    here.scribble()
    here.sync()
    assert here.sent[-1].base
    assert here.is_equal()


def test_a_smaller_device_is_compared_whole_and_what_is_behind_it_stays(here: Machine) -> None:
    here.sync()
    here.resize(SIZE // 2)
    here.scribble()
    here.sync()
    assert compared(here)
    assert here.target().read_bytes()[: SIZE // 2] == here.disk.content


def test_the_roll_over_after_255_snapshots_loses_nothing(here: Machine) -> None:
    here.sync()
    for _ in range(251):
        here.kernel_take()
    for number in (253, 254, 255, 1, 2, 3):
        here.scribble()
        (receipt,) = here.sync()
        assert here.disk.tracker
        assert here.disk.tracker.previous == number
        assert here.is_equal()
        assert (here.sent[-1].base is not None) == (number in (253, 254, 2, 3))
        assert compared(here) == (number in (255, 1))
        assert remembered(here) == number
        assert any("the next sync compares all of it" in note for note in receipt.notes) == (number == 255)


@pytest.mark.parametrize("takes", [253, 254, 255, 256, 300])
def test_a_count_that_began_anew_since_the_last_sync_is_seen(here: Machine, takes: int) -> None:
    here.kernel_attach()
    for _ in range(4):
        here.kernel_take()
    here.sync()
    assert remembered(here) == 5
    here.scribble()
    for _ in range(takes):
        here.kernel_take()
    here.sync()
    assert compared(here)
    assert here.is_equal()


def test_a_base_that_is_not_before_the_snapshot_is_not_believed(here: Machine) -> None:
    here.sync()
    memory = Memory(here.state, str(here.target()))
    base = memory.read()
    assert base
    here.scribble()
    here.rewrite_base(tracking={**asdict(base.tracking), "number": 2})
    here.sync()
    assert compared(here)
    assert here.is_equal()


@pytest.mark.parametrize("change", [{"boot": "another"}, {"identity": {"device number": "254:0"}}])
def test_a_base_of_another_boot_or_device_is_not_believed(here: Machine, change: dict[str, Any]) -> None:
    here.sync()
    here.scribble()
    here.rewrite_base(**change)
    here.sync()
    assert compared(here)
    assert here.is_equal()


def test_the_copy_of_a_device_that_is_known_to_be_another_is_not_overwritten(here: Machine) -> None:
    here.sync()
    before = here.target().read_bytes()
    here.scribble()
    here.rewrite_base(identity={"wwid": "another"})
    with pytest.raises(ConflictError, match=r"of another device .*wwid another.*were disks swapped\?"):
        here.sync()
    assert here.target().read_bytes() == before
    assert here.kernel.held() == []
    here.sync(compare=True)
    assert here.is_equal()
    here.scribble()
    here.sync()
    assert here.sent[-1].base


def test_a_map_with_a_byte_above_the_snapshots_number_is_not_believed(here: Machine) -> None:
    here.sync()
    here.scribble()
    assert here.disk.tracker
    here.disk.tracker.live[3] = 200
    (receipt,) = here.sync()
    assert compared(here)
    assert any("200" in note for note in receipt.notes)
    assert here.is_equal()


def test_an_image_that_is_written_to_while_it_is_read_is_no_copy(here: Machine) -> None:
    here.sync()
    here.scribble()
    before = here.target().read_bytes()
    here.during = lambda: here.kernel.write_image(here.disk, 1 << 20, b"journal replayed" * 64)
    with pytest.raises(ConflictError, match="is no one state"):
        here.sync()
    assert here.target().read_bytes() == before
    here.during = lambda: None
    here.sync()
    assert here.sent[-1].base
    assert here.is_equal()


def test_a_base_that_was_not_remembered_any_more_is_an_older_one(here: Machine) -> None:
    """As after a crash between the receiver's commit and our record of it."""
    here.sync()
    base = next((here.state / "blksnap/bases").glob("*.json"))
    first = base.read_bytes()
    here.scribble()
    here.sync()
    base.write_bytes(first)
    here.scribble()
    here.sync()
    assert here.sent[-1].base
    assert here.sent[-1].base.id.endswith(":1")
    assert here.is_equal()


@pytest.mark.parametrize("change", [{"dry_run": True}, {"confirmed": False}, {"durable": False}])
def test_nothing_is_remembered_of_a_copy_that_is_not_durable(here: Machine, change: dict[str, bool]) -> None:
    memory = Memory(here.state, "x")
    here.kernel_take(keep=True)
    assert here.disk.tracker
    with memory.open(parse_source(f"blksnap:{here.disk.node}"), Reading()):
        pass
    receipt = Receipt("sync", durable=True, confirmed=True)
    assert memory.remember(replace(receipt, **change)).notes == []  # type: ignore[arg-type]
    assert memory.read() is None
    assert "x is at snapshot 1 now" in memory.remember(receipt).notes[0]
    assert memory.read()


def test_a_base_that_cannot_be_written_is_an_error_and_sent_again(here: Machine) -> None:
    with pytest.raises(DeviceError, match="the copy is right, but its snapshot 1 cannot be written"):
        here.sync(base=here.folder / "none" / "base")
    assert here.is_equal()


def test_data_from_elsewhere_leaves_the_base_as_it_was(here: Machine) -> None:
    memory = Memory(here.state, "x")
    here.kernel_take(keep=True)
    copy = here.folder / "copy"
    copy.write_bytes(here.disk.content)
    with memory.open(parse_source(f"blksnap:{here.disk.node}"), Reading(data_source=str(copy))):
        pass
    memory.remember(Receipt("sync", durable=True, confirmed=True))
    assert memory.read() is None


def test_a_number_that_the_user_gives_is_remembered_when_it_was_right(here: Machine) -> None:
    here.kernel_take()
    here.kernel_take(keep=True)
    memory = Memory(here.state, "x")
    with memory.open(parse_source(f"blksnap:{here.disk.node},since=1"), Reading()) as source:
        assert "is your word" in source.notes[0]
    assert not memory.is_used
    memory.remember(Receipt("sync", durable=True, confirmed=True))
    base = memory.read()
    assert base
    assert base.tracking.number == 2


def test_two_devices_are_in_one_snapshot(here: Machine) -> None:
    one, two = here.disks
    here.sync(one, two)
    here.scribble(one)
    here.scribble(two)
    receipts = here.sync(one, two)
    assert here.is_equal(one)
    assert here.is_equal(two)
    assert [source.base is not None for source in here.sent] == [False, False, True, True]
    is_noted = any("no common point in time" in note for note in receipts[0].notes)
    assert is_noted == (here.kernel.generation == "v1")
    assert here.kernel.calls.count("SNAPSHOT_TAKE") == 2


def test_one_copy_that_fails_does_not_keep_the_other_from_being_made(here: Machine) -> None:
    one, two = here.disks
    here.sync(one, two)
    here.scribble(one)
    here.scribble(two)
    here.target(one).unlink()
    (here.folder / f"copy-of-{one.file.name}").mkdir()
    with pytest.raises(DeviceError, match="is a directory") as caught:
        here.sync(one, two)
    assert any("was brought up to date" in note for note in caught.value.__notes__)
    assert here.is_equal(two)
    assert here.kernel.held() == []


# ---- overflow, and other ends of a snapshot


@pytest.mark.parametrize("is_hidden", [False, True])
@pytest.mark.parametrize("is_first", [False, True])
def test_an_overflow_is_never_a_copy_and_the_base_stays(here: Machine, *, is_hidden: bool, is_first: bool) -> None:
    if not is_first:
        here.sync()
    before = here.target().read_bytes()
    here.scribble()
    here.kernel.is_readable_when_full = is_hidden
    here.room = replace(here.room, limit=1 << 17)
    here.during = lambda: here.kernel.write(here.disk, 0, b"x" * (1 << 20))
    with pytest.raises((ChangesLost, DeviceError)) as caught:
        here.sync()
    if is_hidden:
        assert isinstance(caught.value, ChangesLost)
    assert remembered(here) == (None if is_first else 1)
    assert here.target().read_bytes() == before
    assert here.kernel.held() == []
    here.during = lambda: None
    here.room = replace(here.room, limit=8 << 20)
    here.sync()
    assert (here.sent[-1].base is None) == is_first
    assert here.is_equal()


def test_an_overflow_ends_with_exit_code_5_and_says_what_to_do(here: Machine) -> None:
    here.sync()
    here.scribble()
    here.kernel.is_readable_when_full = True
    here.room = replace(here.room, limit=1 << 17)
    here.during = lambda: here.kernel.write(here.disk, 0, b"x" * (1 << 20))
    with pytest.raises(ChangesLost, match=r"(?s)No space left.*the copy stays at the snapshot") as caught:
        here.sync()
    assert caught.value.exit_code == 5


def test_a_device_that_is_detached_under_the_snapshot_is_noticed(here: Machine) -> None:
    here.sync()
    here.scribble()

    def detach() -> None:
        here.disk.tracker = None
        for snapshot in here.kernel.snapshots.values():
            snapshot.images[here.disk.number].is_protected = False
        here.kernel.write(here.disk, 0, b"new" * 1000)

    here.during = detach
    with pytest.raises(ChangesLost, match="is not tracked any more"):
        here.sync()
    assert remembered(here) == 1
    here.during = lambda: None
    here.sync()
    assert compared(here)
    assert here.is_equal()


def test_a_snapshot_that_somebody_else_destroys_is_noticed(here: Machine) -> None:
    here.sync()
    here.scribble()
    here.during = here.kernel.destroy_all
    with pytest.raises((ChangesLost, DeviceError)):
        here.sync()
    assert remembered(here) == 1
    here.during = lambda: None
    if here.kernel.generation == "v1":  # it may have been forgotten, and then it is still written to
        with pytest.raises(ConflictError, match="may still be written to"):
            here.sync()
        here.kernel.boot()
    assert (here.noted() == []) == (here.kernel.generation != "v1")
    here.sync()
    assert here.noted() == []
    assert here.is_equal()


def test_an_interrupt_gives_the_snapshot_back(here: Machine) -> None:
    class Interrupted(BaseException):
        pass

    def interrupt() -> None:
        raise Interrupted

    here.during = interrupt
    with pytest.raises(Interrupted):
        here.sync()
    assert here.kernel.held() == []
    assert here.noted() == []


def test_a_snapshot_that_cannot_be_given_back_is_given_back_by_the_next_run(here: Machine) -> None:
    def refuse(name: str) -> None:
        if name == "SNAPSHOT_DESTROY":
            raise OSError(errno.EBUSY, "busy")

    here.kernel.before = refuse
    here.during = lambda: here.target().unlink()
    with pytest.raises(DeviceError, match="no such device") as caught:
        here.sync()
    assert "its snapshot could not be given back" in caught.value.__notes__[-1]
    here.during = lambda: None
    here.kernel.before = lambda _: None
    (receipt,) = here.sync()
    assert any("that was cut short, was given back" in note for note in receipt.notes)
    assert here.kernel.held() == []
    assert here.noted() == []


def test_a_target_that_was_changed_otherwise_is_refused_until_it_is_compared(here: Machine) -> None:
    here.sync()
    here.scribble()
    here.forget_target()
    with pytest.raises(ConflictError, match="compare"):
        here.sync()
    assert remembered(here) == 1
    here.sync(compare=True)
    assert compared(here)
    assert here.is_equal()
    here.scribble()
    here.sync()
    assert here.sent[-1].base
    assert here.is_equal()


def test_a_target_that_its_ledger_does_not_know_any_more_is_refused(here: Machine) -> None:
    here.sync()
    here.scribble()
    next((here.state / "targets").glob("*/record.json")).unlink()
    with pytest.raises(ConflictError, match="no point that is known"):
        here.sync()
    here.sync(compare=True)
    assert here.is_equal()


def test_a_file_of_the_users_remembers_the_base(here: Machine) -> None:
    base = here.folder / "base.json"
    here.sync(base=base)
    here.scribble()
    here.sync(base=base)
    assert here.sent[-1].base
    assert here.is_equal()
    assert remembered(here) is None
    here.rewrite_base(base, target="another")
    with pytest.raises(ConflictError, match="is of the target another"):
        here.sync(base=base)
    base.write_text("{}")
    with pytest.raises(FormatError, match="cannot be read"):
        here.sync(base=base)
    with pytest.raises(UsageError, match="--base is of one target"):
        here.sync(*here.disks, base=base)


def test_what_is_named_twice_is_refused(here: Machine) -> None:
    with pytest.raises(UsageError, match="device is named twice"):
        here.sync(here.disk, here.disk)


# ---- crashes and other programs


def test_a_crash_after_any_request_leaves_nothing_that_the_next_sync_does_not_mend(here: Machine) -> None:
    here.sync()
    here.kernel.calls.clear()
    here.scribble()
    here.sync()
    requests = len(here.kernel.calls)
    assert requests > 8
    for at in range(1, requests + 1):
        here.scribble()
        here.kernel.crash_after = at
        with pytest.raises(Crash):
            here.sync()
        here.kernel.revive()
        here.scribble()
        try:
            here.sync()
        except ConflictError as error:  # made, and its id not noted yet: nothing says whose it is
            assert here.kernel.generation == "v1", at
            raise AssertionError(f"after request {at}") from error
        assert here.is_equal(), at
        unknown = here.kernel.held()
        if here.kernel.generation == "v1":
            assert unknown == [], at
        else:  # an empty one is left, which holds no device: nothing tells whose it is
            assert len(unknown) <= 1
            assert not any(one.disks for one in here.kernel.snapshots.values())
        here.kernel.destroy_all()
        assert here.noted() == [], at


@pytest.mark.parametrize("here", ["v7", "up"], indirect=True)
def test_a_snapshot_that_was_there_before_a_crash_is_nobodys_suspect(here: Machine) -> None:
    foreign = here.kernel_take(here.disks[1], keep=True)

    def interrupt(name: str) -> None:
        if name == "SNAPSHOT_CREATE":
            here.kernel.is_dead = True
            raise Crash

    here.kernel.before = interrupt
    with pytest.raises(Crash):
        here.sync()
    here.kernel.before = lambda _: None
    here.kernel.revive()
    assert here.noted() != []
    (receipt,) = here.sync()
    assert not any(foreign in note for note in receipt.notes)
    assert here.noted() == []
    assert here.kernel.held() == [foreign]


def test_an_interrupt_right_after_a_snapshot_was_made_leaves_a_note_of_it(here: Machine) -> None:
    def interrupt(name: str) -> None:
        if name == "SNAPSHOT_CREATE":
            raise KeyboardInterrupt

    here.kernel.after = interrupt
    with pytest.raises(KeyboardInterrupt):
        here.sync()
    here.kernel.after = lambda _: None
    (left,) = here.kernel.held()
    assert here.noted() != []
    (receipt,) = here.sync()
    assert here.is_equal()
    if here.kernel.generation == "v1":
        assert here.kernel.held() == []
        assert any(f"The snapshot {left}" in note and "was given back" in note for note in receipt.notes)
    else:
        assert here.kernel.held() == [left]
        assert any(f"lvmsync blksnap release --force {left}" in note for note in receipt.notes)
    assert here.noted() == []


def test_a_snapshot_of_another_program_is_never_destroyed(here: Machine) -> None:
    here.sync()
    foreign = here.kernel_take(here.disks[1], keep=True)
    here.scribble()
    if here.kernel.generation == "v1":
        with pytest.raises(ConflictError, match=rf"snapshot {foreign} is held, and blksnap 6 would forget it"):
            here.sync()
    else:
        here.sync()
        assert here.sent[-1].base
        assert here.is_equal()
    assert here.kernel.held() == [foreign]


def test_a_device_that_another_snapshot_holds_is_refused(here: Machine) -> None:
    here.sync()
    foreign = here.kernel_take(keep=True)
    with pytest.raises(ConflictError, match="is held"):
        here.sync()
    assert here.kernel.held() == [foreign]
    assert here.noted() == []


def test_a_crash_while_another_programs_snapshot_comes_up_does_not_touch_that(here: Machine) -> None:
    here.sync()

    def die(name: str) -> None:
        if name == "SNAPSHOT_CREATE":
            here.kernel.is_dead = True
            raise Crash

    here.kernel.before = die
    with pytest.raises(Crash):
        here.sync()
    here.kernel.before = lambda _: None
    here.kernel.revive()
    assert here.noted() != []
    foreign = here.kernel_take(here.disks[1], keep=True)
    if here.kernel.generation == "v1":
        with pytest.raises(ConflictError):
            here.sync()
    else:
        (receipt,) = here.sync()
        assert any(foreign in note and "--force" in note for note in receipt.notes)
        assert here.is_equal()
    assert here.kernel.held() == [foreign]


# ---- storage


def test_blksnap_6_is_given_room_when_it_asks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with machine(tmp_path, monkeypatch, "v1", portion=2048) as here:
        here.sync()
        here.scribble()

        def write() -> None:
            for offset in range(0, 3 << 20, BLOCK):
                here.kernel.write(here.disk, offset, b"x" * BLOCK)
                here.wait_for_room()

        here.during = write
        here.sync()
        assert here.kernel.calls.count("SNAPSHOT_APPEND_STORAGE") > 3
        here.during = lambda: None
        here.sync()
        assert here.is_equal()


def test_blksnap_6_lays_its_storage_where_a_file_of_ours_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    extents = ChangeMap.from_extents([(1 << 20, 1 << 20), (5 << 20, 7 << 20)])
    monkeypatch.setattr(blksnap_storage, "find_file_extents", lambda _: extents)
    monkeypatch.setattr(blksnap_storage, "_device_of", lambda _: DeviceName("/dev/x", (8, 200)))
    with machine(tmp_path, monkeypatch, "v1") as here:
        here.room = Room(str(tmp_path / "room"), 8 << 20)
        seen = []

        def look(name: str) -> None:
            if name != "SNAPSHOT_TAKE":
                return
            (snapshot,) = here.kernel.snapshots.values()
            seen.extend(snapshot.ranges)
            (file,) = (tmp_path / "room").iterdir()
            assert file.stat().st_size == 8 << 20
            assert here.protected[-1]

        here.kernel.before = look
        here.sync()
        assert seen == [((8, 200), 2048, 2048), ((8, 200), 10240, 14336)]
        assert list((tmp_path / "room").iterdir()) == []
        assert not here.protected[-1]
        here.kernel.before = lambda _: None
        here.kernel.crash_after = here.requests_until("SNAPSHOT_TAKE")
        with pytest.raises(Crash):
            here.sync()
        assert len(list((tmp_path / "room").iterdir())) == 1
        here.kernel.revive()
        here.sync()
        assert list((tmp_path / "room").iterdir()) == []


def test_a_file_system_that_does_not_tell_where_files_lie_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blksnap_storage, "find_file_extents", lambda _: None)
    monkeypatch.setattr(blksnap_storage, "_device_of", lambda _: DeviceName("/dev/x", (8, 200)))
    with machine(tmp_path, monkeypatch, "v1") as here:
        here.room = Room(str(tmp_path / "room"), 8 << 20)
        with pytest.raises(DeviceError, match="does not tell where a file lies"):
            here.sync()
        assert list((tmp_path / "room").iterdir()) == []
        assert here.kernel.held() == []
        assert here.noted() == []


# ---- everything at random


@pytest.mark.parametrize("seed", range(2))
def test_whatever_happens_a_sync_that_succeeds_is_a_right_copy(here: Machine, seed: int) -> None:
    random = np.random.default_rng(seed)
    here.writes = seed * 1000
    done = 0
    for _ in range(25):
        happens = str(random.choice(["scribble"] * 6 + ["take", "many", "boot", "detach", "crash", "full", "during"]))
        here.during = lambda: None
        here.kernel.is_readable_when_full = bool(random.integers(2))
        here.room = replace(here.room, limit=8 << 20)
        match happens:
            case "scribble":
                here.scribble()
            case "take":
                here.kernel_take()
            case "many":
                for _ in range(int(random.integers(240, 270))):
                    here.kernel_take()
            case "boot":
                here.kernel.boot()
                here.kernel.write_unseen(here.disk, int(random.integers(SIZE // 2)), b"unseen" * 50)
            case "detach":
                here.disk.tracker = None
            case "crash":
                here.kernel.crash_after = int(random.integers(1, 25))
            case "full":
                here.room = replace(here.room, limit=1 << 16)
                here.during = lambda: here.kernel.write(here.disk, 0, b"full" * (1 << 16))
            case "during":
                here.during = here.scribble
        moment = here.disk.content
        try:
            here.sync()
        except (ChangesLost, DeviceError):
            assert happens == "full"
        except Crash:
            assert happens == "crash"
        else:
            assert here.target().read_bytes() == moment, happens
            done += 1
        here.kernel.revive()
        if here.kernel.generation != "v1":
            here.kernel.destroy_all()
    assert done > 10

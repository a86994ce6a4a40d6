"""Damaged, swapped and missing members, two writers, a clock set back, a full disk: all is told, and nothing lost."""

from __future__ import annotations

import errno
import os
import threading
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lvmsync.chain.catalogue import Catalogue, find_point
from lvmsync.chain.pruning import plan_pruning
from lvmsync.errors import ConflictError, DeviceError, FormatError, LvmsyncError, StreamError, UsageError, VerifyError
from lvmsync.history import Point
from lvmsync.jobs.archive import verify as verifying
from lvmsync.jobs.archive.members import write_source
from lvmsync.jobs.archive.prune import prune
from lvmsync.jobs.archive.restore import open_between, open_point, open_restored, require_digest
from lvmsync.jobs.archive.shelf import Shelf, new_commit
from lvmsync.jobs.archive.take import adopt, bring_in, take
from lvmsync.jobs.archive.verify import Verdict, verify
from lvmsync.jobs.progress import Receipt, ignore
from lvmsync.jobs.receive import ReceiveOptions, receive
from lvmsync.jobs.send import StreamOptions
from lvmsync.stores.folder import FolderStore
from lvmsync.stores.sealed import SealedStore
from lvmsync.stream import frames
from tests.archive_history import Both, Forward, History, Reverse, require_points
from tests.fakes import Memory, make_source, reader, send

OPTIONS = StreamOptions()


KEY = bytes(range(32))


@pytest.fixture
def plain(tmp_path: Path) -> Forward:
    return Forward(tmp_path, History.make(5, 5, 64 << 10))


@pytest.fixture(params=["plain", "sealed"])
def archive(tmp_path: Path, request: pytest.FixtureRequest) -> Forward:
    store = FolderStore(tmp_path / "archive")
    sealed = SealedStore(store, KEY) if request.param == "sealed" else store
    return Forward(tmp_path, History.make(5, 5, 64 << 10), store=sealed)


def folder(archive: Forward) -> Path:
    return Path(archive.shelf.store.name)


def names(archive: Forward) -> list[str]:
    return sorted(path.name for path in folder(archive).iterdir())


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 0x40
    path.write_bytes(data)


def check(archive: Forward, *, is_repairing: bool = False, is_restoring: bool = False) -> Verdict:
    archive.shelf = Shelf.open(archive.shelf.store)
    return verify(archive.shelf, ignore, is_repairing=is_repairing, is_restoring=is_restoring)


@pytest.mark.parametrize("part", [0.0, 0.02, 0.5, 0.9, 0.999])
def test_a_flipped_bit_anywhere_in_a_member_is_found_and_its_bytes_are_never_given_out(
    archive: Forward, part: float
) -> None:
    member = archive.shelf.catalogue.members[0]
    path = folder(archive) / member.name
    flip(path, int(part * member.stored))
    (fault,) = check(archive).faults
    assert str(path) in fault
    assert "it leads to point #1" in fault
    with suppress(StreamError):
        require_points(archive)  # a damage that no point needs harms none


def test_an_index_that_is_damaged_or_missing_is_told_and_made_anew(archive: Forward) -> None:
    for spoil in (lambda path: flip(path, 20), Path.unlink, lambda path: path.write_bytes(b"")):
        path = folder(archive) / archive.shelf.catalogue.members[2].index
        spoil(path)
        with pytest.raises(FormatError, match=r"the index of .* is (missing|damaged).*--repair"):
            require_points(archive)
        (fault,) = check(archive).faults
        assert "--repair makes it anew" in fault
        assert check(archive, is_repairing=True).faults == []
        assert check(archive).notes == []
        require_points(archive)


def test_a_missing_member_is_told_and_the_points_that_it_leads_to(archive: Forward) -> None:
    path = folder(archive) / archive.shelf.catalogue.members[1].name
    path.unlink()
    (fault,) = check(archive).faults
    assert fault == f"{path} is missing: it leads to point #2 from #1"
    with pytest.raises(DeviceError, match="is not there: was it removed by hand, or pruned just now"):
        require_points(archive)
    first = archive.shelf.catalogue.points[0]
    with open_point(archive.shelf, first):  # what does not need it is there
        pass


def test_swapped_members_are_found(archive: Forward) -> None:
    one, other = (folder(archive) / archive.shelf.catalogue.members[number].name for number in (1, 2))
    spare = folder(archive) / "spare"
    one.rename(spare)
    other.rename(one)
    spare.rename(other)
    faults = check(archive).faults
    assert len(faults) == 2
    assert all("another stream than the one that was written" in fault or "or another one" in fault for fault in faults)
    with pytest.raises(StreamError, match=r"it is damaged, or another|not the one that was written|or another one"):
        require_points(archive)


def test_a_damaged_catalogue_is_told_and_so_is_one_of_a_later_lvmsync(plain: Forward) -> None:
    newest = max(folder(plain).glob("catalogue-*"))
    good = newest.read_bytes()
    for bad, message in (
        (b"", "damaged"),
        (good[:-20], "damaged"),
        (b"[]", "no 'format'"),
        (good.replace(b'"format":1', b'"format":2'), "use a newer one"),
        (good.replace(b'"number":6', b'"number":7', 1), "it says that it is catalogue 7"),
    ):
        newest.write_bytes(bad)
        with pytest.raises(FormatError, match=message):
            Shelf.open(plain.shelf.store)
    newest.write_bytes(good)
    Shelf.open(plain.shelf.store)


def test_of_two_who_take_at_once_one_wins_and_the_other_goes_on_behind_it(tmp_path: Path) -> None:
    history = History.make(2, 1, 64 << 10)
    archive = Forward(tmp_path, history)
    failed: list[BaseException] = []
    gate = threading.Barrier(4)

    def work(number: int) -> None:
        try:
            gate.wait()
            for step in range(5):
                shelf = Shelf.open(FolderStore(folder(archive)))
                source = replace(history.full(0), head=Point(f"lv:{number}-{step}", None, None))
                take(shelf, source, OPTIONS, ignore)
        except BaseException as error:  # noqa: BLE001  # shown below
            failed.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failed == []
    found = check(archive)
    assert (found.faults, found.notes) == ([], [])
    assert [one.number for one in archive.shelf.catalogue.points] == list(range(1, 22))
    assert archive.shelf.catalogue.number == 22


def test_who_was_far_behind_makes_no_catalogue_that_holds(archive: Forward, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its number was used and removed long ago, so that its catalogue can be made, and is none."""
    store = archive.shelf.store
    late = Shelf.open(store)
    old = late.catalogue
    for _ in range(12):
        archive.shelf.change(lambda now: now.successor(new_commit()))
    stale = [old]
    real = store.list_objects

    def behind() -> dict[str, int]:
        found = real()
        if stale:
            stale.clear()
            return {name: size for name, size in found.items() if not name.startswith("catalogue")} | {
                f"catalogue-{old.number:012}.json": 1
            }
        return found

    monkeypatch.setattr(store, "list_objects", behind)
    monkeypatch.setattr(store, "read", lambda name, read=store.read: read(name) or old.dump())
    new = late.change(lambda now: now.successor(new_commit(), doomed=("x.index",)))
    assert new.number == old.number + 13
    monkeypatch.undo()
    assert Shelf.open(store).catalogue == new


def test_somebody_who_prunes_what_another_one_combines_is_told(archive: Forward) -> None:
    mine, theirs = Shelf.open(archive.shelf.store), Shelf.open(archive.shelf.store)
    ids = [one.id for one in mine.catalogue.points]
    plan = plan_pruning(mine.catalogue, [ids[0], ids[-1]])
    prune(theirs, plan_pruning(theirs.catalogue, [ids[-1]]), OPTIONS, ignore)
    with pytest.raises(LvmsyncError, match=r"somebody else|pruned just now|gone: was it pruned"):
        prune(mine, plan, OPTIONS, ignore)
    found = check(archive)
    assert (found.faults, found.notes) == ([], [])
    require_points(archive)


def test_a_point_that_was_pruned_while_it_was_taken_on_from_is_missed(
    archive: Forward, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive.history.step()
    mine = Shelf.open(archive.shelf.store)

    def gone(now: Catalogue) -> Catalogue:
        kept = tuple(one for one in now.members if one.head != "lv:4")
        points = tuple(one for one in now.points if one.id != "lv:4")
        return now.successor(new_commit(), points=points, members=kept)

    real = mine.change
    monkeypatch.setattr(mine, "change", lambda edit: (archive.shelf.change(gone), real(edit))[1])
    with pytest.raises(ConflictError, match="the changes start from lv:4"):
        take(mine, archive.history.delta(5), OPTIONS, ignore)
    assert [note for note in check(archive).notes if "no catalogue" not in note] == []


def test_a_clock_that_was_set_back_changes_no_order(tmp_path: Path) -> None:
    history = History.make(4, 6, 64 << 10)
    times = ["2026-05-03T10:00:00", "2026-05-03T11:00:00", "2026-05-01T09:00:00", "2026-05-01T09:00:00", None, "x"]
    real = history.point
    history.point = lambda number: Point(real(number).id, None, times[number])  # type: ignore[method-assign]
    archive = Forward(tmp_path, history)
    require_points(archive)
    points = archive.shelf.catalogue.points
    assert [one.number for one in points] == [1, 2, 3, 4, 5, 6]
    assert find_point(archive.shelf.catalogue, "2026-05-03T10:30").number == 4
    assert find_point(archive.shelf.catalogue, "2026-05-03").number == 4
    with pytest.raises(UsageError, match="no point was seen at 2026-04-30"):
        find_point(archive.shelf.catalogue, "2026-04-30")


@pytest.mark.parametrize("after", [0, 1, 3, 6])
def test_a_full_disk_fails_with_a_clear_error_and_leaves_nothing(
    archive: Forward, after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = names(archive)
    archive.history.step()
    # Sealed objects are written in larger pieces.
    real, count = os.write, [after // 2 if isinstance(archive.shelf.store, SealedStore) else after]

    def write(fd: int, data: Any) -> int:
        count[0] -= 1
        if count[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(fd, data)

    monkeypatch.setattr(os, "write", write)
    with pytest.raises(DeviceError, match="No space left on device; make room, and run it again"):
        archive.take(5)
    monkeypatch.undo()
    left = [name for name in names(archive) if name not in before]
    assert all(name.endswith((".index", ".stream")) for name in left)  # of a member whose catalogue had no room
    assert check(archive, is_repairing=True).faults == []
    archive.take(5) if archive.shelf.catalogue.find("lv:5") is None else None
    require_points(archive)
    assert check(archive).notes == []


def test_what_has_no_place_is_refused_and_nothing_is_left(archive: Forward, tmp_path: Path) -> None:
    before = names(archive)
    shelf, history = archive.shelf, archive.history
    odd = make_source(Memory(bytes(4096)), [(0, 4096)])
    with pytest.raises(UsageError, match="does not say which state it starts from"):
        take(shelf, odd, OPTIONS, ignore)
    unknown = replace(history.delta(2), base=Point("lv:none", None, "2026-01-01T00:00:00+00:00"), head=Point("lv:n"))
    with pytest.raises(ConflictError, match=r"is at lv:4 \(point #5.*start from lv:none \(of 2026-01-01"):
        take(shelf, unknown, OPTIONS, ignore)
    for label in ("latest", "#3", " ", "a\n", "x" * 201):
        with pytest.raises(UsageError, match="--label"):
            take(shelf, history.full(0), OPTIONS, ignore, label=label)
    for bad, message in (
        (send(unknown), "start from lv:none"),
        (send(history.delta(1))[:-30], "has no END"),
        (send(odd), "which state it leads to"),
        (send(replace(odd, head=Point("lv:h"))), "which state it starts from"),
        (send(history.delta(1), StreamOptions(3)), r"PROTO\[3\] stream"),
        (send(replace(history.delta(1), base=Point("lv:3"), head=Point("lv:1"))), "came in the other order"),
        (b"", "nothing came"),
    ):
        with pytest.raises(LvmsyncError, match=message):
            bring_in(shelf, reader(bad), name="file")
    assert names(archive) == before


def test_a_delta_against_the_order_of_points_is_refused(archive: Forward) -> None:
    """The archive would not be readable any more."""
    before = names(archive)
    # What leads to the older point is lost, so it is not there already.
    archive.shelf.change(
        lambda now: now.successor(new_commit(), members=tuple(one for one in now.members if one.head != "lv:1"))
    )
    back = replace(archive.history.delta(1), base=Point("lv:0"), head=Point("lv:1"))
    take(archive.shelf, back, OPTIONS, ignore)
    wrong = replace(archive.history.delta(1), base=Point("lv:1"), head=Point("lv:0"))
    with pytest.raises(ConflictError, match="came in the other order"):
        bring_in(archive.shelf, reader(send(wrong)), name="x")
    Shelf.open(archive.shelf.store)
    assert len(names(archive)) == len(before) + 4


def test_what_is_there_already_is_not_taken_twice(archive: Forward) -> None:
    before = names(archive)
    receipt = archive.take(4)
    assert receipt.kind == "nothing"
    assert "has this state already, as point #5" in receipt.notes[0]
    member = archive.shelf.catalogue.members[2]
    again = archive.shelf.store.read(member.name)
    assert again
    assert "was in the archive already" in bring_in(archive.shelf, reader(again), name="x").notes[0]
    assert names(archive) == before


def test_a_stray_member_is_reported_and_adopted(archive: Forward) -> None:
    archive.history.step()
    archive.take(5)
    newest = max(folder(archive).glob("catalogue-*"))
    newest.unlink()  # as if it had been cut off right before
    (note,) = check(archive).notes
    assert "--repair adds it if it is whole" in note
    verdict = check(archive, is_repairing=True)
    assert len(verdict.adopted) == 1
    assert archive.shelf.catalogue.points[-1].id == "lv:5"
    assert check(archive).notes == []
    require_points(archive)


def test_strays_that_are_damaged_doubled_or_foreign_are_told_and_left(plain: Forward) -> None:
    place, member = folder(plain), plain.shelf.catalogue.members[1]
    data = (place / member.name).read_bytes()
    (place / f"{'1' * 32}.stream").write_bytes(data[:-5])
    (place / f"{'2' * 32}.stream").write_bytes(data)
    (place / f"{'3' * 32}.index").write_bytes(b"x")
    (place / "notes").write_bytes(b"mine")
    (place / ".new-0123").write_bytes(b"half")
    assert len(check(plain).notes) == 5
    notes = " ".join(check(plain, is_repairing=True).notes)
    assert "cannot be added: stream is cut" in notes
    assert "is a copy of a member: it can be removed by hand" in notes
    assert (place / "notes").exists()
    assert (place / f"{'1' * 32}.stream").exists()
    assert not (place / f"{'3' * 32}.index").exists()
    assert not (place / ".new-0123").exists()


def test_a_state_that_is_not_the_one_that_was_is_told(archive: Forward) -> None:
    assert check(archive, is_restoring=True).faults == []
    archive.shelf = Shelf.open(archive.shelf.store)
    point = archive.shelf.catalogue.points[2]
    assert point.digest is not None
    with pytest.raises(VerifyError, match="do not use it"):
        require_digest(point, "0" * 32, "archive")
    points = tuple(replace(one, digest="0" * 32) if one == point else one for one in archive.shelf.catalogue.points)
    archive.shelf.change(lambda now: now.successor(new_commit(), points=points))
    (fault,) = check(archive, is_restoring=True).faults
    assert f"point #3 has the digest {point.digest} now, and had {'0' * 32}" in fault


def test_snapbacks_come_in_their_order(tmp_path: Path) -> None:
    archive = Reverse(tmp_path, History.make(21, 4, 64 << 10, may_resize=False))
    backs = [(tmp_path / f"{number}.back").read_bytes() for number in (1, 2, 3)]
    for number, (order, message) in enumerate(
        (((1, 0), "start from lv:0"), ((0, 2), "start from lv:2"), ((2, 1, 0), "start from lv:1"))
    ):
        shelf = Shelf.init(FolderStore(tmp_path / f"other{number}"))
        bring_in(shelf, reader(backs[order[0]]), name="first")
        with pytest.raises(ConflictError, match=message):
            bring_in(shelf, reader(backs[order[1]]), name="second")
    shelf = Shelf.init(FolderStore(tmp_path / "gap"))
    bring_in(shelf, reader(backs[0]), name="first")
    bring_in(shelf, reader(backs[2]), name="third", is_new_chain=True)
    faults = verify(shelf, ignore).faults
    assert [fault.split(" (")[0] for fault in faults] == ["point #1", "point #2"]
    with pytest.raises(ConflictError, match="nothing leads to point #1"):
        require_points_of(shelf, archive)


def require_points_of(shelf: Shelf, archive: Reverse) -> None:
    archive.shelf = shelf
    require_points(archive)


def test_without_its_mirror_a_snapback_leads_nowhere(tmp_path: Path) -> None:
    archive = Reverse(tmp_path, History.make(21, 4, 64 << 10, may_resize=False))
    point = archive.shelf.catalogue.points[0]
    with (
        pytest.raises(ConflictError, match=r"reached back from the mirror, when that is at point #4 .*--mirror DEVICE"),
        open_point(archive.shelf, point),
    ):
        pass
    wrong = replace(archive.mirror, point="lv:1")
    with (
        pytest.raises(ConflictError, match="the one that was given is at lv:1"),
        open_point(archive.shelf, archive.shelf.catalogue.points[2], wrong),
    ):
        pass
    assert "4 points are reached only from the mirror" in verify(archive.shelf, ignore).notes[0]


def test_a_delta_between_any_two_points_leads_from_one_to_the_other(tmp_path: Path) -> None:
    archive = Both(tmp_path, History.make(9, 6, 64 << 10, may_resize=False))
    points = archive.shelf.catalogue.points
    for base in points:
        for head in points:
            if base == head:
                continue
            image = tmp_path / f"{base.number}-{head.number}"
            image.write_bytes(archive.history.data_of(base))
            with open_between(archive.shelf, base, head) as source:
                receive(reader(send(source)), ReceiveOptions(str(image), tmp_path / "s"), ignore)
            assert image.read_bytes() == archive.history.data_of(head)
    with open_restored(archive.shelf, points[2]) as source:
        receive(reader(send(source)), ReceiveOptions(str(tmp_path / "r"), tmp_path / "s", create=True), ignore)
    assert (tmp_path / "r").read_bytes() == archive.history.data_of(points[2])


def test_an_archive_is_made_in_a_place_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    with pytest.raises(ConflictError, match="is not empty"):
        Shelf.init(FolderStore(tmp_path / "full"))
    Shelf.init(FolderStore(tmp_path / "a" / "b"))
    assert (tmp_path / "a" / "b").stat().st_mode & 0o777 == 0o700
    with pytest.raises(ConflictError, match="there is an archive at"):
        Shelf.init(FolderStore(tmp_path / "a" / "b"))
    for missing in ("none", "full"):
        with pytest.raises(DeviceError, match="there is no archive at"):
            Shelf.open(FolderStore(tmp_path / missing))
    (tmp_path / "file").touch()
    with pytest.raises(DeviceError):
        Shelf.open(FolderStore(tmp_path / "file"))
    with pytest.raises(DeviceError):
        Shelf.init(FolderStore(tmp_path / "file" / "x"))


def test_what_others_add_while_strays_are_looked_at_stays(archive: Forward, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two members without a catalogue when it began: one is a stray, and the other one's writer is at its last step."""
    archive.history.step()
    archive.history.step()
    place = folder(archive)
    archive.take(5)
    max(place.glob("catalogue-*")).unlink()
    shelf = Shelf.open(archive.shelf.store)
    real = verifying._look_at_rest
    other: list[Receipt] = []

    def meanwhile(*args: Any, **others: Any) -> None:
        if not other:
            args[1].update({path.name: path.stat().st_size for path in place.iterdir()})
            source = replace(archive.history.full(6), head=Point("lv:z", None, None))
            other.append(take(Shelf.open(archive.shelf.store), source, OPTIONS, ignore))
            args[1].update({path.name: path.stat().st_size for path in place.iterdir()})
        real(*args, **others)

    monkeypatch.setattr(verifying, "_look_at_rest", meanwhile)
    assert verify(shelf, ignore, is_repairing=True).faults == []
    found = check(archive)
    assert (found.faults, found.notes) == ([], [])
    assert {"lv:5", "lv:z"} <= {one.id for one in archive.shelf.catalogue.points}


def test_a_stream_whose_base_was_pruned_while_it_came_is_refused(archive: Forward) -> None:
    archive.history.step()
    stream = send(archive.history.delta(5))
    read = reader(stream)

    def pruned_first(buffer: memoryview) -> int:
        shelf = Shelf.open(archive.shelf.store)
        if shelf.catalogue.find("lv:4"):
            take(shelf, replace(archive.history.full(0), head=Point("lv:y", None, None)), OPTIONS, ignore)
            prune(shelf, plan_pruning(shelf.catalogue, ["lv:y"]), OPTIONS, ignore)
        return read(buffer)

    with pytest.raises(ConflictError, match="start from lv:4"):
        bring_in(Shelf.open(archive.shelf.store), pruned_first, name="x")
    found = check(archive)
    assert (found.faults, found.notes) == ([], [])


def test_a_mirror_that_is_larger_than_its_source_is_another_state(tmp_path: Path) -> None:
    """A full copy of the source has the point's id, and not what lies behind its end on the mirror."""
    archive = Reverse(tmp_path, History.make(3, 3, 64 << 10, may_resize=False))
    newest = archive.history.states[-1]
    small = make_source(Memory(newest.data[: 32 << 10]), [(0, 32 << 10)])
    full = replace(small, is_full=True, head=Point(newest.id, None, None))
    with pytest.raises(ConflictError, match="#3 is of a device of 65536 bytes, and the stream is of one of 32768"):
        bring_in(archive.shelf, reader(send(full)), name="full")
    with pytest.raises(ConflictError, match="a mirror that is larger than its source"):
        take(archive.shelf, full, OPTIONS, ignore)
    require_points(archive)
    points = tuple(replace(one, size=one.size - 512) for one in archive.shelf.catalogue.points)
    archive.shelf.change(lambda now: now.successor(new_commit(), points=points))
    faults = verify(Shelf.open(archive.shelf.store), ignore).faults
    assert len(faults) == 2
    assert "is of a device of 65536 bytes, and the catalogue has 65024" in faults[0]


def test_a_point_that_the_mirror_has_left_behind_is_told(tmp_path: Path) -> None:
    archive = Reverse(tmp_path, History.make(21, 4, 64 << 10, may_resize=False))
    shelf = Shelf.init(FolderStore(tmp_path / "other"))
    backs = [(tmp_path / f"{number}.back").read_bytes() for number in (1, 2, 3)]
    for back in backs[:2]:
        assert bring_in(shelf, reader(back), name="x").notes == []
    # The mirror was led back by its own snapback, and went on to another state from there.
    source = replace(archive.history.delta(3), base=archive.history.point(1))
    image = tmp_path / "led back"
    image.write_bytes(archive.history.states[1].data)
    receive(reader(send(replace(archive.history.full(1)))), ReceiveOptions(str(image), tmp_path / "s"), ignore)
    receive(reader(send(source)), ReceiveOptions(str(image), tmp_path / "s", tmp_path / "b.back"), ignore)
    (note,) = bring_in(shelf, reader((tmp_path / "b.back").read_bytes()), name="x").notes
    assert "nothing leads to #3 any more: the mirror has moved on" in note


def test_faults_are_told_though_digests_cannot_be_written(archive: Forward, monkeypatch: pytest.MonkeyPatch) -> None:
    member = archive.shelf.catalogue.members[4]
    flip(folder(archive) / member.name, member.stored // 2)

    def full(*_: Any) -> bool:
        raise DeviceError("no room")

    monkeypatch.setattr(FolderStore, "put_new", full)
    found = check(archive, is_restoring=True)
    assert found.faults
    assert "could not be remembered: no room" in " ".join(found.notes)


def test_what_was_pruned_while_it_was_verified_is_no_fault(archive: Forward) -> None:
    mine = Shelf.open(archive.shelf.store)
    others = Shelf.open(archive.shelf.store)
    prune(others, plan_pruning(others.catalogue, [others.catalogue.points[-1].id]), OPTIONS, ignore)
    assert verify(mine, ignore).faults == []


def test_a_way_of_more_members_than_may_be_open_is_gone(archive: Forward, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lvmsync.jobs.archive.past._MOST_HELD", 1)
    require_points(archive)
    flip(folder(archive) / archive.shelf.catalogue.members[3].name, archive.shelf.catalogue.members[3].stored // 2)
    with pytest.raises(StreamError, match="is damaged"):
        require_points(archive)


def test_a_member_that_no_shortest_way_takes_is_proved_as_well(tmp_path: Path) -> None:
    history = History.make(11, 4, may_resize=False)
    archive = Both(tmp_path, history)
    store = archive.shelf.store
    verdict = verify(archive.shelf, ignore, is_restoring=True, mirror=archive.mirror)
    assert verdict.faults == []
    # One more way back to the second point, of one who says so and brings the bytes of the first
    wrong = make_source(Memory(history.states[0].data), [(0, 64 << 10)])
    wrong = replace(wrong, base=history.point(3), head=history.point(1), name="vg/lv")
    written, _ = write_source(store, wrong, OPTIONS, ignore, intent=frames.SNAPBACK)
    assert adopt(archive.shelf, written) == []
    assert verify(Shelf.open(store), ignore).faults == []  # each member is a whole stream
    (fault,) = verify(Shelf.open(store), ignore, is_restoring=True, mirror=archive.mirror).faults
    assert fault.startswith(f"{store.name}/{written.member.name}: point #2 has the digest ")

"""A receive that keeps what it overwrites in an archive: `sync --archive`, on the target's side."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lvmsync.chain.catalogue import FORWARD, REVERSE
from lvmsync.chain.keys import PASSPHRASE, Secret
from lvmsync.errors import ConflictError, DeviceError, LvmsyncError, StreamError, UsageError
from lvmsync.extents import ChangeMap
from lvmsync.history import Point
from lvmsync.jobs.archive import secret as secrets
from lvmsync.jobs.archive.keys import init_sealed
from lvmsync.jobs.archive.mirror import open_mirror
from lvmsync.jobs.archive.restore import open_point
from lvmsync.jobs.archive.shelf import Shelf
from lvmsync.jobs.archive.take import bring_in, take
from lvmsync.jobs.archive.verify import verify
from lvmsync.jobs.doctor.records import check_targets
from lvmsync.jobs.inspect import inspect
from lvmsync.jobs.progress import ignore
from lvmsync.jobs.recover import recover
from lvmsync.jobs.send import Resume, Sender, StreamOptions
from lvmsync.jobs.standing import standing
from lvmsync.sources.source import Source
from lvmsync.stores.folder import FolderStore
from tests.archive_history import History, Mirrored, require_points_while_it_is_pruned, require_whole
from tests.fakes import Memory, reader, send

K = 1024


def make_history(seed: int, count: int, size: int = 192 * K) -> History:
    """Return a history in which something changes at each step."""
    history = History.make(seed, 1, size)
    while len(history.states) < count:
        change(history)
    return history


def change(history: History) -> None:
    """Make a step in which something changes."""
    count = len(history.states)
    while len(history.states) == count:
        history.step(may_resize=False)
        if not history.states[-1].changes:
            history.states.pop()


@pytest.mark.parametrize("seed", range(3))
def test_every_state_of_the_mirror_is_restored_and_pruned(seed: int, tmp_path: Path) -> None:
    archive = Mirrored(tmp_path, make_history(seed, 14))
    require_points_while_it_is_pruned(archive, seed)


def test_the_first_copy_makes_a_point_without_a_member(tmp_path: Path) -> None:
    archive = Mirrored(tmp_path, make_history(1, 1))
    catalogue = Shelf.open(archive.shelf.store).catalogue
    assert [one.id for one in catalogue.points] == ["lv:0"]
    assert (catalogue.members, catalogue.mirror) == ((), "lv:0")
    assert catalogue.points[0].time == archive.history.point(0).time
    require_whole(archive)


def empty(archive: Mirrored, base: str, head: str, time: str | None = None) -> Source:
    """Return a delta in which nothing has changed."""
    source = archive.history.delta(len(archive.history.states) - 1)
    return replace(source, changes=ChangeMap.empty(), holes=ChangeMap.empty(), base=Point(base), head=Point(head))


def test_a_sync_in_which_nothing_changed_adds_nothing_and_the_next_one_leads_back_all_the_same(tmp_path: Path) -> None:
    archive = Mirrored(tmp_path, make_history(2, 3))
    before = Shelf.open(archive.shelf.store).catalogue
    for number in range(40):  # more than the ledger has names of
        base = f"same:{number - 1}" if number else "lv:2"
        word = None if number in (3, 4) else archive.word
        receipt = archive.send(empty(archive, base, f"same:{number}"), archive=word)
        assert receipt.archive == (f"{word}, point #3" if word else None)
    assert Shelf.open(archive.shelf.store).catalogue == before
    with open_mirror(str(archive.image), tmp_path / "state", before) as mirror:
        assert mirror.point == "lv:2"

    change(archive.history)
    archive.send(replace(archive.history.delta(3), base=Point("same:39")))
    archive.at = "lv:3"
    require_whole(archive)
    assert [(one.base, one.head) for one in archive.shelf.catalogue.members][-1] == ("lv:3", "lv:2")


def test_the_same_state_again_adds_nothing(tmp_path: Path) -> None:
    archive = Mirrored(tmp_path, make_history(2, 3))
    before = Shelf.open(archive.shelf.store).catalogue
    archive.send(archive.history.full(2))
    assert Shelf.open(archive.shelf.store).catalogue == before
    require_whole(archive)


def test_a_full_copy_anew_leads_back_as_well(tmp_path: Path) -> None:
    archive = Mirrored(tmp_path, make_history(2, 3))
    change(archive.history)
    archive.send(archive.history.full(3))
    archive.at = "lv:3"
    require_whole(archive)


def test_an_archive_may_begin_at_a_mirror_that_is_there(tmp_path: Path) -> None:
    history = make_history(3, 2)
    archive = Mirrored(tmp_path, History(history.chance, history.states[:1]))
    empty_one = Shelf.init(FolderStore(tmp_path / "late"))
    archive.history = history
    archive.send(history.delta(1), archive=empty_one.store.name)
    archive.shelf, archive.at = empty_one, "lv:1"
    require_whole(archive)
    assert [one.number for one in archive.shelf.catalogue.points] == [1, 2]


# Refused, before anything is written


def refused(mirror: Mirrored, error: type[LvmsyncError], match: str, stream: bytes, **options: Any) -> None:
    """A receive is refused, and neither the mirror nor an archive is changed by it."""
    image = mirror.image.read_bytes()
    place = Path(options.get("archive", mirror.word))
    listed = sorted(one.name for one in place.iterdir()) if place.is_dir() else []
    with pytest.raises(error, match=match):
        mirror.give(stream, **options)
    assert mirror.image.read_bytes() == image
    assert (sorted(one.name for one in place.iterdir()) if place.is_dir() else []) == listed
    assert standing(str(mirror.image), mirror.folder / "state").transaction is None


@pytest.fixture
def archive(tmp_path: Path) -> Mirrored:
    """Three states of a mirror, and the delta to a fourth one is at hand."""
    history = make_history(4, 4)
    made = Mirrored(tmp_path, History(history.chance, history.states[:3]))
    made.history = history
    return made


def test_an_archive_that_is_not_there_is_refused(archive: Mirrored, tmp_path: Path) -> None:
    stream = send(archive.history.delta(3))
    refused(archive, DeviceError, "there is no archive at", stream, archive=str(tmp_path / "none"))


def test_the_archive_of_another_device_is_refused(archive: Mirrored, tmp_path: Path) -> None:
    other = Mirrored(tmp_path / "other", make_history(9, 2))
    for state in other.history.states:
        state.id = "other:" + state.id
    other = Mirrored(tmp_path / "third", other.history)
    stream = send(archive.history.delta(3))
    refused(archive, ConflictError, "is at lv:2, .* does not have: its mirror is at #2", stream, archive=other.word)


def test_the_archive_of_a_device_of_another_size_is_refused(archive: Mirrored, tmp_path: Path) -> None:
    history = make_history(9, 1, 196 * K)
    history.states[0].id = "lv:2"
    other = Mirrored(tmp_path / "other", history)
    stream = send(archive.history.delta(3))
    refused(
        archive, ConflictError, "has 196608 bytes, and point #1 .* of a device of 200704", stream, archive=other.word
    )


def test_a_second_mirror_that_is_behind_is_refused(archive: Mirrored, tmp_path: Path) -> None:
    second = Mirrored(tmp_path / "second", History(archive.history.chance, archive.history.states[:2]))
    stream = send(archive.history.delta(2))
    refused(second, ConflictError, "is at point #2, .* has its mirror at point #3", stream, archive=archive.word)


def test_a_mirror_that_somebody_wrote_to_is_refused(archive: Mirrored) -> None:
    with archive.image.open("r+b") as file:
        file.write(b"mine")
    for source in (archive.history.delta(3), archive.history.full(3)):
        refused(archive, ConflictError, "somebody else wrote to it since", send(source))


def test_a_mirror_that_missed_a_snapback_is_refused_until_that_is_imported(archive: Mirrored, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    archive.give(send(archive.history.delta(3)), archive=None, snapback=kept)
    change(archive.history)
    refused(archive, ConflictError, "is at lv:3, .* does not have", send(archive.history.delta(4)))
    bring_in(archive.shelf, reader(kept.read_bytes()), name="kept")
    archive.send(archive.history.delta(4))
    archive.at = "lv:4"
    require_whole(archive)


def test_the_way_back_is_no_news(archive: Mirrored, tmp_path: Path) -> None:
    back = tmp_path / "back"
    archive.give(send(archive.history.delta(3)), archive=None, snapback=back)
    bring_in(archive.shelf, reader(back.read_bytes()), name="back")
    refused(archive, ConflictError, "that is the way back, which an archive has already", back.read_bytes())


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"undo": False}, "go without --no-undo"),
        ({"snapback": Path("/nowhere/back")}, "go without --no-undo and --snapback"),
        ({"prepare": True, "group": "a" * 32}, "not for a group"),
        ({"archive": "rsync://host/x"}, "not rsync://"),
    ],
)
def test_options_that_do_not_go_together(archive: Mirrored, options: dict[str, Any], match: str) -> None:
    refused(archive, UsageError, match, send(archive.history.delta(3)), **options)


def test_a_stream_without_points_is_refused(archive: Mirrored) -> None:
    stream = send(archive.history.delta(3), StreamOptions(format=3))
    refused(archive, UsageError, r"needs a PROTO\[4\] stream", stream)


def test_a_full_archive_is_refused(archive: Mirrored, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FolderStore, "room", lambda _: 1 * K)
    refused(archive, DeviceError, "1024 bytes free, and up to", send(archive.history.full(3)))


def test_an_encrypted_archive_is_opened_by_what_the_environment_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = Mirrored(tmp_path, make_history(6, 1))
    shutil.rmtree(archive.word)
    secret = Secret(PASSPHRASE, b"correct horse")
    archive.shelf = init_sealed(FolderStore(Path(archive.word)), lambda: secret, cost=1024)
    for number in range(1, 4):
        change(archive.history)
        monkeypatch.delenv(secrets.PASSPHRASE, raising=False)
        stream = send(archive.history.delta(number))
        refused(archive, UsageError, "is encrypted, and LVMSYNC_ARCHIVE_KEY_FILE is not set", stream)
        monkeypatch.setenv(secrets.PASSPHRASE, "wrong")
        refused(archive, UsageError, "opens it|does not open|none of", stream)
        monkeypatch.setenv(secrets.PASSPHRASE, "correct horse")
        archive.sync(number)
    require_whole(archive)
    assert len(archive.shelf.catalogue.points) == 4


def test_a_snapback_from_a_state_with_two_names_leads_back_to_both(tmp_path: Path) -> None:
    """At a sync nothing changed, so the archive has the state by its older name; the next goes without the archive."""
    archive = Mirrored(tmp_path, make_history(8, 3))
    history = archive.history
    count = len(history.states)
    state = history.states[-1]
    history.states.append(replace(state, id="lv:same", changes=ChangeMap.empty(), holes=ChangeMap.empty()))
    archive.sync(count)
    assert [one.id for one in Shelf.open(archive.shelf.store).catalogue.points][-1] == state.id
    change(history)
    back = tmp_path / "back"
    archive.send(history.delta(count + 1), archive=None, snapback=back)
    shelf = Shelf.open(archive.shelf.store)
    bring_in(shelf, reader(back.read_bytes()), name="back")
    mirror = archive.mirror_at(history.states[-1].id)
    assert verify(Shelf.open(archive.shelf.store), ignore, is_restoring=True, mirror=mirror).faults == []
    for point in Shelf.open(archive.shelf.store).catalogue.points:
        with open_point(Shelf.open(archive.shelf.store), point, mirror) as (past, _):
            out = memoryview(bytearray(past.size))
            past.read([0], [past.size], out)
            assert out == history.data_of(point)
    # Led back, it has both names again, and may go on from either
    archive.give(back.read_bytes(), archive=None)
    with open_mirror(str(archive.image), archive.folder / "state", shelf.catalogue) as found:
        assert found.point == state.id


def test_a_dry_run_says_what_would_be_and_adds_nothing(archive: Mirrored) -> None:
    before = sorted(Path(archive.word).iterdir())
    assert archive.send(archive.history.delta(3), dry_run=True).dry_run
    assert sorted(Path(archive.word).iterdir()) == before


# Cut off


def test_a_stream_that_is_cut_adds_nothing_and_one_that_goes_on_adds_one_member(archive: Mirrored) -> None:
    source = archive.history.full(3)
    source = replace(source, is_full=False, holes=ChangeMap.empty(), base=archive.history.point(2))
    whole = send(source, StreamOptions(resumable=True))
    before = sorted(Path(archive.word).iterdir())
    with pytest.raises(StreamError):
        archive.give(whole[: len(whole) * 2 // 3], resumable=True)
    assert sorted(Path(archive.word).iterdir()) == before
    found = standing(str(archive.image), archive.folder / "state").transaction
    assert found is not None
    assert found.offset > 0
    rest = bytearray()
    Sender(
        source, lambda buffers: rest.extend(b"".join(buffers)), StreamOptions(resumable=True), ignore,
        resume=Resume(found.offset, found.id),
    ).deliver()  # fmt: skip
    other = Shelf.init(FolderStore(archive.folder / "elsewhere")).store.name
    with pytest.raises(
        ConflictError, match=r"has archive .*/archive, and the stream goes on with archive .*/elsewhere"
    ):
        archive.give(bytes(rest), resumable=True, archive=other)
    archive.give(bytes(rest), resumable=True, archive=None)
    archive.at = "lv:3"
    require_whole(archive)
    assert len(archive.shelf.catalogue.members) == 3


def test_what_was_rolled_back_is_no_member(archive: Mirrored) -> None:
    stream = send(archive.history.delta(3))
    refused(archive, StreamError, "cut", stream[:-20])
    archive.send(archive.history.delta(3))
    archive.at = "lv:3"
    require_whole(archive)


# The archive fails when all is committed


def test_an_archive_that_fails_behind_the_commit_is_given_it_by_the_next_run(
    archive: Mirrored, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = "; ".join(send_in_vain(archive, monkeypatch).__notes__)
    assert "is wholly new and durable, and only" in said
    kept = Path(said.partition("that is kept in ")[2].partition(":")[0])
    with kept.open("rb", buffering=0) as file:
        assert inspect(file.readinto, "kept")["header"]["head"]["id"] == "lv:2"
    assert archive.image.read_bytes() == archive.history.states[3].data
    with (
        pytest.raises(ConflictError, match=r"run 'lvmsync recover .*', and it has"),
        open_mirror(str(archive.image), archive.folder / "state", archive.shelf.catalogue),
    ):
        pass
    findings = [one.problem for one in check_targets(archive.folder / "state")]
    assert any("has not been given" in what for what in findings)

    with monkeypatch.context() as patched:  # nothing more is overwritten as long as it fails
        patched.setattr(FolderStore, "create", fail)
        change(archive.history)
        image = archive.image.read_bytes()
        with pytest.raises(DeviceError, match="no more"):
            archive.send(archive.history.delta(4))
        assert archive.image.read_bytes() == image
    receipt = archive.give(send(archive.history.delta(4)), archive=None)
    assert any("has not been given yet" in note for note in receipt.notes)
    recover(str(archive.image), archive.folder / "state", ignore)
    assert not kept.exists()
    assert [one.id for one in Shelf.open(archive.shelf.store).catalogue.points] == [f"lv:{n}" for n in range(4)]


def test_a_snapback_that_was_imported_by_hand_is_not_added_twice(
    archive: Mirrored, monkeypatch: pytest.MonkeyPatch
) -> None:
    send_in_vain(archive, monkeypatch)
    kept = next((archive.folder / "state").glob("targets/*/*.undo"))
    bring_in(archive.shelf, reader(kept.read_bytes()), name="kept")
    recover(str(archive.image), archive.folder / "state", ignore)
    archive.at = "lv:3"
    require_whole(archive)
    assert len(archive.shelf.catalogue.members) == 3
    assert not kept.exists()


def test_a_snapback_that_is_gone_is_said_and_not_waited_for(archive: Mirrored, monkeypatch: pytest.MonkeyPatch) -> None:
    send_in_vain(archive, monkeypatch)
    kept = next((archive.folder / "state").glob("targets/*/*.undo"))
    taken = kept.read_bytes()
    kept.unlink()
    notes = recover(str(archive.image), archive.folder / "state", ignore).notes
    assert any("is gone, which" in note for note in notes)
    change(archive.history)
    refused(archive, ConflictError, "is at lv:3, .* does not have", send(archive.history.delta(4)))
    bring_in(archive.shelf, reader(taken), name="kept")
    archive.send(archive.history.delta(4))
    archive.at = "lv:4"
    require_whole(archive)


def send_in_vain(archive: Mirrored, monkeypatch: pytest.MonkeyPatch) -> DeviceError:
    """Bring the mirror up to date while its archive cannot be written."""
    with monkeypatch.context() as patched:
        patched.setattr(FolderStore, "create", fail)
        with pytest.raises(DeviceError, match="no more") as caught:
            archive.send(archive.history.delta(3))
    return caught.value


def fail(*_: Any) -> None:
    raise DeviceError("there is no more room")


# A mirror that was led back


def test_a_mirror_that_was_led_back_is_where_it_is(archive: Mirrored, tmp_path: Path) -> None:
    back = tmp_path / "back"
    archive.give(send(archive.history.delta(3)), archive=None, snapback=back)
    bring_in(archive.shelf, reader(back.read_bytes()), name="back")
    archive.give(back.read_bytes(), archive=None)
    archive.at = "lv:2"
    shelf = Shelf.open(archive.shelf.store)
    assert shelf.catalogue.mirror == "lv:3"
    with open_mirror(str(archive.image), archive.folder / "state", shelf.catalogue) as mirror:
        assert mirror.point == "lv:2"
        for number in range(3):
            with open_point(shelf, shelf.catalogue.points[number], mirror) as (past, _):
                out = memoryview(bytearray(past.size))
                past.read([0], [past.size], out)
                assert out == archive.history.states[number].data
        verdict = verify(shelf, ignore, is_restoring=True, mirror=mirror)
    assert len(verdict.faults) == 1
    assert (
        "point #4 (lv:3) cannot be restored: nothing leads to it while the mirror is at point #3" in verdict.faults[0]
    )
    assert verdict.restored == [1, 2, 3]


def test_a_mirror_that_has_its_state_under_a_name_that_the_archive_does_not_know_is_recognised(
    archive: Mirrored,
) -> None:
    """As after a repair of what somebody else wrote to it."""
    state, store = archive.folder / "state", archive.shelf.store
    number = next(at for at, one in enumerate(archive.history.states) if one.id == archive.at)
    assert verify(archive.shelf, ignore, is_restoring=True, mirror=archive.mirror).faults == []
    for change_it in (False, True):
        named = replace(archive.history.full(number), head=Point("state:repaired"))
        if change_it:
            data = bytearray(archive.history.states[number].data)
            data[100] ^= 1
            named = replace(named, data=Memory(bytes(data)), head=Point("state:other"))
        archive.give(send(named), archive=None)
        catalogue = Shelf.open(store).catalogue
        if change_it:
            with (
                pytest.raises(ConflictError, match="does not have that point"),
                open_mirror(str(archive.image), state, catalogue),
            ):
                pass
        else:
            with open_mirror(str(archive.image), state, catalogue) as found:
                assert found.point == archive.at


def test_a_mirror_that_was_led_back_goes_on_from_there(archive: Mirrored, tmp_path: Path) -> None:
    archive.send(archive.history.delta(3))
    shelf = Shelf.open(archive.shelf.store)
    name = shelf.catalogue.members[-1].name
    archive.give((Path(archive.word) / name).read_bytes(), archive=None)  # back to lv:2
    # From there on to another state
    archive.history.states[3] = replace(archive.history.states[3], id="lv:other")
    receipt = archive.send(replace(archive.history.delta(3), head=Point("lv:other")))
    assert any("nothing leads to #4 any more" in note for note in receipt.notes)
    shelf = Shelf.open(archive.shelf.store)
    assert shelf.catalogue.mirror == "lv:other"
    verdict = verify(shelf, ignore, is_restoring=True, mirror=archive.mirror_at("lv:other"))
    assert verdict.restored == [1, 2, 3, 5]
    assert len(verdict.faults) == 1


def test_forward_and_reverse_members_in_one_chain(tmp_path: Path) -> None:
    history = make_history(5, 6)
    archive = Mirrored(tmp_path, History(history.chance, history.states[:1]))
    archive.history = history
    for number in range(1, 6):
        take(Shelf.open(archive.shelf.store), history.delta(number), StreamOptions(), ignore)
        archive.send(history.delta(number))
    archive.at = "lv:5"
    require_whole(archive)
    ways = [one.way for one in archive.shelf.catalogue.members]
    assert (ways.count(FORWARD), ways.count(REVERSE)) == (5, 5)
    require_points_while_it_is_pruned(archive, 5)

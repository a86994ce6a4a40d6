"""Targets of a group: prepared one by one, committed at one point, together or not at all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from lvmsync.errors import ConflictError, StreamError, VerifyError
from lvmsync.history import Point
from lvmsync.jobs.prepared import abort_group, commit_group, commit_prepared, is_committed, list_members
from lvmsync.jobs.progress import ignore
from lvmsync.jobs.receive import ReceiveOptions, receive
from lvmsync.jobs.recover import recover
from lvmsync.jobs.standing import standing
from lvmsync.stream.frames import FULL, Frame, Header
from lvmsync.system import seen
from tests import fakes
from tests.fakes import Crash, Disk, change, data, reader, zero

SIZE = 16384
OLD = b"\x01" * SIZE
FRAMES: list[Frame] = [data((0, b"first" * 100)), zero((8192, 700)), data((12288, b"third" * 100))]
NEW = change(OLD, FRAMES)
HEAD = Point("lv:head")
GROUP = "00ff00ff"


class Stop(BaseException):
    pass


class Group:
    """Two targets on one disk."""

    def __init__(self, folder: Path) -> None:
        self.disk = Disk(folder / "disk")
        self.state = self.disk.root / "state"
        self.targets = [self.disk.root / name for name in ("a.img", "b.img")]
        for target in self.targets:
            target.write_bytes(OLD)

    def prepare(self, target: Path, *, group: str | None = GROUP, full: bool = False) -> None:
        header = Header(size=SIZE, changed_bytes=fakes.count_bytes(FRAMES), head=HEAD, intent=FULL if full else "delta")
        options = ReceiveOptions(
            str(target), self.state, prepare=group is not None, group=group, resumable=True, undo=not full
        )
        receive(reader(fakes.encode(FRAMES, header)), options, ignore)

    def receive_again(self) -> None:
        for target in self.targets:
            self.prepare(target, group=None)

    def commit(self) -> None:
        commit_group([str(target) for target in self.targets], self.state, GROUP)

    def contents(self) -> list[bytes]:
        return [target.read_bytes() for target in self.targets]

    def points(self) -> list[str | None]:
        found = [standing(str(target), self.state).point for target in self.targets]
        return [point.id if point else None for point in found]

    def recover(self) -> list[str]:
        return [recover(str(target), self.state, ignore).notes[0] for target in self.targets]


@pytest.fixture
def group(fast_path: Path) -> Group:
    made = Group(fast_path)
    for target in made.targets:
        made.prepare(target)
    return made


def test_what_is_prepared_is_new_and_not_committed(group: Group) -> None:
    assert group.contents() == [NEW, NEW]
    assert group.points() == [None, None]
    found = standing(str(group.targets[0]), group.state).transaction
    assert found
    assert (found.phase, found.group, found.resumable, found.can_go_back) == ("prepared", GROUP, False, True)


def test_a_group_is_committed_at_once_and_again_without_harm(group: Group) -> None:
    group.commit()
    assert group.points() == ["lv:head", "lv:head"]
    assert standing(str(group.targets[0]), group.state).written == "no"
    assert not is_committed(group.state, GROUP)  # nobody needs to know any more
    assert group.recover() == ["nothing to recover: no transaction is open"] * 2


def test_nothing_is_committed_while_one_that_is_prepared_is_not_named(group: Group) -> None:
    one, other = map(str, group.targets)
    with pytest.raises(ConflictError, match=f"{other} is prepared for group {GROUP} as well.*not named"):
        commit_group([one], group.state, GROUP)
    assert group.points() == [None, None]
    assert not is_committed(group.state, GROUP)

    group.commit()

    assert group.points() == ["lv:head"] * 2


def test_a_commit_is_known_to_have_been_done_as_long_as_nothing_else_was(group: Group) -> None:
    group.commit()
    commit_group([str(group.targets[0])], group.state, GROUP)  # the answer was lost
    group.commit()
    with pytest.raises(ConflictError, match="not prepared for group abcd: nothing was committed"):
        commit_group([str(target) for target in group.targets], group.state, "abcd")
    group.prepare(group.targets[1], group=None)
    with pytest.raises(ConflictError, match=r"b\.img is not prepared"):
        group.commit()


@pytest.mark.parametrize("is_seen", [True, False])
def test_what_was_written_to_since_it_was_prepared_is_neither_committed_nor_called_old(
    group: Group, monkeypatch: pytest.MonkeyPatch, *, is_seen: bool
) -> None:
    group.targets[1].write_bytes(bytes(SIZE))
    if not is_seen:  # after a reboot only the traces tell
        monkeypatch.setattr(seen, "was_written", lambda before, now: "unknown")

    with pytest.raises(ConflictError, match=r"b\.img was written to since it was prepared.*nothing was committed"):
        group.commit()
    assert not is_committed(group.state, GROUP)
    with pytest.raises(VerifyError, match="somebody else wrote to it meanwhile"):
        recover(str(group.targets[1]), group.state, ignore)

    assert recover(str(group.targets[0]), group.state, ignore).notes[0].startswith("rolled back")
    assert group.targets[0].read_bytes() == OLD


def test_the_file_of_a_group_stays_while_a_ledger_cannot_be_read(group: Group) -> None:
    """It may be that of a member, which would go back without it."""
    records = [next(group.state.glob(f"targets/*-{name}-img-*/record.json")) for name in "ab"]
    whole = {record: record.read_text() for record in records}

    def stop(*_: object) -> None:
        raise Stop

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lvmsync.jobs.prepared.settle", stop)
        with pytest.raises(Stop):
            group.commit()
    records[1].write_text("{")

    assert "forward" in recover(str(group.targets[0]), group.state, ignore).notes[0]
    assert is_committed(group.state, GROUP)
    records[1].write_text(whole[records[1]])

    assert "forward" in recover(str(group.targets[1]), group.state, ignore).notes[0]
    assert group.points() == ["lv:head"] * 2
    assert not is_committed(group.state, GROUP)


def test_nothing_is_committed_while_one_is_not_prepared(group: Group) -> None:
    group.prepare(group.targets[1], group=None)  # of its own, for which it goes back first
    with pytest.raises(ConflictError, match=r"b.img is not prepared for group 00ff00ff: nothing"):
        group.commit()
    assert group.points() == [None, "lv:head"]
    assert not commit_prepared(str(group.targets[0]), group.state)
    group.recover()
    assert group.contents() == [OLD, NEW]


def test_the_next_receive_brings_a_member_back_whose_group_was_not_committed(group: Group) -> None:
    group.prepare(group.targets[0], group=None)
    assert group.contents()[0] == NEW
    assert group.points() == ["lv:head", None]
    assert "rolled back: the target is as it was" in group.recover()


def test_a_prepared_first_copy_whose_group_was_not_committed_can_be_gone_on_with(fast_path: Path) -> None:
    made = Group(fast_path)
    made.prepare(made.targets[0], full=True)
    with pytest.raises(Exception, match="part of a first copy"):
        recover(str(made.targets[0]), made.state, ignore)
    found = standing(str(made.targets[0]), made.state).transaction
    assert found
    assert (found.phase, found.resumable, found.offset) == ("applying", True, 12288 + 500)


@pytest.mark.parametrize("way", ["recover", "receive", "commit"])
def test_a_crash_at_any_operation_leaves_all_old_or_all_new(
    way: str, group: Group, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(seen, "look", lambda fd: None)  # laying a disk out writes to its files
    before = group.disk.read()
    with group.disk.recorded() as record:
        group.commit()
    last = len(record.steps)
    goes: set[bool] = set()
    for done, wreck in record.wrecks():
        for fate in ("kept", "lost"):
            group.disk.lay_out(wreck.crash(fate))
            is_new = is_committed(group.state, GROUP) or any(group.points())
            goes.add(is_new)
            assert not (done == last and not is_new)
            finish: dict[str, Callable[[], object]] = {
                "recover": group.recover,
                "receive": group.receive_again,
                "commit": lambda: group.commit() if not all(group.points()) else None,
            }
            finish[way]()
            group.recover()
            if way == "recover":
                assert group.contents() == ([NEW, NEW] if is_new else [OLD, OLD]), done
            assert group.points() == (["lv:head"] * 2 if is_new or way != "recover" else [None, None])
    assert goes == {True, False}
    group.disk.lay_out(before)
    with group.disk.recorded(group.disk.dying_at(last // 2)), pytest.raises(Crash):
        group.commit()
    group.recover()
    assert len(set(group.contents())) == 1


def cut(group: Group, target: Path, *, full: bool = False) -> None:
    """Receive a stream for the group that is cut in the middle."""
    header = Header(size=SIZE, changed_bytes=fakes.count_bytes(FRAMES), head=HEAD, intent=FULL if full else "delta")
    stream = fakes.encode(FRAMES, header)
    options = ReceiveOptions(str(target), group.state, prepare=True, group=GROUP, resumable=True, undo=not full)
    with pytest.raises(StreamError):
        receive(reader(stream[:-40]), options, ignore)


def test_recovering_one_member_recovers_all_of_its_group(fast_path: Path) -> None:
    made = Group(fast_path)
    made.prepare(made.targets[0])
    cut(made, made.targets[1])
    assert list_members(made.state, GROUP) == [str(target) for target in made.targets]
    notes = recover(str(made.targets[1]), made.state, ignore).notes
    assert notes == [
        "rolled back: the target is as it was", f"{made.targets[0]}: rolled back: the target is as it was"
    ]  # fmt: skip
    assert made.contents() == [OLD, OLD]
    assert list_members(made.state, GROUP) == []


def test_recovering_one_member_of_a_committed_group_brings_all_forward(group: Group) -> None:
    with group.disk.recorded() as record:
        group.commit()
    for _, wreck in record.wrecks():
        group.disk.lay_out(wreck.crash("kept"))
        if is_committed(group.state, GROUP):
            break
    assert group.points() == [None, None]
    recover(str(group.targets[0]), group.state, ignore)
    assert group.points() == ["lv:head", "lv:head"]
    assert not is_committed(group.state, GROUP)  # nobody needs to know any more


def test_a_group_that_is_given_up_goes_back_and_is_as_if_never_written_to(fast_path: Path) -> None:
    made = Group(fast_path)
    for target in made.targets:
        made.prepare(target, group=None)
    made.prepare(made.targets[0])
    cut(made, made.targets[1])
    abort_group([str(target) for target in made.targets], made.state, GROUP, ignore)
    stands = [standing(str(target), made.state) for target in made.targets]
    assert [stand.transaction for stand in stands] == [None, None]
    assert [stand.written for stand in stands] == ["no", "no"]
    assert made.contents() == [NEW, NEW]


def test_first_copies_of_a_group_that_is_given_up_stay_to_be_gone_on_with(fast_path: Path) -> None:
    made = Group(fast_path)
    made.prepare(made.targets[0], full=True)
    cut(made, made.targets[1], full=True)
    abort_group([str(target) for target in made.targets], made.state, GROUP, ignore)
    found = [standing(str(target), made.state).transaction for target in made.targets]
    assert [(one.phase, one.group, one.resumable) for one in found if one] == [("applying", GROUP, True)] * 2

"""What the next run of a replica does: every row of the decision table."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from lvmsync.errors import ChangesLost, ConflictError, DeviceError, LvmsyncError
from lvmsync.history import Point
from lvmsync.jobs.replica.choose import Kept, Kind, Plan, TargetBusy, Wish, choose
from lvmsync.jobs.replica.record import Record
from lvmsync.jobs.standing import Standing, Unfinished

SIZE = 1 << 30
RECORD = Record("0123456789abcdef", "V" * 64, "vg/lv", "host:vg/copy")
USED = replace(RECORD, base="B", identity={"lvm": "1"}, committed="2026-01-01T00:00:00+00:00")
BASE = Kept("B", "vg/base", "base", SIZE)
HEAD = Kept("H", "vg/head", "head", SIZE)
OLD = Kept("O", "vg/old", "base", SIZE)
BACK = Kept("K", "vg/back", "back", SIZE)
GONE = Standing("vg/copy", "1", "now")
THERE = Standing("vg/copy", "1", "now", exists=True, kind="thick", size=SIZE, identity={"lvm": "1"}, written="no")


def at(volume_id: str, **more: Any) -> Standing:
    return replace(THERE, point=Point(f"lv:{volume_id}"), **more)


def amid(**values: Any) -> Standing:
    """A target in the middle of a delta from B to H."""
    usual: dict[str, Any] = {
        "id": "t", "phase": "applying", "base": "lv:B", "head": "lv:H", "offset": 4096, "size": SIZE,
        "resumable": True, "can_go_back": True, "intent": "delta", "group": None, "began": "then",
    }  # fmt: skip
    return at("B", transaction=Unfinished(**{**usual, **values}))


FULL = {"base": None, "intent": "full", "can_go_back": False}
PREPARED = {"group": "abc", "phase": "prepared", "resumable": False}
CUT = frozenset(["abc"])
BROKEN = replace(BASE, trouble="it overflowed")
SPOILT = replace(HEAD, trouble="it overflowed")


@pytest.mark.parametrize(
    ("record", "kept", "standing", "wish", "plan"),
    [
        pytest.param(RECORD, [], GONE, Wish(create=True), Plan(Kind.FIRST), id="nothing there, to be made"),
        pytest.param(RECORD, [], THERE, Wish(), Plan(Kind.FIRST), id="a target that nobody knows"),
        pytest.param(RECORD, [HEAD], THERE, Wish(), Plan(Kind.FIRST, drop=(HEAD,)), id="killed before it sent"),
        pytest.param(USED, [BASE], GONE, Wish(create=True), Plan(Kind.FIRST), id="a target that is made again"),
        pytest.param(USED, [BASE], at("B"), Wish(), Plan(Kind.DELTA, base=BASE), id="at the base"),
        pytest.param(RECORD, [BASE], at("B"), Wish(), Plan(Kind.DELTA, base=BASE), id="the record was lost"),
        pytest.param(
            USED, [BASE], at("B", written="unknown"), Wish(), Plan(Kind.DELTA, base=BASE), id="after a reboot"
        ),
        pytest.param(
            USED, [OLD, BASE, HEAD, BACK], at("B"), Wish(), Plan(Kind.DELTA, base=BASE, drop=(OLD, HEAD)),
            id="what is not needed goes, what is for the way back stays",
        ),
        pytest.param(USED, [BASE, HEAD], at("H"), Wish(), Plan(Kind.COMMITTED, head=HEAD), id="the receipt was lost"),
        pytest.param(RECORD, [BACK], at("K"), Wish(), Plan(Kind.DELTA, base=BACK), id="a way back is gone"),
        pytest.param(
            USED, [BASE, HEAD], amid(), Wish(), Plan(Kind.RESUME, base=BASE, head=HEAD), id="a delta was cut"
        ),
        pytest.param(
            USED, [OLD, BASE, HEAD], amid(**PREPARED), Wish(cuts=CUT),
            Plan(Kind.PREPARED, base=BASE, head=HEAD, drop=(OLD,)), id="it waits for the others of its group",
        ),
        pytest.param(
            USED, [BASE, HEAD], amid(group="abc"), Wish(cuts=CUT), Plan(Kind.RESUME, base=BASE, head=HEAD),
            id="a delta of a group was cut",
        ),
        pytest.param(RECORD, [HEAD], amid(**FULL), Wish(), Plan(Kind.RESUME, head=HEAD), id="a first copy was cut"),
        pytest.param(
            USED, [BASE, HEAD], amid(**FULL), Wish(), Plan(Kind.RESUME, head=HEAD, drop=(BASE,)),
            id="a copy that was made anew was cut",
        ),
        pytest.param(
            replace(RECORD, head="H"), [], amid(**FULL), Wish(), Plan(Kind.FIRST, restart=True),
            id="a first copy whose head is gone",
        ),
        pytest.param(
            RECORD, [SPOILT], amid(**FULL), Wish(), Plan(Kind.FIRST, drop=(SPOILT,), restart=True),
            id="a first copy whose head overflowed",
        ),
        pytest.param(
            RECORD, [HEAD], amid(**FULL), Wish(full=True), Plan(Kind.FIRST, drop=(HEAD,), restart=True),
            id="a first copy that is to begin anew",
        ),
        pytest.param(
            RECORD, [HEAD], amid(**FULL), Wish(full=True, goes_on=True), Plan(Kind.RESUME, head=HEAD),
            id="a copy of everything that is gone on with",
        ),
        pytest.param(
            USED, [BASE, HEAD], amid(**FULL, group="abc"), Wish(full=True, goes_on=True, cuts=CUT),
            Plan(Kind.RESUME, head=HEAD, drop=(BASE,)), id="of a group, too",
        ),
        pytest.param(
            RECORD, [HEAD], amid(**{**FULL, **PREPARED}), Wish(full=True, goes_on=True, cuts=CUT),
            Plan(Kind.PREPARED, head=HEAD), id="all of it has come, and waits for its group",
        ),
        pytest.param(
            RECORD, [HEAD], replace(amid(**FULL), written="yes"), Wish(full=True, goes_on=True),
            Plan(Kind.FIRST, drop=(HEAD,), restart=True), id="it was written to by something else meanwhile",
        ),
        pytest.param(
            USED, [BASE, HEAD], amid(), Wish(full=True, goes_on=True), Plan(Kind.ROLL_BACK, base=BASE, notes=(
                "what was sent to host:vg/copy before cannot be gone on with, so it was brought back first",
            )), id="a delta is not a copy of everything",
        ),
        pytest.param(USED, [BROKEN, HEAD], at("B"), Wish(full=True), Plan(Kind.FIRST, drop=(HEAD,)), id="all of it"),
        pytest.param(
            USED, [BASE], at("X", written="yes", dirty=True), Wish(full=True), Plan(Kind.FIRST), id="all of it, anew"
        ),
    ],
)  # fmt: skip
def test_each_state_has_its_plan(record: Record, kept: list[Kept], standing: Standing, wish: Wish, plan: Plan) -> None:
    assert choose(record, kept, standing, SIZE, wish) == plan


@pytest.mark.parametrize("kept", [[BASE], [BASE, SPOILT], [BROKEN, HEAD]], ids=["gone", "overflowed", "no base"])
def test_a_delta_that_cannot_be_gone_on_with_is_taken_back(kept: list[Kept]) -> None:
    plan = choose(USED, kept, amid(), SIZE)

    assert plan.kind is Kind.ROLL_BACK
    assert "brought back" in plan.notes[0]


@pytest.mark.parametrize("values", [{"resumable": False}, {"phase": "undone", "resumable": False}])
def test_a_transaction_that_takes_nothing_more_is_taken_back(values: dict[str, Any]) -> None:
    assert choose(USED, [BASE, HEAD], amid(**values), SIZE).kind is Kind.ROLL_BACK


@pytest.mark.parametrize(
    ("record", "kept", "standing", "kind", "words"),
    [
        pytest.param(RECORD, [], GONE, DeviceError, "there is no target host:vg/copy; make it .* --create", id="none"),
        pytest.param(USED, [BASE], GONE, DeviceError, "any more, where it was at 2026", id="gone"),
        pytest.param(
            USED, [BASE], replace(GONE, transaction=amid().transaction), DeviceError, "no target", id="gone amid",
        ),
        pytest.param(
            RECORD, [], at("X", in_use="it cannot be written to", fenced=True), DeviceError,
            "read-only since .*migrate --full.*'lvchange -prw vg/copy'", id="fenced",
        ),
        pytest.param(USED, [BASE], at("B", in_use="it is mounted"), TargetBusy, "in use: it is mounted", id="mounted"),
        pytest.param(
            USED, [BASE], at("B", size=SIZE - 512), DeviceError,
            f"1073741312 bytes and vg/lv has {SIZE}.*lvextend -L {SIZE}b vg/copy", id="small",
        ),
        pytest.param(
            USED, [BASE], at("B", size=SIZE - 512, kind="file"), DeviceError, f"truncate -s {SIZE} vg/copy", id="file"
        ),
        pytest.param(USED, [BASE], at("B", dirty=True), ConflictError, "not whole.*lvmsync repair vg/lv", id="dirty"),
        pytest.param(
            USED, [BASE], at("B", written="yes"), ConflictError, "written to by something else.*repair", id="written"
        ),
        pytest.param(
            USED, [BASE], THERE, ConflictError, "nothing is known there of host:vg/copy.*repair", id="ledger lost",
        ),
        pytest.param(
            USED, [BASE], replace(THERE, identity={"lvm": "2"}), ConflictError,
            r"another device \(lvm 2\) than the one that held the copy \(lvm 1\)", id="another device",
        ),
        pytest.param(
            USED, [], THERE, ConflictError, "nothing is known there", id="its ledger is lost and the base, too"
        ),
        pytest.param(
            RECORD, [], at("X"), ConflictError, "at point lv:X.*here are at none.*another volume", id="of a stranger"
        ),
        pytest.param(
            USED, [], at("B"), ConflictError, "snapshot that held this state was removed.*repair", id="base removed",
        ),
        pytest.param(USED, [BASE], at("X"), ConflictError, r"lv:B \(vg/base\)", id="brought up to date from elsewhere"),
        pytest.param(USED, [BROKEN], at("B"), ChangesLost, "vg/base: it overflowed.*repair", id="base overflowed"),
        pytest.param(
            RECORD, [], amid(), ConflictError, "unfinished transaction of then that is not of this replica.*lv:H",
            id="in the middle of a stranger's",
        ),
        pytest.param(
            RECORD, [], amid(**FULL), ConflictError, "not of this replica", id="in the middle of a stranger's first"
        ),
        pytest.param(USED, [BASE, HEAD], amid(group="abc"), ConflictError, r"group \(abc\)", id="of a group"),
    ],
)  # fmt: skip
def test_each_refusal_says_what_is_wrong_and_the_way_out(
    record: Record, kept: list[Kept], standing: Standing, kind: type[LvmsyncError], words: str
) -> None:
    with pytest.raises(kind, match=words):
        choose(record, kept, standing, SIZE)


def test_a_target_that_vanished_in_the_middle_is_not_made_anew() -> None:
    with pytest.raises(ConflictError, match="recover"):
        choose(USED, [BASE], replace(GONE, transaction=amid().transaction), SIZE, Wish(create=True))


def test_a_volume_that_has_shrunk_is_refused_and_one_that_has_grown_is_not() -> None:
    with pytest.raises(ConflictError, match="has 4096 bytes, and had 1073741824"):
        choose(USED, [BASE], at("B"), 4096)
    assert choose(USED, [replace(BASE, size=4096)], at("B"), SIZE).kind is Kind.DELTA
    assert choose(USED, [replace(BASE, size=None)], at("B"), SIZE).kind is Kind.DELTA


def test_what_waits_for_its_group_and_has_lost_its_head_or_is_copied_anew_goes_back() -> None:
    for kept, wish in (
        ([BASE], Wish(cuts=CUT)),
        ([BASE, SPOILT], Wish(cuts=CUT)),
        ([BASE, HEAD], Wish(False, True, CUT)),
    ):
        assert choose(USED, kept, amid(**PREPARED), SIZE, wish).kind is Kind.ROLL_BACK
    first = choose(USED, [HEAD], amid(**PREPARED, **FULL), SIZE, Wish(False, True, CUT))
    assert (first.kind, first.restart) == (Kind.FIRST, True)


def test_what_was_written_to_while_it_waited_for_its_group_is_not_committed() -> None:
    spoilt = replace(amid(**PREPARED), written="yes")
    with pytest.raises(ConflictError, match=r"while it waited to be committed with its group"):
        choose(USED, [BASE, HEAD], spoilt, SIZE, Wish(cuts=CUT))


def test_a_first_copy_over_what_others_use_is_refused_unless_it_is_wanted() -> None:
    swapped = replace(THERE, other_use="the source of a copy, with the snapshot vg/copy.lvmsync.1")
    with pytest.raises(ConflictError, match="host:vg/copy is no copy yet, and it is the source of a copy, with"):
        choose(RECORD, [], swapped, SIZE)
    assert choose(RECORD, [], swapped, SIZE, Wish(full=True)).kind is Kind.FIRST

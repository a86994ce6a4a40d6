"""Verify of a volume, with what another run or a broken line does meanwhile."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from lvmsync.errors import ConflictError, LvmsyncError, TransportError
from lvmsync.extents import ChangeMap
from lvmsync.history import Point
from lvmsync.jobs import verify
from lvmsync.jobs.agent.client import Agent
from lvmsync.jobs.leaves import Compared
from lvmsync.jobs.progress import ignore
from lvmsync.jobs.standing import Standing, Unfinished
from lvmsync.system import activation
from lvmsync.system.lvm import LogicalVolume

VOLUME = LogicalVolume("vg", "lv", "i" * 64, "V", frozenset(), frozenset(), 4096, "", "", False, "", (253, 1), None)
AT_ONE = Standing("vg/copy", "", "", exists=True, point=Point("lv:one", None, None))
AT_TWO = replace(AT_ONE, point=Point("lv:two", None, None))
OPEN = replace(
    AT_ONE, transaction=Unfinished("1", "applying", "lv:one", "lv:two", 0, 4096, True, True, "delta", None, "today")
)


class Far:
    """The target's side: what it says of the target, one answer after the other, and whether that was distrusted."""

    place = "far:vg/copy"

    def __init__(self, *told: Standing | LvmsyncError, fails: LvmsyncError | None = None) -> None:
        self.told = list(told)
        self.fails = fails
        self.is_distrusted = False

    def standing(self, _: str) -> Standing:
        found = self.told.pop(0)
        if isinstance(found, LvmsyncError):
            raise found
        return found

    def distrust(self, _: str) -> None:
        if self.fails:
            raise self.fails
        self.is_distrusted = True


@pytest.fixture(autouse=True)
def differing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let all that is compared differ."""
    opened: Any = (SimpleNamespace(size=4096), None)
    found = Compared(ChangeMap.whole(4096), 4096, Far.place, 4096)
    monkeypatch.setattr(verify, "find_base", lambda *_: VOLUME)
    monkeypatch.setattr(verify, "open_head", lambda *_: nullcontext(opened))
    monkeypatch.setattr(verify, "require_valid", lambda _: None)
    monkeypatch.setattr(verify, "compare_device", lambda *_: found)
    monkeypatch.setattr(activation, "activated", nullcontext)


def compare(far: Far) -> verify.Verdict:
    return verify.verify_volume(cast(Agent, far), "vg/copy", VOLUME, ignore)


def test_a_target_that_differs_is_distrusted() -> None:
    far = Far(AT_ONE, AT_ONE, AT_ONE)
    verdict = compare(far)
    assert not verdict.is_equal
    assert verdict.notes == []
    assert far.is_distrusted


@pytest.mark.parametrize("now", [AT_TWO, OPEN], ids=["at another state", "in the middle of it"])
def test_a_target_that_another_run_copies_to_meanwhile_is_not_distrusted(now: Standing) -> None:
    far = Far(AT_ONE, AT_ONE, now)
    with pytest.raises(ConflictError, match="copied to by another run while it was compared"):
        compare(far)
    assert not far.is_distrusted


@pytest.mark.parametrize(
    "far",
    [Far(AT_ONE, AT_ONE, TransportError("the line broke")), Far(*[AT_ONE] * 3, fails=TransportError("the line broke"))],
    ids=["not asked", "not noted"],
)
def test_that_a_target_differs_is_said_though_it_cannot_be_noted(far: Far) -> None:
    verdict = compare(far)
    assert not verdict.is_equal
    assert len(verdict.notes) == 1
    assert "could not be noted there" in verdict.notes[0]

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest

from lvmsync.errors import CommandError, ConflictError
from lvmsync.system import activation, dm, lvm_lock
from lvmsync.system.dm import Mapped
from tests.fake_programs import FakeProgram
from tests.system.test_lvm import ORIGIN, lvs, report, row, volume

__all__ = ["lvs"]

OTHER = {**ORIGIN, "lv_uuid": "Ny0mm5-tWeP-76kQ-d6Rm-vtf6-1Gnt-3yVijX"}
IDLE = {"lv_kernel_major": "-1", "lv_kernel_minor": "-1"}


@pytest.fixture
def lvchange(lvs: FakeProgram, tmp_path: Path) -> FakeProgram:
    lvs.answer(report(row(), row(**ORIGIN), row(lv_name="more", lv_kernel_minor="4")), "-a")
    return FakeProgram(tmp_path, "lvchange")


def test_volumes_that_are_not_active_are_made_so_together_and_given_back(lvchange: FakeProgram) -> None:
    lvchange.answer("", "-ay")
    lvchange.answer("", "-an")
    idle = [volume(**IDLE), volume(**ORIGIN), volume(lv_name="more", **IDLE)]
    with activation.all_activated(idle) as active:
        assert [one.number for one in active] == [(254, 3), (254, 3), (254, 4)]
        assert active[1] is idle[1]
    assert lvchange.calls() == ["-ay -K vg/snap vg/more", "-an vg/snap vg/more"]
    with activation.all_activated([idle[1]]) as active:
        assert active == [idle[1]]
    assert len(lvchange.calls()) == 2


def test_the_kernel_tells_the_numbers_of_what_was_activated(
    lvchange: FakeProgram, lvs: FakeProgram, monkeypatch: pytest.MonkeyPatch
) -> None:
    lvchange.answer("", "-ay")
    lvchange.answer("", "-an")
    lvs.fail("it is not to be asked\n", "-a")
    idle = volume(**IDLE)
    devices = [
        Mapped("vg-snap-cow", f"LVM-{idle.id}-cow", (254, 7), 0),
        Mapped("vg-snap", f"LVM-{idle.id}", (254, 9), 0),
    ]
    monkeypatch.setattr(dm, "list_devices", lambda: devices)
    with activation.activated(idle) as active:
        assert active.number == (254, 9)


def test_what_was_activated_of_several_volumes_is_given_back_when_one_is_refused(lvchange: FakeProgram) -> None:
    lvchange.fail("no\n", "-ay")
    lvchange.answer("", "-an")
    idle = [volume(**IDLE), volume(lv_name="more", **IDLE)]
    with pytest.raises(CommandError, match="no"), activation.all_activated(idle):
        pass
    assert lvchange.calls()[1:] == ["-an vg/snap vg/more"]
    with pytest.raises(CommandError, match="no"), activation.activated(idle[0]):
        pass
    assert len(lvchange.calls()) == 3


def test_nothing_is_activated_while_another_run_changes_lvm(
    lvchange: FakeProgram, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lvm_lock, "TIMEOUT", 0.05)
    idle = volume(**IDLE)
    with (
        lvm_lock.lvm_locked(),
        pytest.raises(ConflictError, match="another run of lvmsync has changed LVM"),
        activation.activated(idle),
    ):
        pass
    assert not (lvchange.folder / "calls").exists()


def test_what_is_held_stays_active_from_one_block_to_the_next(lvchange: FakeProgram, lvs: FakeProgram) -> None:
    lvchange.answer("", "-ay")
    lvchange.answer("", "-an")
    idle = volume(**IDLE)
    lvs.answer(report(row(), row(**OTHER)), "-a")
    with ExitStack() as hold:
        with activation.all_activated([idle], hold=hold) as (active,):
            pass
        with activation.all_activated([active], hold=hold):
            pass
        assert lvchange.calls() == ["-ay -K vg/snap"]
    assert lvchange.calls() == ["-ay -K vg/snap", "-an vg/snap"]


def test_what_is_held_and_gone_by_the_end_is_let_alone(lvchange: FakeProgram, lvs: FakeProgram) -> None:
    lvchange.answer("", "-ay")
    idle = volume(**IDLE)
    with ExitStack() as hold:
        with activation.all_activated([idle], hold=hold):
            pass
        lvs.answer(report(row(**OTHER)), "-a")
    assert lvchange.calls() == ["-ay -K vg/snap"]


def test_what_the_caller_has_made_active_is_deactivated_with_the_others(lvchange: FakeProgram) -> None:
    lvchange.answer("", "-ay")
    lvchange.answer("", "-an")
    made, idle = volume(lv_role="public,snapshot,thinsnapshot"), volume(**OTHER | IDLE)
    with activation.all_activated([idle, made], fresh={made.id}):
        assert lvchange.calls() == ["-ay -K vg/data"]
    assert lvchange.calls()[1:] == ["-an vg/data vg/snap"]


def test_a_classic_snapshot_is_not_deactivated_which_would_take_its_origin_along(lvchange: FakeProgram) -> None:
    made = volume()
    with activation.all_activated([made], fresh={made.id}) as active:
        assert active == [made]
    assert not (lvchange.folder / "calls").exists()

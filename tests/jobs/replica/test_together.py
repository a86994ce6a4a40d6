"""How large the stores of a group's snapshots are: those of one volume group share what that has free."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from lvmsync.errors import DeviceError
from lvmsync.jobs.replica.together import Wanted, choose_stores
from lvmsync.system import lvm
from tests.replica_machine import Machine

M = 1 << 20


@pytest.fixture
def wanted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Wanted]:
    machine = Machine(tmp_path)
    thick = [
        replace(machine.add(name), pool="", pool_id="", thin_id=None, layout=frozenset({"linear"}), size=10 << 30)
        for name in "ab"
    ]
    return [Wanted(one, str(number)) for number, one in enumerate([*thick, machine.add("thin")])]


def have(free: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lvm, "read_group", lambda name: lvm.Group(name, free, 4 * M))


def test_they_are_as_advised_where_there_is_room(wanted: list[Wanted], monkeypatch: pytest.MonkeyPatch) -> None:
    have(100 << 30, monkeypatch)
    one, other, thin = choose_stores("db", wanted)
    assert one == other == (int(0.15 * (10 << 30)), 4096)
    assert thin == (None, None)


def test_they_share_what_is_free_and_leave_room_for_the_next(
    wanted: list[Wanted], monkeypatch: pytest.MonkeyPatch
) -> None:
    have(2 << 30, monkeypatch)
    sizes = [size for size, _ in choose_stores("db", wanted)[:2] if size]
    assert len(sizes) == 2
    assert sum(sizes) <= 2 << 30
    assert all(256 * M <= size <= 1 << 30 for size in sizes)


def test_too_little_for_all_is_refused_before_anything_is_made(
    wanted: list[Wanted], monkeypatch: pytest.MonkeyPatch
) -> None:
    have(60 * M, monkeypatch)
    with pytest.raises(DeviceError, match=r"'vg' has 60\.0 MiB free, too few for snapshots of all volumes of 'db'"):
        choose_stores("db", wanted)


def test_what_is_free_is_asked_for_unless_it_came_with_all_of_them(
    wanted: list[Wanted], monkeypatch: pytest.MonkeyPatch
) -> None:
    have(100 << 30, monkeypatch)
    room = lvm.Group("vg", 2 << 30, 4 * M)
    one, other, thin = wanted
    known = [replace(each, volume=replace(each.volume, room=room)) for each in (one, other)]
    assert choose_stores("db", [*known, thin]) == choose_stores("db", wanted)  # of the thin one it is not known
    thin = replace(thin, volume=replace(thin.volume, room=room))
    assert choose_stores("db", [*known, thin])[0][0] == 512 * M

"""The snapshots of a replica: how large they are made, and which volumes have some."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from lvmsync.errors import ChangesLost, DeviceError
from lvmsync.history import Point
from lvmsync.jobs.replica.choose import choose
from lvmsync.jobs.replica.record import Record
from lvmsync.jobs.replica.snapshots import choose_store, describe, is_managed, quiet, refusal
from lvmsync.jobs.standing import Standing
from lvmsync.system import lvm, mounts
from lvmsync.system.lvm import LogicalVolume
from lvmsync.system.snapshot_advice import whole_store

MIB = 1 << 20


def volume(size: int = 256 * MIB, **values: Any) -> LogicalVolume:
    made = LogicalVolume(
        "vg", "x", "i", "-", frozenset({"linear"}), frozenset({"public"}), size, "", "", False, "", (253, 1), None
    )
    return made.__class__(**{**vars(made), **values})


@pytest.mark.parametrize(
    ("free", "store"),
    [
        (1024 * MIB, None),  # as advised: all of it, twice
        (2 * whole_store(256 * MIB, 4096) - 8 * MIB, 252 * MIB),
        (300 * MIB, 148 * MIB),
        (60 * MIB, 28 * MIB),  # less than anybody would advise, and better than none
        (8 * MIB, 4 * MIB),
    ],
)
def test_a_store_leaves_room_for_the_next_one(monkeypatch: pytest.MonkeyPatch, free: int, store: int | None) -> None:
    monkeypatch.setattr(lvm, "read_group", lambda name: lvm.Group(name, free, 4 * MIB))

    assert choose_store(volume()) == store


def test_no_room_at_all_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lvm, "read_group", lambda name: lvm.Group(name, 4 * MIB, 4 * MIB))

    with pytest.raises(DeviceError, match="a snapshot of vg/x"):
        choose_store(volume())


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"layout": frozenset({"thin", "pool"})}, "is a pool"),
        ({"role": frozenset({"private"})}, "a part of another volume"),
        ({"role": frozenset({"snapshot", "thicksnapshot"})}, "no snapshots of snapshots"),
        ({"is_merging": True}, "being merged"),
        ({"role": frozenset({"public", "vorigin"})}, "sparse"),
    ],
)
def test_what_has_no_snapshots_is_refused(values: dict[str, Any], words: str) -> None:
    assert words in refusal(volume(**values))


def test_what_is_a_snapshot_itself_tells_its_changes_by_itself() -> None:
    assert is_managed(volume())
    assert refusal(volume()) == ""
    assert not is_managed(volume(role=frozenset({"public", "snapshot", "thinsnapshot"})))
    assert not is_managed(volume(role=frozenset({"public", "snapshot", "thicksnapshot"})))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"trouble": "snapshot invalid"}, "vg/base: LVM says 'snapshot invalid': what changed"),
        ({"is_merging": True}, "vg/base: it is being merged into vg/x, or will be when that is activated: its origin"),
    ],
)
def test_a_base_that_is_lost_is_named_once_and_with_one_way_out(values: dict[str, Any], words: str) -> None:
    tags = frozenset({"lvmsync", "lvmsync.replica=ab", "lvmsync.role=base"})
    role = frozenset({"public", "snapshot", "thicksnapshot"})
    base = volume(name="base", role=role, tags=tags, origin="x", **values)
    record = Record("ab", "i", "vg/x", "host:vg/x", base="i", committed="today")
    standing = Standing("vg/x", "1", "now", exists=True, size=256 * MIB, point=Point("lv:i"))

    with pytest.raises(ChangesLost) as caught:
        choose(record, [describe(base)], standing, 256 * MIB)

    message = str(caught.value)
    assert message.startswith(words)
    assert message.count("vg/base") == 1
    assert message.endswith("run 'lvmsync repair vg/x host:vg/x' (it sends what differs), or copy it anew with --full")
    assert "new snapshot" not in message


def test_what_was_frozen_is_noted_of_the_volume_that_it_lies_on(monkeypatch: pytest.MonkeyPatch) -> None:
    points = {(253, 1): ["/run/m", "/run/m"]}

    def find(number: tuple[int, int], *, with_own: bool = True) -> list[SimpleNamespace]:
        return [SimpleNamespace(point=point) for point in points.get(number, ()) if with_own]

    monkeypatch.setattr(mounts, "find_mounts_above", find)
    one, other = volume(id="one"), volume(id="other", name="y", number=(253, 2))
    with quiet([one, other, volume(id="idle", number=None)]) as notes:
        assert notes == {"one": "frozen while the snapshot was taken: /run/m"}
    points.clear()
    with quiet([one, other]) as notes:
        assert notes == {
            "one": "nothing that is mounted lies on vg/x, so nothing was frozen",
            "other": "nothing that is mounted lies on vg/y, so nothing was frozen",
        }

"""A volume whose maker was killed before it could note that: the next run takes it as made, if nobody wrote to it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lvmsync.errors import CommandError, ConflictError
from lvmsync.jobs import create
from lvmsync.jobs.create import create_volume
from lvmsync.jobs.standing import Standing, standing
from lvmsync.system.lvm import LogicalVolume
from lvmsync.system.lvm_commands import CREATED_TAG

SIZE = 1 << 20
VOLUME = LogicalVolume(
    "vg", "new", "x" * 64, "-wi-a-----", frozenset({"linear"}), frozenset(), SIZE, "", "", False, "", None, None,
    tags=frozenset({CREATED_TAG}),
)  # fmt: skip


class Killed(BaseException):
    pass


class Machine:
    """A machine whose one volume is a file."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.target, self.state = folder / "new", folder / "state"
        self.volume = VOLUME
        self.look: dict[str, str] | None = {"sectors written": "8"}
        self.boot = "one"
        self.made = 0
        commands = SimpleNamespace(
            CREATED_TAG=CREATED_TAG, create_volume=self.create, remove_volume=lambda _: self.target.unlink()
        )
        patch.setattr(create, "lvm_commands", commands)
        patch.setattr(create, "Volume", lambda _: SimpleNamespace(path=str(self.target)))
        patch.setattr(create, "_volume_of", lambda _: self.volume)
        patch.setattr("lvmsync.system.identity.boot_id", lambda: self.boot)
        patch.setattr("lvmsync.system.seen.look", lambda _: self.look)

    def create(self, name: str, size: int, *, pool: str | None) -> LogicalVolume:
        if self.target.exists():
            raise ConflictError("there is a volume of that name")
        self.target.write_bytes(bytes(size))
        self.made += 1
        return self.volume

    def die_before_the_note(self) -> None:
        def die(*_: object) -> None:
            raise Killed

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(create, "_note", die)
            for name in ("remove_file", "lvm_commands"):
                kept = SimpleNamespace(create_volume=self.create, remove_volume=lambda _: None)
                patch.setattr(create, name, kept if name == "lvm_commands" else lambda _: None)
            with pytest.raises(Killed):
                create_volume("vg/new", SIZE, None, self.state)

    def stand(self) -> Standing:
        return standing(str(self.target), self.state)

    def notes(self) -> list[Path]:
        return list(self.state.glob("making/*"))


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(tmp_path, monkeypatch)


def test_a_volume_is_made_and_noted(machine: Machine) -> None:
    create_volume("vg/new", SIZE, None, machine.state)
    found = machine.stand()
    assert (found.made, found.left, found.is_blank, machine.notes()) == (True, False, False, [])


def test_one_whose_maker_was_killed_is_blank_and_is_taken_as_made(machine: Machine) -> None:
    machine.die_before_the_note()
    found = machine.stand()
    assert (found.made, found.left, found.is_blank) == (False, True, True)

    create_volume("vg/new", SIZE, None, machine.state)

    found = machine.stand()
    assert (found.made, found.left, machine.notes(), machine.made) == (True, False, [], 1)


@pytest.mark.parametrize(
    "change",
    [
        {"look": {"sectors written": "136"}},
        {"look": None},
        {"boot": "two"},
        {"volume": replace(VOLUME, tags=frozenset())},
        {"volume": replace(VOLUME, name="other")},
        {"volume": replace(VOLUME, thin_id=5, data_percent=0.5)},
        {"volume": None},
    ],
    ids=str,
)
def test_one_that_may_hold_something_is_as_any_other(machine: Machine, change: dict[str, Any]) -> None:
    machine.die_before_the_note()
    vars(machine).update(change)
    assert not machine.stand().is_blank
    with pytest.raises(ConflictError):
        create_volume("vg/new", SIZE, None, machine.state)
    assert machine.target.read_bytes() == bytes(SIZE)


def test_an_empty_thin_volume_is_taken_as_made_and_one_that_lvm_does_not_tell_of_is_not(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.die_before_the_note()
    machine.volume, machine.look = replace(VOLUME, thin_id=5, data_percent=0.0), None
    assert machine.stand().left
    monkeypatch.setattr(create, "mapped_bytes", lambda _: 65536)  # of which lvs says 0.00 as well
    assert not machine.stand().left

    def fail(_: object) -> None:
        raise CommandError("lvs failed")

    monkeypatch.setattr(create, "_volume_of", fail)
    assert not machine.stand().left


def test_one_that_is_too_small_now_is_not_taken(machine: Machine) -> None:
    machine.die_before_the_note()
    with pytest.raises(ConflictError, match="of that name"):
        create_volume("vg/new", 2 * SIZE, None, machine.state)
    assert machine.notes() == []
    assert not machine.stand().left

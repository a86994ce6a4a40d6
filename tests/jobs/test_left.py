"""Targets that were removed in the middle of a receive, and those that were made and not used."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from lvmsync.errors import ConflictError
from lvmsync.jobs import create
from lvmsync.jobs.create import create_file
from lvmsync.jobs.doctor.records import check_targets, check_unused
from lvmsync.jobs.left import find_gone, forget_gone, list_unused
from lvmsync.system import gone, lvm, lvm_commands
from lvmsync.system.gone import is_gone
from lvmsync.system.ledger import open_ledger, peek_record
from lvmsync.system.lvm import LogicalVolume
from lvmsync.system.record import Transaction

GROUP, OLD, NEW, NAME = "g" * 32, "a" * 32, "b" * 32, "/dev/mapper/vg-copy"


def identity(volume: str) -> dict[str, str]:
    return {"dm uuid": f"LVM-{GROUP}{volume}"}


class Lvm:
    """One volume group, and the volumes in it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.groups = [{"vg_uuid": f"{GROUP[:6]}-{GROUP[6:]}", "vg_exported": ""}]
        self.volumes = [self.volume(NEW)]
        monkeypatch.setattr(gone, "run", self.run)
        monkeypatch.setattr(lvm, "list_volumes", lambda: self.volumes)

    def volume(self, volume: str) -> LogicalVolume:
        return LogicalVolume(
            "vg", "copy", GROUP + volume, "-wi-a-----", frozenset({"linear"}), frozenset(), 1 << 20, "", "", False, "",
            (254, 9), None, tags=frozenset({lvm_commands.CREATED_TAG}),
        )  # fmt: skip

    def run(self, argv: Sequence[str]) -> str:
        assert argv[0] == "vgs"
        return json.dumps({"report": [{"vg": self.groups}]})


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Lvm:
    return Lvm(monkeypatch)


def leave_open(state: Path, volume: str = OLD) -> Path:
    """Leave a receive in the ledger that was not finished."""
    with open_ledger(state, NAME, identity(volume), 1 << 20) as ledger:
        ledger.write(transaction=Transaction("01", began="2026-01-02T03:04:05+00:00", resumable=True))
        ledger.path("01", "progress").write_text("")
        return ledger.folder


def test_a_volume_is_gone_only_where_its_group_is_here_and_lists_its_volumes(machine: Lvm) -> None:
    assert is_gone(identity(OLD))
    assert not is_gone(identity(NEW))
    assert not is_gone({"dm uuid": f"LVM-{'h' * 32}{OLD}"})  # of a group that is not here
    assert not is_gone({"dm uuid": f"LVM-{GROUP}{OLD}-cow"})
    assert not is_gone({"dm uuid": f"LVM-{GROUP}{OLD}", "partition": "1"})
    assert not is_gone({"wwid": "naa.1"})
    machine.volumes.append(replace(machine.volumes[0], id=f"{'h' * 32}{OLD}"))  # moved by vgsplit
    assert not is_gone(identity(OLD))
    machine.volumes.pop()
    machine.groups[0]["vg_exported"] = "exported"
    assert not is_gone(identity(OLD))
    machine.groups = [{}]
    assert not is_gone(identity(OLD))  # vgs said something else


def test_a_target_that_was_removed_in_the_middle_of_a_receive_is_found_and_forgotten(
    machine: Lvm, tmp_path: Path
) -> None:
    folder = leave_open(tmp_path)
    machine.volumes = [machine.volume(OLD)]
    assert find_gone(tmp_path) == []
    machine.volumes = []

    (found,) = find_gone(tmp_path)
    (finding,) = check_targets(tmp_path)
    assert (finding.kind, finding.what, finding.remedy) == ("leftover", NAME, "lvmsync cleanup --remove")
    with open_ledger(tmp_path, NAME, identity(NEW), 1 << 20):
        assert find_gone(tmp_path) == []  # somebody works on one of that name
        with pytest.raises(ConflictError):
            forget_gone(tmp_path, found)

    forget_gone(tmp_path, replace(found, began="earlier"))
    assert len(find_gone(tmp_path)) == 1
    forget_gone(tmp_path, found)
    assert [path.name for path in folder.iterdir()] == ["lock"]
    assert list(check_targets(tmp_path)) == []
    forget_gone(tmp_path, found)  # once more does no harm


def test_a_new_volume_of_the_name_begins_anew_where_the_old_one_is_gone(machine: Lvm, tmp_path: Path) -> None:
    folder = leave_open(tmp_path)
    machine.volumes = [machine.volume(OLD), machine.volume(NEW)]  # it has got another name
    with pytest.raises(ConflictError, match="was another device"):
        peek_record(tmp_path, NAME, identity(NEW), 1 << 20)

    machine.volumes = [machine.volume(NEW)]
    assert peek_record(tmp_path, NAME, identity(NEW), 1 << 20)[0].transaction is None
    with open_ledger(tmp_path, NAME, identity(NEW), 1 << 20) as ledger:
        ledger.write(made=True)
        ledger.sweep()
    assert {path.name for path in folder.iterdir()} == {"lock", "record.json"}
    assert find_gone(tmp_path) == []


def test_a_target_that_was_made_and_not_used_is_named_as_long_as_nobody_wrote_to_it(tmp_path: Path) -> None:
    target, state = tmp_path / "made", tmp_path / "state"
    create_file(str(target), 1 << 20, state)

    (finding,) = check_unused(state)
    assert (finding.kind, finding.what) == ("unfinished", str(target))
    assert finding.remedy.endswith(f"if nobody else uses it: rm {target}")
    target.write_bytes(b"theirs")
    assert list_unused(state) == []
    target.unlink()
    assert list_unused(state) == []


def test_a_volume_whose_maker_was_killed_before_it_could_note_that_is_named(
    machine: Lvm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert list_unused(tmp_path) == []
    create._write(create._making(tmp_path, "vg/copy"))
    monkeypatch.setattr(create, "_is_new", lambda volume: volume.number == (254, 9))
    assert list_unused(tmp_path) == ["/dev/vg/copy"]
    (finding,) = check_unused(tmp_path)
    assert finding.remedy.endswith("lvremove /dev/vg/copy")
    machine.volumes = [replace(machine.volumes[0], tags=frozenset())]
    assert list_unused(tmp_path) == []

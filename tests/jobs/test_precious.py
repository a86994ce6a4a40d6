"""What a target is to others, as its machine tells before a first copy."""

from __future__ import annotations

import subprocess
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from lvmsync.errors import CommandError
from lvmsync.jobs import precious
from lvmsync.jobs.precious import find_merge, find_other_use, find_own_snapshot
from lvmsync.jobs.standing import standing
from lvmsync.system import dm, lvm
from lvmsync.system.device import Device
from tests.replica_machine import Machine
from tests.sources.loops import loop_of

TAGS = ["lvmsync", "lvmsync.replica=0123456789abcdef"]


def a_device(start: bytes, size: int = 1 << 20) -> Device:
    def read(offsets: list[int], lengths: list[int], buffer: memoryview) -> None:
        buffer[:] = start.ljust(lengths[0], b"\0")[: lengths[0]]

    return cast(Device, SimpleNamespace(name="/dev/vg/lv", number=(253, 1), size=size, read=read))


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    made = Machine(tmp_path)
    monkeypatch.setattr(lvm, "list_volumes", lambda group=None: list(made.volumes.values()))
    monkeypatch.setattr(precious, "find_dm_uuid", lambda path: f"LVM-{1:064d}")
    made.add("lv")
    return made


def test_a_volume_that_is_the_source_of_a_copy_is_told(machine: Machine) -> None:
    volume = machine.volumes[f"{1:064d}"]
    assert find_other_use(a_device(b"")) is None
    machine.add("mine", volume)
    machine.add("back", volume, [*TAGS, "lvmsync.role=back"])
    assert find_other_use(a_device(b"")) is None
    base = machine.add("base", volume, [*TAGS, "lvmsync.role=base"])
    assert find_other_use(a_device(b"")) == "the source of a copy, with the snapshot vg/base"
    machine.volumes[base.id] = replace(base, attr="Vwi-a-tz--")
    assert find_other_use(a_device(b"")) is None


def test_a_snapshot_and_what_others_have_written_are_told(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    label = bytes(512) + b"LABELONE"
    assert find_other_use(a_device(label)) == "a physical volume of LVM"
    machine.volumes[f"{1:064d}"] = replace(machine.volumes[f"{1:064d}"], origin="other")
    assert find_other_use(a_device(label)) == "a snapshot of vg/other"

    def fail(group: str | None = None) -> None:
        raise CommandError("no lvs")

    monkeypatch.setattr(lvm, "list_volumes", fail)
    assert find_other_use(a_device(label)) == "a physical volume of LVM"
    assert find_other_use(a_device(b"", 512)) is None


def test_a_disk_tells_it_and_a_file_does_not(tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes((bytes(512) + b"LABELONE").ljust(1 << 20, b"\0"))
    assert standing(str(image), tmp_path / "state").other_use is None
    with loop_of(image) as loop:
        assert standing(str(loop), tmp_path / "state").other_use == "a physical volume of LVM"


def test_a_snapshot_of_lvmsyncs_own_is_named_as_such(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = tmp_path / "image"
    image.write_bytes(bytes(1 << 20))
    base = machine.add("base", machine.volumes[f"{1:064d}"], [*TAGS, "lvmsync.role=base"])
    monkeypatch.setattr(precious, "find_dm_uuid", lambda path: f"LVM-{base.id}-cow")
    with loop_of(image) as loop, ExitStack() as stack:
        assert standing(str(loop), tmp_path / "state").in_use is None
        stack.callback(subprocess.run, ["blockdev", "--setrw", str(loop)], check=True)  # it would stay so
        subprocess.run(["blockdev", "--setro", str(loop)], check=True)
        said = standing(str(loop), tmp_path / "state").in_use
        assert said == (
            f"{loop} is a snapshot of vg/lv that lvmsync keeps, and is never written to; name another target"
        )
        machine.volumes[base.id] = replace(base, tags=frozenset())
        said = standing(str(loop), tmp_path / "state").in_use
        assert said is not None
        assert "lvmsync keeps" not in said
    assert find_own_snapshot(str(image)) is None


@pytest.mark.parametrize("kind", ["thin", "snapshot-origin", "snapshot-merge", "linear"])
def test_a_merge_that_waits_is_told_where_there_may_be_one(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    volume = machine.volumes[f"{1:064d}"]
    mapped = dm.Mapped("vg-lv", f"LVM-{volume.id}", (253, 1), 1)
    monkeypatch.setattr(dm, "list_tables", lambda: [dm.Line(mapped, 0, 8, kind, "")])
    assert find_merge(a_device(b"")) is None
    machine.volumes[volume.id] = replace(volume, is_merging=True)
    assert ("lvchange -an vg/lv" in (find_merge(a_device(b"")) or "")) == (kind != "linear")

    def fail(group: str | None = None) -> None:
        raise CommandError("lvs")

    monkeypatch.setattr(lvm, "list_volumes", fail)
    assert find_merge(a_device(b"")) is None

"""What is a leftover of a replica, and what only looks like one."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from lvmsync.cli.classic import run
from lvmsync.errors import CommandError, ConflictError, UsageError
from lvmsync.jobs.doctor.examine import _check_lvm
from lvmsync.jobs.replica.cleanup import (
    Found,
    find_bare,
    find_snapshots,
    forget_bare,
    give_up,
    remove_spare,
)
from lvmsync.jobs.replica.record import is_busy, list_records, lock_replica, open_record
from lvmsync.jobs.replica.replica import open_replica
from lvmsync.system import holds, lvm, lvm_commands
from lvmsync.system.lvm import LogicalVolume
from tests.replica_machine import FarSide, Machine, as_agent, install

ID = "0123456789abcdef"


class World:
    """A machine with a volume, snapshots of it that carry our tag, and a record."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (folder / "volumes").mkdir()
        self.state = folder / "state"
        self.machine = Machine(folder / "volumes")
        install(self.machine, monkeypatch)
        monkeypatch.setattr(lvm, "list_volumes", lambda group=None: list(self.machine.volumes.values()))
        self.volume = self.machine.add("lv")

    def snapshot(self, role: str, replica: str = ID, *tags: str) -> LogicalVolume:
        tags = ("lvmsync", f"lvmsync.replica={replica}", f"lvmsync.role={role}", *tags)
        made = self.machine.add(f"snap{len(self.machine.volumes)}", self.volume, tags)
        self.machine.path(made).write_bytes(b"")
        return made

    def cut_loose(self, snapshot: LogicalVolume, *tags: str) -> LogicalVolume:
        """Let LVM forget of which volume a thin snapshot was taken, as it does when that is removed or rolled back."""
        own = tags or (lvm_commands.id_tag(snapshot.id), lvm_commands.origin_tag(self.volume.id))
        lost = replace(snapshot, role=frozenset({"public"}), origin="", origin_id="", tags=snapshot.tags | set(own))
        self.machine.volumes[lost.id] = lost
        return lost

    def remember(self, base: LogicalVolume | None, head: LogicalVolume | None = None) -> None:
        with open_record(self.state, self.volume.id, "vg/lv", "host:vg/copy", ID) as notebook:
            notebook.write(base=base and base.id, head=head and head.id)

    def spare(self) -> list[str]:
        return [one.volume.name for one in find_snapshots(self.state) if one.is_spare]

    def find(self, volume: LogicalVolume) -> Found:
        return next(one for one in find_snapshots(self.state) if one.volume.id == volume.id)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    return World(tmp_path, monkeypatch)


def test_what_a_record_names_is_needed_and_the_rest_of_its_replica_is_not(world: World) -> None:
    old, base, lost, head, back = (world.snapshot(role) for role in ("base", "base", "head", "head", "back"))
    world.remember(base, head)

    assert world.spare() == [old.name, lost.name]
    assert world.find(base).target == "host:vg/copy"
    assert "the next run goes on with it" in world.find(head).state
    assert "way back" in world.find(back).state

    assert remove_spare(find_snapshots(world.state)) == []
    assert [one.id for one in world.machine.ours()] == [base.id, head.id, back.id]


def test_a_base_is_an_older_one_once_the_target_is_known_to_hold_the_head(world: World) -> None:
    old, head = world.snapshot("base"), world.snapshot("base")  # killed between its tags and its record
    world.remember(old, head)

    assert world.spare() == [old.name]
    assert world.find(head).state == "what the copy holds; the next delta starts from it"


def test_a_replica_that_no_record_knows_is_left_alone(world: World) -> None:
    snap = world.snapshot("base", "f" * 16)

    assert world.spare() == []
    assert "the target may still need it" in world.find(snap).state


def test_volumes_without_our_tag_are_not_even_shown_whatever_they_are_called(world: World) -> None:
    world.machine.add("lv.lvmsync.12345678", world.volume)
    world.machine.add("lvmsync", None, ["lvmsync", f"lvmsync.replica={ID}"])  # no snapshot

    assert find_snapshots(world.state) == []


def test_a_snapshot_whose_volume_is_gone_may_be_the_last_of_it_and_goes_only_with_its_replica(world: World) -> None:
    old, base, lost, half = (world.cut_loose(world.snapshot(role)) for role in ("base", "base", "head", "head"))
    world.machine.volumes[half.id] = replace(half, tags=half.tags | {"lvmsync.pending"})
    world.remember(base)
    del world.machine.volumes[world.volume.id]

    assert world.spare() == []
    assert "the last of it here" in world.find(base).state
    assert remove_spare(find_snapshots(world.state)) == []
    assert len(give_up(world.state, ID)) == 4
    assert not {old.id, base.id, lost.id, half.id} & set(world.machine.volumes)


def test_a_snapshot_whose_volume_was_rolled_back_is_judged_like_any_other(world: World) -> None:
    old, base = (world.cut_loose(world.snapshot("base")) for _ in range(2))
    world.remember(base)

    assert world.spare() == [old.name]
    assert world.find(base).source == "vg/lv"
    assert "the next delta starts from it" in world.find(base).state


def test_what_has_lost_its_volume_and_proves_nothing_is_shown_and_never_removed(world: World) -> None:
    head = world.cut_loose(world.snapshot("head"), lvm_commands.id_tag("f" * 64))  # a copied one
    world.remember(None, head)

    assert "remove it with lvremove" in world.find(head).state
    assert world.spare() == []
    assert give_up(world.state, ID) == []
    assert head.id in world.machine.volumes


def test_a_replica_without_a_record_is_not_given_up_while_a_run_works_with_it(world: World) -> None:
    world.snapshot("back", "f" * 16)
    with lock_replica(world.state, "f" * 16):
        with pytest.raises(ConflictError, match=f"another lvmsync works on replica {'f' * 16}"):
            give_up(world.state, "f" * 16)
        assert world.find(world.machine.ours()[0]).state == "a run works with it now"
    assert len(give_up(world.state, "f" * 16)) == 1
    assert not (world.state / "replicas" / ("f" * 16)).exists()


@pytest.mark.parametrize("is_dry", [False, True])
def test_a_copy_that_never_was_leaves_no_record_and_no_folder(world: World, is_dry: bool) -> None:
    copy = str(world.state.parent / "copy")
    agent = as_agent(FarSide(world.machine, world.state.parent / "there"))
    with open_replica(agent, world.volume, copy, copy, world.state, is_dry=is_dry) as replica:
        assert len(list_records(world.state)) == (not is_dry)  # another run finds it
        assert is_busy(world.state, replica.id)
    assert list((world.state / "replicas").iterdir()) == [world.state / "replicas" / "lock"]


def test_the_record_of_a_run_that_was_killed_stays_as_long_as_its_head_is_there(world: World) -> None:
    copy = str(world.state.parent / "copy")
    agent = as_agent(FarSide(world.machine, world.state.parent / "there"))
    with open_replica(agent, world.volume, copy, copy, world.state) as replica:
        head = world.snapshot("head", replica.id)
    assert [one.id for one in list_records(world.state)] == [replica.id]
    world.machine.remove_snapshot(head)
    with open_replica(agent, world.volume, copy, copy, world.state):
        pass
    assert list_records(world.state) == []


def test_while_a_run_works_nothing_is_spare_and_nothing_can_be_given_up(world: World) -> None:
    world.snapshot("base")
    with open_record(world.state, world.volume.id, "vg/lv", "host:vg/copy", ID):
        assert world.spare() == []
        with pytest.raises(ConflictError, match="another lvmsync works on vg/lv"):
            give_up(world.state, ID)
    assert len(world.machine.ours()) == 1


def test_a_replica_that_is_given_up_leaves_nothing_but_the_way_back(world: World) -> None:
    base, head, back = (world.snapshot(role) for role in ("base", "head", "back"))
    other = world.snapshot("base", "f" * 16)
    world.remember(base, head)

    assert [one.volume.id for one in give_up(world.state, ID)] == [base.id, head.id]
    assert [one.id for one in world.machine.ours()] == [back.id, other.id]
    assert list_records(world.state) == []
    assert [one.volume.id for one in give_up(world.state, "f" * 16)] == [other.id]


def test_what_was_kept_for_the_way_back_is_removed_when_its_user_says_so(
    world: World, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lvmsync.jobs.cleanup.find_leftovers", list)
    monkeypatch.setattr("lvmsync.system.command.has_program", lambda _: True)
    monkeypatch.setattr(holds, "list_holds", list)
    world.snapshot("back")  # on a target's machine there is no record of the replica
    assert world.spare() == []
    assert run(["cleanup", "--state", str(world.state)]) == 0
    assert f"'lvmsync cleanup --replica {ID}' removes it" in capsys.readouterr().out
    assert len(give_up(world.state, ID)) == 1
    assert world.machine.ours() == []


def test_snapshots_of_others_with_copied_tags_are_left_alone(world: World) -> None:
    base = world.snapshot("base")
    writable, of_base = world.snapshot("base"), world.snapshot("base")
    world.machine.volumes[writable.id] = replace(writable, attr="Vwi-a-tz--")
    world.machine.volumes[of_base.id] = replace(of_base, origin=base.name, origin_id=base.id)
    world.remember(base)

    assert [one.volume.id for one in find_snapshots(world.state)] == [base.id, of_base.id]
    assert world.spare() == []
    assert "somebody else's with copied tags" in world.find(of_base).state
    assert [one.volume.id for one in give_up(world.state, ID)] == [base.id]
    assert {writable.id, of_base.id} <= set(world.machine.volumes)


def test_a_record_of_long_ago_makes_no_base_spare(world: World) -> None:
    gone, base = world.snapshot("base"), world.snapshot("base")
    world.remember(gone)
    del world.machine.volumes[gone.id]

    assert world.spare() == []
    assert "the copy may hold it" in world.find(base).state


def test_giving_up_what_is_not_there_is_an_error(world: World) -> None:
    with pytest.raises(UsageError, match="no replica 'abc' here"):
        give_up(world.state, "abc")


def test_the_command_shows_offers_and_removes(
    world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("lvmsync.jobs.cleanup.find_leftovers", list)
    monkeypatch.setattr("lvmsync.system.command.has_program", lambda _: True)
    monkeypatch.setattr(holds, "list_holds", list)
    old, base = world.snapshot("base"), world.snapshot("base")
    world.remember(base)
    state = ["--state", str(world.state)]

    assert run(["cleanup", *state]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert f"vg/{old.name}: snapshot of vg/lv for host:vg/copy (replica {ID}): an older base" in shown[0]
    assert "'lvmsync cleanup --remove' removes it" in shown[0]
    assert f"'lvmsync cleanup --replica {ID}' gives the copy up" in shown[1]

    assert run(["cleanup", "--remove", *state]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"vg/{old.name}: ")
    assert line.endswith("and was removed")

    assert run(["cleanup", "--json", *state]) == 0
    (row,) = json.loads(capsys.readouterr().out)["snapshots"]
    assert (row["name"], row["is_spare"], row["target"]) == (f"vg/{base.name}", False, "host:vg/copy")

    assert run(["cleanup", "--replica", ID, *state]) == 0
    assert world.machine.ours() == []
    assert run(["cleanup", "--replica", ID, "--remove", *state]) == 2


def test_where_lvm_is_not_found_nothing_is_said_of_what_there_is(
    world: World, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing was looked at, so nothing is known."""
    monkeypatch.setattr("lvmsync.jobs.cleanup.find_leftovers", list)
    monkeypatch.setattr("lvmsync.system.command.has_program", lambda _: False)
    monkeypatch.setattr(holds, "list_holds", list)
    state = ["--state", str(world.state)]
    assert run(["cleanup", *state]) == 0  # nor is anything known of a copy
    assert "snapshots of volumes were not looked for" in capsys.readouterr().out

    world.remember(world.snapshot("base"))

    def list_volumes(_: str | None = None) -> list[LogicalVolume]:
        raise CommandError("cannot run 'lvs': No such file or directory; is it installed, and in PATH?")

    monkeypatch.setattr(lvm, "list_volumes", list_volumes)
    assert run(["cleanup", *state]) == 3
    assert "cannot run 'lvs'" in capsys.readouterr().err


def test_a_replica_without_a_snapshot_is_forgotten_only_if_nothing_has_come_of_it(
    world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("lvmsync.jobs.cleanup.find_leftovers", list)
    monkeypatch.setattr("lvmsync.system.command.has_program", lambda _: True)
    monkeypatch.setattr(holds, "list_holds", list)
    head = world.snapshot("head")
    world.remember(None)
    assert find_bare(world.state) == []  # it has a snapshot, whatever its record says
    world.machine.remove_snapshot(head)
    (bare,) = find_bare(world.state)
    with open_record(world.state, world.volume.id, "vg/lv", "host:vg/copy", ID) as notebook:
        assert find_bare(world.state) == []  # a run works on it
        notebook.write(head=head.id)
    forget_bare(world.state, bare)  # something has come of it meanwhile
    (bare,) = find_bare(world.state)
    assert (bare.is_spare, bare.remedy) == (False, f"if it is not needed: lvmsync cleanup --replica {ID}")
    monkeypatch.setattr(lvm, "list_groups", list)
    assert list(_check_lvm(world.state, [], [])) == []  # a refused first copy leaves that, and doctor is silent
    with open_record(world.state, world.volume.id, "vg/lv", "host:vg/copy", ID) as notebook:
        notebook.write(head=None, base=head.id, committed="2026-01-02T03:04:05+00:00")
    assert "'lvmsync repair vg/lv host:vg/copy' makes a new one" in find_bare(world.state)[0].state
    assert [one.what for one in _check_lvm(world.state, [], [])] == ["vg/lv"]

    world.remember(None)
    with open_record(world.state, world.volume.id, "vg/lv", "host:vg/copy", ID) as notebook:
        notebook.write(committed=None)
    assert run(["cleanup", "--state", str(world.state)]) == 0
    assert f"vg/lv (replica {ID}): a copy to host:vg/copy was to be made" in capsys.readouterr().out
    assert run(["cleanup", "--remove", "--state", str(world.state)]) == 0
    assert list_records(world.state) == []


def test_a_snapshot_of_a_cut_that_broke_off_is_removed_and_one_of_a_group_says_so(world: World) -> None:
    base = world.snapshot("base", ID, "lvmsync.group=db")
    half = world.snapshot("head", ID, "lvmsync.group=db", "lvmsync.pending")
    world.remember(base, half)
    assert world.spare() == [half.name]
    assert world.find(base).state.endswith("(group db)")

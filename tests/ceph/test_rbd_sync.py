"""``sync`` to real RBD images: the bytes, the order of steps, and what each failure leaves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from lvmsync.cli.classic import run
from lvmsync.errors import ConflictError, DeviceError, LvmsyncError, TransportError, UsageError
from lvmsync.extents import ChangeMap
from lvmsync.images import parse_image, snapshot_name
from lvmsync.jobs.progress import Progress, Receipt, ignore
from lvmsync.jobs.rbd.choose import look
from lvmsync.jobs.rbd.fill import Filling, fill
from lvmsync.jobs.rbd.side import ImageSide
from lvmsync.jobs.send import StreamOptions
from lvmsync.sources.source import Source
from lvmsync.system import rbd, rbd_pipe
from tests.ceph.conftest import Ceph
from tests.ceph.images import MIB, History, export, fresh, lvmsync, spoiled, write


class Copy:
    """An image that a history is sent to."""

    def __init__(self, ceph: Ceph, image: str, state: Path) -> None:
        self.ceph = ceph
        self.image = image
        self.how = Filling(state, create=True)

    def send(self, source: Source, **how: bool) -> Receipt:
        return fill(parse_image(self.image), source, replace(self.how, **how), ignore)  # type: ignore[arg-type]

    def content(self) -> bytes:
        return export(self.ceph, self.image)

    def held(self, source: Source) -> bytes:
        assert source.head
        return export(self.ceph, f"{self.image}@{snapshot_name(source.head.id)}")

    def snaps(self) -> list[str]:
        state = rbd.look_up(parse_image(self.image))
        return [snap.name for snap in state.snaps] if state else []

    def mark(self) -> str | None:
        return look(parse_image(self.image)).mark


def test_a_history_is_followed_point_by_point(ceph: Ceph, tmp_path: Path) -> None:
    history = History.make(5)
    with fresh(ceph) as image:
        copy = Copy(ceph, image, tmp_path)
        for number, state in enumerate(history.states):
            source = history.source(number)
            receipt = copy.send(source)
            assert (receipt.kind, receipt.point) == ("delta" if number else "first", history.point(number).id)
            assert copy.held(source) == state.data
        assert copy.content() == history.states[-1].data
        assert copy.snaps() == [snapshot_name(history.point(number).id) for number in (18, 19)]
        assert copy.mark() is None
        assert copy.send(history.source(19, 17)).kind == "nothing"


def test_a_delta_goes_only_onto_its_base(ceph: Ceph, tmp_path: Path) -> None:
    history = History.make(6, 4)
    with fresh(ceph) as image:
        copy = Copy(ceph, image, tmp_path)
        with pytest.raises(ConflictError, match="there is no image"):
            copy.send(history.source(1))
        with pytest.raises(DeviceError, match="or give --create"):
            copy.send(history.source(0), create=False)
        copy.send(history.source(0))
        with pytest.raises(ConflictError, match=r"is at lv:.*-0, and the changes start from lv:.*-1"):
            copy.send(history.source(2))
        with pytest.raises(UsageError, match="does not say which state it starts from"):
            copy.send(replace(history.source(1), base=None))
        copy.send(history.source(1))
        with pytest.raises(ConflictError, match="was at that state before"):
            copy.send(history.source(0))
        assert copy.content() == history.states[1].data
        copy.send(history.source(3, 1))
        assert copy.content() == history.states[3].data
        again = replace(history.source(2, -1), head=None)  # anew, over all that is there
        if len(history.states[2].data) == len(history.states[3].data):
            copy.send(again)
            assert copy.content() == history.states[2].data


def test_what_somebody_else_wrote_is_not_lost_without_a_word(ceph: Ceph, tmp_path: Path) -> None:
    history = History.make(7, 3)
    with fresh(ceph, 4 * MIB) as image:
        copy = Copy(ceph, image, tmp_path)
        write(ceph, image, (0, b"mine"))
        ceph.rbd("snap", "create", f"{image}@mine")
        with pytest.raises(ConflictError, match="holds data that lvmsync did not write"):
            copy.send(history.source(0))
        assert copy.content() == b"mine" + bytes(4 * MIB - 4)
        copy.send(history.source(0), ignore_base=True)
        assert copy.content() == history.states[0].data
        write(ceph, image, (5000, b"mine too"))
        with pytest.raises(ConflictError, match="was written to after"):
            copy.send(history.source(1))
        assert copy.content()[5000:5008] == b"mine too"
        receipt = copy.send(history.source(1), ignore_base=True)
        assert "was brought back to" in receipt.notes[0]
        assert copy.content() == history.states[1].data
        assert copy.snaps() == ["mine", *(snapshot_name(history.point(number).id) for number in (0, 1))]
        assert export(ceph, f"{image}@mine") == b"mine" + bytes(4 * MIB - 4)


def test_a_snapshot_that_was_made_again_under_our_name_is_not_believed(ceph: Ceph, tmp_path: Path) -> None:
    history = History.make(6, 3)
    with fresh(ceph) as image:
        copy = Copy(ceph, image, tmp_path)
        for number in (0, 1):
            copy.send(history.source(number))
        name = snapshot_name(history.point(1).id)
        ceph.rbd("snap", "rm", f"{image}@{name}")
        write(ceph, image, (5000, b"x" * 8192))
        ceph.rbd("snap", "create", f"{image}@{name}")
        for how in ({}, {"ignore_base": True}):
            with pytest.raises(ConflictError, match=r"is not the one that lvmsync made.*--ignore-base"):
                copy.send(history.source(2), **how)
        with pytest.raises(ConflictError, match="is not the one that lvmsync made"):
            copy.send(history.source(1))
        copy.send(history.source(2, -1), ignore_base=True)
        assert copy.content() == history.states[2].data


def test_an_image_is_never_made_smaller(ceph: Ceph, tmp_path: Path) -> None:
    history = History.make(8, 2)
    with fresh(ceph, 60 * MIB) as image:
        with pytest.raises(DeviceError, match="it is not made smaller"):
            Copy(ceph, image, tmp_path).send(history.source(0))
        assert len(export(ceph, image)) == 60 * MIB


def test_an_image_that_is_in_use_is_left_alone(ceph: Ceph, tmp_path: Path) -> None:
    history = History.make(9, 2)
    with fresh(ceph) as image:
        copy = Copy(ceph, image, tmp_path)
        copy.send(history.source(0))
        words = ["rbd", "import-diff", "--no-progress", "-", image]
        with subprocess.Popen(
            words, stdin=subprocess.PIPE
        ) as other:  # a client that has it open, and writes nothing yet
            assert other.stdin
            other.stdin.write(b"rbd diff v1\n")
            other.stdin.flush()
            while not rbd.find_users(parse_image(image)):
                time.sleep(0.05)
            with pytest.raises(DeviceError, match=r"is in use: 127\.0\.0\.1:.* has it open"):
                copy.send(history.source(1))
            other.stdin.write(b"e")
        ceph.rbd("lock", "add", image, "me")
        with pytest.raises(DeviceError, match=r"'me' of .* has locked it"):
            copy.send(history.source(1))
        (lock,) = json.loads(ceph.rbd("lock", "ls", image, "--format", "json"))
        ceph.rbd("lock", "rm", image, "me", lock["locker"])
        assert copy.content() == history.states[0].data


def test_a_source_that_fails_leaves_the_image_as_it_was(ceph: Ceph, tmp_path: Path) -> None:
    history = History.make(10, 3)
    with fresh(ceph) as image:
        copy = Copy(ceph, image, tmp_path)
        for number in range(3):
            source = history.source(number)
            with pytest.raises(DeviceError, match="broken"):
                copy.send(spoiled(source, DeviceError("broken")))
            if number:
                assert copy.content() == history.states[number - 1].data
            copy.send(source)
            assert copy.content() == history.states[number].data
            assert copy.mark() is None


def test_after_a_kill_the_next_run_goes_on(ceph: Ceph, tmp_path: Path) -> None:
    """Killed while `import-diff` has some of a delta, then some of a full copy; nobody else is told that it failed."""
    disk, state = tmp_path / "disk", tmp_path / "state"
    before, after = os.urandom(24 * MIB), os.urandom(24 * MIB)
    with fresh(ceph) as image:
        for content, kills in ((before, 1), (after, 2)):
            disk.write_bytes(content)
            words = ["sync", f"full:{disk}", f"rbd:{image}", "--create", "--state", str(state), "-q"]
            for _ in range(kills):
                kill_in_the_middle([*words, "--bwlimit", "4M"], image)
                assert look(parse_image(image)).mark is not None
            lvmsync(" ".join(words))
            assert export(ceph, image) == content
            assert look(parse_image(image)).mark is None


def kill_in_the_middle(words: list[str], image: str) -> None:
    program = [sys.executable, "-P", "-m", "lvmsync", *words]
    with subprocess.Popen(program, stderr=subprocess.PIPE) as process:
        while not (rbd.look_up(parse_image(image)) and some_data(image)):
            assert process.poll() is None
        process.send_signal(signal.SIGKILL)


def some_data(image: str) -> bool:
    found = look(parse_image(image))
    return found.mark is not None and not found.is_clean


@pytest.mark.parametrize("number", [0, 1])
def test_each_step_that_fails_is_made_good_by_the_next_run(
    ceph: Ceph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    history = History.make(12, 2)
    source = history.source(number)

    def once(name: str, act: Callable[..., object], *, is_after: bool) -> Callable[..., object]:
        def work(*args: object) -> object:
            monkeypatch.setattr(rbd, name, act)
            if is_after:
                act(*args)
            raise TransportError("away")

        return work

    with fresh(ceph) as image:
        copy = Copy(ceph, image, tmp_path)
        if number:
            copy.send(history.source(0))
        for name in ("create", "set_mark", "remove_mark"):
            for is_after in (False, True):
                if name == "create" and number:
                    continue
                monkeypatch.setattr(rbd, name, once(name, getattr(rbd, name), is_after=is_after))
                with pytest.raises(TransportError, match="away"):
                    copy.send(source)
                if name == "set_mark" and is_after and number:  # and what a run had sent before it was cut off
                    write(ceph, image, (0, b"half of a delta"), (9000, 5000))
        assert copy.send(source).kind == "nothing"
        assert copy.content() == history.states[number].data
        assert copy.mark() is None


def test_what_is_left_of_a_kept_snapshot_is_told(ceph: Ceph, tmp_path: Path) -> None:
    history = History.make(13, 5)
    with fresh(ceph) as image, fresh(ceph) as clone:
        copy = Copy(ceph, image, tmp_path)
        copy.send(history.source(0))
        first = f"{image}@{snapshot_name(history.point(0).id)}"
        ceph.rbd("snap", "protect", first)
        ceph.rbd("clone", first, clone)
        copy.send(history.source(1))
        assert copy.send(history.source(2)).notes == [f"{first.partition('@')[2]} is protected, and stays"]
        assert len(copy.snaps()) == 3
        ceph.rbd("rm", "--no-progress", clone)
        ceph.rbd("snap", "unprotect", first)
        copy.send(history.source(3))
        assert len(copy.snaps()) == 2


def test_a_volume_with_snapshots_of_ours_finds_its_point(ceph: Ceph, tmp_path: Path) -> None:
    history = History.make(14, 2)
    with fresh(ceph) as image:
        side = ImageSide(parse_image(image), Filling(tmp_path))
        assert not side.standing(image).exists
        side.create(image, len(history.states[0].data))
        assert (side.standing(image).point, side.standing(image).other_use) == (None, None)
        receipt = side.receive(image, history.source(0), StreamOptions(), ignore, orders={})
        standing = side.standing(image)
        assert standing.point
        assert standing.point.id == receipt.point == history.point(0).id
        assert (standing.size, standing.written) == (len(history.states[0].data), "no")
        write(ceph, image, (0, b"x"))
        assert side.standing(image).written == "yes"


def test_a_user_who_may_only_read_is_told(ceph: Ceph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    history = History.make(15, 1)
    words = ["ceph", "auth", "get-or-create", "client.reader", "mon", "profile rbd", "osd", "profile rbd-read-only"]
    keyring = subprocess.run(words, capture_output=True, check=True).stdout
    (tmp_path / "keyring").write_bytes(keyring)
    with fresh(ceph, MIB) as image:
        monkeypatch.setenv("CEPH_ARGS", f"--id reader --keyring {tmp_path}/keyring")
        with pytest.raises(DeviceError, match="may not do that"):
            Copy(ceph, image, tmp_path).send(history.source(0))
        monkeypatch.delenv("CEPH_ARGS")
        assert export(ceph, image) == bytes(MIB)


def test_a_cluster_that_goes_away_is_told_in_time_and_nothing_is_lost(
    ceph: Ceph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    brief = ("--client_mount_timeout=2", "--rados_mon_op_timeout=2", "--rados_osd_op_timeout=3")
    monkeypatch.setattr(rbd, "_LIMITS", " ".join(brief))
    monkeypatch.setattr(rbd, "_BRIEF", brief)
    monkeypatch.setattr(rbd_pipe, "ASK_EVERY", 0.5)
    monkeypatch.setattr(rbd_pipe, "_GIVE_UP", 0.5)
    history = History.make(16, 3, size=24 * MIB)
    history.states[1] = replace(history.states[1], changes=ChangeMap.whole(len(history.states[1].data)))

    with fresh(ceph) as image:
        copy = Copy(ceph, image, tmp_path)
        copy.send(history.source(0))
        stopped: list[int] = []

        def stop(progress: Progress) -> None:
            if progress.done > 4 * MIB and not stopped:
                stopped.append(progress.done)
                ceph.control("stop")

        try:
            with pytest.raises(LvmsyncError) as gone:
                fill(parse_image(image), history.source(1), copy.how, stop)
            assert gone.value.exit_code == 7
            with pytest.raises(TransportError, match="out of reach"):
                copy.send(history.source(1))
            assert run(["send", f"rbd:{image}@x", "-o", str(tmp_path / "x")]) == 7
        finally:
            ceph.control("start")
        assert copy.held(history.source(0)) == history.states[0].data
        copy.send(history.source(1))
        assert copy.content() == history.states[1].data
        copy.send(history.source(2))
        assert copy.content() == history.states[2].data

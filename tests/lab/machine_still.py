"""Runs in the guest: file systems and devices that stand still for a moment, and snapshots of many at one instant."""

from __future__ import annotations

import mmap
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from lvmsync.errors import CommandError, ConflictError, DeviceError, UsageError
from lvmsync.system import activation, cut, dm, freeze, holds, lvm, lvm_commands, suspend
from tests.lab.in_guest import Cases, sh, until

case = Cases()
M = 1 << 20


def number(name: str) -> tuple[int, int]:
    found = lvm.find_volume(name).number
    assert found
    return found


def writes(point: str) -> bool:
    """Tell whether a write to a file system ends within a moment."""
    process = subprocess.Popen(
        ["dd", "if=/dev/zero", f"of={point}/file", "bs=4k", "count=1", "conv=fsync", "status=none"]
    )
    try:
        return process.wait(0.4) == 0
    except subprocess.TimeoutExpired:
        return False


def all_free() -> bool:
    return writes("/run/a") and writes("/run/b") and not suspend.list_suspended()


def no_holds() -> bool:
    return not holds.list_holds()


def until_unkept(note: holds.Hold) -> None:
    until(lambda: not holds.is_kept(note), "the watchdog is gone")


def hold(what: str, is_held: int) -> None:
    """Freeze or suspend, and write a byte to a pipe when it is done."""
    still = (
        freeze.frozen(["/run/a", "/run/b"]) if what == "frozen" else suspend.suspended([number("vg/a"), number("vg/b")])
    )
    with still:
        os.write(is_held, b"x")
        time.sleep(60)


def in_child(work: Callable[[], None]) -> int:
    """Do some work in a process of its own; return its number."""
    child = os.fork()
    if child:
        return child
    try:
        work()
    finally:
        os._exit(1)


def ended(child: int) -> int:
    """Wait for a process, and return its status, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@contextmanager
def holder(what: str) -> Iterator[tuple[int, holds.Hold]]:
    """Run a process that freezes or suspends, and yield its number with its note, when it does; the block ends it."""
    ours, theirs = os.pipe()
    child = in_child(lambda: hold(what, theirs))
    os.close(theirs)
    assert os.read(ours, 1) == b"x"
    os.close(ours)
    (note,) = holds.list_holds()
    yield child, note


@case("freezes file systems for a moment")
def frozen() -> None:
    assert all_free()
    with freeze.frozen(["/run/a", "/run/b/", "/run/a"]):
        assert not writes("/run/a")
        assert not writes("/run/b")
        (note,) = holds.list_holds()
        assert (note.kind, note.what, note.pid) == ("frozen", ("/run/b", "/run/a"), os.getpid())
        assert holds.is_kept(note)
        with pytest.raises(ConflictError, match=r"its watchdog .* runs, and lets go after 10 s"):
            holds.mend(note)
    assert all_free()
    assert no_holds()


@case("refuses what is not mounted, or frozen already, and thaws the rest")
def not_frozen() -> None:
    with (
        pytest.raises(UsageError, match="nothing is mounted at /run/nothing"),
        freeze.frozen(["/run/a", "/run/nothing"]),
    ):
        pass
    sh("fsfreeze -f /run/a")
    with (
        pytest.raises(DeviceError, match="cannot be frozen: /run/a: Device or resource busy"),
        freeze.frozen(["/run/a", "/run/b"]),
    ):
        pass
    assert writes("/run/b")
    sh("fsfreeze -u /run/a")
    with pytest.raises(ZeroDivisionError), freeze.frozen(["/run/a"]):
        _ = 1 // 0
    assert all_free()
    assert no_holds()


@case("freezes an image file's file system before the one that it lies on")
def nested() -> None:
    sh("truncate -s 4M /run/a/image; mkfs.ext4 -q /run/a/image; mkdir -p /run/c; mount -o loop /run/a/image /run/c")
    with freeze.frozen(["/run/a", "/run/c"]):
        assert not writes("/run/c")
    assert writes("/run/c")
    sh("umount /run/c; rm /run/a/image")
    assert all_free()


@case("suspends devices, with the file systems on them, for a moment")
def suspends() -> None:
    numbers = [number("vg/a"), number("vg/b")]
    with suspend.suspended(numbers):
        assert [one.number for one in suspend.list_suspended()] == numbers
        assert not writes("/run/a")
    assert all_free()
    with freeze.frozen(["/run/a"]), suspend.suspended(numbers[:1], lockfs=False):
        assert suspend.is_suspended(numbers[0])
    with pytest.raises(UsageError, match="is not one of the device mapper's"), suspend.suspended([(7, 0)]):
        pass
    assert all_free()
    assert no_holds()


@case("lets go when the limit is over, and says that nothing of it counts")
def limit() -> None:
    with (
        pytest.raises(DeviceError, match=r"/run/a stood still for 1 s and had to go on before all was done"),
        freeze.frozen(["/run/a"], limit=1),
    ):
        sh("dd if=/dev/zero of=/run/a/file bs=4k count=1 conv=fsync status=none")  # ends at the limit
    with (
        pytest.raises(DeviceError, match="had to go on before all was done"),
        suspend.suspended([number("vg/a")], limit=0.5),
    ):
        sh("dd if=/dev/zero of=/dev/vg/a bs=4k count=1 seek=4000 oflag=direct status=none")
    assert all_free()
    assert no_holds()


@case("lets go when it is killed, also while it starts")
def killed() -> None:
    for what in ("frozen", "suspended"):
        with holder(what) as (process, note):
            os.kill(process, signal.SIGKILL)
            ended(process)
            until(all_free, f"{what} is over")
            until(no_holds, "the note is gone")
            until_unkept(note)
    with holder("frozen") as (process, note):
        os.kill(note.watchdog or 0, signal.SIGTERM)  # it takes no notice
        os.kill(process, signal.SIGTERM)
        assert ended(process) == -signal.SIGTERM
        until(all_free, "all is over")
        until(no_holds, "the note is gone")
    for delay in (0.02, 0.1):
        early = in_child(lambda: hold("frozen", os.open("/dev/null", os.O_WRONLY)))
        time.sleep(delay)
        os.kill(early, signal.SIGKILL)
        assert ended(early) == -signal.SIGKILL
        until(all_free, f"killed after {delay}")


@case("does the work of a watchdog that was killed")
def watchdog_killed() -> None:
    for what in ("frozen", "suspended"):
        still = freeze.frozen(["/run/a", "/run/b"]) if what == "frozen" else suspend.suspended([number("vg/a")])
        with pytest.raises(DeviceError, match=r"the watchdog failed \(it was killed\); lvmsync did its work"), still:
            os.kill(holds.list_holds()[0].watchdog or 0, signal.SIGKILL)
        assert all_free()
        assert no_holds()


@case("mends what both left behind when both were killed")
def both_killed() -> None:
    for what in ("frozen", "suspended"):
        with holder(what) as (process, note):
            os.kill(process, signal.SIGSTOP)
            os.kill(note.watchdog or 0, signal.SIGKILL)
            os.kill(process, signal.SIGKILL)
            ended(process)
            assert not all_free()
            (left,) = holds.list_holds()
            until_unkept(left)
            holds.mend(left)
            assert all_free()
            assert no_holds()


class Writer:
    """Writes a counter to volumes in turn, each write durable before the next, so that none is ahead of one before."""

    def __init__(self, paths: list[str]) -> None:
        self._fds = [os.open(path, os.O_WRONLY | os.O_DIRECT | os.O_SYNC) for path in paths]
        self._buffer = mmap.mmap(-1, 4096)
        self._is_over = False
        self.count = 0
        self._thread = threading.Thread(target=self._work)

    def _work(self) -> None:
        while not self._is_over:
            time.sleep(0.02)  # else it takes the guest's only processor for itself
            self.count += 1
            self._buffer[:8] = self.count.to_bytes(8, "little")
            for fd in self._fds:
                os.pwrite(fd, self._buffer, 0)

    def wait_for_more(self) -> None:
        before = self.count
        until(lambda: self.count > before + 10, "the writer goes on")

    def __enter__(self) -> Writer:
        self._thread.start()
        self.wait_for_more()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over = True
        self._thread.join()
        for fd in self._fds:
            os.close(fd)


def counter(volume: lvm.LogicalVolume) -> int:
    with activation.activated(volume) as active, open(f"/dev/{active.full_name}", "rb") as file:
        return int.from_bytes(file.read(8), "little")


def cut_of(names: list[str], suffix: str) -> list[lvm.LogicalVolume]:
    orders = [
        cut.Order(lvm.find_volume(f"vg/{name}"), f"{name}-{suffix}", frozenset({"lvmsync.replica=1"}), M, 4096)
        for name in names
    ]
    return cut.cut_together(orders)


MEMBERS = ["thin1", "raw1"]


@case("cuts classic and thin volumes at one instant")
def together() -> None:
    with Writer([f"/dev/vg/{name}" for name in MEMBERS]) as writer:
        for time_ in range(2):  # at the second, each has a snapshot already
            before = writer.count
            made = cut_of(MEMBERS, f"s{time_}")
            after = writer.count
            seen = [counter(volume) for volume in made]
            print(f"{before} {seen} {after}", flush=True)
            assert before <= seen[0] <= after, (before, seen, after)
            assert all(0 <= seen[0] - one <= 1 for one in seen), seen
            assert sorted(seen, reverse=True) == seen, seen
            assert all(volume.tags == {"lvmsync", "lvmsync.replica=1"} for volume in made)
            writer.wait_for_more()
    sh("dmsetup message vg-pool-tpool 0 reserve_metadata_snap; thin_check -m /dev/mapper/vg-pool_tmeta")
    sh("dmsetup message vg-pool-tpool 0 release_metadata_snap")
    for volume in lvm_commands.list_ours("vg"):
        lvm_commands.remove_snapshot(volume)
    assert not suspend.list_suspended()
    assert no_holds()


@case("shows that snapshots taken one after the other are not of one instant")
def one_after_the_other() -> None:
    with Writer([f"/dev/vg/{name}" for name in MEMBERS]):
        made = [
            lvm_commands.take_snapshot(lvm.find_volume(f"vg/{name}"), f"{name}-s", tags=[], size=M, chunk=4096)
            for name in MEMBERS
        ]
    seen = [counter(volume) for volume in made]
    assert seen[-1] > seen[0], seen
    for volume in made:
        lvm_commands.remove_snapshot(volume)


@case("cuts mounted volumes so that their file systems are whole")
def mounted() -> None:
    made = cut_of(["a", "b"], "s")
    for volume in made:
        sh(f"e2fsck -fn /dev/{volume.full_name}")  # clean without a replay: it was frozen
        lvm_commands.remove_snapshot(volume)
    assert all_free()


@case("makes all snapshots of a cut or none, and lets all go on")
def all_or_none() -> None:
    sh("lvcreate -q -y -L 4m -n raw1-x vg")
    with pytest.raises(ConflictError, match="there is a volume vg/raw1-x already"):
        cut_of(MEMBERS, "x")
    sh("lvremove -q -y vg/raw1-x")
    volume = lvm.find_volume("vg/raw1")
    with pytest.raises(UsageError, match="a volume is named twice"):
        cut.cut_together([cut.Order(volume, "x"), cut.Order(volume, "y")])
    sh("dmsetup suspend vg-thin1")
    with pytest.raises(DeviceError, match="vg/thin1 is suspended by another program"):
        lvm_commands.take_snapshot(lvm.find_volume("vg/thin1"), "x", tags=[])
    with pytest.raises(DeviceError, match="vg/thin1 is suspended by another program"):
        cut.cut_together([cut.Order(lvm.find_volume("vg/thin1"), "x")])
    sh("dmsetup resume vg-thin1")
    orders = [cut.Order(lvm.find_volume("vg/thin1"), "x"), cut.Order(volume, "y", frozenset(), 5 * M, 4096)]
    Path("/run/bin").mkdir(exist_ok=True)
    real = sh("command -v lvcreate")
    fake = Path("/run/bin/lvcreate")
    fake.write_text(f'#!/bin/sh\ncase "$*" in *"-n y"*) echo "no" >&2; exit 5;; esac\nexec {real} "$@"\n')
    fake.chmod(0o755)
    path = os.environ["PATH"]
    os.environ["PATH"] = f"/run/bin:{path}"
    try:
        with pytest.raises(CommandError, match="'lvcreate' failed with status 5: no"):
            cut.cut_together(orders)
        fake.write_text(f'#!/bin/sh\ncase "$*" in *"-n y"*) sleep 3;; esac\nexec {real} "$@"\n')
        with pytest.raises(DeviceError, match="had to go on before all was done: nothing of it counts"):
            cut.cut_together(orders, limit=1.5)
    finally:
        os.environ["PATH"] = path
    assert not lvm_commands.list_ours("vg")
    assert not suspend.list_suspended()
    with Writer([f"/dev/vg/{name}" for name in MEMBERS]) as writer:
        assert writer.count


@case("removes what a run that was killed in a cut has left")
def killed_in_a_cut() -> None:
    def work() -> None:
        send = dm.send_message

        def killing(*words: Any) -> None:
            send(*words)
            os.kill(os.getpid(), signal.SIGKILL)

        dm.send_message = killing  # type: ignore[assignment]
        cut.cut_together([cut.Order(lvm.find_volume(f"vg/{one}"), f"k{one}") for one in ("thin1", "thin2")])

    assert ended(in_child(work)) == -signal.SIGKILL
    until(lambda: not suspend.list_suspended(), "all is resumed")
    left = lvm_commands.list_ours("vg")
    assert sorted(one.name for one in left) == ["kthin1", "kthin2"]
    for volume in left:
        assert cut.PENDING_TAG in volume.tags
        lvm_commands.remove_snapshot(volume)
    assert not lvm_commands.list_ours("vg")
    sh("lvcreate -q -y -s -n after vg/thin1; lvremove -q -y vg/after")  # LVM and the pool agree


@case("cuts no volume that the machine needs meanwhile")
def needed() -> None:
    os.environ["LVMSYNC_STATE"] = "/run/a/state"
    try:
        with pytest.raises(UsageError, match="vg/a holds /run/a, which lvmsync and LVM need"):
            cut_of(["a", "b"], "s")
    finally:
        del os.environ["LVMSYNC_STATE"]


def prepare() -> None:
    sh(
        "make_vg vg /dev/ubda; lvcreate -q -y --type thin-pool --poolmetadataspare n -L 32m -n pool vg;"
        "for one in a b; do lvcreate -q -y -W n -L 16m -n $one vg; mkfs.ext4 -q /dev/vg/$one; mkdir /run/$one;"
        " mount /dev/vg/$one /run/$one; done;"
        "lvcreate -q -y -W n -L 8m -n raw1 vg;"
        "for one in thin1 thin2; do lvcreate -q -y -V 8m --thinpool vg/pool -n $one; done"
    )

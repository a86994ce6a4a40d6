"""Runs in the guest: volumes that are cut and committed together, under a writer whose writes are in a known order.

With EACH_STEP=1 there are kills at every step, and members that come and go, for which CI has no time
(scripts/moving groups). KIND is one of `KINDS`: which volumes the group has.
"""

from __future__ import annotations

import gc
import mmap
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lvmsync.errors import ConflictError, DeviceError, LvmsyncError
from lvmsync.jobs import prepared
from lvmsync.jobs import receive as receiving
from lvmsync.jobs.agent.client import Agent, open_agent
from lvmsync.jobs.agent.peer import Peer
from lvmsync.jobs.agent.policy import Policy
from lvmsync.jobs.agent.server import serve
from lvmsync.jobs.progress import GroupReceipt, Receipt, ignore
from lvmsync.jobs.recover import recover
from lvmsync.jobs.replica import snapshots
from lvmsync.jobs.replica.copy import PassOptions
from lvmsync.jobs.replica.group import Member, sync_group
from lvmsync.jobs.replica.run import sync_volume
from lvmsync.jobs.replica.together import Stillness
from lvmsync.jobs.standing import standing
from lvmsync.system import activation, cut, dm, holds, lvm, lvm_commands, suspend
from tests.agent_line import Socket
from tests.lab.in_guest import Cases, sh, until

case = Cases()
BLOCK = 4096
SLOTS, STRIDE = 64, 32 << 10
HERE, THERE = Path("/tmp/here"), Path("/tmp/there")
KINDS = {
    "mixed": ("raw", "thin"),
    "classic": ("raw", "other"),
    "thin": ("thin", "also"),  # of one pool
    "pools": ("thin", "apart"),
    "four": ("raw", "thin", "also", "quiet"),  # nothing is written to the last
}
KIND = os.environ.get("KIND", "mixed")
MEMBERS = KINDS[KIND]
POOLS = {"thin": "pool", "also": "pool", "apart": "pool2"}  # of those that are thin
WRITTEN = tuple(name for name in MEMBERS if name != "quiet")
EACH_STEP = bool(os.environ.get("EACH_STEP"))
MIB = 1 << 20

STILL = Stillness(limit=60)  # a guest may be very slow

Hook = Callable[[], None]


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def in_child(work: Hook) -> int:
    """Do some work in a process of its own; return its number."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        work()
        status = 0
    except LvmsyncError as error:
        print(f"child: {error}; {'; '.join(getattr(error, '__notes__', ()))}", flush=True)
    except BaseException:  # noqa: BLE001 - nothing else would tell of it
        traceback.print_exc()
    finally:
        os._exit(status)


class Writer:
    """A process that writes numbers, each to one volume after the other, each write durable before the next."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names
        self._shared = mmap.mmap(-1, BLOCK)  # the number that was written last

    @property
    def count(self) -> int:
        return int.from_bytes(self._shared[:8], "little")

    def _work(self, first: int) -> None:
        fds = [os.open(f"/dev/vg/{name}", os.O_WRONLY | os.O_DIRECT | os.O_SYNC) for name in self._names]
        buffer = mmap.mmap(-1, BLOCK)
        for number in range(first, 1 << 40):
            buffer[:8] = number.to_bytes(8, "little")
            for fd in fds:
                os.pwrite(fd, buffer, number % SLOTS * STRIDE)
            self._shared[:8] = number.to_bytes(8, "little")
            time.sleep(0.02)  # else it takes the guest's only processor for itself

    @contextmanager
    def writing(self) -> Iterator[None]:
        first = self.count + 1
        process = in_child(lambda: self._work(first))
        try:
            until(lambda: self.count > first + 3, "it writes")
            yield
            before = self.count
            until(lambda: self.count > before + 3, "it still writes")
        finally:
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)


writer = Writer(WRITTEN)


def numbers_of(path: str) -> list[int]:
    """Return the numbers that a volume's slots hold, in order."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
    try:
        buffer = mmap.mmap(-1, SLOTS * STRIDE)
        assert os.preadv(fd, [buffer], 0) == len(buffer)
        return sorted(int(one) for one in np.frombuffer(buffer, "<u8")[:: STRIDE // 8])
    finally:
        os.close(fd)


def moment(folder: str = "far", names: Sequence[str] = WRITTEN) -> int:
    """Return the last number in copies, once it is sure that none has a later write without an earlier one."""
    found = [numbers_of(f"/dev/{folder}/{name}") for name in names]
    for numbers in found:
        last = numbers[-1]
        assert numbers == [max(one, 0) for one in range(last - SLOTS + 1, last + 1)], numbers
    lasts = [numbers[-1] for numbers in found]
    assert all(0 <= first - second <= 1 for first, second in pairwise(lasts)), lasts
    return lasts[0]


class Far:
    """Agents of the targets' machine, each a process of its own.

    Attributes:
        hook: what is changed in the next one, which may be killed by that.
    """

    def __init__(self, hook: Hook = lambda: None) -> None:
        self.hook = hook
        self.processes: list[int] = []
        self._peers: list[Peer] = []
        self._lines: list[Socket] = []

    def connect(self) -> Agent:
        if self._peers and not self._peers[-1].is_over:
            return open_agents[id(self._peers[-1])]
        ours, theirs = socket.socketpair()
        hook, self.hook = self.hook, lambda: None

        def work() -> None:
            ours.close()
            for line in self._lines:
                line.end.close()
            hook()
            serve(Socket(theirs), Policy(), THERE, ignore)

        self.processes.append(in_child(work))
        theirs.close()
        line = Socket(ours)
        self._lines.append(line)
        peer = Peer("far")
        peer.connect(line)
        self._peers.append(peer)
        open_agents[id(peer)] = open_agent(peer)
        return open_agents[id(peer)]

    def close(self) -> None:
        for line in self._lines:
            line.end.close()
        for process in self.processes:
            os.waitpid(process, 0)


open_agents: dict[int, Agent] = {}


def alone(volume: lvm.LogicalVolume) -> Receipt:
    """Sync one volume by itself."""
    far, target = Far(), f"far/{volume.name}"
    try:
        return sync_volume(far.connect, volume, target, f"far:{target}", HERE, PassOptions(), ignore, retries=0)
    finally:
        far.close()


def sync(
    names: Sequence[str] = MEMBERS, hook: Hook = lambda: None, stillness: Stillness = STILL, *, full: bool = False
) -> GroupReceipt:
    members = [Member(lvm.find_volume(f"vg/{name}"), f"far/{name}", f"far:far/{name}") for name in names]
    far = Far(hook)
    try:
        pool = "far/pool" if KIND in ("thin", "pools") else None
        options = PassOptions(create=True, thin_pool=pool, full=full)
        return sync_group("db", far.connect, members, HERE, options, stillness, ignore, retries=2, wait=0.1)
    finally:
        far.close()


def sync_killed(hook: Hook, stillness: Stillness = STILL, names: Sequence[str] = MEMBERS) -> None:
    """Let a process sync that is killed by what the hook changes in it."""

    def work() -> None:
        hook()
        sync(names, stillness=stillness)

    _, status = os.waitpid(in_child(work), 0)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL, status


def kill_at(owner: Any, name: str, *, after: bool = False, skip: int = 0) -> Hook:
    """Return a hook: the process is killed when it calls a function for the time after ``skip`` others."""

    def hook() -> None:
        real = getattr(owner, name)
        left = [skip]

        def killing(*words: Any, **more: Any) -> Any:
            left[0] -= 1
            if left[0] >= 0:
                return real(*words, **more)
            result = real(*words, **more) if after else None
            die()
            return result

        setattr(owner, name, killing)

    return hook


def in_the_cut() -> dict[str, Hook]:
    """Return hooks that kill while all stands still: between the snapshots of the thin ones, of the others."""
    thin = sum(name in POOLS for name in MEMBERS)
    hooks = {}
    if thin:
        hooks["in the cut of the thin ones"] = kill_at(dm, "send_message", after=True)
    if thin < len(MEMBERS):
        hooks["in the cut of the others"] = kill_at(cut, "run_to_end", after=True, skip=thin)
    return hooks


def require_rest(names: Sequence[str] = MEMBERS) -> None:
    """Check that nothing is left but one base a volume, and that the copies are what these hold."""
    ours = lvm_commands.list_ours("vg")
    assert sorted(one.origin for one in ours) == sorted(names), [one.full_name for one in ours]
    assert len({snapshots.cut_of(one) for one in ours}) == 1
    for one in ours:
        assert snapshots.role_of(one) == "base"
        with activation.activated(one) as active:
            sh(f"cmp -n $((8 << 20)) /dev/{active.full_name} /dev/far/{one.origin}")
        assert standing(f"far/{one.origin}", THERE).transaction is None
    assert not list((THERE / "groups").glob("*.json"))
    assert not suspend.list_suspended()
    assert not holds.list_holds()
    assert not sh("dmsetup status --target thin-pool | awk '$8 != \"-\"'"), "a metadata snapshot is held"


@contextmanager
def mounted_deep() -> Iterator[Stillness]:
    """Mount a file system on a device on the first member, which LVM does not know of; yield how it is frozen."""
    first = MEMBERS[0]
    sh(f"dmsetup create deep --table '0 8192 linear /dev/vg/{first} 8192'; dmsetup mknodes")
    sh("mkfs.ext4 -q /dev/mapper/deep; mkdir -p /run/deep; mount /dev/mapper/deep /run/deep; echo x >/run/deep/file")
    try:
        yield Stillness(True, "touch /run/frozen", "rm /run/frozen", 60)
    finally:
        sh("umount /run/deep; dmsetup remove deep")


def require_going_on() -> None:
    """Check that all goes on by itself soon."""
    began = time.monotonic()
    until(lambda: not Path("/run/frozen").exists() and not suspend.list_suspended(), "all goes on", 12)
    sh("timeout 6 sh -c 'echo y >/run/deep/file; sync -f /run/deep'")
    print(f"went on after {time.monotonic() - began:.1f} s", flush=True)


@case("copies a group to one moment while it is written to, and then says that nothing changed")
def again_and_again() -> None:
    with writer.writing():
        before = moment()
        receipt = sync()
        print(f"{receipt.kind} {receipt.seconds} s, still {receipt.still_seconds} s", flush=True)
        assert receipt.kind == "delta"
        assert before < moment() <= writer.count
        for one, name in zip(receipt.members, MEMBERS, strict=True):
            assert bool(one.bytes) == (name in WRITTEN), one
    require_rest()
    sync()
    assert moment() == writer.count
    assert sync().kind == "nothing"


@case("is mended by the next run when its source is killed at any step")
def source_killed() -> None:
    hooks = {"before the commit": kill_at(Agent, "commit_group")}
    if EACH_STEP:
        hooks |= {
            **in_the_cut(),
            "before the first is sent": kill_at(Agent, "receive"),
            "before the second is sent": kill_at(Agent, "receive", skip=1),
            "after the commit": kill_at(Agent, "commit_group", after=True),
            "when one is promoted": kill_at(snapshots, "promote", after=True),
        }
    for step, hook in hooks.items():
        with writer.writing():
            before = moment()
            sync_killed(hook)
            until(lambda: not suspend.list_suspended(), "all is resumed", 12)
            print(recover(f"/dev/far/{MEMBERS[0]}", THERE, ignore).notes, flush=True)
            assert moment() >= before, step
            print(f"{step}: {before} {moment()}", flush=True)
            sync()
            assert moment() > before
    require_rest()


@case("is mended by the next run when its target's side is killed at any step")
def target_killed() -> None:
    hooks = {"after the commit point": kill_at(prepared, "_write_commit", after=True)}
    if EACH_STEP:
        hooks |= {
            "before the commit point": kill_at(prepared, "_write_commit"),
            "before the first is received": kill_at(receiving, "receive"),
            "before the second is received": kill_at(receiving, "receive", skip=1),
            "when one was committed": kill_at(prepared, "settle", after=True),
        }
    for step, hook in hooks.items():
        with writer.writing():
            before = moment()
            receipt = sync(hook=hook)  # its line is opened again
            print(f"{step}: {before} {moment()} {receipt.kind} {receipt.notes}", flush=True)
            assert any("the line failed" in note for note in receipt.notes), receipt.notes
            assert moment() > before, step
    require_rest()


@case("thaws and resumes when it is killed while all stands still")
def killed_while_still() -> None:
    hooks = in_the_cut()
    with mounted_deep() as still:
        for step, hook in hooks.items() if EACH_STEP else list(hooks.items())[:1]:
            print(step, flush=True)
            sync_killed(hook, still)
            require_going_on()
        receipt = sync(stillness=still)
        assert any("frozen while the snapshot was taken: /run/deep" in note for note in receipt.members[0].notes)
        assert not Path("/run/frozen").exists()
    (first,) = (one for one in lvm_commands.list_ours("vg") if one.origin == MEMBERS[0])
    with activation.activated(first) as active:
        sh(f"dmsetup create deep --table '0 8192 linear /dev/{active.full_name} 8192' -r; dmsetup mknodes")
        sh("e2fsck -fn /dev/mapper/deep; dmsetup remove deep")  # clean without a replay: it was frozen
    require_rest()


@case("brings all back when one fails, and makes nothing when one is refused")
def failed() -> None:
    real, calls = Agent.receive, []

    def fail(*words: Any, **more: Any) -> Receipt:
        calls.append(words)
        if len(calls) == 2:
            raise DeviceError("the second has failed")
        return real(*words, **more)

    with writer.writing():
        before = moment()
        Agent.receive = fail  # type: ignore[method-assign]
        try:
            with pytest.raises(DeviceError, match="the second has failed") as raised:
                sync()
        finally:
            Agent.receive = real  # type: ignore[method-assign]
        assert "all of its copies are as they were" in str(raised.value.__notes__)
        assert moment() == before
    require_rest()
    ours = {one.id for one in lvm_commands.list_ours("vg")}
    second = MEMBERS[1]
    sh(f"printf x | dd of=/dev/far/{second} bs=1 seek=5000000 conv=notrunc,fsync status=none")
    with pytest.raises(ConflictError, match=f"far:far/{second} was written to by something else"):
        sync()
    assert {one.id for one in lvm_commands.list_ours("vg")} == ours


def longer(name: str) -> Callable[[Hook], Hook]:
    """Make a case of which CI has no time."""
    return case(name) if EACH_STEP else lambda function: function


@longer("takes in a volume that is named for the first time, and lets go of one that is not named any more")
def come_and_gone() -> None:
    with pytest.raises(ConflictError, match="written to by something else"):
        sync()  # the case before has spoilt it
    make_volume("late")
    sh("dd if=/dev/urandom of=/dev/vg/late bs=1M oflag=direct count=8 status=none")
    more = (*MEMBERS, "late")
    with writer.writing():
        before = moment()
        receipt = sync(more, full=True)
        assert moment() > before
        print(receipt.kind, receipt.notes, flush=True)
        assert receipt.members[-1].kind == "first", receipt.members[-1]
        assert sync(more).members[-1].kind == "nothing"
    require_rest(more)
    late = lvm.find_volume("vg/late")
    with pytest.raises(ConflictError, match="is kept at one moment with other volumes, as group 'db'"):
        alone(late)
    with writer.writing():
        sync_killed(kill_at(Agent, "commit_group"), names=more)
        before = moment()
        with pytest.raises(ConflictError, match="was not finished, and was of vg/late as well: name that, too"):
            sync()
        assert moment() == before
        sync(more)
        assert moment() > before
    require_rest(more)
    sh("dd if=/dev/urandom of=/dev/vg/late bs=1M oflag=direct count=1 status=none")
    copy = sh("sha256sum </dev/far/late")
    with writer.writing():
        before = moment()
        notes = sync().notes
        print(notes, flush=True)
        assert any("vg/late is no member of the group any more: its copy far:far/late stays" in one for one in notes)
        assert moment() > before
        assert sync().notes == []
    assert sh("sha256sum </dev/far/late") == copy
    own = alone(late)
    assert (own.kind, own.bytes) == ("delta", MIB), own
    sh("cmp /dev/vg/late /dev/far/late")
    with writer.writing():
        assert sync(more).members[-1].kind == "nothing"  # taken in again, with what it has
    require_rest(more)


def make_volume(name: str) -> None:
    """Make a member; one that comes late is as the first."""
    pool = POOLS.get(MEMBERS[0] if name == "late" else name)
    if pool:
        sh(f"lvcreate -q -y -V 8m --thinpool vg/{pool} -n {name}")
    else:
        sh(f"lvcreate -q -y -W n -L 8m -n {name} vg")


def make_volumes() -> None:
    sh("make_vg vg /dev/ubda; make_vg far /dev/ubdb")
    for pool in {POOLS[name] for name in MEMBERS if name in POOLS}:
        sh(f"lvcreate -q -y --type thin-pool --poolmetadataspare n -L 40m -n {pool} vg")
    if KIND in ("thin", "pools"):
        sh("lvcreate -q -y --type thin-pool --poolmetadataspare n -L 48m -n pool far")
    for name in MEMBERS:
        make_volume(name)


if __name__ == "__main__":
    make_volumes()
    gc.freeze()  # else a fork that collects copies every page
    with writer.writing():
        sync()
    sys.exit(case.run())

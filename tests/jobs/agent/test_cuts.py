"""Many cuts of one transfer: what is sent twice is little, whatever lies in the buffers of the line.

CI cuts a few times; ``LVMSYNC_KILLS=50`` cuts more, and sends more.
"""

from __future__ import annotations

import os
import random
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lvmsync.errors import LvmsyncError, TransportError
from lvmsync.history import Point
from lvmsync.interfaces import Transport
from lvmsync.jobs.agent.client import Agent, open_agent
from lvmsync.jobs.agent.peer import Peer
from lvmsync.jobs.agent.policy import Policy
from lvmsync.jobs.agent.server import serve
from lvmsync.jobs.progress import ignore
from lvmsync.jobs.send import Resume, StreamOptions
from lvmsync.names import Host
from lvmsync.sources.source import Source
from lvmsync.transport import Ssh, open_transport
from tests.cli.site import run_far_side
from tests.fakes import Memory, make_source
from tests.sshd import children

MIB = 1 << 20
KILLS = int(os.environ.get("LVMSYNC_KILLS", "10"))
SEED = int(os.environ.get("LVMSYNC_SEED", "1"))
HELD = 4 * MIB  # bytes that lie between the two sides


class Direction:
    """Bytes on their way from one side to the other; those that are on it when the line is cut are lost."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._held: deque[memoryview] = deque()
        self._size = 0
        self._is_ended = self._is_cut = False

    def put(self, data: bytes) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._size < HELD or self._is_cut)
            if self._is_cut:
                raise TransportError("the line was cut")
            self._held.append(memoryview(data))
            self._size += len(data)
            self._changed.notify_all()

    def take(self, buffer: memoryview) -> int:
        with self._changed:
            self._changed.wait_for(lambda: self._held or self._is_ended or self._is_cut)
            if self._is_cut:
                raise TransportError("the line was cut")
            if not self._held:
                return 0
            count = min(len(buffer), len(self._held[0]))
            buffer[:count] = self._held[0][:count]
            self._held[0] = self._held[0][count:]
            if not self._held[0]:
                self._held.popleft()
            self._size -= count
            self._changed.notify_all()
            return count

    def stop(self, *, is_cut: bool) -> None:
        with self._changed:
            self._is_ended, self._is_cut = True, self._is_cut or is_cut
            self._changed.notify_all()


class End:
    """One end of a line that holds much."""

    stall_timeout: float | None = None

    def __init__(self, out: Direction, into: Direction) -> None:
        self._out, self._into = out, into

    def send_all(self, buffers: Sequence[bytes | bytearray | memoryview]) -> None:
        self._out.put(b"".join(buffers))

    def receive_some(self, buffer: memoryview) -> int:
        return self._into.take(buffer)

    def send_eof(self) -> None:
        self._out.stop(is_cut=False)

    def aclose(self) -> int:
        self.cut()
        return 0

    def cut(self) -> None:
        for direction in self._out, self._into:
            direction.stop(is_cut=True)


class Cutting:
    """A `Transport` that cuts the line below when so many bytes were sent, and counts them."""

    def __init__(self, line: Transport, cut: Callable[[], None], limit: int | None) -> None:
        self._line = line
        self._cut = cut
        self._limit = limit
        self.sent = 0

    @property
    def stall_timeout(self) -> float | None:
        return self._line.stall_timeout

    @stall_timeout.setter
    def stall_timeout(self, seconds: float | None) -> None:
        self._line.stall_timeout = seconds

    def send_all(self, buffers: Sequence[bytes | bytearray | memoryview]) -> None:
        self._line.send_all(buffers)
        self.sent += sum(map(len, buffers))
        if self._limit is not None and self.sent >= self._limit:
            self._limit = None
            self._cut()

    def receive_some(self, buffer: memoryview) -> int:
        return self._line.receive_some(buffer)

    def send_eof(self) -> None:
        self._line.send_eof()

    def aclose(self) -> int:
        return self._line.aclose()


@contextmanager
def in_a_thread(state: Path, limit: int | None) -> Iterator[tuple[Agent, Cutting]]:
    """Yield an agent behind a line that holds much."""
    there, back = Direction(), Direction()
    far = End(back, there)

    def run() -> None:
        with suppress(LvmsyncError):
            serve(far, Policy(), state, ignore)
        far.send_eof()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    near = End(there, back)
    line = Cutting(near, near.cut, limit)
    peer = Peer("far")
    peer.connect(line)
    try:
        yield open_agent(peer), line
    finally:
        near.send_eof()
        thread.join(60)
        assert not thread.is_alive()


def transfer(
    connect: Callable[[int | None], AbstractContextManager[tuple[Agent, Cutting]]],
    source: Source,
    target: Path,
    cuts: int,
) -> tuple[int, int]:
    """Send a source with cuts at random places, one after the other; return the bytes that were sent, and the cuts."""
    chance = random.Random(SEED)
    total = done = 0
    share = source.changes.total_bytes // cuts
    while True:
        limit = chance.randrange(share // 4, share) if done < cuts else None
        with connect(limit) as (agent, line):
            agent.stall = 30.0
            found = agent.standing(str(target)).transaction
            resume = Resume(found.offset, found.id, done) if found else None
            try:
                orders = {"resumable": True, "create": source.base is None}
                agent.receive(str(target), source, StreamOptions(resumable=True), ignore, orders=orders, resume=resume)
            except LvmsyncError:
                assert limit is not None
                total, done = total + line.sent, done + 1
            else:
                return total + line.sent, done


def make_change(folder: Path, size: int, *, is_full: bool) -> tuple[Source, Path]:
    """Make a copy of zeros, and what leads from it to something else; or what a new copy is made of."""
    data = np.random.default_rng(SEED).bytes(size)
    source = replace(make_source(data, [(0, size)]), base=None if is_full else Point("lv:a"), head=Point("lv:b"))
    target = folder / "copy"
    if not is_full:
        target.write_bytes(bytes(size))
    return source, target


def content(source: Source) -> bytes:
    assert isinstance(source.data, Memory)
    return source.data._content


@pytest.mark.parametrize("is_full", [True, False])
def test_many_cuts_cost_next_to_nothing_though_the_line_holds_much(tmp_path: Path, is_full: bool) -> None:
    size = KILLS * 5 * MIB + MIB
    source, target = make_change(tmp_path, size, is_full=is_full)
    sent, cuts = transfer(lambda limit: in_a_thread(tmp_path / "state", limit), source, target, KILLS)
    assert cuts == KILLS
    assert target.read_bytes() == content(source)
    print(f"\n{cuts} cuts, seed {SEED}: {sent / size:.3f} of the bytes were sent")
    assert sent <= 1.05 * size


def descendants(pid: int) -> Iterator[int]:
    for child in children(pid):
        yield child
        yield from descendants(child)


def test_killed_agents_behind_sshd_cost_next_to_nothing(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    kills = KILLS // 2
    size = kills * 10 * MIB
    source, target = make_change(tmp_path, size, is_full=True)
    with run_far_side(tmp_path_factory) as sshd:

        def kill() -> None:
            for pid in descendants(sshd.process.pid):
                with suppress(FileNotFoundError, ProcessLookupError):
                    if b"agent" in Path(f"/proc/{pid}/cmdline").read_bytes():
                        os.kill(pid, signal.SIGKILL)

        @contextmanager
        def connect(limit: int | None) -> Iterator[tuple[Agent, Cutting]]:
            words = ["lvmsync", "agent"]
            ssh = Ssh(config=str(sshd.config))
            with open_transport(Host(None, "127.0.0.1"), words, ssh=ssh, on_stderr=lambda _: None) as below:
                line = Cutting(below, kill, limit)
                peer = Peer("far")
                peer.connect(line)
                yield open_agent(peer), line

        sent, cuts = transfer(connect, source, target, kills)
    assert cuts == kills
    assert target.read_bytes() == content(source)
    print(f"\n{cuts} cuts, seed {SEED}: {sent / size:.3f} of the bytes were sent")
    assert sent <= 1.05 * size

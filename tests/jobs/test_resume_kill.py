"""Real receivers, killed one after the other in one transfer: what the next ones add makes the target exactly new.

CI kills a few; ``LVMSYNC_KILLS=50`` kills more, and sends more.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from lvmsync.errors import TransportError
from lvmsync.history import Point
from lvmsync.jobs.progress import ignore
from lvmsync.jobs.recover import recover
from lvmsync.jobs.send import Resume, Sender, StreamOptions
from lvmsync.jobs.standing import standing
from lvmsync.sources.source import Source
from tests.fakes import make_source

KILLS = int(os.environ.get("LVMSYNC_KILLS", "12"))
SEED = int(os.environ.get("LVMSYNC_SEED", "1"))
SIZE = KILLS << 22  # so that each run gets past a window or two

RECEIVER = """
import sys
from pathlib import Path
from lvmsync.jobs.progress import ignore
from lvmsync.jobs.receive import ReceiveOptions, receive
target, state = sys.argv[1:]
receive(sys.stdin.buffer.raw.readinto, ReceiveOptions(target, Path(state), resumable=True), ignore)
"""


@pytest.mark.parametrize("way", ["forward", "back"])
def test_a_transfer_survives_many_kills_of_its_receiver(way: str, tmp_path: Path) -> None:
    chance = random.Random(SEED)
    old, new = chance.randbytes(SIZE), chance.randbytes(SIZE)
    target, state = tmp_path / "target.img", tmp_path / "state"
    target.write_bytes(old)
    changed = [(at, 48 << 10) for at in range(0, SIZE, 64 << 10)]
    source = replace(make_source(new, changed), base=Point("lv:base"), head=Point("lv:head"))
    expected = bytearray(old)
    for at, length in changed:
        expected[at : at + length] = new[at : at + length]
    share = source.changes.total_bytes // KILLS
    kills = total = offset = 0
    while True:
        found = standing(str(target), state).transaction
        assert (found is None) == (offset == 0 and not kills)
        assert found is None or found.offset >= offset
        offset = found.offset if found else 0
        is_last = kills == KILLS
        if is_last and way == "back":
            break
        receiver = subprocess.Popen(
            [sys.executable, "-c", RECEIVER, target, state], stdin=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0
        )
        limit = None if is_last else chance.randrange(share // 2, share)  # so that no run comes to the end
        total += _feed(receiver, source, Resume(offset, found.id) if found else None, limit)
        if not is_last:
            os.kill(receiver.pid, signal.SIGKILL)
            kills += 1
        _, said = receiver.communicate()
        assert receiver.returncode == (0 if is_last else -signal.SIGKILL), said.decode()
        if is_last:
            break
        if standing(str(target), state).transaction is None:  # killed before it began
            kills -= 1
    if way == "back":
        assert offset > 0
        recover(str(target), state, ignore)
    assert target.read_bytes() == (old if way == "back" else expected)
    # 3 MiB come to each kill: a tenth of that is lost, or less, but for the first one.
    assert way == "back" or total < 1.12 * source.changes.total_bytes
    print(f"\n{kills} kills, seed {SEED}: {total / source.changes.total_bytes:.3f} of the bytes were sent")


def _feed(receiver: subprocess.Popen[bytes], source: Source, resume: Resume | None, limit: int | None) -> int:
    """Send to a receiver, up to ``limit`` bytes; return how many."""
    assert receiver.stdin
    sent = 0

    def send(buffers: Sequence[bytes | bytearray | memoryview]) -> None:
        nonlocal sent
        for buffer in buffers:
            view = memoryview(buffer)
            while view:
                if limit is not None and sent >= limit:
                    raise TransportError("enough")
                assert receiver.stdin
                count = receiver.stdin.write(view[: 64 << 10])
                sent, view = sent + count, view[count:]

    try:
        Sender(source, send, StreamOptions(resumable=True), ignore, resume=resume).deliver()
        receiver.stdin.close()
        receiver.stdin = None
    except TransportError:
        assert limit is not None
    return sent

"""Real receivers, killed: afterwards `recover` leaves exactly old or exactly new.

CI kills a few; ``scripts/storm receiver-kills 200 SEED`` kills many more.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from lvmsync.jobs.progress import ignore
from lvmsync.jobs.recover import recover
from lvmsync.stream.frames import Frame, Header
from tests import fakes
from tests.bench.bench_exceptions import write_store
from tests.fakes import MARK, change, data, hole, zero

LVMSYNC = Path(sys.executable).with_name("lvmsync")
KILLS = int(os.environ.get("LVMSYNC_KILLS", "15"))
SEED = int(os.environ.get("LVMSYNC_SEED", "1"))
PIECE = 64 << 10
IN_FLIGHT = (1 << 20) + 8 * PIECE  # bytes of a stream that can be on their way: in the pipe, and read ahead


@dataclass(frozen=True)
class Load:
    """A stream, and the image that it changes."""

    old: bytes
    new: bytes
    stream: bytes


def make_load(size: int, version: int, gap: int) -> Load:
    chance = random.Random(size)
    old = chance.randbytes(size)
    frames: list[Frame] = []
    for number, at in enumerate(range(0, size - PIECE + 1, PIECE + gap)):
        if number % 6 == 2:
            frames.append(zero((at, PIECE)))
        elif number % 6 == 4:
            frames.append(hole((at, PIECE)))
        else:
            frames.append(data((at, chance.randbytes(PIECE))))
        if number % 4 == 3:
            frames.append(MARK)  # a window of its own, and a note in the ledger
    header = Header(size=size, changed_bytes=fakes.count_bytes(frames))
    return Load(old, change(old, frames), fakes.encode(frames, header, version))


@pytest.fixture(scope="module")
def load() -> Load:
    """Many windows, a mark behind each."""
    return make_load(12 << 20, 4, PIECE // 4)


@pytest.fixture(scope="module")
def v3_load() -> Load:
    """A little over one window, which v3 cannot make shorter."""
    return make_load(36 << 20, 3, 0)


class Receiver:
    """The installed command in a process group of its own, fed by us."""

    def __init__(self, folder: Path, load: Load, *options: str) -> None:
        self.target = folder / "target.img"
        self.state = folder / "state"
        self.load = load
        self.target.write_bytes(load.old)
        self.process = subprocess.Popen(
            [LVMSYNC, "receive", self.target, "--state", self.state, "--quiet", *options],
            bufsize=0,
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        assert self.process.stdin
        self.input = self.process.stdin

    def feed(self, count: int) -> None:
        """Write the first ``count`` bytes of the stream, in pieces; the receiver reads as it can."""
        view = memoryview(self.load.stream)[:count]
        try:
            while view:
                view = view[self.input.write(view[:PIECE]) :]
        except BrokenPipeError as error:
            raise AssertionError(f"the receiver ended by itself: {self.wait()}") from error
        if count == len(self.load.stream):
            self.input.close()

    def signal(self, number: signal.Signals) -> tuple[int, str]:
        """Signal the whole group, and return the receiver's status and what it said."""
        os.killpg(self.process.pid, number)
        return self.wait()

    def wait(self) -> tuple[int, str]:
        status = self.process.wait(60)
        assert self.process.stderr
        with self.process.stderr:
            said = self.process.stderr.read().decode()
        self.input.close()
        return status, said

    def content(self) -> str:
        found = self.target.read_bytes()
        return "old" if found == self.load.old else "new" if found == self.load.new else "mid"

    def transaction(self) -> object:
        records = [json.loads(path.read_text()) for path in self.state.rglob("record.json")]
        return records[0]["transaction"] if records else None


def linger(seconds: float) -> None:
    """Let a moment pass, exactly; for the kill to fall anywhere, not to wait for anything."""
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        pass


KINDS: tuple[tuple[str, ...], ...] = ((), ("--snapback",), ("--atomic",), (), ("v3",), ("--atomic", "--snapback"))


def test_killed_receivers_leave_old_or_new(tmp_path: Path, load: Load, v3_load: Load) -> None:
    chance = random.Random(SEED)
    ends: dict[tuple[str, ...], float] = {}
    outcomes: Counter[str] = Counter()
    for number in range(KILLS):
        kind = KINDS[number % len(KINDS)]
        chosen = v3_load if "v3" in kind else load
        if kind not in ends:
            ends[kind] = time_the_end(tmp_path / f"whole{number}", chosen, kind)
        folder = tmp_path / f"kill{number}"
        receiver = start(folder, chosen, kind)
        # Half of them in the stream, half behind its end: there is the commit, and all of an --atomic apply.
        if chance.random() < (0.2 if "--atomic" in kind else 0.5):
            least = len(chosen.stream) * 4 // 5 if "v3" in kind else 0  # nothing is changed before it has one window
            receiver.feed(chance.randrange(least, len(chosen.stream)))
            linger(chance.uniform(0, 0.005))
        else:
            receiver.feed(len(chosen.stream))
            linger(chance.uniform(0, 0.7 * ends[kind]))
        status, said = receiver.signal(signal.SIGKILL)
        found = receiver.content()
        assert status == -signal.SIGKILL or (status, found) == (0, "new"), said
        after = recovered(receiver, by_command=KILLS > 50 or number % 5 == 0)
        assert after in ("old", "new")
        assert status or after == "new"
        assert receiver.transaction() is None
        outcomes[f"{' '.join(kind) or 'undo'}: {found}, then {after}" + ("" if status else " (had ended)")] += 1
        outcomes[found] += 1
        for path in folder.iterdir():
            if path.is_file():
                path.unlink()
    found_states = [outcomes.pop(state, 0) for state in ("old", "mid", "new")]
    print(f"\n{KILLS} kills, seed {SEED}: found {'{} old, {} half changed, {} new'.format(*found_states)}")
    for outcome, count in sorted(outcomes.items()):
        print(f"  {count:4} {outcome}")
    assert found_states[1], "no kill fell into the middle of an apply"


def start(folder: Path, load: Load, kind: tuple[str, ...]) -> Receiver:
    folder.mkdir()
    options = [word for word in kind if word != "v3"]
    if "--snapback" in options:
        options.insert(options.index("--snapback") + 1, str(folder / "kept"))
    return Receiver(folder, load, *options)


def time_the_end(folder: Path, load: Load, kind: tuple[str, ...]) -> float:
    """Return how long a receiver goes on behind the end of its stream; see that it works at all."""
    receiver = start(folder, load, kind)
    receiver.feed(len(load.stream))
    began = time.perf_counter()
    status, said = receiver.wait()
    assert status == 0, said
    seconds = time.perf_counter() - began
    assert receiver.content() == "new"
    receiver.target.unlink()
    return seconds


def recovered(receiver: Receiver, *, by_command: bool) -> str:
    """Recover, as a process of its own or in this one, and return what the target holds then."""
    if by_command:
        subprocess.run(
            [LVMSYNC, "recover", receiver.target, "--state", receiver.state], check=True, capture_output=True
        )
    else:
        recover(str(receiver.target), receiver.state, ignore)
    return receiver.content()


@pytest.fixture
def receiver(tmp_path: Path, load: Load) -> Iterator[Receiver]:
    """Return a receiver in the middle of its stream, which has changed half of the target at least."""
    made = Receiver(tmp_path, load)
    made.feed(len(load.stream) // 2 + IN_FLIGHT)
    yield made
    if made.process.poll() is None:
        made.process.kill()
        made.wait()


def test_ctrl_c_brings_the_target_back(receiver: Receiver) -> None:
    status, _ = receiver.signal(signal.SIGINT)
    assert status == 130
    assert receiver.content() == "old"
    assert receiver.transaction() is None


def test_ctrl_c_is_answered(receiver: Receiver) -> None:
    _, said = receiver.signal(signal.SIGINT)
    assert "interrupted" in said
    assert "rolled back" in said


def test_a_request_to_end_brings_the_target_back(receiver: Receiver) -> None:
    """What systemd and a shutdown send."""
    status, said = receiver.signal(signal.SIGTERM)
    assert status == 130
    assert "rolled back" in said
    assert receiver.content() == "old"
    assert receiver.transaction() is None


def test_a_line_that_ends_in_the_middle_brings_the_target_back(receiver: Receiver) -> None:
    receiver.input.close()
    status, said = receiver.wait()
    assert status == 6
    assert "rolled back" in said
    assert receiver.content() == "old"


def test_a_sender_that_is_killed_brings_the_target_back(tmp_path: Path) -> None:
    store, origin = write_store(tmp_path, 2048)
    old = random.Random(5).randbytes(origin.stat().st_size)
    origin.write_bytes(random.Random(6).randbytes(len(old)))
    target, state = tmp_path / "target.img", tmp_path / "state"
    target.write_bytes(old)
    sender = subprocess.Popen(
        [LVMSYNC, "send", f"snapshot:{store},origin={origin}"],
        bufsize=0,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    receiver = subprocess.Popen(
        [LVMSYNC, "receive", target, "--state", state], bufsize=0, stdin=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert sender.stdout
    assert receiver.stdin
    passed = 0
    while chunk := sender.stdout.read(PIECE):
        receiver.stdin.write(chunk)
        passed += len(chunk)
        if passed > 5 << 20 and sender.poll() is None:
            sender.kill()  # what is in the pipe still arrives, and then its end
            sender.wait()
    receiver.stdin.close()
    assert receiver.wait(60) == 6
    assert sender.returncode == -signal.SIGKILL
    with sender.stdout, receiver.stderr or sender.stdout as said:
        assert b"rolled back" in said.read()
    assert passed < 2048 * 4096
    assert target.read_bytes() == old

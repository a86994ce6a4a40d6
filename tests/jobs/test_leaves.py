"""Comparing with a far device: both ends over a real child process, and what a far side may say wrong."""

from __future__ import annotations

import io
import os
import struct
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import xxhash

from lvmsync.errors import DeviceError, LvmsyncError, PeerError, StreamError, TransportError, UsageError
from lvmsync.extents import ChangeMap
from lvmsync.jobs import leaves
from lvmsync.jobs.leaves import LEAF, answer, hash_leaves, open_far_comparison
from lvmsync.jobs.progress import Progress, ignore
from lvmsync.jobs.sync import Peer, leaves_words
from lvmsync.names import Comparison, Volume
from lvmsync.sources import Reading, Source
from lvmsync.system.device import open_device
from lvmsync.transport import open_transport
from lvmsync.transport.pipe import Command
from tests.sources.loops import loop_of, sparse

BLOCK = 4096
MIB = 1 << 20


def random_bytes(size: int, seed: int = 1) -> bytes:
    return np.random.default_rng(seed).bytes(size)


def flip(data: bytes, *places: int) -> bytes:
    changed = bytearray(data)
    for place in places:
        changed[place] ^= 1
    return bytes(changed)


def extents(changes: ChangeMap) -> list[tuple[int, int]]:
    return [(offset, length) for offset, length in changes]


@contextmanager
def compared(
    new: Path,
    old: Path,
    *,
    size: int | None = None,
    argv: Sequence[str] | None = None,
    told: list[Progress] | None = None,
) -> Iterator[Source]:
    """Compare a file with one that a child process hashes; ``argv``: another program in its place."""
    peer = Peer(f"far:{old}")
    lines = []

    def hear(line: str) -> None:
        peer.last_words = line

    def connect(far_size: int, seed: int) -> Peer:
        words = leaves_words([], str(old), far_size, seed, sudo=False)
        line = Command(argv, hear) if argv else open_transport(None, words, on_stderr=hear)
        lines.append(line)
        peer.transport = line.__enter__()
        return peer

    report = told.append if told is not None else ignore
    try:
        with open_far_comparison(Comparison(Volume(str(new)), None, size), Reading(), connect, report) as source:
            yield source
    finally:
        for line in lines:
            line.__exit__(None, None, None)


def test_the_blocks_that_differ_are_found_by_digests_alone(tmp_path: Path) -> None:
    old = random_bytes(7 * MIB + 1000)
    new = flip(old, 0, 3 * MIB + 5 * BLOCK, 4 * MIB - 1, 7 * MIB + 999)
    (tmp_path / "new").write_bytes(new)
    (tmp_path / "old").write_bytes(old)
    told: list[Progress] = []
    with compared(tmp_path / "new", tmp_path / "old", told=told) as source:
        assert extents(source.changes) == [
            (0, BLOCK), (3 * MIB + 5 * BLOCK, BLOCK), (4 * MIB - BLOCK, BLOCK), (7 * MIB, 1000),
        ]  # fmt: skip
        assert (source.kind, source.size, source.base) == ("compare", len(new), None)
        assert source.head
        source.confirm()
    assert told[-1].phase == "comparing"
    assert Progress("hashing", len(new), len(new)) in told


@pytest.mark.parametrize(("new_size", "old_size"), [(3 * MIB, 2 * MIB + 5), (2 * MIB + 5, 3 * MIB), (0, 9), (9, 0)])
def test_sides_of_different_sizes(tmp_path: Path, new_size: int, old_size: int) -> None:
    data = random_bytes(3 * MIB)
    (tmp_path / "new").write_bytes(data[:new_size])
    (tmp_path / "old").write_bytes(data[:old_size])
    with compared(tmp_path / "new", tmp_path / "old") as source:
        start = old_size // BLOCK * BLOCK
        assert extents(source.changes) == ([(start, new_size - start)] if new_size > old_size else [])
        assert bool(source.notes) == (old_size > new_size)


def test_many_leaves_that_differ_take_many_questions(tmp_path: Path) -> None:
    old = random_bytes(MIB)
    (tmp_path / "old").write_bytes(old * 300)
    (tmp_path / "new").write_bytes(flip(old, 9 * BLOCK) * 300)
    with compared(tmp_path / "new", tmp_path / "old") as source:
        assert extents(source.changes) == [(at * MIB + 9 * BLOCK, BLOCK) for at in range(300)]


def test_a_sparse_tebibyte_is_compared_in_a_moment(tmp_path: Path) -> None:
    sparse(tmp_path / "new", 1 << 40, (1 << 39, b"new"), ((1 << 38) + BLOCK, b"both"))
    sparse(tmp_path / "old", 1 << 40, (1 << 37, b"old"), ((1 << 38) + BLOCK, b"both"))
    began = time.monotonic()
    with compared(tmp_path / "new", tmp_path / "old") as source:
        assert extents(source.changes) == [(1 << 37, BLOCK), (1 << 39, BLOCK)]
        assert extents(source.holes) == [(1 << 37, BLOCK)]
    assert time.monotonic() - began < 60


def test_devices_are_hashed_and_claimed_while_that_lasts(tmp_path: Path) -> None:
    old = random_bytes(4 * MIB)
    (tmp_path / "old").write_bytes(old)
    (tmp_path / "new").write_bytes(flip(old, 2 * MIB))
    with loop_of(tmp_path / "new") as new, loop_of(tmp_path / "old") as far:
        with compared(new, far) as source:
            assert extents(source.changes) == [(2 * MIB, BLOCK)]
        holder = os.open(far, os.O_RDONLY | os.O_EXCL)
        try:
            with pytest.raises(PeerError, match="mounted, or held") as caught, compared(new, far):
                pass
            assert caught.value.exit_code == 3
        finally:
            os.close(holder)


def test_digests_are_of_each_leaf_with_the_seed_and_of_holes_without_reading(tmp_path: Path) -> None:
    data = random_bytes(MIB + MIB // 2)
    path = sparse(tmp_path / "file", 200 * MIB + 5, (3 * MIB, data), (200 * MIB, b"12345"))
    content = path.read_bytes()
    with open_device(str(path)) as device:
        for limit in (0, 1, MIB, 5 * MIB - 1, 200 * MIB, 200 * MIB + 5):
            for seed in (0, (1 << 64) - 1):
                wanted = [
                    xxhash.xxh3_128_digest(content[at : min(at + LEAF, limit)], seed) for at in range(0, limit, LEAF)
                ]
                assert b"".join(digests.tobytes() for digests in hash_leaves(device, limit, seed)) == b"".join(wanted)


def test_a_size_past_the_end_is_refused(tmp_path: Path) -> None:
    (tmp_path / "new").write_bytes(bytes(10))
    with pytest.raises(UsageError, match="has only 10 bytes"), compared(tmp_path / "new", tmp_path / "new", size=11):
        pass


# What a far side may do wrong


def far(script: str) -> list[str]:
    return [sys.executable, "-c", f"import sys, time\nout = sys.stdout.buffer\n{script}\nout.flush()"]


@pytest.mark.parametrize(
    ("script", "kind", "message"),
    [
        ("out.write(b'Welcome\\n')", TransportError, "said 'Welcome' where lvmsync should have answered"),
        ("out.write(b'lvmsync LEAVES {\\n')", TransportError, "its size is not readable"),
        ("out.write(b'lvmsync LEAVES [1]\\n')", TransportError, "its size is not readable"),
        ("out.write(b'lvmsync LEAVES {\"size\": -1}\\n')", TransportError, "its size is not readable"),
        ("out.write(b'lvmsync LEAVES {\"size\": true}\\n')", TransportError, "its size is not readable"),
        ("out.write(b'lvmsync LEAVES ' + b'9' * 5000 + b'\\n')", TransportError, "its size is not readable"),
        ("out.write(b'x' * (2 << 20))", TransportError, "where lvmsync should have answered"),
        ("out.write(b'lvmsync LEAVES {\"size\": 9999999}\\n' + bytes(47))", TransportError, "in the middle of"),
        ("out.write(b'lvmsync LEAVES {\"size\": 9999999}\\n' + bytes(48))", TransportError, "though its status is 0"),
        ("out.write(b'lvmsync LEAVES {\"size\": 9999999}\\n'); out.flush(); sys.exit(5)", PeerError, "status 5"),
        ("sys.exit(127)", PeerError, "lvmsync was not found there"),
    ],
)
def test_a_far_side_that_says_nonsense_ends_in_one_line(
    tmp_path: Path, script: str, kind: type[LvmsyncError], message: str
) -> None:
    (tmp_path / "new").write_bytes(random_bytes(3 * MIB))
    with pytest.raises(kind, match=message), compared(tmp_path / "new", tmp_path / "x", argv=far(script)):
        pass


def test_a_far_side_that_fails_after_its_last_answer_is_no_success(tmp_path: Path) -> None:
    (tmp_path / "new").write_bytes(b"")
    script = "out.write(b'lvmsync LEAVES {\"size\": 0}\\n'); out.flush(); sys.stdin.read(); sys.exit(3)"
    with pytest.raises(PeerError, match="status 3"), compared(tmp_path / "new", tmp_path / "x", argv=far(script)):
        pass


def talk(target: Path, asked: bytes, size: int = 3 * MIB) -> bytes:
    said = bytearray()
    answer(str(target), size, 5, lambda buffers: said.extend(b"".join(buffers)), io.BytesIO(asked).readinto)
    return bytes(said)


@pytest.mark.parametrize(
    "asked",
    [
        struct.pack("<I", 0),
        struct.pack("<I", 257) + bytes(257 * 8),
        struct.pack("<I", 1 << 31),
        struct.pack("<IQ", 1, 3),
        struct.pack("<IQ", 1, 1 << 63),
        struct.pack("<IQQ", 2, 1, 1),
        struct.pack("<IQQ", 2, 2, 1),
        struct.pack("<IQ", 2, 1),
        struct.pack("<IQ", 1, 1)[:-1],
        struct.pack("<IQ", 1, 1)[:2],
    ],
)
def test_a_question_that_makes_no_sense_is_refused(tmp_path: Path, asked: bytes) -> None:
    (tmp_path / "file").write_bytes(bytes(3 * MIB))
    with pytest.raises(StreamError, match="the other side asks"):
        talk(tmp_path / "file", asked)


def test_an_answer_is_a_line_the_leaves_and_the_blocks(tmp_path: Path) -> None:
    data = random_bytes(3 * MIB - 100)
    (tmp_path / "file").write_bytes(data)
    said = talk(tmp_path / "file", struct.pack("<IQQ", 2, 0, 2), size=3 * MIB - 100)
    line, _, rest = said.partition(b"\n")
    assert line == b'lvmsync LEAVES {"size": 3145628}'
    wanted = [xxhash.xxh3_128_digest(data[at : at + LEAF], 5) for at in range(0, len(data), LEAF)]
    wanted += [
        xxhash.xxh3_128_digest(data[at : at + BLOCK], 5)
        for at in [*range(0, MIB, BLOCK), *range(2 * MIB, len(data), BLOCK)]
    ]
    assert rest == b"".join(wanted)


def test_a_far_device_that_is_written_meanwhile_fails(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(MIB))

    def write_then_end(_: memoryview) -> int:
        os.utime(path, ns=(1, 1))
        return 0

    with pytest.raises(DeviceError, match="was written to while it was read"):
        answer(str(path), MIB, 5, lambda _: None, write_then_end)


def test_what_fails_here_leaves_no_thread_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "new").write_bytes(random_bytes(300 * MIB))
    before = threading.active_count()

    def fail(*_: object) -> None:
        raise TransportError("gone")

    monkeypatch.setattr(leaves, "_receive_digests", fail)
    with pytest.raises(TransportError, match="gone"), compared(tmp_path / "new", tmp_path / "new"):
        pass
    deadline = time.monotonic() + 20
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert threading.active_count() <= before

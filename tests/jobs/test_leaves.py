"""Comparing with a far device: both ends over a real child process, and what a far side may say wrong."""

from __future__ import annotations

import io
import os
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from lvmsync.errors import DeviceError, LvmsyncError, PeerError, StreamError, TransportError, UsageError, VerifyError
from lvmsync.extents import ChangeMap
from lvmsync.jobs import leaves
from lvmsync.jobs.agent.client import open_agent
from lvmsync.jobs.agent.peer import Peer
from lvmsync.jobs.hash_tree import FAN_OUT, LEAF, hash_leaves, hash_root, leaves_of
from lvmsync.jobs.leaves import Compared, answer, compare_device, open_far_comparison
from lvmsync.jobs.progress import Progress, ignore
from lvmsync.names import Comparison, Volume
from lvmsync.sources import Reading, Source
from lvmsync.system.device import open_device
from lvmsync.transport.pipe import Command
from tests.agent_line import Socket, agent_peer
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
def far_side(old: Path) -> Iterator[tuple[Socket, Callable[[int, int], Peer]]]:
    """Yield our end of a line to an agent, and what starts the conversation about ``old``."""
    with agent_peer(old.parent / "state", f"far:{old}") as (line, peer):
        yield line, lambda size, seed: open_agent(peer).begin_leaves(str(old), size, seed)


@contextmanager
def compared(new: Path, old: Path, *, size: int | None = None, told: list[Progress] | None = None) -> Iterator[Source]:
    """Compare a file with one that an agent hashes."""
    report = told.append if told is not None else ignore
    with (
        far_side(old) as (_, connect),
        open_far_comparison(Comparison(Volume(str(new)), None, size), Reading(), connect, report) as source,
    ):
        yield source


@contextmanager
def compared_with_program(new: Path, argv: Sequence[str]) -> Iterator[Source]:
    """Compare a file with what a program says in the agent's place."""
    peer = Peer("far:x")
    with Command(argv, lambda line: setattr(peer, "last_words", line)) as line:
        peer.connect(line)
        name = Comparison(Volume(str(new)), None)
        with open_far_comparison(name, Reading(), lambda size, seed: peer, ignore) as source:
            yield source


def compare(new: Path, old: Path, within: ChangeMap | None = None) -> tuple[Compared, int]:
    """Compare two files, and return what was found and how many bytes came over the line."""
    with far_side(old) as (line, connect), open_device(str(new)) as device:
        return compare_device(device, device.size, connect, ignore, within), line.received


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


# The tree


def test_equal_devices_cost_one_root_over_the_line(tmp_path: Path) -> None:
    data = random_bytes(20 * MIB + 77)
    (tmp_path / "new").write_bytes(data)
    (tmp_path / "old").write_bytes(data)
    found, received = compare(tmp_path / "new", tmp_path / "old")
    assert (len(found.differing), found.size, found.far_size) == (0, len(data), len(data))
    assert found.root == found.far_root != ""
    assert received < 500


def test_equal_sparse_tebibytes_cost_next_to_nothing(tmp_path: Path) -> None:
    for name in ("new", "old"):
        sparse(tmp_path / name, 1 << 40, (5, b"both"), ((1 << 40) - 9, b"both too"))
    found, received = compare(tmp_path / "new", tmp_path / "old")
    assert not len(found.differing)
    assert found.root == found.far_root
    assert received < 500


def test_one_block_that_differs_in_a_tebibyte_costs_one_branch(tmp_path: Path) -> None:
    sparse(tmp_path / "new", 1 << 40, (3 << 38, b"x"))
    sparse(tmp_path / "old", 1 << 40)
    found, received = compare(tmp_path / "new", tmp_path / "old")
    assert extents(found.differing) == [(3 << 38, BLOCK)]
    assert found.root != found.far_root
    assert received < 4 * FAN_OUT * 16 + 500


def test_the_seed_and_so_the_root_are_others_each_time(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(random_bytes(MIB))
    roots = {compare(tmp_path / "file", tmp_path / "file")[0].root for _ in range(3)}
    assert len(roots) == 3


EDGES = sorted(
    {edge + step for edge in (0, BLOCK, LEAF, 2 * LEAF, 3 * LEAF, FAN_OUT * LEAF) for step in (-1, 0, 1)} - {-1}
)


def test_each_single_byte_at_a_border_is_found(tmp_path: Path) -> None:
    size = FAN_OUT * LEAF + LEAF + 333
    old = sparse(tmp_path / "old", size, (0, b"begin"), (LEAF - 2, b"four"))
    new = tmp_path / "new"
    for place in [*EDGES, size - 1]:
        was = old.read_bytes()[place : place + 1] if place < 3 * LEAF else b"\0"
        sparse(new, size, (0, b"begin"), (LEAF - 2, b"four"), (place, bytes([was[0] ^ 0x80])))
        found, _ = compare(new, old)
        start = place // BLOCK * BLOCK
        assert extents(found.differing) == [(start, min(BLOCK, size - start))], place


def test_only_the_wanted_ranges_are_looked_at(tmp_path: Path) -> None:
    old = random_bytes(6 * MIB + 10)
    (tmp_path / "old").write_bytes(old)
    (tmp_path / "new").write_bytes(flip(old, 0, MIB, 3 * MIB + BLOCK, 6 * MIB + 5))
    within = ChangeMap.from_extents([(BLOCK, MIB), (3 * MIB, 2 * BLOCK), (6 * MIB, 10)])
    found, received = compare(tmp_path / "new", tmp_path / "old", within)
    assert extents(found.differing) == [(MIB, BLOCK), (3 * MIB + BLOCK, BLOCK), (6 * MIB, 10)]
    assert (found.root, found.far_root) == ("", "")
    assert received < 4 * 256 * 16 + 500
    assert not len(compare(tmp_path / "new", tmp_path / "old", ChangeMap.empty())[0].differing)


def test_wanted_ranges_past_the_far_end_differ(tmp_path: Path) -> None:
    (tmp_path / "old").write_bytes(bytes(2 * MIB))
    (tmp_path / "new").write_bytes(bytes(4 * MIB))
    found, _ = compare(tmp_path / "new", tmp_path / "old", ChangeMap.from_extents([(MIB, 2 * MIB)]))
    assert extents(found.differing) == [(2 * MIB, MIB)]


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_what_is_found_is_what_a_plain_comparison_finds(data: st.DataObject) -> None:
    """A tree of small leaves, so that a few bytes have many levels."""
    size = data.draw(st.integers(0, 300)) * 16 + data.draw(st.integers(0, 15))
    old = bytearray(random_bytes(size, data.draw(st.integers(0, 3))) if data.draw(st.booleans()) else bytes(size))
    new = bytearray(old)
    for place in data.draw(st.lists(st.integers(0, size - 1), max_size=9)) if size else ():
        new[place] ^= data.draw(st.integers(1, 255))
    far_size = data.draw(st.sampled_from([size, size, max(0, size - data.draw(st.integers(0, 50))), size + 20]))
    far = bytes(old[:far_size]).ljust(far_size, b"z")
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        for module in ("lvmsync.jobs.hash_tree", "lvmsync.jobs.leaves"):
            patch.setattr(f"{module}.LEAF", 64)
            patch.setattr(f"{module}.BLOCK", 16)
            patch.setattr(f"{module}.FAN_OUT", 3)
        patch.setattr("lvmsync.sources.difference.BLOCK", 16)
        patch.setattr("lvmsync.jobs.leaves.MOST_ASKED", 2)
        (Path(folder) / "new").write_bytes(new)
        (Path(folder) / "old").write_bytes(far)
        found, _ = compare(Path(folder) / "new", Path(folder) / "old")
    common = size if far_size >= size else far_size // 16 * 16
    wrong = [at for at in range(0, size, 16) if at >= common or new[at : at + 16] != far[at : min(at + 16, size)]]
    assert found.differing == ChangeMap.from_extents([(at, min(16, size - at)) for at in wrong])
    assert (found.root == found.far_root) == all(at >= common for at in wrong)


def test_leaves_of_ranges_are_those_that_they_touch() -> None:
    ranges = ChangeMap.from_extents([(LEAF - 1, 2), (LEAF + 5, 1), (5 * LEAF, LEAF), (9 * LEAF - 1, 1)])
    assert leaves_of(ranges).tolist() == [0, 1, 5, 8]
    assert leaves_of(ChangeMap.empty()).tolist() == []


def test_the_far_side_is_told_that_we_still_hash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(random_bytes(200 * MIB))
    monkeypatch.setattr(leaves, "BEAT", 0.0)
    said: list[bytes] = []
    with far_side(tmp_path / "file") as (line, connect), open_device(str(tmp_path / "file")) as device:
        send = line.send_all

        def note(buffers: Sequence[bytes | bytearray | memoryview]) -> None:
            said.append(b"".join(buffers))
            send(buffers)

        monkeypatch.setattr(line, "send_all", note)
        assert not len(compare_device(device, device.size, connect, ignore).differing)
    assert said.count(BEAT) >= 4
    assert said[-1] == END


def test_a_leaf_that_differed_and_whose_blocks_do_not_was_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "new").write_bytes(random_bytes(3 * MIB))
    (tmp_path / "old").write_bytes(flip(random_bytes(3 * MIB), 2 * MIB))
    parse = leaves._parse_root

    def mend(values: dict[str, object], place: str) -> str:
        with (tmp_path / "new").open("r+b") as file:
            file.write((tmp_path / "old").read_bytes())
        return parse(values, place)

    monkeypatch.setattr(leaves, "_parse_root", mend)
    with pytest.raises(DeviceError, match="was written to while they were compared"):
        compare(tmp_path / "new", tmp_path / "old")


# What a far side may do wrong


def far(script: str) -> list[str]:
    return [sys.executable, "-c", f"import sys, time\nout = sys.stdout.buffer\n{script}\nout.flush()"]


def says(word: str) -> str:
    return f"out.write({f'lvmsync {word}'.encode()!r} + bytes([10]))\n"


# Each waits for what is asked next: who ends before it is asked has broken the line.
SIZE = says('LEAVES {"size": 3145728}') + "out.flush(); sys.stdin.buffer.read(8)\n"
ROOT = SIZE + says('ROOT {"root": "%s"}' % ("0" * 32)) + "out.flush(); sys.stdin.buffer.read(16)\n"
DIGESTS = ROOT + says('DIGESTS {"count": 3}')


@pytest.mark.parametrize(
    ("script", "kind", "message"),
    [
        ("out.write(b'Welcome\\n')", TransportError, "said 'Welcome' where lvmsync should have answered"),
        (says("LEAVES {"), TransportError, "where lvmsync should have answered"),
        (says("LEAVES [1]"), TransportError, "where lvmsync should have answered"),
        (says("LEAVES {}"), TransportError, "its size is not readable"),
        (says('LEAVES {"size": -1}'), TransportError, "its size is not readable"),
        (says('LEAVES {"size": true}'), TransportError, "its size is not readable"),
        ("out.write(b'x' * (2 << 20))", TransportError, "where lvmsync should have answered"),
        (SIZE, TransportError, "though its status is 0"),
        (f"{SIZE}out.flush(); sys.exit(5)", PeerError, "status 5"),
        (SIZE + says('REFUSAL {"code": 3, "message": "gone"}'), PeerError, "gone"),
        (SIZE + says("ROOT {}"), TransportError, "its root is not readable"),
        (SIZE + says('ROOT {"root": 5}'), TransportError, "its root is not readable"),
        (ROOT + says('DIGESTS {"count": 4}'), TransportError, "3 digests were asked for, and it has '4'"),
        (f"{DIGESTS}out.write(bytes(47))", TransportError, "in the middle of"),
        (f"{DIGESTS}out.write(bytes(48))", VerifyError, "do not fit its root"),
        ("sys.exit(127)", PeerError, "lvmsync was not found there"),
    ],
)
def test_a_far_side_that_says_nonsense_ends_in_one_line(
    tmp_path: Path, script: str, kind: type[LvmsyncError], message: str
) -> None:
    (tmp_path / "new").write_bytes(random_bytes(3 * MIB))
    with pytest.raises(kind, match=message), compared_with_program(tmp_path / "new", far(script)):
        pass


def test_a_far_side_that_fails_after_its_last_answer_is_no_success(tmp_path: Path) -> None:
    (tmp_path / "new").write_bytes(b"")
    root = hash_root(np.empty((0, 16), np.uint8), 0, 5)
    script = (
        says('LEAVES {"size": 0}')
        + says(f'ROOT {{"root": "{root}"}}')
        + "out.flush(); sys.stdin.buffer.read(16); sys.exit(3)"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lvmsync.jobs.leaves.secrets.randbits", lambda _: 5)
        with pytest.raises(PeerError, match="status 3"), compared_with_program(tmp_path / "new", far(script)):
            pass


def talk(target: Path, asked: bytes, size: int = 3 * MIB) -> bytes:
    said = bytearray()
    answer(str(target), size, 5, lambda buffers: said.extend(b"".join(buffers)), io.BytesIO(asked).readinto)
    return bytes(said)


def request(level: int, *numbers: int) -> bytes:
    return struct.pack(f"<II{len(numbers)}Q", level, len(numbers), *numbers)


END, WHOLE, BEAT = request(0), request(0xFFFFFFFF), request(0xFFFFFFFE)


@pytest.mark.parametrize(
    "asked",
    [
        b"",
        WHOLE,
        request(0, *range(257)),
        struct.pack("<II", 0, 1 << 31),
        request(0, 3),
        request(0, 1 << 63),
        request(0, 1, 1),
        request(0, 2, 1),
        request(0, 1)[:-1],
        request(0, 1)[:2],
        struct.pack("<IIQ", 0, 2, 1),
        request(1, 0),  # the tree was not asked for
        WHOLE + request(1, 1),
        WHOLE + request(2, 0),
        WHOLE + request(1),
        WHOLE + request(0xFFFFFFFF, 0),
    ],
)
def test_a_question_that_makes_no_sense_is_refused(tmp_path: Path, asked: bytes) -> None:
    (tmp_path / "file").write_bytes(bytes(3 * MIB))
    with pytest.raises(StreamError, match="the other side"):
        talk(tmp_path / "file", asked)


def test_an_answer_is_the_size_then_the_root_then_what_is_below_it(tmp_path: Path) -> None:
    data = random_bytes(3 * MIB - 100)
    (tmp_path / "file").write_bytes(data)
    said = talk(tmp_path / "file", BEAT + WHOLE + BEAT + request(1, 0) + request(0, 0, 2) + END, size=3 * MIB - 100)
    leaf = [xxhash.xxh3_128_digest(data[at : at + LEAF], 5) for at in range(0, len(data), LEAF)]
    top = xxhash.xxh3_128_digest(b"".join(leaf), 5)
    root = xxhash.xxh3_128_hexdigest(struct.pack("<Q", len(data)) + top, 5)
    blocks = [
        xxhash.xxh3_128_digest(data[at : at + BLOCK], 5)
        for at in [*range(0, MIB, BLOCK), *range(2 * MIB, len(data), BLOCK)]
    ]
    wanted = f'lvmsync LEAVES {{"size": 3145628}}\nlvmsync ROOT {{"root": "{root}"}}\n'.encode()
    wanted += b'lvmsync DIGESTS {"count": 3}\n' + b"".join(leaf)
    wanted += b'lvmsync DIGESTS {"count": 512}\n' + b"".join(blocks)
    assert said == wanted


def test_a_far_device_that_is_written_meanwhile_fails(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(MIB))

    asked = io.BytesIO(END)

    def write_then_end(buffer: memoryview) -> int:
        os.utime(path, ns=(1, 1))
        return asked.readinto(buffer)

    with pytest.raises(DeviceError, match="was written to while it was read"):
        answer(str(path), MIB, 5, lambda _: None, write_then_end)


def test_what_fails_here_leaves_no_thread_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "new").write_bytes(random_bytes(300 * MIB))
    before = threading.active_count()

    def fail(*_: object) -> None:
        raise TransportError("gone")

    monkeypatch.setattr(leaves, "_parse_root", fail)
    with pytest.raises(TransportError, match="gone"), compared(tmp_path / "new", tmp_path / "new"):
        pass
    deadline = time.monotonic() + 20
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert threading.active_count() <= before

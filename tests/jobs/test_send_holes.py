"""Holes and zeros on their way out: in order, between the data, and never read."""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lvmsync.extents import ChangeMap, as_table
from lvmsync.jobs import send as sending
from lvmsync.jobs.progress import Progress, ignore
from lvmsync.jobs.receive import ReceiveOptions, read_stream, receive
from lvmsync.jobs.send import StreamOptions
from lvmsync.names import Volume, WholeDevice
from lvmsync.sources import Source, open_source
from lvmsync.stream.frames import DELTA, FULL, Buffer, Changes, Data, End, Header, Hole, Mark, Zero
from lvmsync.stream.session import Receiver
from lvmsync.system import dm, ioctl
from lvmsync.targets.block import BlockTarget, open_target
from tests.fakes import Memory, change, make_source, reader, send
from tests.sources.loops import loop_of, sparse
from tests.strategies import change_maps

KIB, MIB = 1 << 10, 1 << 20
BLOCK = 4096


def frames_of(stream: bytes) -> list[Changes]:
    """Return the changes of a stream that keeps every rule: the counts and the order among them."""
    found = list(read_stream(reader(stream), Receiver()))
    assert isinstance(found[0], Header)
    return [frame for frame in found if isinstance(frame, (Data, Zero, Hole))]


def covered(frames: Sequence[Changes], kind: type) -> ChangeMap:
    return ChangeMap.from_extents(
        (offset, length) for frame in frames if isinstance(frame, kind) for offset, length in frame.table.tolist()
    )


class Unmapped(Memory):
    """Memory whose holes must not be read."""

    def __init__(self, content: bytes, holes: ChangeMap) -> None:
        super().__init__(content)
        self._holes = holes

    def read(self, offsets: Sequence[int], lengths: Sequence[int], out: memoryview) -> None:
        wanted = ChangeMap.from_extents(zip(offsets, lengths, strict=True))
        assert not len(wanted & self._holes)
        super().read(offsets, lengths, out)


def with_holes(changes: ChangeMap, holes: ChangeMap, content: bytes = bytes(range(1, 251)) * 2) -> Source:
    return replace(make_source(Unmapped(content, holes), changes), holes=holes)


@settings(max_examples=200, deadline=None)
@given(changes=change_maps(), holes=change_maps(), level=st.sampled_from((0, 1)))
@example(ChangeMap.whole(300), ChangeMap.whole(300), 0)
@example(ChangeMap.empty(), ChangeMap.whole(300), 0)
def test_data_and_holes_come_in_order_and_cover_exactly_the_changes(
    changes: ChangeMap, holes: ChangeMap, level: int
) -> None:
    frames = frames_of(send(with_holes(changes, holes), StreamOptions(level=level)))  # the session checks the order
    assert covered(frames, Hole) == changes & holes
    assert covered(frames, Data) == changes - holes
    kinds = [type(frame) for frame in frames]
    assert all(kind is not after for kind, after in itertools.pairwise(kinds))  # each run is one frame


def test_in_the_old_format_holes_become_zeros() -> None:
    content = b"\xff" * 500
    source = with_holes(ChangeMap.whole(500), ChangeMap.from_extents([(100, 50), (200, 300)]), content)
    frames = frames_of(send(source, StreamOptions(format=3)))
    assert not len(covered(frames, Hole))
    wanted = b"\xff" * 100 + bytes(50) + b"\xff" * 50 + bytes(300)
    assert change(b"\x11" * 500, frames) == wanted


def test_many_holes_behind_one_another_share_a_frame_and_long_ones_are_cut() -> None:
    apart = ChangeMap.from_extents((2 * index, 1) for index in range(10000))
    frames = list(sending.cut_batches(with_holes(apart, apart, bytes(20000))))
    assert [len(frame.table) for frame in frames if isinstance(frame, Hole)] == [4096, 4096, 1808]
    long = ChangeMap.from_extents([(0, (5 << 30) + 1)])
    frames = list(sending.cut_batches(replace(with_holes(long, long), size=6 << 30)))
    assert [frame.changed_bytes for frame in frames if isinstance(frame, Hole)] == [1 << 30] * 5 + [1]


def test_a_sparse_file_travels_as_holes_and_zeros_and_arrives_sparse(tmp_path: Path) -> None:
    data = np.random.default_rng(1).bytes(MIB)
    path = sparse(tmp_path / "file", 64 * MIB + 1000, (5 * MIB, data), (20 * MIB, bytes(3 * MIB)), (40 * MIB, data))
    with open_source(WholeDevice(Volume(str(path)))) as source:
        stream = send(source)
    frames = frames_of(stream)
    assert covered(frames, Zero) == ChangeMap.from_extents([(20 * MIB, 3 * MIB)])
    assert covered(frames, Data) == ChangeMap.from_extents([(5 * MIB, MIB), (40 * MIB, MIB)])
    assert len(stream) < 2 * MIB + 10000
    session = Receiver()
    list(read_stream(reader(stream), session))
    assert (session.header.intent, session.header.extents) == (FULL, 1)
    options = ReceiveOptions(target=str(tmp_path / "copy"), state=tmp_path / "state", create=True)
    receipt = receive(reader(stream), options, ignore)
    assert not any("changes alone" in note for note in receipt.notes)
    assert (tmp_path / "copy").read_bytes() == path.read_bytes()
    assert (tmp_path / "copy").stat().st_blocks * 512 <= 6 * MIB


def test_a_whole_device_sends_its_zeros_as_such(tmp_path: Path) -> None:
    data = np.random.default_rng(1).bytes(4 * MIB)
    image = bytearray(data)
    image[64 * KIB : 192 * KIB] = bytes(128 * KIB)
    image[3 * MIB - BLOCK : 3 * MIB + 64 * KIB] = bytes(BLOCK + 64 * KIB)
    (tmp_path / "file").write_bytes(image)
    with loop_of(tmp_path / "file") as device, open_source(WholeDevice(Volume(str(device)))) as source:
        frames = frames_of(send(source, StreamOptions(level=1)))
    assert covered(frames, Zero) == ChangeMap.from_extents([(64 * KIB, 128 * KIB), (3 * MIB, 64 * KIB)])
    assert change(b"\x11" * (4 * MIB), frames) == bytes(image)


@settings(max_examples=100, deadline=None)
@given(
    offset=st.integers(0, 3).map(lambda block: block * BLOCK),
    length=st.integers(1, 400 * KIB),
    pieces=st.lists(st.tuples(st.integers(0, 100), st.integers(1, 40)), max_size=4),
    dots=st.lists(st.integers(0, 400 * KIB), max_size=3),
)
def test_what_is_split_at_zeros_is_the_same_bytes(
    offset: int, length: int, pieces: Sequence[tuple[int, int]], dots: Sequence[int]
) -> None:
    image = bytearray(b"\xaa" * (offset + length))
    for first, count in pieces:
        part = image[first * BLOCK : (first + count) * BLOCK]
        image[first * BLOCK : (first + count) * BLOCK] = bytes(len(part))
    for dot in dots:
        if dot < len(image):
            image[dot] = 0xBB
    frames = sending._without_zeros(offset, memoryview(image)[offset:])
    assert change(bytes(offset) + b"\x11" * length, frames)[offset:] == image[offset:]
    ends = [offset]
    for frame in frames:
        assert frame.table.shape == (1, 2)
        assert int(frame.table[0, 0]) == ends[-1]
        ends.append(int(frame.table[0].sum()))
        if isinstance(frame, Zero):
            assert frame.changed_bytes >= 64 * KIB
    assert ends[-1] == offset + length


def test_a_block_that_only_begins_with_zeros_is_data() -> None:
    image = bytearray(64 * BLOCK)
    image[20 * BLOCK + 8] = image[41 * BLOCK - 1] = 1
    frames = sending._without_zeros(0, memoryview(image))
    assert [(type(frame), frame.table.tolist()) for frame in frames] == [
        (Zero, [[0, 20 * BLOCK]]), (Data, [[20 * BLOCK, BLOCK]]), (Zero, [[21 * BLOCK, 19 * BLOCK]]),
        (Data, [[40 * BLOCK, BLOCK]]), (Zero, [[41 * BLOCK, 23 * BLOCK]]),
    ]  # fmt: skip
    assert change(b"\x11" * len(image), frames) == bytes(image)


def test_a_delta_keeps_its_few_zeros_in_the_data() -> None:
    content = b"x" * BLOCK + bytes(MIB - 2 * BLOCK) + b"x" * BLOCK
    stream = send(make_source(content, [(0, MIB)]))
    assert [type(frame) for frame in frames_of(stream)] == [Data]
    session = Receiver()
    list(read_stream(reader(stream), session))
    assert session.header.intent == DELTA


@pytest.mark.parametrize("stream_format", [3, 4])
def test_marks_and_the_end_count_holes_as_well(stream_format: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sending, "MARK_EVERY", 100)
    source = with_holes(ChangeMap.whole(500), ChangeMap.from_extents([(100, 150), (300, 100)]), os.urandom(500))
    frames = list(read_stream(reader(send(source, StreamOptions(format=stream_format))), Receiver()))
    end = frames[-1]
    assert isinstance(end, End)
    assert end.changed_bytes == 500
    if stream_format == 4:
        assert [frame for frame in frames if isinstance(frame, Mark)] == [
            Mark(1, 100), Mark(2, 250), Mark(4, 400), Mark(5, 500),
        ]  # fmt: skip


def test_a_source_that_takes_its_time_to_make_sure_keeps_its_line_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sending, "SIGN_EVERY", 0.01)
    content = bytes(range(256)) * 32
    stream = bytearray()
    has_moved = threading.Event()

    def put(buffers: Sequence[bytes | bytearray | memoryview]) -> None:
        before = len(stream)
        stream.extend(b"".join(buffers))
        if is_confirming and len(stream) > before:
            has_moved.set()

    def confirm() -> None:
        is_confirming.append(True)
        assert has_moved.wait(60)

    is_confirming: list[bool] = []
    source = replace(make_source(Memory(content), ChangeMap.whole(len(content))), confirm=confirm)
    sending.Sender(source, put, StreamOptions(), ignore).deliver()
    frames = list(read_stream(reader(bytes(stream)), Receiver()))
    assert any(isinstance(frame, Mark) for frame in frames)
    assert isinstance(frames[-1], End)


def test_holes_call_for_no_mark_and_are_no_progress_however_large_they_are() -> None:
    size = 1 << 41
    changes = ChangeMap.whole(size)
    holes = changes - ChangeMap.from_extents([(0, MIB)])
    source = replace(make_source(Memory(os.urandom(MIB)), changes), size=size, holes=holes, is_full=True)
    stream, seen = bytearray(), list[Progress]()

    def put(buffers: Sequence[Buffer]) -> None:
        for buffer in buffers:
            stream.extend(buffer)

    receipt = sending.Sender(source, put, StreamOptions(resumable=True), seen.append).deliver()

    frames = list(read_stream(reader(bytes(stream)), Receiver()))
    assert sum(isinstance(frame, Hole) for frame in frames) == 2048
    assert sum(isinstance(frame, Mark) for frame in frames) < 5
    assert {one.total for one in seen} == {MIB}
    assert seen[-1].done == MIB
    assert receipt.bytes == size


@pytest.mark.parametrize("text", ["253:2 1 253:7", "253:2 1"])
def test_a_thin_target_that_another_volume_shows_through_is_not_unmapped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    path = tmp_path / "thin"
    path.write_bytes(bytes(MIB))
    with open_target(str(path)) as target:
        target._reader.number = (253, 3)
        line = dm.Line(dm.Mapped("vg-lv", "", (253, 3), 1), 0, MIB, "thin", text)
        monkeypatch.setattr(dm, "list_tables", lambda: [line])
        monkeypatch.setattr(Path, "read_text", lambda _: "65536\n")
        assert target._thin_block == (65536 if text == "253:2 1" else 0)


@pytest.mark.parametrize(("is_blank", "expected"), [(False, 3), (True, 1)])
def test_a_blank_thin_target_is_told_of_holes_only_where_something_may_have_been_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_blank: bool, expected: int
) -> None:
    path = tmp_path / "thin"
    path.write_bytes(b"\1" * (4 * MIB))
    discarded: list[tuple[int, int]] = []
    zeroed: list[int] = []

    def discard(fd: int, offset: int, length: int) -> None:
        discarded.append((offset, length))
        os.pwrite(fd, bytes(length), offset)

    monkeypatch.setattr(ioctl, "discard", discard)
    monkeypatch.setattr(ioctl, "zero_out", lambda fd, offset, length: os.pwrite(fd, bytes(length), offset))
    monkeypatch.setattr(BlockTarget, "_thin_block", 64 * KIB)
    with open_target(str(path)) as target:
        target.is_block, target.is_blank = True, is_blank
        data = os.urandom(MIB)
        target.write([Hole(as_table([0], [MIB])), Data(as_table([MIB], [MIB]), memoryview(data))])
        target.write([Hole(as_table([2 * MIB], [MIB + 5 * BLOCK])), Hole(as_table([3 * MIB + 5 * BLOCK], [MIB // 2]))])
        monkeypatch.setattr(ioctl, "zero_out", lambda fd, offset, length: zeroed.append(length))
        target.write([Zero(as_table([4 * MIB - 192 * KIB], [128 * KIB]))])
    assert zeroed == ([] if is_blank else [128 * KIB])
    assert len(discarded) == expected
    # Of a block of which only a part is a hole, that part is zeroed: the pool may give out blocks as they are.
    found = path.read_bytes()
    assert found[MIB : 2 * MIB] == data
    assert found[3 * MIB : 3 * MIB + 64 * KIB] == bytes(64 * KIB)
    assert found[:MIB] == bytes(MIB)

"""A snapback undoes its receive exactly, and the snapback of that does it again."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lvmsync.jobs import transaction
from lvmsync.jobs.progress import ignore
from lvmsync.jobs.receive import ReceiveOptions, receive
from lvmsync.stream import v3
from lvmsync.stream.frames import SNAPBACK, Data, Frame, Header
from lvmsync.stream.session import Receiver
from lvmsync.system.device import open_device
from lvmsync.targets.durable import read_durable
from tests import fakes
from tests.fakes import change, data, hole, reader, zero
from tests.fixture_files import Case, list_cases

LVMSYNC = Path(sys.executable).with_name("lvmsync")
SIZE = 1 << 15
WORD = st.integers(0, 255).map(lambda seed: bytes([seed]))


@st.composite
def images(draw: st.DrawFn) -> bytes:
    """Images of runs of bytes; many runs are zeros, as in real life."""
    runs = draw(st.lists(st.tuples(st.integers(1, 4096), st.sampled_from([0, 0, 1, 7, 255])), min_size=1, max_size=16))
    return b"".join(bytes([value]) * length for length, value in runs).ljust(SIZE, b"\0")[:SIZE]


@st.composite
def ordered_frames(draw: st.DrawFn) -> list[Frame]:
    """Frames of PROTO[4]: extents ascend and are disjoint, and there are marks between."""
    points = sorted(draw(st.sets(st.integers(0, SIZE), min_size=2, max_size=24)))
    frames: list[Frame] = []
    for offset, end in zip(points[::2], points[1::2], strict=False):
        kind = draw(st.sampled_from(["data", "zeros", "zero", "hole", "two", "mark"]))
        length = end - offset
        if kind == "two" and length > 1:
            frames.append(
                data((offset, b"\xaa" * (length // 2)), (offset + length // 2, b"\xbb" * (length - length // 2)))
            )
        elif kind in ("zero", "hole"):
            frames.append((zero if kind == "zero" else hole)((offset, length)))
        else:
            frames.append(data((offset, (bytes(1) if kind == "zeros" else draw(WORD)) * length)))
        if kind == "mark":
            frames.append(fakes.MARK)
    return frames


@st.composite
def any_records(draw: st.DrawFn) -> list[Frame]:
    """Records of PROTO[3]: any order, the same place more than once, places that overlap."""
    places = st.tuples(st.integers(0, SIZE - 1), st.integers(1, 6000), WORD)
    chosen = draw(st.lists(places, min_size=1, max_size=20))
    return [data((offset, word * min(length, SIZE - offset))) for offset, length, word in chosen]


def apply(stream: bytes, target: Path, state: Path, snapback: Path | None = None) -> None:
    receive(reader(stream), ReceiveOptions(str(target), state, snapback), ignore)


def there_and_back(old: bytes, frames: Sequence[Frame], version: int, window: int) -> None:
    """Receive, apply the snapback of that, the snapback of that, and so on."""
    header = Header(size=SIZE, changed_bytes=fakes.count_bytes(frames))
    stream = fakes.encode(frames, header, version)
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=memory) as name, pytest.MonkeyPatch.context() as patch:
        patch.setattr(transaction, "WINDOW", window)
        patch.setattr(v3, "_ROOM", 16384)
        patch.setattr(os, "fsync", lambda fd: None)
        patch.setattr(os, "fdatasync", lambda fd: None)
        folder = Path(name)
        target, state = folder / "target", folder / "state"
        target.write_bytes(old)
        new = change(old, frames)
        for number, expected in enumerate((new, old, new, old)):
            kept = folder / f"snapback{number}"
            apply(stream, target, state, kept)
            assert target.read_bytes() == expected
            stream = kept.read_bytes()
        assert Path(name, "snapback1").stat().st_size > 0


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(images(), ordered_frames(), st.sampled_from([1, 5000, 1 << 20]))
def test_receive_and_snapback_are_the_identity(old: bytes, frames: list[Frame], window: int) -> None:
    there_and_back(old, frames, 4, window)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(images(), any_records(), st.sampled_from([1, 5000, 1 << 20]))
def test_v3_with_places_named_twice_and_snapback_are_the_identity(old: bytes, frames: list[Frame], window: int) -> None:
    there_and_back(old, frames, 3, window)


def test_a_v4_snapback_says_what_it_leads_back_to(tmp_path: Path) -> None:
    target, state, kept = tmp_path / "target", tmp_path / "state", tmp_path / "kept"
    target.write_bytes(b"\1" * 8192 + bytes(8192))
    apply(fakes.encode([data((0, b"\2" * 4096)), hole((8192, 8192))], Header(size=16384)), target, state, kept)
    header, *changes = read_durable(kept, None)
    assert isinstance(header, Header)
    assert (header.size, header.intent, header.name) == (16384, SNAPBACK, str(target))
    assert header.head
    assert header.base
    assert header.base.parent == header.head.id
    # What was zeros is saved as such: it costs no room.
    assert fakes.count_bytes(frame for frame in changes if isinstance(frame, Data)) == 4096
    assert fakes.count_bytes(changes) == 12288


def test_a_v3_snapback_saves_no_byte_twice(tmp_path: Path) -> None:
    target, state, kept = tmp_path / "target", tmp_path / "state", tmp_path / "kept"
    old = bytes(range(256)) * 64
    target.write_bytes(old)
    pieces = [(4096, b"a" * 512), (0, b"b" * 512), (256, b"c" * 512), (4096, b"d" * 512)]
    apply(fakes.encode([data(*pieces[:2]), data(*pieces[2:])], version=3), target, state, kept)
    session = Receiver()
    frames = []
    with kept.open("rb", buffering=0) as file:
        while count := file.readinto(session.get_buffer()):
            session.received(count)
            frames += list(session.frames())
        frames += list(session.receive_eof())
    saved = [extent for frame in frames if isinstance(frame, Data) for extent in frame.table.tolist()]
    assert sorted(saved) == [[0, 768], [4096, 512]]  # no byte twice, none left out
    apply(kept.read_bytes(), target, state)
    assert target.read_bytes() == old


@pytest.mark.parametrize("case", list_cases("proto3"), ids=str)
def test_streams_of_the_original_are_applied_and_undone_as_it_does(case: Case, tmp_path: Path) -> None:
    """With the installed command; the answers are the original's."""
    stream, theirs = case.image("stream.bin", tmp_path), case.image("snapback.bin", tmp_path)
    before, after = case.image("source-before.img", tmp_path), case.image("source-after.img", tmp_path)
    expected = case.facts["expected"]
    kept = tmp_path / "kept"

    def run(*words: object) -> None:
        subprocess.run([LVMSYNC, *map(str, words), "--state", tmp_path / "state"], check=True, capture_output=True)

    def digest(path: Path) -> str:
        return hashlib.sha256(path.read_bytes()).hexdigest()

    run("--apply", stream, "--snapback", kept, before)  # the original's own words
    assert digest(before) == expected["apply stream to source-before"]
    assert digest(kept) == expected["apply stream --snapback to source-before writes"]
    run("apply", theirs, after)
    assert digest(after) == expected["apply snapback to source-after"]
    run("apply", kept, before)
    assert digest(before) == case.facts["source_before_sha256"]


def test_a_hole_takes_no_room_in_the_file_and_zeros_keep_theirs(tmp_path: Path) -> None:
    target, state = tmp_path / "target", tmp_path / "state"
    target.write_bytes(b"\1" * (1 << 20))
    before = target.stat().st_blocks
    apply(fakes.encode([zero((0, 1 << 19))], Header(size=1 << 20)), target, state)
    apply(fakes.encode([hole((1 << 19, 1 << 19))], Header(size=1 << 20)), target, state)
    assert not any(target.read_bytes())
    assert before // 4 <= target.stat().st_blocks <= before * 3 // 4
    with open_device(str(target)) as device:
        assert device.size == 1 << 20

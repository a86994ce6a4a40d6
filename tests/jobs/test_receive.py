"""A stream is applied whole or not at all, whatever comes in its place."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import random
import struct
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from lvmsync.errors import ConflictError, DeviceError, LvmsyncError, StreamError, UsageError
from lvmsync.jobs import transaction
from lvmsync.jobs.progress import Receipt, ignore
from lvmsync.jobs.receive import ReceiveOptions, receive
from lvmsync.jobs.recover import recover
from lvmsync.jobs.send import Sender, StreamOptions
from lvmsync.stream import v3, v4
from lvmsync.stream.frames import Abort, End, Frame, Header
from lvmsync.system.ledger import open_ledger
from lvmsync.system.record import Transaction
from tests import fakes
from tests.fakes import MARK, Disk, change, data, hole, reader, zero

SEED = 4242
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to mount a small file system")


class Place:
    """An image file and a state folder."""

    def __init__(self, folder: Path, old: bytes) -> None:
        self.target = folder / "target.img"
        self.old = old
        self.options = ReceiveOptions(str(self.target), folder / "state")
        self.target.write_bytes(old)

    def receive(self, stream: bytes, **options: object) -> Receipt:
        return receive(reader(stream), replace(self.options, **options), ignore)  # type: ignore[arg-type]

    def is_old(self) -> bool:
        return self.target.read_bytes() == self.old

    def forget(self) -> None:
        """Begin anew, as if nothing had been received."""
        self.target.write_bytes(self.old)
        for path in self.options.state.rglob("record.json"):
            path.unlink()

    def is_at_rest(self) -> bool:
        """Tell whether no transaction is open, and nothing is left of one."""
        left = {path.name for path in self.options.state.rglob("*") if path.is_file()} - {
            "lock",
            "record.json",
            "record.json.new",
            "reserve",
        }
        records = [path.read_text() for path in self.options.state.rglob("record.json")]
        return not left and all('"transaction": null' in text and '"dirty": false' in text for text in records)


@contextlib.contextmanager
def unsynced() -> Iterator[None]:
    """Make syncs cheap, for thousands of receives: that they come in time is another test's matter."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda fd: None)
        patch.setattr(os, "fdatasync", lambda fd: None)
        yield


# A stream of every kind of frame, so short that each of its bits can be flipped.

SMALL = random.Random(SEED).randbytes(4096)
SMALL_FRAMES: list[Frame] = [
    data((0, b"new"), (700, b"also new")),
    MARK,
    zero((1024, 100)),
    hole((2048, 1000)),
    data((4000, b"the last of it")),
]
SMALL_STREAM = fakes.encode(SMALL_FRAMES, Header(size=len(SMALL)))


@pytest.fixture
def small(fast_path: Path) -> Iterator[Place]:
    with unsynced(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(transaction, "WINDOW", 1)
        yield Place(fast_path, SMALL)


def test_the_small_stream_is_good(small: Place) -> None:
    receipt = small.receive(SMALL_STREAM)
    assert small.target.read_bytes() == change(SMALL, SMALL_FRAMES)
    assert (receipt.extents, receipt.bytes, receipt.wire_bytes) == (5, 1125, len(SMALL_STREAM))
    assert receipt.durable
    assert small.is_at_rest()


def test_no_flipped_bit_is_a_success_or_leaves_a_change(small: Place) -> None:
    for bit in range(8 * len(SMALL_STREAM)):
        bad = bytearray(SMALL_STREAM)
        bad[bit // 8] ^= 1 << bit % 8
        with pytest.raises(StreamError):
            small.receive(bytes(bad))
        assert small.is_old(), bit
    assert small.is_at_rest()


def test_no_cut_is_a_success_or_leaves_a_change(small: Place) -> None:
    for length in range(len(SMALL_STREAM)):
        with pytest.raises(StreamError):
            small.receive(SMALL_STREAM[:length])
        assert small.is_old(), length
    assert small.is_at_rest()


def test_a_lost_repeated_or_swapped_frame_is_no_success(small: Place) -> None:
    edges = [0]
    decoder = v4.Decoder()
    stream = memoryview(SMALL_STREAM)[len(v4.MAGIC) :]
    at = 0
    while at < len(stream):
        buffer = decoder.get_buffer()
        buffer[:] = stream[at : at + len(buffer)]
        at += len(buffer)
        decoder.received(len(buffer))
        if list(decoder.frames()):
            edges.append(at)
    frames = [bytes(stream[a:b]) for a, b in itertools.pairwise(edges)]
    assert len(frames) == 7
    for first in range(len(frames)):
        lost = frames[:first] + frames[first + 1 :]
        twice = [*frames[:first], frames[first], *frames[first:]]
        swapped = frames[:first] + frames[first : first + 2][::-1] + frames[first + 2 :]
        for bad in (lost, twice, swapped) if first < len(frames) - 1 else (lost, twice):
            # Before a byte of it is applied: neither the order of the extents nor the END had to find it.
            with pytest.raises(StreamError, match=r"lost, repeated or out of order|has no END|after the end"):
                small.receive(v4.MAGIC + b"".join(bad))
            assert small.is_old()


def test_an_end_with_the_digest_of_another_stream_is_no_success(small: Place) -> None:
    encoder = v4.Encoder()
    stream = b"".join([*encoder.encode(Header(size=4096)), *encoder.encode(data((0, b"new")))])
    encoder._digest.update(b"something that did not come")
    with pytest.raises(StreamError, match="digest"):
        small.receive(stream + b"".join(encoder.encode(End(1, 3))))
    assert small.is_old()


def test_without_undo_a_bad_stream_leaves_each_byte_old_or_new_and_says_so(small: Place) -> None:
    new = change(SMALL, SMALL_FRAMES)
    chance = random.Random(SEED)
    states = set()
    bits = chance.sample(range(8 * len(SMALL_STREAM)), 150)
    cuts = [8 * length for length in range(len(SMALL_STREAM))]
    for bit, is_cut in [(bit, False) for bit in bits] + [(cut, True) for cut in cuts]:
        bad = bytearray(SMALL_STREAM)
        if is_cut:
            del bad[bit // 8 :]
        else:
            bad[bit // 8] ^= 1 << bit % 8
        with pytest.raises(StreamError) as caught:
            small.receive(bytes(bad), undo=False)
        found = small.target.read_bytes()
        assert all(byte in pair for byte, pair in zip(found, zip(SMALL, new, strict=True), strict=True)), bit
        assert found == SMALL or "do not use it" in caught.value.__notes__[0]
        states.add(found)
        small.forget()
    assert len(states) > 3


def test_bytes_behind_the_end_undo_everything(small: Place) -> None:
    for tail in (b"\0", b"\n", SMALL_STREAM):
        with pytest.raises(StreamError, match="after the end"):
            small.receive(SMALL_STREAM + tail)
        assert small.is_old()
    assert small.is_at_rest()


def test_an_abort_undoes_everything_and_gives_the_reason(small: Place) -> None:
    stream = fakes.encode([*SMALL_FRAMES, Abort("the snapshot is full")], Header(size=4096), end=False)
    with pytest.raises(StreamError, match="the snapshot is full") as caught:
        small.receive(stream)
    assert small.is_old()
    assert "rolled back" in caught.value.__notes__[0]
    assert small.is_at_rest()


@pytest.mark.parametrize("atomic", [False, True])
def test_a_sender_that_cannot_confirm_leaves_nothing(small: Place, atomic: bool) -> None:
    def fail() -> None:
        raise DeviceError("the snapshot overflowed meanwhile")

    stream: list[bytes] = []
    source = fakes.make_source(bytes(4096), [(0, 4096)], confirm=fail)
    sender = Sender(source, lambda buffers: stream.extend(map(bytes, buffers)), StreamOptions(), ignore)
    with pytest.raises(DeviceError):
        sender.deliver()
    with pytest.raises(StreamError, match="overflowed meanwhile"):
        small.receive(b"".join(stream), atomic=atomic)
    assert small.is_old()
    assert small.is_at_rest()


@pytest.mark.parametrize(
    "noise", [b"", b"Welcome to host!\n", b"lvmsync PROTO[2]\n", b"lvmsync PROTO[5]\n" + bytes(99), bytes(100)]
)
def test_what_is_no_stream_changes_nothing(small: Place, noise: bytes) -> None:
    with pytest.raises(StreamError):
        small.receive(noise)
    assert small.is_old()
    assert not small.options.state.exists()


# A long stream

LARGE_SIZE = 24 << 20


@pytest.fixture(scope="module")
def large() -> tuple[bytes, bytes, dict[str, bytes]]:
    """An old image, what it becomes, and the streams of that: plain, compressed, and in the old format."""
    chance = random.Random(SEED)
    old = chance.randbytes(LARGE_SIZE)
    new = bytearray(old)
    ranges = []
    for at in range(0, LARGE_SIZE, 1 << 16):
        length = chance.randrange(1, 1 << 16)
        new[at : at + length] = chance.randbytes(length // 2) + bytes(length - length // 2)
        ranges.append((at, length))
    source = fakes.make_source(bytes(new), ranges)
    streams = {
        "plain": fakes.send(source),
        "compressed": fakes.send(source, StreamOptions(4, 1)),
        "v3": fakes.send(source, StreamOptions(3)),
    }
    return old, bytes(new), streams


@pytest.mark.parametrize("kind", ["plain", "compressed"])
def test_damage_anywhere_in_a_long_stream_is_no_success(
    fast_path: Path, large: tuple[bytes, bytes, dict[str, bytes]], kind: str
) -> None:
    old, new, streams = large
    stream = streams[kind]
    place = Place(fast_path, old)
    chance = random.Random(SEED)
    with unsynced(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(transaction, "WINDOW", 2 << 20)
        for _ in range(8):
            bad = bytearray(stream)
            bad[chance.randrange(len(bad))] ^= 1 << chance.randrange(8)
            with pytest.raises(StreamError):
                place.receive(bytes(bad))
            assert place.is_old()
            with pytest.raises(StreamError):
                place.receive(stream[: chance.randrange(len(stream))])
            assert place.is_old()
        place.receive(stream)
    assert place.target.read_bytes() == new
    assert place.is_at_rest()


# PROTO[3]


def records(*pieces: tuple[int, bytes]) -> bytes:
    return v3.MAGIC + b"".join(struct.pack(">QI", offset, len(content)) + content for offset, content in pieces)


def test_a_v3_stream_cut_inside_a_record_is_undone_and_one_cut_between_two_is_noted(small: Place) -> None:
    pieces = [(0, b"new"), (700, b"also new"), (10, b"x"), (2, b"once more"), (4000, b"the last of it")]
    stream = records(*pieces)
    borders = {len(records(*pieces[:count])): pieces[:count] for count in range(len(pieces) + 1)}
    for length in range(len(stream) + 1):
        if length not in borders:
            with pytest.raises(StreamError):
                small.receive(stream[:length])
            assert small.is_old(), length
            continue
        receipt = small.receive(stream[:length])
        assert any("whether it is whole cannot be known" in note for note in receipt.notes)
        assert small.target.read_bytes() == change(SMALL, [data(piece) for piece in borders[length]])
        small.forget()
    assert len(borders) == 6


def test_a_long_v3_stream_cut_inside_a_record_is_undone(
    fast_path: Path, large: tuple[bytes, bytes, dict[str, bytes]]
) -> None:
    old, new, streams = large
    place = Place(fast_path, old)
    chance = random.Random(SEED)
    with unsynced(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(transaction, "WINDOW", 2 << 20)
        for _ in range(4):
            with pytest.raises(StreamError, match="inside a record"):
                place.receive(streams["v3"][: chance.randrange(len(streams["v3"]))])
            assert place.is_old()
        place.receive(streams["v3"])
    assert place.target.read_bytes() == new


def test_a_v3_record_past_the_end_stops_and_undoes_everything(small: Place) -> None:
    for piece in ((4095, b"xy"), (4096, b"x"), (1 << 40, b"x")):
        with pytest.raises(DeviceError, match="ends at 4096"):
            small.receive(records((0, b"new"), piece, (10, b"new")))
        assert small.is_old()
    assert small.is_at_rest()


def test_a_v3_record_past_the_end_can_be_dropped_and_is_listed(small: Place) -> None:
    receipt = small.receive(records((0, b"new"), (4095, b"xy"), (4097, b"zz"), (9000, b"x")), allow_smaller=True)
    assert small.target.read_bytes() == b"new" + SMALL[3:4095] + b"x"
    assert receipt.dropped == [[4096, 3], [9000, 1]]


@pytest.mark.parametrize("record", [struct.pack(">QI", 0, 0), struct.pack(">QI", (1 << 63) - 1, 2), b"\xff" * 12])
def test_an_impossible_v3_record_undoes_everything(small: Place, record: bytes) -> None:
    with pytest.raises(StreamError, match="not possible"):
        small.receive(records((0, b"new")) + record + b"xx")
    assert small.is_old()


# Sizes


def test_a_smaller_target_is_refused_before_the_first_write(small: Place) -> None:
    stream = fakes.encode([data((0, b"new"))], Header(size=4097))
    with pytest.raises(DeviceError, match="4096 bytes and the source has 4097"):
        small.receive(stream)
    assert small.is_old()
    assert not list(small.options.state.rglob("record.json"))


@pytest.mark.parametrize("options", [{}, {"atomic": True}, {"undo": False}], ids=str)
def test_what_a_smaller_target_loses_is_listed_exactly(small: Place, options: dict[str, bool]) -> None:
    frames: list[Frame] = [
        data((0, b"new"), (4090, b"0123456789"), (4200, b"abc")),
        zero((5000, 10), (5010, 30)),
        hole((6000, 100)),
    ]
    header = Header(size=8192, changed_bytes=fakes.count_bytes(frames))
    receipt = small.receive(fakes.encode(frames, header), allow_smaller=True, **options)
    assert small.target.read_bytes() == b"new" + SMALL[3:4090] + b"012345"
    assert receipt.dropped == [[4096, 4], [4200, 3], [5000, 40], [6000, 100]]
    assert small.is_at_rest()


def test_a_larger_target_is_noted_and_its_tail_left_alone(small: Place) -> None:
    receipt = small.receive(fakes.encode([hole((0, 4000))], Header(size=4000)))
    assert any("larger than the source" in note for note in receipt.notes)
    assert small.target.read_bytes() == bytes(4000) + SMALL[4000:]


def test_a_header_that_announces_other_changes_than_come_is_no_success(small: Place) -> None:
    with pytest.raises(StreamError, match="announced 1126"):
        small.receive(fakes.encode(SMALL_FRAMES, Header(size=4096, changed_bytes=1126)))
    assert small.is_old()


# What is in the way


def test_a_snapback_file_that_is_there_is_refused_and_untouched(small: Place, fast_path: Path) -> None:
    kept = fast_path / "kept"
    kept.write_bytes(b"precious")
    with pytest.raises(DeviceError, match="never overwritten"):
        small.receive(SMALL_STREAM, snapback=kept)
    assert kept.read_bytes() == b"precious"
    assert small.is_old()
    assert small.is_at_rest()


def test_a_snapback_file_that_comes_between_is_refused_and_untouched(small: Place, fast_path: Path) -> None:
    """The check at the beginning is a courtesy; the file is made with O_EXCL."""
    kept = fast_path / "kept"
    given = reader(SMALL_STREAM)

    def receive_some(buffer: memoryview) -> int:
        if not kept.exists():
            kept.write_bytes(b"precious")
        return given(buffer)

    with pytest.raises(DeviceError, match="never overwritten"):
        receive(receive_some, replace(small.options, snapback=kept), ignore)
    with pytest.raises(DeviceError, match="never overwritten"):
        small.receive(SMALL_STREAM, snapback=kept, atomic=True)
    assert kept.read_bytes() == b"precious"
    assert small.is_old()
    assert small.is_at_rest()


def test_a_folder_for_the_snapback_that_is_missing_changes_nothing(small: Place, fast_path: Path) -> None:
    with pytest.raises(DeviceError, match="nowhere"):
        small.receive(SMALL_STREAM, snapback=fast_path / "nowhere" / "kept")
    assert small.is_old()
    assert small.is_at_rest()


def test_a_file_to_be_made_must_not_be_there(small: Place) -> None:
    with pytest.raises(DeviceError, match="there already"):
        small.receive(SMALL_STREAM, create=True)
    assert small.is_old()


def test_a_made_file_is_removed_again_if_the_stream_is_bad(small: Place, fast_path: Path) -> None:
    made = fast_path / "made.img"
    for options in ({}, {"atomic": True}, {"snapback": fast_path / "kept"}, {"undo": False}):
        with pytest.raises(StreamError):
            small.receive(SMALL_STREAM[:-1], target=str(made), create=True, **options)
        assert not made.exists()
        assert not (fast_path / "kept").exists()
    small.receive(SMALL_STREAM, target=str(made), create=True)
    assert made.read_bytes() == change(bytes(4096), SMALL_FRAMES)
    assert small.is_at_rest()


def test_v3_cannot_make_a_file_for_it_tells_no_size(small: Place, fast_path: Path) -> None:
    with pytest.raises(UsageError, match="tells its size"):
        small.receive(records((0, b"x")), target=str(fast_path / "made.img"), create=True)
    assert not (fast_path / "made.img").exists()


def test_a_dry_run_checks_everything_and_changes_nothing(small: Place, fast_path: Path) -> None:
    assert small.receive(SMALL_STREAM, dry_run=True).dry_run
    with pytest.raises(StreamError):
        small.receive(SMALL_STREAM[:-1], dry_run=True)
    with pytest.raises(DeviceError):
        small.receive(fakes.encode([], Header(size=5000)), dry_run=True)
    assert small.receive(SMALL_STREAM, dry_run=True, create=True, target=str(fast_path / "made.img")).dry_run
    assert not (fast_path / "made.img").exists()
    assert small.is_old()
    assert not list(small.options.state.rglob("record.json"))


def test_of_two_receivers_the_second_is_refused(small: Place) -> None:
    """The first is in the middle of its stream; it is not disturbed."""
    claimed, reached, go_on = threading.Event(), threading.Event(), threading.Event()
    given = reader(SMALL_STREAM)
    left = len(SMALL_STREAM) - 10

    def receive_some(buffer: memoryview) -> int:
        nonlocal left
        if left == 0:
            reached.set()
            assert go_on.wait(60)
            return given(buffer)
        count = given(buffer[:left])
        left -= count
        return count

    results: list[Receipt] = []
    first = threading.Thread(
        target=lambda: results.append(receive(receive_some, small.options, ignore, on_ready=claimed.set))
    )
    first.start()
    assert claimed.wait(60)
    assert reached.wait(60)
    other_state = small.options.state.with_name("other")
    for options in ({}, {"state": other_state}):
        with pytest.raises((DeviceError, ConflictError), match=r"locked|open in|another"):
            small.receive(SMALL_STREAM, **options)
    go_on.set()
    first.join()
    assert results[0].durable
    assert small.target.read_bytes() == change(SMALL, SMALL_FRAMES)


def test_a_state_folder_that_cannot_be_made_changes_nothing(small: Place, fast_path: Path) -> None:
    (fast_path / "file").write_bytes(b"")
    with pytest.raises(DeviceError, match="--state"):
        small.receive(SMALL_STREAM, state=fast_path / "file" / "state")
    assert small.is_old()


@contextlib.contextmanager
def mounted(folder: Path, options: str) -> Iterator[Path]:
    """Mount a file system in memory, and unmount it again."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "lvmsync-test", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


@needs_root
def test_a_state_folder_that_is_read_only_changes_nothing(small: Place, tmp_path: Path) -> None:
    with mounted(tmp_path / "state", "ro") as state, pytest.raises(DeviceError, match="--state"):
        small.receive(SMALL_STREAM, state=state)
    assert small.is_old()


MEDIUM_SIZE = 4 << 20
MEDIUM = random.Random(SEED + 1).randbytes(MEDIUM_SIZE)
MEDIUM_FRAMES: list[Frame] = [
    data((at, random.Random(at).randbytes(256 << 10))) for at in range(0, MEDIUM_SIZE, 512 << 10)
]


@needs_root
def test_too_little_room_for_the_undo_is_found_before_the_first_write(tmp_path: Path) -> None:
    place = Place(tmp_path, MEDIUM)
    header = Header(size=MEDIUM_SIZE, changed_bytes=fakes.count_bytes(MEDIUM_FRAMES))
    with mounted(tmp_path / "small", "size=1m") as state:
        options = replace(place.options, state=state)
        with pytest.raises(DeviceError, match="nothing was written"):
            receive(reader(fakes.encode(MEDIUM_FRAMES, header)), options, ignore)
        assert place.is_old()
        # Elsewhere there is room.
        receive(reader(fakes.encode(MEDIUM_FRAMES, header)), replace(options, snapback=tmp_path / "kept"), ignore)
    assert place.target.read_bytes() == change(MEDIUM, MEDIUM_FRAMES)


@needs_root
@pytest.mark.parametrize("atomic", [False, True], ids=["undo", "spool"])
def test_a_disk_that_runs_full_in_the_middle_undoes_everything(tmp_path: Path, atomic: bool) -> None:
    """The header does not tell how much will change, so that only the write can find it out."""
    place = Place(tmp_path, MEDIUM)
    stream = fakes.encode(MEDIUM_FRAMES, Header(size=MEDIUM_SIZE))
    with mounted(tmp_path / "small", "size=1m") as state, pytest.MonkeyPatch.context() as patch:
        patch.setattr(transaction, "WINDOW", 300 << 10)
        options = replace(place.options, state=state, atomic=atomic)
        with pytest.raises(DeviceError, match=os.strerror(errno.ENOSPC)) as caught:
            receive(reader(stream), options, ignore)
        assert place.is_old()
        assert "rolled back" in caught.value.__notes__[0]
        place.options = options
        assert place.is_at_rest()


def fill(folder: Path) -> None:
    """Fill a file system to the last block."""
    with contextlib.suppress(OSError), (folder / "filler").open("ab", buffering=0) as filler:
        while True:
            filler.write(bytes(4096))


@needs_root
def test_the_ledger_has_room_on_a_full_disk_as_long_as_a_transaction_is_open(tmp_path: Path) -> None:
    with mounted(tmp_path / "small", "size=1m") as state:
        with open_ledger(state, "target", {"file": "1:1"}, 4096) as ledger:
            ledger.write_ahead(transaction=Transaction("0123", phase="staging"))
            fill(state)
            with pytest.raises(DeviceError, match="cannot write the ledger"):
                ledger.write_ahead(transaction=Transaction("0123"))  # what is to end it is not spent on going on
            for number in range(20):
                ledger.write(transaction=Transaction("0123", extents=number))
            ledger.write(transaction=None)
        with open_ledger(state, "target", {"file": "1:1"}, 4096) as ledger:
            assert ledger.record.transaction is None
            fill(state)
            with pytest.raises(DeviceError, match="cannot write the ledger"):
                ledger.write_ahead(transaction=Transaction("4567"))  # a new one is not begun without room to end it


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("kind", ["undo", "snapback", "atomic", "create"])
def test_an_error_of_any_one_operation_undoes_everything_or_is_left_to_recover(
    fast_path: Path, code: int, kind: str
) -> None:
    """Every operation fails once: never a success that is none, and never a change that cannot be taken back."""
    disk = Disk(fast_path / "disk")
    place = Place(disk.root, SMALL)
    kept = disk.root / "kept"
    made = disk.root / "made.img"
    target = made if kind == "create" else place.target
    options: dict[str, dict[str, object]] = {
        "undo": {},
        "snapback": {"snapback": kept},
        "atomic": {"atomic": True},
        "create": {"create": True, "target": str(made)},
    }
    old = None if kind == "create" else SMALL
    new = change(old or bytes(4096), SMALL_FRAMES)

    def content() -> bytes | None:
        return target.read_bytes() if target.exists() else None

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transaction, "WINDOW", 1)
        with disk.recorded() as record:
            place.receive(SMALL_STREAM, **options[kind])
        rolled_back = left_open = 0
        for bad, bad_step in enumerate(record.steps):
            failed = False

            def fail(number: int, step: fakes.Step, bad: int = bad) -> None:
                nonlocal failed
                if number == bad and not failed:
                    failed = True
                    raise OSError(code, os.strerror(code))

            disk.lay_out(record.before)
            error: LvmsyncError | None = None
            with disk.recorded(fail):
                try:
                    place.receive(SMALL_STREAM, **options[kind])
                except LvmsyncError as failure:
                    error = failure
            assert failed
            if error is None:
                assert content() == new, bad_step
                assert bad_step.kind == "unlink" or code == errno.ENOSPC  # for which the ledger keeps a reserve
                continue
            with disk.recorded():
                if place.is_at_rest():
                    rolled_back += 1
                else:
                    left_open += 1
                    with contextlib.suppress(DeviceError):  # a file that was to be made is gone already
                        recover(str(target), place.options.state, ignore)
                    assert place.is_at_rest(), bad_step
                assert content() in (old, new) or (kind == "create" and content() == b""), bad_step
                assert content() == new or not kept.exists(), bad_step
        assert rolled_back > 10
        assert left_open

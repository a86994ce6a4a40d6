"""Streams that are cut and gone on with: little is sent twice, and old and new stay exactly that."""

from __future__ import annotations

import itertools
import os
import random
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lvmsync.errors import ChangesLost, ConflictError, StreamError, TransportError, UsageError, VerifyError
from lvmsync.extents import ChangeMap
from lvmsync.history import Point
from lvmsync.jobs import send as sending
from lvmsync.jobs import transaction
from lvmsync.jobs.progress import Receipt, ignore
from lvmsync.jobs.receive import ReceiveOptions, receive
from lvmsync.jobs.recover import recover
from lvmsync.jobs.send import Resume, Sender, StreamOptions
from lvmsync.jobs.standing import Standing, Unfinished, standing
from lvmsync.sources.source import Source
from lvmsync.stream.frames import FULL, Header, Sample
from lvmsync.system import seen
from tests import fakes
from tests.fakes import make_source, reader

BLOCK = 4096
BASE, HEAD = Point("lv:base"), Point("lv:head", "lv:base")


class Pair:
    """A source whose every third block has changed, or been unmapped, and its target."""

    def __init__(self, folder: Path, size: int = 256 * BLOCK) -> None:
        chance = random.Random(size)
        self.old = chance.randbytes(size)
        changed = [(at, BLOCK) for at in range(0, size, 3 * BLOCK)]
        holes = changed[5::7]
        new = bytearray(self.old)
        for at, length in changed:
            new[at : at + length] = chance.randbytes(length)
        for at, length in holes:
            new[at : at + length] = bytes(length)
        self.new = bytes(new)
        source = make_source(self.new, changed)
        self.source = replace(source, base=BASE, head=HEAD, holes=ChangeMap.from_extents(holes))
        self.target = folder / "target.img"
        self.state = folder / "state"
        self.target.write_bytes(self.old)

    @property
    def whole(self) -> Source:
        """The same device as a first copy."""
        return replace(self.source, base=None, changes=ChangeMap.whole(self.source.size), is_full=True)

    def stand(self) -> Standing:
        return standing(str(self.target), self.state)

    def unfinished(self) -> Unfinished:
        found = self.stand().transaction
        assert found
        return found

    def place(self) -> Resume | None:
        """Return where to go on, if there is a transaction."""
        found = self.stand().transaction
        return Resume(found.offset, found.id) if found else None

    def stream(self, source: Source | None = None, samples: Sequence[Sample] = ()) -> bytes:
        sent = bytearray()

        def keep(buffers: Sequence[bytes | bytearray | memoryview]) -> None:
            for buffer in buffers:
                sent.extend(buffer)

        options = StreamOptions(resumable=True)
        Sender(source or self.source, keep, options, ignore, resume=self.place(), samples=samples).deliver()
        return bytes(sent)

    def receive(self, stream: bytes, **options: Any) -> Receipt:
        chosen = ReceiveOptions(str(self.target), self.state, **{"resumable": True, **options})
        return receive(reader(stream), chosen, ignore)

    def cut(self, stream: bytes, length: int, **options: Any) -> None:
        """Receive a stream of which only ``length`` bytes come."""
        with pytest.raises(StreamError) as caught:
            self.receive(stream[:length], **options)
        assert "run the same sync again to go on" in "".join(getattr(caught.value, "__notes__", ()))

    def recover(self, **options: bool) -> str:
        return recover(str(self.target), self.state, ignore, **options).notes[0]

    def left(self) -> list[Path]:
        return [path for path in self.state.rglob("*.*") if path.name != "record.json"]


@pytest.fixture
def pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pair:
    """Small frames and windows, so that there are many."""
    monkeypatch.setattr(sending, "batch_for", lambda total, is_resumed: 4 * BLOCK)
    monkeypatch.setattr(sending, "mark_distance", lambda total: 20 * BLOCK)
    monkeypatch.setattr(transaction, "WINDOW", 9 * BLOCK)
    return Pair(tmp_path)


def header_end(stream: bytes) -> int:
    """Return where the first frame behind the header begins: nothing before it opens a transaction."""
    return 17 + 32 + int.from_bytes(stream[17 + 16 : 17 + 20], "little")


def test_a_cut_stream_is_gone_on_with(pair: Pair) -> None:
    stream = pair.stream()
    pair.cut(stream, len(stream) // 2)
    found = pair.unfinished()
    assert (found.base, found.head, found.resumable, found.can_go_back) == ("lv:base", "lv:head", True, True)
    assert 0 < found.offset < len(pair.old)
    assert pair.target.read_bytes() == pair.new[: found.offset] + pair.old[found.offset :]
    rest = pair.stream()
    assert len(rest) < len(stream) * 0.6
    receipt = pair.receive(rest)
    assert receipt.point == "lv:head"
    assert pair.target.read_bytes() == pair.new
    assert not pair.stand().transaction
    assert pair.left() == []


@pytest.mark.parametrize("snapback", [False, True], ids=["undo", "snapback"])
def test_however_often_it_is_cut_the_way_back_leads_to_the_old_state(
    pair: Pair, snapback: bool, tmp_path: Path
) -> None:
    chance = random.Random(7)
    kept = tmp_path / "kept.snapback" if snapback else None
    cuts = 0
    while True:
        stream = pair.stream()
        first = header_end(stream)
        if len(stream) - first < 6 * BLOCK:
            break
        pair.cut(stream, first + chance.randrange(5 * BLOCK), snapback=kept)
        cuts += 1
    assert cuts > 20
    if not kept:
        assert pair.recover() == "rolled back: the target is as it was"
        assert pair.target.read_bytes() == pair.old
        return
    pair.receive(stream, snapback=kept)
    assert pair.target.read_bytes() == pair.new
    receive(reader(kept.read_bytes()), ReceiveOptions(str(pair.target), pair.state), ignore)
    assert pair.target.read_bytes() == pair.old


def test_a_cut_at_any_byte_loses_no_more_than_a_frame(pair: Pair) -> None:
    stream = pair.stream()
    first = header_end(stream)
    for length in range(first, len(stream), 9973):
        pair.cut(stream, length)
        rest = pair.stream()
        assert len(rest) <= len(stream) - length + 4 * (BLOCK + 16) + 32 + 2 * first
        pair.receive(rest)
        assert pair.target.read_bytes() == pair.new
        pair.target.write_bytes(pair.old)
        (record,) = pair.state.rglob("record.json")
        record.unlink()


def test_a_first_copy_is_gone_on_with_and_cannot_go_back(pair: Pair) -> None:
    pair.target.write_bytes(bytes(len(pair.old)))
    stream = pair.stream(pair.whole)
    pair.cut(stream, len(stream) // 3, undo=False)
    found = pair.stand()
    assert found.dirty
    assert found.transaction
    assert (found.transaction.intent, found.transaction.can_go_back) == ("full", False)
    with pytest.raises(VerifyError, match=r"part of a first copy.*run the same sync again"):
        pair.recover()
    pair.receive(pair.stream(pair.whole), undo=False)
    assert pair.target.read_bytes() == pair.new
    assert not pair.stand().dirty


def test_a_map_that_has_grown_in_between_does_no_harm(pair: Pair) -> None:
    """A snapshot's store gains exceptions that are the same in base and head: below the place they are not sent."""
    stream = pair.stream()
    pair.cut(stream, len(stream) // 2)
    grown = replace(pair.source, changes=ChangeMap.whole(len(pair.old)))
    offset = pair.unfinished().offset
    pair.receive(pair.stream(grown))
    assert pair.target.read_bytes()[offset:] == pair.new[offset:]
    assert pair.target.read_bytes() == pair.new


def forged(pair: Pair, **changes: Any) -> bytes:
    """Return a stream that goes on with the open transaction, but for what its header says."""
    found = pair.unfinished()
    header = Header(
        size=len(pair.old), base=BASE, head=HEAD, resume=found.offset, transaction=found.id, changed_bytes=0
    )
    return fakes.encode([], replace(header, **changes))


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"transaction": "0" * 32}, "transaction"),
        ({"resume": 0}, "place"),
        ({"resume": 1 << 20}, "place"),
        ({"base": Point("lv:other")}, "base"),
        ({"base": None}, "base"),
        ({"head": Point("lv:other")}, "head"),
        ({"size": (1 << 20) - 4096}, "size"),
        ({"intent": FULL}, "kind"),
    ],
    ids=str,
)
def test_a_token_has_no_authority(pair: Pair, changes: dict[str, Any], what: str) -> None:
    stream = pair.stream()
    pair.cut(stream, len(stream) // 2)
    before = pair.target.read_bytes()
    with pytest.raises(ConflictError, match=f"has {what} .*goes on with {what}"):
        pair.receive(forged(pair, **changes))
    assert pair.target.read_bytes() == before
    pair.receive(pair.stream())
    assert pair.target.read_bytes() == pair.new


def test_going_on_with_nothing_is_refused(pair: Pair) -> None:
    stream = pair.stream()
    pair.cut(stream, len(stream) // 2)
    rest = pair.stream()
    pair.recover()
    with pytest.raises(ConflictError, match="has no unfinished transaction"):
        pair.receive(rest)
    assert pair.target.read_bytes() == pair.old


def test_beginning_anew_while_a_delta_is_unfinished_is_refused(pair: Pair) -> None:
    stream = pair.stream()
    pair.cut(stream, len(stream) // 2)
    for options in ({}, {"restart": True}):
        with pytest.raises(ConflictError, match=r"unfinished transaction.*send the same again to go on"):
            pair.receive(stream, **options)


def test_a_first_copy_may_be_begun_anew_where_its_client_says_so(pair: Pair) -> None:
    stream = pair.stream(pair.whole)
    pair.cut(stream, len(stream) // 2, undo=False)
    other = replace(pair.whole, head=Point("lv:later"))
    with pytest.raises(ConflictError, match="unfinished transaction"):
        pair.receive(stream, undo=False)
    with pytest.raises(ConflictError, match="unfinished transaction"):  # by a first copy only
        pair.receive(fakes.send(replace(pair.source, head=Point("lv:later"))), undo=False, restart=True)
    assert pair.receive(fakes.send(other), undo=False, restart=True).point == "lv:later"
    assert pair.target.read_bytes() == pair.new
    assert pair.left() == []


def test_a_transaction_that_was_not_begun_to_be_gone_on_with_is_refused(pair: Pair) -> None:
    stream = pair.stream(pair.whole)
    with pytest.raises(StreamError):
        pair.receive(stream[: len(stream) // 2], undo=False, resumable=False)
    with pytest.raises(ConflictError, match="cannot be gone on with"):
        pair.receive(pair.stream(pair.whole), undo=False)


def test_a_sender_that_gives_up_leaves_the_old_state(pair: Pair) -> None:
    def fail() -> None:
        raise ChangesLost("the store has overflowed")

    sent: list[bytes] = []
    with pytest.raises(ChangesLost):
        Sender(
            replace(pair.source, confirm=fail),
            lambda buffers: sent.extend(map(bytes, buffers)),
            StreamOptions(resumable=True),
            ignore,
        ).deliver()
    with pytest.raises(StreamError, match="overflowed") as caught:
        pair.receive(b"".join(sent))
    assert "rolled back" in caught.value.__notes__[0]
    assert pair.target.read_bytes() == pair.old
    assert pair.stand().transaction is None


def test_a_sender_that_is_told_to_end_does_not_make_the_receiver_go_back(pair: Pair) -> None:
    sent: list[bytes] = []

    def keep(buffers: Sequence[bytes | bytearray | memoryview]) -> None:
        sent.extend(map(bytes, buffers))
        if len(sent) > 60:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Sender(pair.source, keep, StreamOptions(resumable=True), ignore).deliver()
    pair.cut(b"".join(sent), -1)
    assert pair.unfinished().offset > 0


def test_an_interrupted_receiver_keeps_what_has_come(pair: Pair) -> None:
    stream = pair.stream()
    taken = 0

    def interrupted(buffer: memoryview) -> int:
        nonlocal taken
        if taken > len(stream) // 2:
            raise KeyboardInterrupt
        count = reader(stream[taken:])(buffer)
        taken += count
        return count

    with pytest.raises(KeyboardInterrupt) as caught:
        receive(interrupted, ReceiveOptions(str(pair.target), pair.state, resumable=True), ignore)
    assert "run the same sync again to go on" in caught.value.__notes__[0]
    assert len(pair.stream()) < 0.6 * len(stream)
    pair.receive(pair.stream())
    assert pair.target.read_bytes() == pair.new


def test_the_format_of_the_original_cannot_go_on(pair: Pair) -> None:
    with pytest.raises(UsageError, match="format 4 only"):
        Sender(pair.source, lambda buffers: None, StreamOptions(3), ignore, resume=Resume(4096, "x"))


def test_what_was_written_to_an_unfinished_target_is_noticed(pair: Pair) -> None:
    stream = pair.stream()
    pair.cut(stream, len(stream) // 2)
    assert pair.stand().written == "no"
    with pair.target.open("r+b") as file:
        file.write(b"mine")
    assert pair.stand().written == "yes"
    with pytest.raises(ConflictError, match=r"was written to since \(its mtime was \d+ and is \d+\)"):
        pair.receive(pair.stream())


def test_a_note_of_another_boot_does_not_count(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = pair.stream()
    pair.cut(stream, len(stream) // 2)
    (note,) = pair.state.rglob("*.progress")
    (record,) = pair.state.rglob("record.json")
    record.write_text(re.sub(r'"offset": \d+', '"offset": 0', record.read_text()))  # as if it had been killed
    assert pair.unfinished().offset > 0
    monkeypatch.setattr(seen, "boot_id", lambda: "another")
    assert pair.unfinished().offset == 0
    monkeypatch.undo()
    note.write_bytes(note.read_bytes().replace(b"0", b"1", 1))
    assert pair.unfinished().offset == 0


def test_an_undo_that_is_damaged_where_it_is_cut_stops_everything(pair: Pair) -> None:
    stream = pair.stream()
    pair.cut(stream, len(stream) // 2)
    (undo,) = pair.state.rglob("*.undo")
    content = bytearray(undo.read_bytes())
    content[-1] ^= 1
    undo.write_bytes(content)
    before = pair.target.read_bytes()
    with pytest.raises(VerifyError, match="damaged"):
        pair.receive(pair.stream())
    assert pair.target.read_bytes() == before


def test_the_way_back_over_which_a_dry_run_went_is_the_same(pair: Pair) -> None:
    stream = pair.stream()
    pair.cut(stream, len(stream) // 2)
    before = {path: path.read_bytes() for path in [pair.target, *pair.state.rglob("*.*")]}
    assert pair.receive(pair.stream(), dry_run=True).dry_run
    assert before == {path: path.read_bytes() for path in [pair.target, *pair.state.rglob("*.*")]}


def test_fifty_cuts_at_any_byte_cost_less_than_a_twentieth(fast_path: Path) -> None:
    """The real sizes of frames, windows and marks."""
    size = int(os.environ.get("LVMSYNC_RESUME_MIB", "128")) << 20
    chance = np.random.default_rng(size)
    target, state = fast_path / "target.img", fast_path / "state"
    old = chance.integers(0, 256, size, np.uint8)
    target.write_bytes(old.tobytes())
    new = old.copy()
    new[: size // 16] = 0
    new[size // 8 :] ^= 1
    del old
    changed = [(0, size // 16), (size // 8, size - size // 8)]
    source = replace(make_source(new.tobytes(), changed), base=BASE, head=HEAD)
    del new

    def attempt(limit: int | None) -> tuple[bool, int]:
        """Send, over a line that is cut after ``limit`` bytes; return whether it went through, and the bytes."""
        found = standing(str(target), state).transaction
        resume = Resume(found.offset, found.id) if found else None
        sent = bytearray()
        taken = 0

        def keep(buffers: Sequence[bytes | bytearray | memoryview]) -> None:
            for buffer in buffers:
                sent.extend(buffer)
            if limit is not None and len(sent) > limit:
                raise TransportError("cut")

        def take(buffer: memoryview) -> int:
            nonlocal taken
            count = min(len(buffer), len(sent) - taken)
            buffer[:count] = sent[taken : taken + count]
            taken += count
            return count

        try:
            Sender(source, keep, StreamOptions(resumable=True), ignore, resume=resume).deliver()
        except TransportError:
            assert limit is not None
            del sent[limit:]
        try:
            receive(take, ReceiveOptions(str(target), state, resumable=True), ignore)
        except StreamError:
            return False, len(sent)
        return True, len(sent)

    whole = source.changes.total_bytes - size // 16
    cuts, total = sorted(random.Random(3).sample(range(whole), 50)), 0
    for before, at in itertools.pairwise([0, *cuts]):
        is_done, sent = attempt(at - before)
        assert not is_done
        total += sent
    is_done, sent = attempt(None)
    assert is_done
    total += sent
    print(f"\n{total} bytes sent, of {whole} in one go: {total / whole:.4f}")
    assert total <= 1.05 * whole
    assert target.read_bytes() == source.data._content  # type: ignore[attr-defined]

"""Streams that are cut and gone on with: little is sent twice, and old and new stay exactly that."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lvmsync.errors import StreamError, VerifyError
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
from lvmsync.stream.frames import Sample
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
    monkeypatch.setattr(sending, "batch_for", lambda total: 4 * BLOCK)
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

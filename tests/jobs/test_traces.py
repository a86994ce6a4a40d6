"""A target that somebody brought back to an older state, or wrote to in the middle of a transaction, is refused."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
import xxhash

from lvmsync.errors import ConflictError, VerifyError
from lvmsync.extents import ChangeMap, as_table
from lvmsync.history import Point
from lvmsync.jobs import receive as receiving
from lvmsync.jobs.samples import find_different, take_samples
from lvmsync.jobs.traces import KEPT, Traces
from lvmsync.jobs.transaction import Transaction
from lvmsync.stream.frames import FULL, Data, Hole, Sample, Zero
from lvmsync.system import applied as notes
from lvmsync.system import seen
from lvmsync.system.applied import AppliedNote
from lvmsync.system.traces import Trace, TraceNote, read_traces
from tests.fakes import Memory, data
from tests.jobs import test_standing
from tests.jobs.test_resume import BLOCK, Pair
from tests.jobs.test_resume import pair as pair
from tests.jobs.test_standing import Place
from tests.jobs.test_standing import place as place


class Killed(BaseException):
    """A receiver is killed: nothing of it runs any more."""


def kill(pair: Pair, monkeypatch: pytest.MonkeyPatch, stream: bytes, windows: int) -> None:
    """Receive a stream and die right before a window is noted as written."""
    left = windows

    def die(job: object, transaction: Transaction, error: BaseException) -> None:
        raise error

    def note(applied: AppliedNote, place: notes.Place) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise Killed
        original(applied, place)

    original = AppliedNote.write
    with monkeypatch.context() as patch:
        patch.setattr(AppliedNote, "write", note)
        patch.setattr(receiving._Job, "_end_badly", die)
        with pytest.raises(Killed):
            pair.receive(stream)


def all_samples(pair: Pair) -> list[Sample]:
    """Return samples of each block of the base."""
    starts = range(0, len(pair.old), BLOCK)
    return [Sample(at, BLOCK, xxhash.xxh3_128_hexdigest(pair.old[at : at + BLOCK])) for at in starts]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lvmsync.jobs.transaction._RESUMABLE_WINDOW", 5 * BLOCK)


def test_a_target_that_was_rolled_back_is_refused_though_nothing_shows_it(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(seen, "was_written", lambda before, now: "no")
    place.receive("lv:1", "lv:2", require_base=True)
    place.target.write_bytes(test_standing.OLD)
    for require in (True, False):
        with pytest.raises(ConflictError, match=r"was at point lv:2, and does not hold it any more: the .* digest"):
            place.receive("lv:2", "lv:3", require_base=require)
    assert place.stand().point == Point("lv:2")
    place.receive("lv:2", "lv:3", ignore_base=True)
    place.receive("lv:3", "lv:4", require_base=True)


def test_a_first_copy_that_was_overwritten_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = Pair(tmp_path)
    pair.receive(pair.stream(pair.whole))
    monkeypatch.setattr(seen, "was_written", lambda before, now: "unknown")
    pair.target.write_bytes(pair.old)
    with pytest.raises(ConflictError, match="a backup brought back"):
        pair.receive(pair.stream(replace(pair.source, base=Point("lv:head"), head=Point("lv:3"))))


def test_changes_of_nothing_leave_the_traces_of_the_last_ones(place: Place) -> None:
    place.receive("lv:1", "lv:2")
    record = next(place.state.rglob("record.json"))
    before = json.loads(record.read_text())
    frames = test_standing.FRAMES[:]
    try:
        test_standing.FRAMES.clear()
        place.receive("lv:2", "lv:3")
    finally:
        test_standing.FRAMES.extend(frames)
    after = json.loads(record.read_text())
    assert "digest" not in before
    assert after["traces"] == before["traces"]
    assert after["traces"][0][0] == 65536


@pytest.mark.parametrize("kind", ["delta", FULL])
def test_a_target_that_was_put_back_after_a_kill_is_not_gone_on_with(
    kind: str, pair: Pair, monkeypatch: pytest.MonkeyPatch, small: None
) -> None:
    source = pair.whole if kind == FULL else pair.source
    kill(pair, monkeypatch, pair.stream(source), 8)
    assert pair.unfinished().offset > 0
    pair.target.write_bytes(pair.old)
    with pytest.raises(ConflictError, match="while its transaction was unfinished: the 4096 bytes at"):
        pair.receive(pair.stream(source))
    assert pair.unfinished().offset > 0


def test_samples_do_not_meet_what_the_transaction_itself_has_changed(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, small: None
) -> None:
    samples = take_samples(Memory(pair.old), pair.source.changes, len(pair.old), seed=1)
    samples += all_samples(pair)
    kill(pair, monkeypatch, pair.stream(samples=samples), 8)
    monkeypatch.setattr(seen, "life", lambda fd: "another boot")  # so the place is the one of the last mark
    assert pair.unfinished().offset > 0
    assert pair.receive(pair.stream(samples=samples), require_base=True).point == "lv:head"
    assert pair.target.read_bytes() == pair.new


@pytest.mark.parametrize("where", ["below", "behind"])
def test_what_nobody_changes_is_held_to_the_samples_when_it_goes_on(
    where: str, pair: Pair, monkeypatch: pytest.MonkeyPatch, small: None
) -> None:
    samples = all_samples(pair)
    kill(pair, monkeypatch, pair.stream(samples=samples), 8)
    with pair.target.open("r+b") as file:
        file.seek(BLOCK if where == "below" else len(pair.old) - 2 * BLOCK - BLOCK // 2)
        file.write(b"x")
    with pytest.raises(ConflictError, match="was written to in between"):
        pair.receive(pair.stream(samples=samples))
    assert pair.unfinished()
    pair.recover()


def test_a_killed_run_that_was_rolled_back_does_not_count_as_written_by_others(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, small: None
) -> None:
    base = replace(pair.whole, head=Point("lv:base"), data=Memory(pair.old), holes=ChangeMap.empty())
    pair.receive(pair.stream(base))
    assert pair.target.read_bytes() == pair.old
    kill(pair, monkeypatch, pair.stream(), 8)
    assert pair.recover().startswith("rolled back")
    assert pair.target.read_bytes() == pair.old
    assert pair.stand().written == "unknown"
    pair.receive(pair.stream(), require_base=True)
    assert pair.target.read_bytes() == pair.new


def test_traces_are_all_over_what_was_changed_and_first_of_all_where_it_became_another() -> None:
    chance = random.Random(1)
    traces = Traces()
    content = chance.randbytes(1 << 20)
    for at in range(0, 64 << 20, 1 << 20):
        old = bytearray(content)
        old[5 * BLOCK] ^= 1  # one block of 256 becomes another
        traces.take(data((at, content)), data((at, bytes(old))))
    found = traces.choose()
    assert len(found) == KEPT
    assert all(at % BLOCK == 0 and length == BLOCK for at, length, _ in found)
    assert len({at >> 20 for at, _, _ in found}) > 50
    changed = [at for at, _, _ in found if at % (1 << 20) == 5 * BLOCK]
    assert len(changed) >= 1


@pytest.mark.parametrize("kind", [Data, Zero, Hole])
def test_a_trace_is_what_the_frame_leaves(kind: type) -> None:
    content = random.Random(2).randbytes(3 * BLOCK + 700)
    table = as_table([100, 9 * BLOCK], [2 * BLOCK + 700, BLOCK])
    device = bytearray(random.Random(3).randbytes(10 * BLOCK))
    frame = Data(table, memoryview(content)) if kind is Data else kind(table)
    payload = content if kind is Data else bytes(len(content))
    device[100 : 100 + 2 * BLOCK + 700] = payload[: 2 * BLOCK + 700]
    device[9 * BLOCK :] = payload[2 * BLOCK + 700 :]
    traces = Traces()
    traces.take(frame)
    found = traces.choose()
    assert found
    assert find_different(Memory(bytes(device)), found) is None
    assert find_different(Memory(bytes(byte ^ 1 for byte in device)), found)


def test_a_note_that_a_crash_has_cut_is_believed_as_far_as_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "x.traces"
    note = TraceNote(path)
    kept = [Trace(Sample(at, 512, "0" * 32), at > 0) for at in (0, 512, 1024)]
    for trace in kept:
        note.append(trace)
    note.sync()
    note.close()
    assert read_traces(path, 1536) == kept
    assert read_traces(path, 1535) == kept[:2]
    path.write_bytes(path.read_bytes()[:-3])
    assert read_traces(path, 1536) == kept[:2]
    path.write_bytes(bytes(100) + b"\n1 2\n" + path.read_bytes().replace(b"512", b"513"))
    assert read_traces(path, 1 << 40) == []
    assert read_traces(tmp_path / "none", 1) == []


@pytest.mark.parametrize("end", ["clean stop", "kill"])
def test_going_back_does_not_make_a_target_that_others_wrote_to_what_it_was(
    end: str, pair: Pair, monkeypatch: pytest.MonkeyPatch, small: None
) -> None:
    base = replace(pair.whole, head=Point("lv:base"), data=Memory(pair.old), holes=ChangeMap.empty())
    pair.receive(pair.stream(base))
    stream = pair.stream()
    if end == "kill":
        kill(pair, monkeypatch, stream, 8)
    else:
        pair.cut(stream, len(stream) // 2)
    pair.target.write_bytes(random.Random(4).randbytes(len(pair.old)))
    with pytest.raises(VerifyError, match=r"somebody else wrote to it meanwhile.*repair"):
        pair.recover()
    assert pair.stand().point is None
    with pytest.raises(ConflictError, match="no point that is known"):
        pair.receive(stream, require_base=True)

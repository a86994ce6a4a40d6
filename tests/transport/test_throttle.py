"""Rates, read and kept: pieces at their time, files that change, times of the day."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from lvmsync.errors import DeviceError, UsageError
from lvmsync.transport import throttle
from lvmsync.transport.throttle import Limit, Rates, Throttled, parse_rates

KIB, MIB = 1 << 10, 1 << 20


class Clock:
    """Time that passes only while someone sleeps."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.naps: list[float] = []

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.naps.append(seconds)
        self.now += seconds + 0.0001  # as a real one, it takes longer

    def localtime(self) -> time.struct_time:
        return time.gmtime(self.now)


class Wire:
    """A Transport that notes when which bytes were moved."""

    stall_timeout: float | None = 7

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.moved: list[tuple[float, int]] = []
        self.data = bytearray()

    def send_all(self, buffers: Sequence[bytes | bytearray | memoryview]) -> None:
        for buffer in buffers:
            self.data += buffer
        self.moved.append((self.clock.now, sum(map(len, buffers))))

    def receive_some(self, buffer: memoryview) -> int:
        self.moved.append((self.clock.now, len(buffer)))
        return len(buffer)

    def send_eof(self) -> None:
        self.data += b"."

    def aclose(self) -> int:
        return 5


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(throttle, "time", made)
    return made


def most_in(moved: Sequence[tuple[float, int]], seconds: float) -> int:
    """Return the most bytes that moved in any span of so many seconds."""
    return max(
        sum(count for at, count in moved[index:] if at < start + seconds) for index, (start, _) in enumerate(moved)
    )


@pytest.mark.parametrize(
    ("text", "entries"),
    [
        ("10M", ((0, 10 * MIB),)),
        (" 512K\n", ((0, 512 * KIB),)),
        ("1024", ((0, 1024),)),
        ("0", ((0, None),)),
        ("none", ((0, None),)),
        ("08:00,512K 18:00,none", ((480, 512 * KIB), (1080, None))),
        ("18:30,none\n8:00,1MiB\n", ((480, MIB), (1110, None))),
        ("23:59,1G", ((1439, 1 << 30),)),
    ],
)
def test_rates_are_read(text: str, entries: tuple[tuple[int, int | None], ...]) -> None:
    assert parse_rates(text) == Rates(entries)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no rate"), ("fast", "not a size: 'fast'"), ("1023", "the lowest is 1K"), ("-1", "not a size"),
        ("10M 20M", "'10M' is not a time"), ("24:00,1M", "not a time"), ("08:60,1M", "not a time"),
        ("08:00", "not a size: '08:00'"), ("08:00,", "not a time"),
        ("08:00,1M 8:00,2M", "two rates for 8:00"), ("08:00,x", "not a size: 'x'"),
    ],
)  # fmt: skip
def test_what_is_no_rate_is_refused(text: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        parse_rates(text)


def test_a_rate_holds_from_its_time_to_the_next_ones() -> None:
    rates = parse_rates("08:00,512K 18:00,none")
    assert [rates.at(minute) for minute in (0, 479, 480, 1079, 1080, 1439)] == [
        None, None, 512 * KIB, 512 * KIB, None, None,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("rate", "size"), [(KIB, 100), (KIB, 20 * KIB), (100 * KIB, 100), (100 * KIB, MIB), (10 * MIB, MIB)]
)
def test_a_limit_is_kept_within_one_percent_and_without_bursts(clock: Clock, rate: int, size: int) -> None:
    wire = Wire(clock)
    line = Throttled(wire, Limit(Rates(((0, rate),))))
    began, sent = clock.now, 0
    while clock.now < began + 10:
        line.send_all([bytes(size // 3), bytearray(size - size // 3)])
        sent += size
    seconds = clock.now - began
    assert sent / seconds == pytest.approx(rate, rel=0.01, abs=size / seconds + 0.01 * rate)  # the credit
    assert len(wire.data) == sent
    # The credit that one oversleeping earns, and one piece
    assert most_in(wire.moved, 0.1) <= rate * 0.1 + rate * 0.1 + max(rate * 0.05, 256)
    assert max(clock.naps) <= 0.25


def test_what_is_received_is_limited_by_itself(clock: Clock) -> None:
    wire = Wire(clock)
    line = Throttled(wire, Limit(Rates(((0, MIB),))))
    began, received = clock.now, 0
    buffer = memoryview(bytearray(4 * MIB))
    while clock.now < began + 10:
        received += line.receive_some(buffer)
        line.send_all([bytes(1000)])  # has a rate of its own, far from used up
    assert received / (clock.now - began) == pytest.approx(MIB, rel=0.02)


def test_a_line_that_rested_does_not_make_up_for_it(clock: Clock) -> None:
    wire = Wire(clock)
    line = Throttled(wire, Limit(Rates(((0, MIB),))))
    line.send_all([bytes(1000)])
    clock.now += 60
    wire.moved.clear()
    line.send_all([bytes(2 * MIB)])
    assert most_in(wire.moved, 0.05) <= 0.25 * MIB


def test_without_a_limit_nothing_is_cut_or_delayed(clock: Clock) -> None:
    wire = Wire(clock)
    line = Throttled(wire, Limit(parse_rates("none")))
    line.send_all([bytes(5 * MIB), b"", bytes(3)])
    assert line.receive_some(memoryview(bytearray(3 * MIB))) == 3 * MIB
    assert [count for _, count in wire.moved] == [5 * MIB + 3, 3 * MIB]
    assert clock.naps == []
    line.send_eof()
    assert bytes(wire.data[-1:]) == b"."
    assert (line.aclose(), line.stall_timeout) == (5, 7)
    line.stall_timeout = 9
    assert wire.stall_timeout == 9


def test_bytes_keep_their_order(clock: Clock) -> None:
    wire = Wire(clock)
    data = os.urandom(300_000)
    Throttled(wire, Limit(Rates(((0, MIB),)))).send_all([data[:7], bytearray(data[7:200_000]), data[200_000:]])
    assert wire.data == data


def test_a_file_that_changes_changes_the_rate_while_bytes_are_waiting(clock: Clock, tmp_path: Path) -> None:
    said: list[str] = []
    file = tmp_path / "rate"
    file.write_text("1K")
    wire = Wire(clock)
    limit = Limit(None, file, is_watched=True, say=said.append)
    line = Throttled(wire, limit)
    sender = threading.Thread(target=line.send_all, args=[[bytes(20 * KIB)]], daemon=True)
    nap = clock.sleep

    def sleep(seconds: float) -> None:  # five seconds later somebody writes into the file
        nap(seconds)
        if clock.now > 1005 and file.read_text() == "1K":
            file.write_text("10M\n")

    clock.sleep = sleep  # type: ignore[method-assign]
    sender.start()
    sender.join(20)
    assert len(wire.data) == 20 * KIB
    assert clock.now < 1007.5  # at 1 KiB a second it were 20
    assert said == [f"the rate is {10 * MIB} bytes a second now, says {file}"]


def test_a_file_that_is_gone_or_wrong_keeps_the_last_rate_and_is_told_once(clock: Clock, tmp_path: Path) -> None:
    said: list[str] = []
    file = tmp_path / "rate"
    file.write_text("1M")
    limit = Limit(parse_rates("2M"), file, is_watched=True, say=said.append)
    assert limit.rate() == MIB  # the file's, though another was given to begin with
    for text in ("fast", "faster still", None, "3M"):
        file.unlink(missing_ok=True)
        if text:
            file.write_text(text)
        for _ in range(5):
            clock.now += 1.1
            rate = limit.rate()
        assert rate == (3 * MIB if text == "3M" else MIB)
    assert len(said) == 5
    assert f"{file}: not a size: 'fast'" in said[1]
    assert "stays 1048576 bytes a second" in said[1]
    assert "No such file" in said[3]


def test_a_file_that_is_not_watched_is_read_when_asked_for(clock: Clock, tmp_path: Path) -> None:
    file = tmp_path / "rate"
    limit = Limit(parse_rates("2M"), file)
    file.write_text("5M")
    clock.now += 5
    assert limit.rate() == 2 * MIB
    limit.reload()
    assert limit.rate() == 5 * MIB
    file.write_text("none")
    limit.reload()
    assert limit.rate() is None


def test_a_rate_changes_at_its_time_of_the_day(clock: Clock) -> None:
    clock.now = 8 * 3600 - 0.5
    limit = Limit(parse_rates("08:00,512K 18:00,none"))
    assert limit.rate() is None
    clock.now += 1.1
    assert limit.rate() == 512 * KIB


def test_a_file_without_a_rate_to_begin_with_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match=r"cannot read the rate in .*none: No such file"):
        Limit(None, tmp_path / "none")
    (tmp_path / "empty").touch()
    with pytest.raises(UsageError, match="empty: no rate"):
        Limit(None, tmp_path / "empty")
    with pytest.raises(DeviceError, match="Is a directory"):
        Limit(None, tmp_path)

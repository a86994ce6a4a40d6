from __future__ import annotations

import contextlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lvmsync.errors import FormatError
from lvmsync.formats import dm_ioctl
from lvmsync.formats.dm_ioctl import HEADER_SIZE, Answer, Number, Target

NUMBERS = st.tuples(st.integers(1, (1 << 12) - 1), st.integers(0, (1 << 20) - 1))


def answer(data: bytes = b"", *, count: int = 0, flags: int = 0, name: str = "", uuid: str = "") -> bytearray:
    """Return what the kernel answers, put together by the header's own offsets (``struct dm_ioctl``)."""
    buffer = bytearray(HEADER_SIZE) + data
    struct.pack_into("=5I", buffer, 0, 4, 47, 0, len(buffer), HEADER_SIZE)
    struct.pack_into("=IiII", buffer, 20, count, 3, flags, 9)
    struct.pack_into("=Q", buffer, 40, 254 << 8 | 7)
    buffer[48 : 48 + len(name)] = name.encode()
    buffer[176 : 176 + len(uuid)] = uuid.encode()
    return buffer


def names(*records: tuple[int, str]) -> bytes:
    """Return ``struct dm_name_list`` of each record: device and name."""
    data = b""
    for place, (device, name) in enumerate(records):
        words = name.encode() + b"\0"
        length = -(-(12 + len(words)) // 8) * 8
        step = length if place + 1 < len(records) else 0
        data += struct.pack("=QI", device, step) + words.ljust(length - 12, b"\0")
    return data


def targets(*lines: Target) -> bytes:
    """Return ``struct dm_target_spec`` of each line, and its words."""
    data = b""
    for line in lines:
        words = line.text.encode() + b"\0"
        words += bytes(-len(words) % 8)
        step = len(data) + 40 + len(words)
        data += struct.pack("=QQiI16s", line.start, line.length, 0, step, line.kind.encode()) + words
    return data


LINES = [Target(0, 8, "linear", "8:0 384"), Target(8, 16, "zero", ""), Target(24, 8, "snapshot", "254:1 254:2 P 8")]


def test_a_request_has_the_layout_of_the_kernels_header() -> None:
    asked = dm_ioctl.request(400, number=(254, 300), flags=dm_ioctl.STATUS_TABLE_FLAG)
    assert len(asked) == 400
    assert struct.unpack_from("=5I", asked) == (4, 0, 0, 400, 312)
    assert struct.unpack_from("=I", asked, 28) == (16,)
    assert struct.unpack_from("=Q", asked, 40) == (300 & 255 | 254 << 8 | 256 << 12,)
    assert dm_ioctl.request(HEADER_SIZE)[40:48] == bytes(8)
    assert dm_ioctl.TABLE_STATUS == 0xC138FD0C


def test_an_answer_tells_what_a_device_is() -> None:
    found = Answer.parse(answer(name="vg-lv", uuid="LVM-x", flags=1 << 5))
    assert found == Answer((4, 47, 0), 0, 3, 32, 9, (254, 7), "vg-lv", "LVM-x")
    assert found.has_table
    assert not found.is_full
    assert Answer.parse(answer(flags=1 << 8)).is_full


def test_the_numbers_of_all_devices_are_listed() -> None:
    assert dm_ioctl.parse_numbers(answer(names((254 << 8, "a"), (254 << 8 | 1, "a longer name")))) == [
        (254, 0),
        (254, 1),
    ]
    assert dm_ioctl.parse_numbers(answer(names((0, "")))) == []
    assert dm_ioctl.parse_numbers(answer()) == []


def test_a_table_has_its_lines() -> None:
    assert dm_ioctl.parse_targets(answer(targets(*LINES), count=3)) == LINES
    assert dm_ioctl.parse_targets(answer()) == []


def test_the_last_line_may_lack_its_padding() -> None:
    line = Target(0, 8, "zero", "")
    assert dm_ioctl.parse_targets(answer(targets(line)[:41], count=1)) == [line]


def test_a_key_is_hidden() -> None:
    line = Target(0, 8, "crypt", "aes-xts-plain64 00ff17 0 8:0 0")
    assert dm_ioctl.parse_targets(answer(targets(line), count=1))[0].text == "aes-xts-plain64 000000 0 8:0 0"


@given(NUMBERS)
def test_every_number_comes_back_as_it_was_sent(number: Number) -> None:
    assert Answer.parse(dm_ioctl.request(HEADER_SIZE, number=number)).number == number


@pytest.mark.parametrize(
    ("data", "count", "words"),
    [
        (targets(*LINES)[:39], 1, "line 0 of 1 would begin at byte 312 of 351"),
        (targets(LINES[0])[:40], 1, "line 0 of 1 has no end"),
        (struct.pack("=QQiI16s", 0, 8, 0, 8, b"zero") + bytes(48), 2, "line 1 of 2 lies in the one before"),
        (targets(*LINES), 4, "line 3 of 4 would begin"),
    ],
)
def test_a_line_that_does_not_lie_in_the_answer_is_refused(data: bytes, count: int, words: str) -> None:
    with pytest.raises(FormatError, match=words):
        dm_ioctl.parse_targets(answer(data, count=count))


@pytest.mark.parametrize("step", [1, 11, 24, 1 << 31])
def test_a_record_that_does_not_lie_in_the_list_is_refused(step: int) -> None:
    with pytest.raises(FormatError, match="the next record"):
        dm_ioctl.parse_numbers(answer(struct.pack("=QI", 5, step) + bytes(12)))


@pytest.mark.parametrize(("size", "start"), [(400, 312), (312, 311), (1 << 31, 312)])
def test_data_outside_of_the_answer_are_refused(size: int, start: int) -> None:
    damaged = answer()
    struct.pack_into("=2I", damaged, 12, size, start)
    with pytest.raises(FormatError, match="data from"):
        dm_ioctl.parse_numbers(damaged)


def test_an_answer_that_is_too_short_is_refused() -> None:
    for parse in (Answer.parse, dm_ioctl.parse_numbers, dm_ioctl.parse_targets):
        with pytest.raises(FormatError, match="fewer than 312"):
            parse(bytes(311))
    with pytest.raises(FormatError, match="fewer than 312"):
        dm_ioctl.parse_numbers(b"")


@given(st.data())
def test_damage_is_refused_or_read_within_the_answer(data: st.DataObject) -> None:
    damaged = answer(targets(*LINES), count=3)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(damaged) - 1))
        damaged[at] = data.draw(st.integers(0, 255))
    for parse in (Answer.parse, dm_ioctl.parse_numbers, dm_ioctl.parse_targets):
        with contextlib.suppress(FormatError):
            parse(damaged)

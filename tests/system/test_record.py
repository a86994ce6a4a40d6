"""The ledger's record of a target: read as it was written, or refused, whatever is in the file."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lvmsync.errors import FormatError
from lvmsync.history import Point
from lvmsync.stream.frames import Sample
from lvmsync.system.record import Record, Transaction, read_record

SAMPLE = Sample(4096, 4096, "0" * 32)
POINT = Point("lv:head", "lv:base", "2026-01-02T03:04:05+00:00")
NOTE = Transaction(
    "0" * 32, "/s/0.undo", "/s/back", False, "/s/0.spool", "applying", "2026-01-02", 3, 300, POINT, Point("lv:base"),
    "delta", 1 << 20, True, 4096, 400, 500, "00ff", 600, True, {"mtime": "1"}, (SAMPLE,),
)  # fmt: skip
RECORD = Record(
    "/dev/vg/\udcff", {"inode": "1"}, 1 << 20, POINT, NOTE, True, 5, {"mtime": "1"}, True, (SAMPLE,), "00ff"
)
WRONG: list[Any] = [
    None, True, False, 0, -1, -5, 1 << 63, 1 << 70, 10**30, 0.5, float("nan"), float("inf"), "", "x", "abc", "\ud800",
    "/a\0b", "../../x", [], [1], [[]], [[1, 2]], [[-1, 1, "x"]], [[0, 0, "x"]], [[0, 1 << 30, "x"]], [[1, 2, 3]],
    [["1", 2, "x"]], [[True, 1, "x"]], ["abc"], {}, {"id": 5}, {"mtime": 5}, {"a": "\ud800"}, {"id": "x", "parent": 1},
]  # fmt: skip


def read(path: Path, values: Any) -> Record | None:
    path.write_text(json.dumps(values))
    return read_record(path)


def refusal(path: Path) -> str | None:
    """Return how a file is refused; None if it is not."""
    try:
        read_record(path)
    except FormatError as error:
        return str(error)
    return None


def places(values: Any, at: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for key, value in values.items():
        yield (*at, key)
        if isinstance(value, dict):
            yield from places(value, (*at, key))


def changed(values: Any, place: tuple[str, ...], value: Any) -> Any:
    head, *rest = place
    return {**values, head: changed(values[head], tuple(rest), value) if rest else value}


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    for record in (RECORD, replace(RECORD, transaction=None), Record("/t", {}, 0)):
        path = tmp_path / "record.json"
        path.write_text(record.to_json())
        assert read_record(path) == record
    assert read_record(tmp_path / "none") is None


def test_each_field_is_of_its_type_and_range_or_the_record_is_refused(tmp_path: Path) -> None:
    whole = json.loads(RECORD.to_json())
    path, refused = tmp_path / "record.json", 0
    for place in places(whole):
        for value in WRONG:
            path.write_text(json.dumps(changed(whole, place, value)))
            words = refusal(path)
            if words is not None:
                assert "\n" not in words
                refused += 1
                continue
            found = read_record(path)
            assert found
            # What was taken is what was there: written again, it says the same.
            again = json.loads(found.to_json())
            for key in place:
                again = again[key]
            assert (again, type(again)) == (value, type(value))
    assert refused > 1000


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("transaction", "id"), "../../../etc/x"),
        (("transaction", "phase"), "done"),
        (("transaction", "intent"), "guess"),
        (("transaction", "offset"), (1 << 20) + 1),
        (("transaction", "undo"), "here"),
        (("transaction", "seen"), "abc"),
        (("identity",), None),
        (("dirty",), "no"),
        (("traces",), [[0, 4096, 5]]),
        (("version",), 2),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused_in_one_line(tmp_path: Path, place: tuple[str, ...], value: Any) -> None:
    with pytest.raises(FormatError, match=r"^ledger .* is not understood .*; move it away"):
        read(tmp_path / "record.json", changed(json.loads(RECORD.to_json()), place, value))


def test_a_field_that_is_missing_or_unknown_is_refused(tmp_path: Path) -> None:
    whole = json.loads(RECORD.to_json())
    for place in places(whole):
        values = json.loads(json.dumps(whole))
        inner = values
        for key in place[:-1]:
            inner = inner[key]
        if inner is values["identity"] or "seen" in place[:-1]:
            continue  # which keys those have depends on the device
        kept = inner.pop(place[-1])
        with pytest.raises(FormatError):
            read(tmp_path / "record.json", values)
        inner[place[-1] + "s"] = kept
        with pytest.raises(FormatError):
            read(tmp_path / "record.json", values)


def test_a_file_with_anything_else_in_it_is_refused(tmp_path: Path) -> None:
    path, chance = tmp_path / "record.json", random.Random(5)
    good = RECORD.to_json().encode()
    for _ in range(2000):
        damaged = bytearray(good)
        for _ in range(chance.randrange(1, 4)):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        path.write_bytes(damaged[: chance.choice([len(good), chance.randrange(len(good))])])
        assert "\n" not in (refusal(path) or "")
    for text in ("[" * 100_000, '{"version": ' + "1" * 10_000 + "}", "", "null", "\0"):
        path.write_text(text)
        with pytest.raises(FormatError):
            read_record(path)

"""What is remembered of a replica is what we write, or refused in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lvmsync.errors import FormatError
from lvmsync.jobs.replica.record import list_records, open_record

WRONG: list[tuple[str, Any]] = [
    ("id", "0" * 16),
    ("source", 5),
    ("identity", ["x"]),
    ("base", {}),
    ("base_look", "x"),
    ("head", True),
    ("cuts", -1),
    ("cuts", "2"),
    ("rate", "fast"),
]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    with open_record(tmp_path, "x" * 64, "vg/lv", "far:vg/lv") as notebook:
        notebook.write(cuts=2, base="y" * 64, rate=1.5, base_look={"boot": "b"})
        return notebook.folder / "record.json"


def test_a_record_is_read_as_it_was_written(tmp_path: Path, file: Path) -> None:
    (record,) = list_records(tmp_path)
    assert (record.id, record.cuts, record.rate, record.base_look) == (file.parent.name, 2, 1.5, {"boot": "b"})


@pytest.mark.parametrize(("field", "value"), WRONG)
def test_a_value_that_cannot_be_is_refused_with_the_way_out(
    tmp_path: Path, file: Path, field: str, value: object
) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), field: value}))
    with pytest.raises(FormatError, match=r"record\.json is not understood .*move it away"):
        list_records(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "[" * 100_000, '{"version": 1}', "\udc80"])
def test_what_is_no_record_is_refused_with_the_way_out(tmp_path: Path, file: Path, text: str) -> None:
    file.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(FormatError, match=r"record\.json .*move it away"):
        list_records(tmp_path)

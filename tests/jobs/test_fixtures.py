"""Stores of the real kernel, sent and received whole: before plus stream is after, and the snapback leads back."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from lvmsync.jobs.progress import ignore
from lvmsync.jobs.receive import ReceiveOptions, receive
from lvmsync.jobs.send import Sender, StreamOptions
from lvmsync.names import SnapshotStore, Volume
from lvmsync.sources import open_source
from tests.fixture_files import Case, list_cases

USABLE = [case for case in list_cases("snapshot") if case.facts.get("usable") and "origin_after" in case.facts["files"]]


def apply(stream: Path, target: Path, state: Path, snapback: Path | None) -> None:
    with stream.open("rb", buffering=0) as file:
        receive(file.readinto, ReceiveOptions(str(target), state, snapback=snapback), ignore)


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("stream_format", [3, 4])
@pytest.mark.parametrize("case", USABLE, ids=str)
def test_before_and_the_stream_are_after_and_the_snapback_leads_back(
    case: Case, stream_format: int, tmp_path: Path
) -> None:
    after, before, store = (case.image(key, tmp_path) for key in ("origin_after", "origin_before", "cow"))
    old, new = sha256(before), sha256(after)
    stream, snapback, state = tmp_path / "stream", tmp_path / "snapback", tmp_path / "state"
    name = SnapshotStore(Volume(str(store)), Volume(str(after)), None)
    with open_source(name) as source, stream.open("wb") as file:
        receipt = Sender(source, file.writelines, StreamOptions(stream_format), ignore).deliver()
    assert receipt.bytes == sum(end - start for start, end in case.facts["changed_ranges"])
    apply(stream, before, state, snapback)
    assert sha256(before) == new
    apply(snapback, before, state, None)
    assert sha256(before) == old

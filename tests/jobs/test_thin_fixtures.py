"""Volumes of a real thin pool, sent and received whole: base plus stream is head, and the snapback leads back."""

from __future__ import annotations

from pathlib import Path

import pytest

from lvmsync.jobs.progress import ignore
from lvmsync.jobs.send import Sender, StreamOptions
from lvmsync.names import ThinDevice, Volume
from lvmsync.sources import Reading, open_source
from lvmsync.stream.frames import Data, Hole, Zero
from tests.fixture_files import Case, list_cases
from tests.jobs.test_fixtures import apply, sha256
from tests.stream.feeding import feed

SMALL = [case for case in list_cases("thin") if case.facts["volume_size"] < 1 << 30]
IMAGES = {"reserved-m": "", "later-m": "", "later": "-later", "clean": "-later"}


def image_of(case: Case, view: str, device: int, folder: Path) -> Path:
    """Return the contents of a thin device at the time of a view."""
    name = next(name for name, number in case.facts["thin_ids"].items() if number == device)
    later = f"{name}{IMAGES[view]}.img"
    return case.image(later if later in case.facts["files"] else f"{name}.img", folder)


PAIRS = [
    (case, view, pair["snap1"], pair["snap2"], stream_format)
    for case in SMALL
    for view in ("reserved-m", "clean")
    for pair in case.facts["metadata"][view]["pairs"]
    for stream_format in (3, 4)
    if case.name == "c64k-basic" or (view, stream_format) == ("reserved-m", 4)  # the others are large
]


@pytest.mark.parametrize(("case", "view", "base", "head", "stream_format"), PAIRS, ids=str)
def test_the_base_and_the_stream_are_the_head_and_the_snapback_leads_back(
    case: Case, view: str, base: int, head: int, stream_format: int, tmp_path: Path
) -> None:
    after, target = image_of(case, view, head, tmp_path), tmp_path / "target"
    (tmp_path / "base").mkdir()
    target.write_bytes(image_of(case, view, base, tmp_path / "base").read_bytes())
    old, new = sha256(target), sha256(after)
    stream, snapback, state = tmp_path / "stream", tmp_path / "snapback", tmp_path / "state"
    metadata = case.image(case.facts["metadata"][view]["image"], tmp_path)
    name = ThinDevice(Volume(str(metadata)), head, base, snap="held" if view.endswith("-m") else "live")
    with open_source(name, Reading(data_source=str(after))) as source, stream.open("wb") as file:
        receipt = Sender(source, file.writelines, StreamOptions(stream_format), ignore).deliver()
        assert receipt.bytes == source.changes.total_bytes
        holes, whole = source.holes.total_bytes, source.changes.total_bytes
    if stream_format == 4:
        frames = list(feed(stream.read_bytes()))
        # What was unmapped is not sent as data.
        assert sum(frame.changed_bytes for frame in frames if isinstance(frame, Hole)) == holes
        assert sum(frame.changed_bytes for frame in frames if isinstance(frame, Data | Zero)) == whole - holes
    apply(stream, target, state, snapback)
    assert sha256(target) == new
    apply(snapback, target, state, None)
    assert sha256(target) == old


@pytest.mark.parametrize("stream_format", [3, 4])
@pytest.mark.parametrize("case", SMALL, ids=str)
def test_a_stream_without_a_base_makes_any_volume_the_head(case: Case, stream_format: int, tmp_path: Path) -> None:
    after, target, stream = image_of(case, "clean", 6, tmp_path), tmp_path / "target", tmp_path / "stream"
    target.write_bytes(b"\xaa" * case.facts["volume_size"])
    name = ThinDevice(Volume(str(case.image("meta-clean.img", tmp_path))), 6)
    with open_source(name, Reading(data_source=str(after))) as source, stream.open("wb") as file:
        Sender(source, file.writelines, StreamOptions(stream_format), ignore).deliver()
    apply(stream, target, tmp_path / "state", None)
    assert sha256(target) == sha256(after)
    if stream_format == 4:
        assert stream.stat().st_size < case.facts["volume_size"] // 4

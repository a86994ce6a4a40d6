"""What blksnap saw written: saved maps, and devices of the simulated module."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lvmsync.errors import ChangesLost, DeviceError, FormatError, LvmsyncError, UsageError
from lvmsync.extents import ChangeMap
from lvmsync.history import Point
from lvmsync.names import parse_source
from lvmsync.sources import Reading, Source, open_source
from tests.blksnap_machine import GENERATIONS, Machine, machine
from tests.fixture_files import FIXTURES

BLOCK = 65536
MAP_ONLY = Reading(with_data=False)


def opened(word: str, reading: Reading = MAP_ONLY) -> Source:
    """Open a source, and close it again."""
    with open_source(parse_source(word), reading) as source:
        source.confirm()
        return source


def refused(word: str, reading: Reading = MAP_ONLY) -> LvmsyncError:
    with pytest.raises(LvmsyncError) as caught:
        opened(word, reading)
    return caught.value


# ---- saved maps


@pytest.fixture
def saved(tmp_path: Path) -> str:
    """Return the word of a map of 10 blocks, of which 2, 3 and 9 were written after snapshot 3, in snapshot 5."""
    numbers = np.zeros(10, np.uint8)
    numbers[[0, 2, 3, 9]] = 3, 4, 5, 5
    (tmp_path / "map").write_bytes(numbers.tobytes())
    return f"blksnap:{tmp_path / 'map'}"


def test_a_saved_map_tells_what_was_written(saved: str, tmp_path: Path) -> None:
    size = 9 * BLOCK + 1000
    source = opened(f"{saved},since=3,block-size=64K,number=5,size={size}")
    assert source.changes == ChangeMap.from_extents([(2 * BLOCK, 2 * BLOCK), (9 * BLOCK, 1000)])
    assert (source.size, source.granularity, source.kind) == (size, BLOCK, "blksnap")
    assert (source.base, source.head) == (None, None)
    assert len(source.notes) == 1
    assert "is your word" in source.notes[0]
    assert opened(f"{saved},since=4,block-size=64K,number=5,size={size}").changes.total_bytes == BLOCK + 1000
    assert opened(f"{saved},since=0,block-size=64K,number=5,size={size}").changes.total_bytes == 3 * BLOCK + 1000


def test_data_of_a_saved_map_is_named(saved: str, tmp_path: Path) -> None:
    word = f"{saved},since=3,block-size=64K,number=5"
    assert "name a copy of the image" in str(refused(word, Reading()))
    image = tmp_path / "image"
    image.write_bytes(bytes(9 * BLOCK + 512))
    with open_source(parse_source(word), Reading(data_source=str(image))) as source:
        assert source.size == 9 * BLOCK + 512
        assert source.data.size == source.size
        source.confirm()
    image.write_bytes(bytes(9 * BLOCK))
    error = refused(word, Reading(data_source=str(image)))
    assert isinstance(error, UsageError)
    assert "do not belong together" in str(error)
    error = refused(f"{word},size={9 * BLOCK + 1}", Reading(data_source=str(image)))
    assert "less than" in str(error)


@pytest.mark.parametrize("keys", ["", ",since=3", ",block-size=64K"])
def test_a_saved_map_needs_to_be_told_what_it_means(saved: str, keys: str) -> None:
    assert isinstance(refused(saved + keys), UsageError)
    assert "since=N,block-size=B" in str(refused(saved + keys))


def test_without_a_size_the_last_block_counts_whole(saved: str) -> None:
    source = opened(f"{saved},since=3,block-size=64K,number=5")
    assert source.size == 10 * BLOCK
    assert any("give size=" in note for note in source.notes)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ("since=5,number=5", "which is not later"),
        ("since=6,number=5", "which is not later"),
        ("since=255", "the count begins anew"),
        ("since=255,number=255", "the count begins anew"),
        ("since=3,number=255", "the count begins anew"),
        ("since=3,number=4", "cannot be trusted"),
    ],
)
def test_a_map_that_does_not_lead_from_the_base_is_refused(saved: str, keys: str, words: str) -> None:
    error = refused(f"{saved},block-size=64K,{keys}")
    assert isinstance(error, ChangesLost)
    assert words in str(error)


def test_a_map_of_snapshot_255_is_refused_whatever_is_said(tmp_path: Path) -> None:
    (tmp_path / "map").write_bytes(bytes([1, 255]))
    error = refused(f"blksnap:{tmp_path / 'map'},since=1,block-size=64K")
    assert isinstance(error, ChangesLost)


def test_no_change_at_all_must_be_known_to_be_so(saved: str, tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(bytes(10 * BLOCK))
    word = f"{saved},since=5,block-size=64K"
    for reading in (Reading(with_data=False), Reading(data_source=str(image))):
        error = refused(word, reading)
        assert isinstance(error, ChangesLost)
        assert "say which with number=C" in str(error)
        assert not opened(f"{word},number=6", reading).changes


def test_a_saved_map_whose_generation_is_said_leads_from_a_point_to_another(saved: str, tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(bytes(10 * BLOCK))
    generation = "3021f85e-b958-4dd4-aea2-fa580d72c86f"
    source = opened(f"{saved},since=3,block-size=64K,number=5,generation={generation}", Reading(data_source=str(image)))
    assert (source.base, source.head) == (Point(f"blksnap:{generation}:3"), Point(f"blksnap:{generation}:5"))
    assert not any("one generation is your word" in note for note in source.notes)
    source = opened(f"{saved},since=3,block-size=64K,number=5", Reading(data_source=str(image)))
    assert (source.base, source.head) == (None, None)
    assert any("one generation is your word" in note for note in source.notes)


def test_data_that_is_written_to_or_no_whole_sectors_is_no_image(saved: str, tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(bytes(10 * BLOCK - 100))
    word = f"{saved},since=3,block-size=64K,number=5"
    assert "no whole sectors" in str(refused(word, Reading(data_source=str(image))))
    image.write_bytes(bytes(10 * BLOCK))
    with open_source(parse_source(word), Reading(data_source=str(image))) as source:
        source.confirm()
        image.write_bytes(bytes(10 * BLOCK + 512))
        with pytest.raises(DeviceError, match="written to"):
            source.confirm()


def test_without_the_number_it_is_said_what_cannot_be_seen(saved: str) -> None:
    source = opened(f"{saved},since=3,block-size=64K")
    assert any("Without number=C" in note for note in source.notes)


def test_blocks_that_are_larger_than_any_device_are_refused(saved: str) -> None:
    assert "no device's" in str(refused(f"{saved},since=3,block-size=1E,number=5"))


def test_an_empty_file_is_no_map(tmp_path: Path) -> None:
    (tmp_path / "map").write_bytes(b"")
    assert isinstance(refused(f"blksnap:{tmp_path / 'map'},since=1,block-size=64K"), FormatError)


def test_what_is_not_there_is_an_error() -> None:
    assert isinstance(refused("blksnap:/none,since=1,block-size=64K"), DeviceError)


def test_the_base_of_a_saved_map_is_named(saved: str, tmp_path: Path) -> None:
    word = f"{saved},since=3,block-size=64K,number=5"
    assert "--base-data" in str(refused(word, Reading(with_data=False, with_base=True)))
    with open_source(
        parse_source(word), Reading(with_data=False, with_base=True, base_source=str(tmp_path / "map"))
    ) as source:
        assert source.base_data is not None


# ---- devices


@pytest.fixture(params=GENERATIONS)
def here(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    with machine(tmp_path, monkeypatch, request.param) as one:
        yield one


def word_of(here: Machine, since: int | None) -> str:
    return f"blksnap:{here.disk.node}" + ("" if since is None else f",since={since}")


def test_a_device_in_a_snapshot_is_map_and_image(here: Machine) -> None:
    here.kernel_take()
    here.kernel.write(here.disk, 3 * BLOCK, b"x")
    here.kernel_take(keep=True)
    before = here.disk.content
    here.kernel.write(here.disk, 7 * BLOCK, b"later")
    with open_source(parse_source(word_of(here, 1))) as source:
        assert source.changes == ChangeMap.from_extents([(3 * BLOCK, BLOCK)])
        assert source.size == here.disk.size
        out = memoryview(bytearray(here.disk.size))
        source.data.read([0], [here.disk.size], out)
        assert bytes(out) == before
        source.confirm()
        assert here.disk.tracker
        assert source.base
        assert source.base.id.endswith(":1")
        assert source.head
        assert source.head.id.endswith(":2")
        assert source.head.parent == source.base.id
        assert not source.is_full


def test_since_0_is_what_was_written_since_tracking_began(here: Machine) -> None:
    here.kernel_attach()
    here.kernel.write(here.disk, 0, b"x")
    here.kernel_take(keep=True)
    source = opened(word_of(here, 0))
    assert source.changes.total_bytes == BLOCK
    assert any("everything is full:" in note for note in source.notes)
    assert source.base


@pytest.mark.parametrize("keys", ["block-size=64K", "number=2", "size=1M"])
def test_what_the_module_tells_is_not_to_be_said(here: Machine, keys: str) -> None:
    error = refused(f"{word_of(here, 1)},{keys}")
    assert isinstance(error, UsageError)
    assert "and the module tells" in str(error)


def test_a_device_without_since_is_a_usage_error(here: Machine) -> None:
    assert "since which snapshot" in str(refused(word_of(here, None)))


def test_a_device_that_is_not_tracked_is_refused(here: Machine) -> None:
    assert "is not tracked by blksnap" in str(refused(word_of(here, 1)))


def test_without_a_snapshot_there_is_no_data_and_on_v1_no_map(here: Machine) -> None:
    here.kernel_take()
    here.kernel.write(here.disk, 0, b"x")
    here.kernel_take()
    here.kernel.write(here.disk, 9 * BLOCK, b"not in the map of the last snapshot")
    assert "no snapshot holds" in str(refused(word_of(here, 1), Reading()))
    if here.kernel.generation == "v1":
        assert "no snapshot holds" in str(refused(word_of(here, 1)))
        return
    source = opened(word_of(here, 1))
    assert source.changes.total_bytes == BLOCK
    assert any("No snapshot holds" in note for note in source.notes)


@pytest.mark.parametrize("since", [2, 3, 254, 255])
def test_a_snapshot_that_did_not_come_before_is_no_base(here: Machine, since: int) -> None:
    here.kernel_take()
    here.kernel_take(keep=True)
    assert isinstance(refused(word_of(here, since)), ChangesLost)


def test_the_snapshot_at_the_roll_over_has_no_changes_and_no_number_as_a_point(here: Machine) -> None:
    for _ in range(254):
        here.kernel_take()
    here.kernel_take(keep=True)
    assert isinstance(refused(word_of(here, 3)), ChangesLost)
    with here.open_everything() as source:
        assert source.head
        assert not source.head.id.startswith("blksnap:")


@pytest.mark.parametrize("event", ["detach", "destroy", "overflow", "resize", "another"])
def test_a_snapshot_that_does_not_last_is_noticed(here: Machine, event: str) -> None:
    here.kernel_take()
    here.kernel.write(here.disk, 0, b"x")
    here.kernel_take(keep=True)
    with ExitStack() as stack:
        source = stack.enter_context(open_source(parse_source(word_of(here, 1))))
        source.confirm()
        match event:
            case "detach":
                here.disk.tracker = None
            case "destroy":
                here.kernel.destroy_all()
            case "overflow":
                here.kernel.overflow()
            case "resize":
                assert here.disk.tracker
                here.disk.tracker.capacity -= 512
            case _:
                assert here.disk.tracker
                here.disk.tracker.previous += 1
        with pytest.raises(ChangesLost, match=r"did not last.*the copy stays at the snapshot"):
            source.confirm()


@pytest.mark.parametrize("here", ["v7", "up"], indirect=True)
def test_an_overflow_that_no_read_shows_is_asked_for(here: Machine) -> None:
    here.kernel_take()
    here.kernel_take(keep=True)
    here.kernel.is_readable_when_full = True
    with open_source(parse_source(word_of(here, 1))) as source:
        source.confirm()
        here.kernel.overflow()
        with pytest.raises(ChangesLost, match=r"its image failed .*No space left"):
            source.confirm()


def test_data_from_elsewhere_is_the_users_word(here: Machine) -> None:
    here.kernel_take()
    here.kernel_take(keep=True)
    copy = here.folder / "copy"
    copy.write_bytes(here.disk.content)
    source = opened(word_of(here, 1), Reading(data_source=str(copy)))
    assert source.head == source.base
    assert any("is your word" in note for note in source.notes)
    copy.write_bytes(b"short")
    assert "was resized" in str(refused(word_of(here, 1), Reading(data_source=str(copy))))


def test_the_base_of_a_device_is_named(here: Machine) -> None:
    here.kernel_take()
    here.kernel_take(keep=True)
    assert "--base-data" in str(refused(word_of(here, 1), Reading(with_base=True)))
    copy = here.folder / "copy"
    copy.write_bytes(here.disk.content)
    assert opened(word_of(here, 1), Reading(with_base=True, base_source=str(copy))).base_data is not None


# ---- recordings of the real modules


def recorded() -> list[tuple[str, dict[str, Any]]]:
    """Return all steps and decisions that come with a map, with their case."""
    cases = json.loads((FIXTURES / "blksnap/manifest.json").read_text())["cases"]
    return [
        (case["id"], step)
        for case in cases
        for step in [*case["expectations"].get("steps", []), *case["expectations"].get("decisions", [])]
        if "map" in step and "base_cbtinfo" in step
    ]


@pytest.mark.parametrize(("case", "step"), recorded(), ids=str)
def test_a_recorded_map_gives_what_was_written_or_is_refused(case: str, step: dict[str, Any]) -> None:
    base, now = step["base_cbtinfo"], step["cbtinfo"]
    since, number, block, size = base["snap_number"], now["snap_number"], now["block_size"], now["device_capacity"]
    word = f"blksnap:{FIXTURES / 'blksnap' / case / step['map']},since={since},block-size={block},number={number}"
    wanted = step.get("decision", step.get("transfer"))
    if wanted == "incremental":
        blocks = step.get("changed_blocks", [])
        ranges = step.get("changed_ranges") or [(at * block, min(block, size - at * block)) for at in blocks]
        assert opened(f"{word},size={size}").changes == ChangeMap.from_extents(map(tuple, ranges))
    elif since >= number or 255 in (since, number):
        assert isinstance(refused(f"{word},size={size}"), ChangesLost)
    else:  # another generation, and a saved map does not tell which: it is the user's word
        assert now["generation_id"] != base["generation_id"]
        assert any("of one generation" in note for note in opened(f"{word},size={size}").notes)


def test_recordings_of_all_kinds_are_there() -> None:
    kinds = {(case.partition("-")[0], step.get("decision", step.get("transfer"))) for case, step in recorded()}
    assert {(generation, kind) for generation in GENERATIONS for kind in ("incremental", "full")} <= kinds

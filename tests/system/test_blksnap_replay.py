"""blksnap asked as its recordings say, byte for byte; the answers are those of the facts."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lvmsync.errors import ChangesLost, DeviceError
from lvmsync.formats.blksnap import Tracking
from lvmsync.system.blksnap import DeviceName, errno_of
from tests.blksnap_replay import (
    DELIBERATE,
    FOLDER,
    MAJORS,
    PROBE,
    Driver,
    Mismatch,
    Outcome,
    Recorded,
    Replay,
    list_recordings,
    load_facts,
    load_manifest,
    load_recording,
)

RECORDINGS = list_recordings()
DISK = DeviceName("/dev/vda", (254, 0))
NOBODY = "00112233-4455-6677-8899-aabbccddeeff"


@pytest.fixture
def replayed(request: pytest.FixtureRequest, tmp_path: Path) -> Driver:
    driver = Driver(request.param, tmp_path)
    driver.run()
    return driver


def every(value: Any, key: str) -> Iterator[Any]:
    """Yield all that facts.json has under a key, wherever, in order."""
    if isinstance(value, dict):
        for name, inner in value.items():
            if name == key:
                yield inner
            yield from every(inner, key)
    elif isinstance(value, list):
        for inner in value:
            yield from every(inner, key)


def as_facts(tracking: Tracking) -> dict[str, Any]:
    return {
        "block_size": tracking.block_size,
        "device_capacity": tracking.capacity,
        "block_count": tracking.block_count,
        "generation_id": tracking.generation,
        "snap_number": tracking.number,
    }


def told(driver: Driver, *methods: str) -> list[Any]:
    return [one.value for one in driver.outcomes if one.method in methods]


def is_within(short: list[Any], long: list[Any]) -> bool:
    """Tell whether ``short`` is ``long`` with some left out."""
    rest = iter(long)
    return all(one in rest for one in short)


all_recordings = pytest.mark.parametrize("replayed", RECORDINGS, indirect=True)


def test_there_are_recordings_of_all_three_generations() -> None:
    assert len(RECORDINGS) >= 29
    assert {name.partition("-")[0] for name in RECORDINGS} == {"v1", "v7", "up"}
    assert {case["id"] for case in load_manifest()["cases"]} <= set(RECORDINGS)


@all_recordings
def test_every_recorded_request_is_made_again_byte_for_byte_and_nothing_else(replayed: Driver) -> None:
    assert not replayed.replay.left
    recorded = load_recording(replayed.case)
    made = [one for outcome in replayed.outcomes for one in outcome.requests]
    probed = [one for one in recorded if one.number == PROBE and one.name == "VERSION"]
    assert sorted(one.seq for one in [*made, *replayed.left_out, *probed]) == [one.seq for one in recorded]
    for one in replayed.left_out:
        assert one.name in DELIBERATE or (one.name.endswith("/CBTINFO") and one.option.length == 8)
        assert one.errno in (errno.ENOTTY, errno.EINVAL)


@all_recordings
def test_every_refusal_becomes_our_error_and_every_answer_does_not(replayed: Driver) -> None:
    for outcome in replayed.outcomes:
        last = outcome.requests[-1]
        if outcome.method == "images" and outcome.value is None and not last.errno:
            assert "not been taken" in str(outcome.error)
        elif outcome.error is None:
            assert last.errno in (0, errno.ENOENT), last
            if last.errno:
                assert outcome.method in ("wait_event", "read_tracking")
                assert outcome.value is None
        else:
            check_refusal(outcome, last)


def check_refusal(outcome: Outcome, last: Recorded) -> None:
    assert last.errno
    assert "\n" not in str(outcome.error)
    assert "Errno" not in str(outcome.error)
    if outcome.method.startswith("list_"):
        assert "changes all the time" in str(outcome.error)
        return
    assert outcome.error is not None
    assert errno_of(outcome.error) == last.errno
    is_lost = outcome.method.startswith("read_map") and "map does not hold" in str(outcome.error)
    assert isinstance(outcome.error, ChangesLost if is_lost else DeviceError)


@pytest.mark.parametrize("abi", MAJORS)
def test_every_error_that_was_seen_has_words_of_its_own(abi: str, tmp_path: Path) -> None:
    driver = Driver(f"{abi}-errors", tmp_path)
    driver.run()
    refused = [one for one in driver.outcomes if one.error]
    assert len(refused) >= 14
    for one in refused:
        assert os.strerror(one.requests[-1].errno) not in str(one.error)


@all_recordings
def test_the_errors_are_those_of_the_recording(replayed: Driver) -> None:
    by_call = {one.requests[-1].seq: one for one in replayed.outcomes}
    for fact in load_facts(replayed.case).get("results", []):
        name = fact["ret"] if fact["ret"] in errno.errorcode.values() else fact["errno"]
        outcome = by_call.get(fact["call"])
        if name and outcome:
            assert errno.errorcode[outcome.requests[-1].errno] == name


@all_recordings
def test_generations_numbers_and_sizes_are_those_of_the_facts(replayed: Driver) -> None:
    seen = [as_facts(one) for one in told(replayed, "read_tracking") if one]
    numbers = []
    for trackers in told(replayed, "list_trackers"):
        for number, one in (trackers or {}).items():
            numbers.append({"major": number[0], "minor": number[1], **as_facts(one)})
    for fact in dicts(list(every(load_facts(replayed.case), "cbtinfo"))):
        assert fact in seen + numbers


@all_recordings
def test_events_are_those_of_the_facts_with_the_codes_of_their_generation(replayed: Driver) -> None:
    seen = []
    for event in told(replayed, "wait_event"):
        if event is None:
            continue
        shown = {"kind": event.kind.replace("low_space", "low_free_space"), "time_label": event.time}
        if event.device:
            shown |= {"dev_major": event.device[0], "dev_minor": event.device[1], "err_code": event.errno}
        else:
            shown |= {"requested_nr_sect": event.sectors}
        seen.append(shown)
    facts = []
    for found in (load_facts(replayed.case).get(key, []) for key in ("events", "event_snap1")):
        facts += [{**one, "code": None} for one in dicts(found) if "kind" in one]
    assert is_within(facts, [{**one, "code": None} for one in seen])
    recorded = [one for one in load_recording(replayed.case) if one.name == "SNAPSHOT_WAIT_EVENT" and not one.errno]
    assert len(seen) == len(recorded)


def dicts(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
    elif isinstance(value, list):
        for one in value:
            yield from dicts(one)


@all_recordings
def test_images_have_the_names_that_the_kernel_gave_them(replayed: Driver, tmp_path: Path) -> None:
    names = [str(name) for one in load_recording(replayed.case) for name in one.images.values()]
    given = [path for images in told(replayed, "images") if images for path in images.values()]
    assert given == [str(tmp_path / name.lstrip("/")) for name in names]


@all_recordings
def test_ids_are_those_of_the_facts(replayed: Driver) -> None:
    made = {one for one in told(replayed, "create") if one}
    listed = [ids for ids in told(replayed, "list_snapshots") if ids is not None]
    facts = load_facts(replayed.case)
    assert {one for one in every(facts, "id") if one} <= made
    for key in ("collect1", "collect_1", "collect_2", "collect_after_reopen"):
        if key in facts:
            assert facts[key] in listed
    assert all(set(ids) <= made for ids in listed)


@all_recordings
def test_maps_are_those_that_were_read(replayed: Driver) -> None:
    maps = [one.value.tobytes() for one in replayed.outcomes if one.method == "read_map"]
    stored = [path.read_bytes() for path in (FOLDER / replayed.case).glob("*.map")]
    assert all(one in maps for one in stored)
    for outcome in replayed.outcomes:
        if outcome.method == "read_map_piece" and outcome.error is None:
            one = outcome.requests[0]
            buffer = one.pointers[0] if replayed.abi == "v1" else one.option.inner[0]
            assert outcome.value.tobytes() == (buffer.after or b"")[: one.result or None]


@pytest.mark.parametrize("abi", MAJORS)
def test_an_overflow_is_told_by_its_event_and_by_the_image(abi: str, tmp_path: Path) -> None:
    driver = Driver(f"{abi}-events", tmp_path)
    driver.run()
    lost = [one for one in told(driver, "wait_event") if one and one.kind == "corrupted"]
    assert [(one.device, one.errno) for one in lost] == [((254, 0), errno.ENOSPC)]
    if abi == "v1":
        with Replay(abi, [], tmp_path).open() as control:
            assert control.read_error(DISK) == 0  # only events tell
    else:
        assert told(driver, "read_error") == [0, errno.ENOSPC]


# The replay itself would notice


@pytest.mark.parametrize("abi", MAJORS)
def test_the_replay_refuses_another_request_another_struct_and_another_node(abi: str, tmp_path: Path) -> None:
    recorded = load_recording(f"{abi}-errors")
    take = next(one for one in recorded if one.name == "SNAPSHOT_TAKE")
    replay = Replay(abi, [take], tmp_path)
    with replay.open() as control:
        with pytest.raises(Mismatch, match="was asked for"):
            control.destroy(NOBODY)
        with pytest.raises(Mismatch, match="was given"):
            control.take(NOBODY.replace("0", "1"))
        with pytest.raises(DeviceError, match="no such snapshot"):
            control.take(NOBODY)
        with pytest.raises(Mismatch, match="nothing more"):
            control.take(NOBODY)
    mark = next(one for one in recorded if one.name.endswith(("CBTDIRTY", "DIRTY_BLOCKS")))
    replay = Replay(abi, [mark], tmp_path)
    with replay.open() as control, pytest.raises(Mismatch, match="was given"):
        control.mark_dirty(DISK, [(512, 4096)])  # what a pointer leads to counts, too

"""Maps and images of the real blksnap: the steps and decisions of the manifest, and the images that come out."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard

from lvmsync.errors import ChangesLost
from lvmsync.extents import ChangeMap
from lvmsync.formats.blksnap import BlockNumbers, Tracking, changes, check_map, decide
from lvmsync.jobs.progress import ignore
from lvmsync.jobs.send import Sender, StreamOptions
from tests.blksnap_replay import FOLDER, load_facts, load_manifest
from tests.fakes import make_source
from tests.jobs.test_fixtures import apply, sha256

CASES = {case["id"]: case for case in load_manifest()["cases"]}
STEPS = [(name, at) for name, case in CASES.items() for at in range(len(case["expectations"].get("steps", [])))]
DECISIONS = [(name, at) for name, case in CASES.items() for at in range(len(case["expectations"].get("decisions", [])))]
INCREMENTS = [(name, at) for name, at in STEPS if CASES[name]["expectations"]["steps"][at]["transfer"] == "incremental"]


def step_of(name: str, at: int) -> dict[str, Any]:
    found: dict[str, Any] = CASES[name]["expectations"]["steps"][at]
    return found


def as_tracking(facts: dict[str, Any] | None) -> Tracking | None:
    if facts is None:
        return None
    return Tracking(
        facts["generation_id"],
        facts["snap_number"],
        facts["block_size"],
        facts["block_count"],
        facts["device_capacity"],
    )


def load_map(case: str, name: str) -> BlockNumbers:
    return np.frombuffer((FOLDER / case / name).read_bytes(), np.uint8)


@cache
def unpack(case: str, name: str) -> bytes:
    packed = FOLDER / case / f"{name}.zst"
    data = zstandard.ZstdDecompressor().stream_reader(packed.read_bytes()).read()
    assert hashlib.sha256(data).hexdigest() == CASES[case]["files"][f"{case}/{name}.zst"]["raw_sha256"], packed
    return data


def find_changes(case: str, facts: dict[str, Any]) -> tuple[int | None, ChangeMap | None]:
    """Do what a sync does: decide, check the map, and read it."""
    now = as_tracking(facts["cbtinfo"])
    assert now
    found = decide(as_tracking(facts.get("base_cbtinfo")), now)
    if found.since is None:
        return None, None
    numbers = load_map(case, facts["map"])
    check_map(numbers, now)
    return found.since, changes(numbers, found.since, now.block_size, now.capacity)


def test_there_are_steps_and_decisions_of_all_three_generations() -> None:
    assert len(STEPS) >= 33
    assert len(DECISIONS) >= 39
    assert {name.partition("-")[0] for name, _ in [*INCREMENTS, *DECISIONS]} == {"v1", "v7", "up"}


@pytest.mark.parametrize("case", CASES)
def test_the_files_are_those_of_the_manifest(case: str) -> None:
    for name, entry in CASES[case]["files"].items():
        data = (FOLDER / name).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (entry["size"], entry["sha256"]), name


@pytest.mark.parametrize(("case", "at"), STEPS)
def test_each_step_is_full_or_has_exactly_the_listed_ranges(case: str, at: int) -> None:
    step = step_of(case, at)
    if step["transfer"] == "abort":
        check_abort(case, step)
        return
    since, found = find_changes(case, step)
    if step["transfer"] == "full":
        assert since is None
        return
    assert step["transfer"] == "incremental"
    assert step["rule"] == f"map byte > {since}"
    assert found is not None
    assert [list(one) for one in found] == step["changed_ranges"]
    block_size, size = step["cbtinfo"]["block_size"], step["cbtinfo"]["device_capacity"]
    if "ground_truth_blocks" in step:
        written = [(block * block_size, block_size) for block in step["ground_truth_blocks"]]
        assert not len(ChangeMap.from_extents(written).clip(size) - found)


def check_abort(case: str, step: dict[str, Any]) -> None:
    """The map of a lost snapshot is good, so only its event or its image tells (see the replays)."""
    tracking = as_tracking(step["cbtinfo"])
    assert tracking
    check_map(load_map(case, step["map"]), tracking)
    kinds = [event["kind"] for _, event in load_facts(case)["events"] if isinstance(event, dict)]
    assert "corrupted" in kinds


@pytest.mark.parametrize(("case", "at"), DECISIONS)
def test_each_decision_is_that_of_the_manifest(case: str, at: int) -> None:
    facts = CASES[case]["expectations"]["decisions"][at]
    since, found = find_changes(case, facts)
    assert ("full" if since is None else "incremental") == facts["decision"]
    if found is not None:
        block_size, size = facts["cbtinfo"]["block_size"], facts["cbtinfo"]["device_capacity"]
        listed = [(block * block_size, block_size) for block in facts["changed_blocks"]]
        assert found == ChangeMap.from_extents(listed).clip(size)
        if "block_really_written_between" in facts:
            assert facts["block_really_written_between"] in facts["changed_blocks"]


def test_a_base_of_snapshot_255_would_show_no_change_where_there_was_one() -> None:
    """The roll-over as it is: the naive reading of the map finds nothing, so it is never made."""
    for abi in ("v1", "v7", "up"):
        decisions = CASES[f"{abi}-rollover"]["expectations"]["decisions"]
        facts = next(one for one in decisions if one["base_cbtinfo"]["snap_number"] == 255)
        numbers = load_map(f"{abi}-rollover", facts["map"])
        assert not np.any(numbers > 255)
        with pytest.raises(ChangesLost, match="numbers begin again"):
            changes(numbers, 255, facts["cbtinfo"]["block_size"], facts["cbtinfo"]["device_capacity"])
        assert decide(as_tracking(facts["base_cbtinfo"]), as_tracking(facts["cbtinfo"])).since is None  # type: ignore[arg-type]


@pytest.mark.parametrize("case", [name for name in CASES if name.endswith(("-rollover", "-generation"))])
def test_a_map_that_is_newer_than_what_is_said_of_it_is_refused(case: str) -> None:
    for path in sorted((FOLDER / case).glob("*.map")):
        numbers = load_map(case, path.name)
        highest = int(numbers.max(initial=0))
        if highest:
            below = Tracking("", highest - 1, 65536, len(numbers), len(numbers) << 16)
            with pytest.raises(ChangesLost, match=f"snapshot {highest}, but the latest is {highest - 1}"):
                check_map(numbers, below)


@pytest.mark.parametrize("stream_format", [3, 4])
@pytest.mark.parametrize(("case", "at"), INCREMENTS)
def test_the_base_and_the_stream_are_the_next_image_and_the_snapback_leads_back(
    case: str, at: int, stream_format: int, tmp_path: Path
) -> None:
    step = step_of(case, at)
    base, head = unpack(case, step["base"]), unpack(case, step["target"])
    _, found = find_changes(case, step)
    assert found is not None
    target, stream, snapback = (tmp_path / name for name in ("target", "stream", "snapback"))
    target.write_bytes(base)
    source = make_source(head, found, granularity=step["cbtinfo"]["block_size"])
    with stream.open("wb") as file:
        receipt = Sender(source, file.writelines, StreamOptions(stream_format), ignore).deliver()
    assert receipt.bytes == sum(length for _, length in step["changed_ranges"])
    apply(stream, target, tmp_path / "state", snapback)
    assert target.read_bytes() == head
    apply(snapback, target, tmp_path / "state", None)
    assert sha256(target) == hashlib.sha256(base).hexdigest()


@pytest.mark.parametrize("abi", ["v1", "v7", "up"])
def test_a_lost_snapshot_as_base_would_give_a_wrong_copy(abi: str, tmp_path: Path) -> None:
    """Why the base stays where it was after an overflow: from the lost snapshot on, changes are missing."""
    case = f"{abi}-events"
    step = next(one for one in CASES[case]["expectations"]["steps"] if one["transfer"] == "incremental")
    numbers = load_map(case, step["map"])
    size, block_size = step["cbtinfo"]["device_capacity"], step["cbtinfo"]["block_size"]
    kept = changes(numbers, step["base_cbtinfo"]["snap_number"], block_size, size)
    lost = changes(numbers, step["base_cbtinfo"]["snap_number"] + 1, block_size, size)
    base, head = unpack(case, step["base"]), unpack(case, step["target"])
    for found, is_right in ((kept, True), (lost, False)):
        made = bytearray(base)
        for one in found:
            made[one.offset : one.end] = head[one.offset : one.end]
        assert (bytes(made) == head) is is_right

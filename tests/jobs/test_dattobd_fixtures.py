"""COW files that the drivers wrote, sent and received whole: base plus stream is what the manifest says."""

from __future__ import annotations

import hashlib
import json
import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lvmsync.errors import ChangesLost, ConflictError, FormatError
from lvmsync.jobs.progress import ignore
from lvmsync.jobs.send import Sender, StreamOptions
from lvmsync.names import CowFile, Volume, parse_source
from lvmsync.sources import Reading, Source, open_source
from lvmsync.sources.dattobd import open_incremental
from lvmsync.system.holes import find_holes
from tests.dattobd_store import BLOCK, Case, find_case, list_cases, merge
from tests.jobs.test_fixtures import apply

LVMSYNC = str(Path(sys.executable).with_name("lvmsync"))
PASSES = [case for case in list_cases() if "passes" in case.facts]
MODES = [case for case in list_cases() if "snapshot_mode" in case.facts]
OTHERS = [(case, one) for case in list_cases() for one in case.facts.get("other_cow_files", [])]


def ids(values: Any) -> str:
    return values["cow"] if isinstance(values, dict) else str(values)


def data_blocks(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield the blocks of a sparse file that are not all zeros, with their numbers."""
    with path.open("rb", buffering=0) as file:
        at, size = 0, path.stat().st_size
        while at < size:
            try:
                at = os.lseek(file.fileno(), at, os.SEEK_DATA) // BLOCK * BLOCK
            except OSError:  # no more
                return
            end = os.lseek(file.fileno(), at, os.SEEK_HOLE)
            for offset in range(at, end, BLOCK):
                block = os.pread(file.fileno(), BLOCK, offset)
                if block.count(0) < len(block):
                    yield offset // BLOCK, block
            at = max(end, at + BLOCK)


def nonzero_sha256(path: Path) -> str:
    """Return the hash that the manifest calls nonzero."""
    whole = hashlib.sha256()
    for number, block in data_blocks(path):
        whole.update(struct.pack("<Q", number) + block)
    return whole.hexdigest()


def differing(one: Path, two: Path) -> list[int]:
    left, right = dict(data_blocks(one)), dict(data_blocks(two))
    return sorted(at for at in left.keys() | right.keys() if left.get(at) != right.get(at))


def deliver(source: Source, stream: Path) -> int:
    with stream.open("wb") as file:
        return Sender(source, file.writelines, StreamOptions(), ignore).deliver().bytes


@pytest.mark.parametrize("case", PASSES, ids=str)
def test_each_base_and_its_stream_are_what_is_expected_and_the_snapback_leads_back(case: Case, tmp_path: Path) -> None:
    passes = case.facts["passes"]
    target = case.unpack(passes[0]["base"], tmp_path)
    stream, state = tmp_path / "stream", tmp_path / "state"
    for number, one in enumerate(passes):
        before, snapback = nonzero_sha256(target), tmp_path / f"snapback{number}"
        snapshot, cow = case.unpack(one["snapshot"], tmp_path), case.unpack(one["cow"], tmp_path)
        uuid, seqid = one["header"]["uuid"], one["snapshot_seqid"]
        name = CowFile(Volume(str(cow)), None, uuid, seqid)
        with open_incremental(name, Reading(data_source=str(snapshot))) as source:
            assert source.base
            assert source.head
            assert (source.base.id, source.head.id) == (f"dattobd:{uuid}:{seqid - 1}", f"dattobd:{uuid}:{seqid}")
            assert source.head.parent == source.base.id
            assert not any("your word" in note for note in source.notes)
            expected = sum(length for _, length in merge(one["changed_ranges"], case.size))
            assert deliver(source, stream) == expected
            source.confirm()
        apply(stream, target, state, snapback)
        assert target.stat().st_size == one["expected_size"]
        assert nonzero_sha256(target) == one["expected_nonzero_sha256"]
        missed = [at for first, count in one["snapshot_differs_from_expected"] for at in range(first, first + count)]
        assert differing(target, snapshot) == missed
        (tmp_path / f"target{number}").write_text(before)
        snapshot.unlink()
    for number in reversed(range(len(passes))):
        apply(tmp_path / f"snapback{number}", target, state, None)
        assert nonzero_sha256(target) == (tmp_path / f"target{number}").read_text()


def test_the_whole_hash_is_right_where_a_file_can_be_read_whole(tmp_path: Path) -> None:
    case = find_case("dattobd-odd-tail")
    one = case.facts["passes"][0]
    base, snapshot, cow = (case.unpack(one[key], tmp_path) for key in ("base", "snapshot", "cow"))
    with open_source(parse_source(f"dattobd:{cow}"), Reading(data_source=str(snapshot))) as source:
        assert any(f"{snapshot} holds snapshot 2 of series" in note for note in source.notes)
        deliver(source, tmp_path / "stream")
    apply(tmp_path / "stream", base, tmp_path / "state", None)
    whole = hashlib.sha256(base.read_bytes()).hexdigest()
    assert whole == one["expected_sha256"] != one["update_img_result_sha256"]


def changes(*words: str) -> tuple[int, str, Any]:
    done = subprocess.run([LVMSYNC, "changes", *words, "--json"], capture_output=True, text=True, check=False)
    return done.returncode, done.stderr, json.loads(done.stdout) if done.stdout else None


def wanted(case: Case) -> Iterator[tuple[str, list[tuple[int, int]]]]:
    for one in [*case.facts.get("passes", []), *filter(None, [case.facts.get("snapshot_mode")])]:
        yield one["cow"], merge(one["changed_ranges"], case.size)


@pytest.mark.parametrize("case", [case for case in list_cases() if list(wanted(case))], ids=str)
def test_changes_shows_exactly_what_is_listed(case: Case, tmp_path: Path) -> None:
    for key, ranges in wanted(case):
        status, said, shown = changes(f"dattobd:{case.unpack(key, tmp_path)},size={case.size}")
        assert status == 0, said
        assert [tuple(one) for one in shown["extents"]] == ranges
        assert (shown["size"], shown["granularity"], shown["holes"]) == (case.size, 4096, [])


@pytest.mark.parametrize(("case", "facts"), [one for one in OTHERS if one[1]["must_reject"]], ids=ids)
def test_a_file_that_must_be_refused_is_refused_on_the_command_line(
    case: Case, facts: dict[str, Any], tmp_path: Path
) -> None:
    cow = case.unpack(facts["cow"], tmp_path)
    for size in (f",size={case.size}", ""):
        status, said, shown = changes(f"dattobd:{cow}{size}")
        assert (status, shown) == (5, None)
        assert said.count("\n") == 1
        assert f"{cow}: COW file byte 4: flags {facts['header']['flags']:#x} without CLEAN" in said


@pytest.mark.parametrize("case", MODES, ids=str)
def test_in_snapshot_mode_the_old_content_is_put_together_as_the_driver_does(case: Case, tmp_path: Path) -> None:
    facts = case.facts["snapshot_mode"]
    live, cow, snapshot = (case.unpack(facts[key], tmp_path) for key in ("live", "cow", "snapshot"))
    reading = Reading(data_source=str(live), with_base=True)
    with open_source(parse_source(f"dattobd:{cow}"), reading) as source:
        assert [tuple(one) for one in source.changes] == merge(facts["changed_ranges"], case.size)
        assert source.base_data
        assert any("what umount wrote is not in it" in note for note in source.notes)
        overlay = tmp_path / "overlay"
        subprocess.run(["cp", "--sparse=always", live, overlay], check=True)
        with overlay.open("r+b", buffering=0) as file:
            for one in source.changes:
                piece = bytearray(one.length)
                source.base_data.read([one.offset], [one.length], memoryview(piece))
                os.pwrite(file.fileno(), piece, one.offset)
        # Read across the edges of what is kept, too.
        first = list(source.changes)[-1]
        around = bytearray(first.length + 1024)
        start = min(first.offset - 512, case.size - len(around))
        source.base_data.read([start], [len(around)], memoryview(around))
        with overlay.open("rb") as file:
            assert around == os.pread(file.fileno(), len(around), start)
        source.confirm()
    assert nonzero_sha256(overlay) == facts["overlay_nonzero_sha256"]
    missed = [at for begin, count in facts["overlay_differs_from_snapshot"] for at in range(begin, begin + count)]
    assert differing(overlay, snapshot) == missed
    with pytest.raises(FormatError, match="COW file in snapshot mode"):
        open_incremental(CowFile(Volume(str(cow))), reading).__enter__()


def test_the_next_cow_file_and_the_one_of_another_series_are_refused(tmp_path: Path) -> None:
    case, other = find_case("dattobd-64m"), find_case("elastio-64m-1k")
    one, two = case.facts["passes"]
    uuid = one["header"]["uuid"]
    cow, later = (case.unpack(each["cow"], tmp_path) for each in (one, two))
    reading = Reading(data_source=str(case.unpack(one["snapshot"], tmp_path)))
    for path, words, message in (
        (later, f"uuid={uuid},seqid=2", "COW file of snapshot 2, which leads to 3, not to seqid=2; .* of snapshot 1"),
        (cow, f"uuid={uuid},seqid=3", "COW file of snapshot 1, which leads to 2, not to seqid=3"),
        (cow, f"uuid={uuid},seqid=1", "COW file of snapshot 1, which leads to 2, not to seqid=1"),
        (cow, f"uuid={other.facts['passes'][0]['header']['uuid']}", "and uuid=.* is of another"),
        (case.unpack("cow.snapshot-clean", tmp_path), "seqid=4", "which leads to no snapshot"),
    ):
        with pytest.raises(ConflictError, match=message):
            open_source(parse_source(f"dattobd:{path},{words}"), reading).__enter__()


def test_a_file_that_is_opened_again_while_it_is_read_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = find_case("dattobd-64m")
    cow = case.unpack("cow.seq1.incremental", tmp_path)

    def open_again(*words: Any) -> Any:
        with cow.open("r+b") as file:
            file.seek(4)
            file.write(b"\x02")
        return find_holes(*words)

    monkeypatch.setattr("lvmsync.sources.dattobd_map.find_holes", open_again)
    with pytest.raises(ChangesLost, match="written to while it was read"):
        open_source(parse_source(f"dattobd:{cow},size=64M"), Reading(with_data=False)).__enter__()

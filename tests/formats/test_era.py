"""The metadata of dm-era: of the real kernel against the writes that were made, made by hand against plain sets."""

from __future__ import annotations

import functools
import json
import random
import struct
from typing import Any

import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from lvmsync.errors import ChangesLost, FormatError
from lvmsync.extents import ChangeMap
from lvmsync.formats.era import (
    EraStatus,
    EraTable,
    Metadata,
    Superblock,
    look_up_eras,
    parse_status,
    parse_table,
    plan_metadata,
    sample_eras,
)
from tests.era_store import ERA_XOR, Bits, build_era, build_era_superblock
from tests.fixture_files import FIXTURES, Case, list_cases
from tests.metadata_store import ARRAY_XOR, BLOCK, NODE_XOR, Reader, Store, seal

CASES = list_cases("era")
BLOCK_SIZE = 4096  # of the data, where it is made by hand


@functools.lru_cache(2)
def unpack(file: str) -> bytes:
    return zstandard.ZstdDecompressor().stream_reader((FIXTURES / "era" / file).read_bytes()).read()


@functools.lru_cache(2)
def read_answers(file: str) -> dict[str, dict[str, list[list[int]]]]:
    found: dict[str, dict[str, list[list[int]]]] = json.loads(unpack(file))
    return found


def answers(case: Case) -> dict[str, dict[str, list[list[int]]]]:
    return read_answers(case.facts["expected_ranges"]["file"])


def open_era(image: bytes, *, is_snapshot: bool = False) -> Metadata:
    reader = Reader(image)
    live = Superblock.parse(reader.read_block(0))
    root = live.metadata_snap if is_snapshot else 0
    return Metadata(reader, reader.nr_blocks, Superblock.parse(reader.read_block(root), root), is_snapshot=is_snapshot)


def open_view(case: Case, view: str) -> Metadata:
    image, _, kind = view.partition(":")
    return open_era(unpack(case.facts["files"][image]["file"]), is_snapshot=kind != "live")


def made(store: Store, *, is_snapshot: bool = False) -> Metadata:
    return open_era(store.image, is_snapshot=is_snapshot)


def blocks_since(metadata: Metadata, since: int) -> set[int]:
    """Return the blocks that were written since an era, of a device of whole blocks."""
    changes = metadata.changes(since, metadata.superblock.nr_blocks * BLOCK_SIZE)
    return {at // BLOCK_SIZE for extent in changes for at in range(extent.offset, extent.end, BLOCK_SIZE)}


# ---- what the kernel wrote

VIEWS = [
    (case, f"{image}:{view}")
    for case in CASES
    for image, facts in case.facts["images"].items()
    for view in facts["views"]
]


@pytest.mark.parametrize(("case", "view"), VIEWS, ids=str)
def test_what_was_written_since_each_era_is_found(case: Case, view: str) -> None:
    metadata = open_view(case, view)
    size = case.facts["origin_size"]
    assert metadata.superblock.granularity == case.facts["block_size"]
    for since, ranges in answers(case)[view].items():
        found = metadata.changes(int(since), size)
        table = np.array(ranges, np.uint64).reshape(-1, 2)
        assert found == ChangeMap(table[:, 0], table[:, 1])
    assert metadata.changes(0, size) == ChangeMap.whole(size)
    assert metadata.changes(metadata.superblock.current_era + 1, size) == ChangeMap.empty()


def test_answers_are_there_for_every_view() -> None:
    assert len(VIEWS) == 62
    assert all(sum(map(len, answers(case)[view].values())) for case, view in VIEWS)


def test_the_last_block_is_clipped() -> None:
    case = next(case for case in CASES if case.name == "g16k")
    size = case.facts["origin_size"]
    assert size % 16384
    assert open_view(case, "meta-snap.img:metadata-snapshot").changes(0, size).end == size


def test_after_a_power_cut_the_writes_of_the_last_era_are_there() -> None:
    case = next(case for case in CASES if case.name == "g4k-crash")
    metadata = open_view(case, "meta-crashed.img:live")
    assert metadata.is_open
    assert len(blocks_since(metadata, 4)) == 25


# ---- made by hand


def test_the_newest_of_array_and_writesets_counts() -> None:
    store = build_era(
        [1, 5, 0, 3, 0, 2],
        {6: Bits(frozenset({0, 3}), 6), 7: Bits(frozenset({4}), 6)},
        Bits(frozenset({5, 0}), 6),
        era=8,
        is_held=True,
    )
    live, held = made(store), made(store, is_snapshot=True)
    newest = {0: 8, 1: 5, 2: 0, 3: 6, 4: 7, 5: 8}
    for since in range(10):
        assert blocks_since(live, since) == {block for block, era in newest.items() if era >= since}
    assert live.is_open
    assert not held.is_open  # the current writeset of a metadata snapshot is not its own
    newest |= {0: 6, 5: 2}
    for since in range(10):
        assert blocks_since(held, since) == {block for block, era in newest.items() if era >= since}


@given(st.data())
def test_any_history_equals_sets(data: st.DataObject) -> None:
    count = data.draw(st.sampled_from([1, 63, 64, 65, 200, 1018, 1019, 3000]), "blocks")
    blocks = st.frozensets(st.integers(0, count - 1), max_size=20)
    newest = [0] * count
    for block in data.draw(blocks, "digested"):
        newest[block] = data.draw(st.integers(1, 6))
    archived = {era: Bits(data.draw(blocks), count) for era in data.draw(st.sets(st.integers(2, 8)), "eras")}
    current = Bits(data.draw(blocks), count) if data.draw(st.booleans(), "open") else None
    metadata = made(build_era(newest, archived, current))
    for era, bits in [*sorted(archived.items()), *([(9, current)] if current else [])]:
        for block in bits.blocks:
            newest[block] = max(newest[block], era)
    since = data.draw(st.integers(0, 11), "since")
    size = count * BLOCK_SIZE - data.draw(st.sampled_from([0, 512, 4095]))
    wanted = [(at * BLOCK_SIZE, BLOCK_SIZE) for at, era in enumerate(newest) if era >= since]
    assert metadata.changes(since, size) == ChangeMap.from_extents(wanted).clip(size)


def test_a_device_that_grew_has_its_new_part_in_older_writesets() -> None:
    metadata = made(build_era([1] * 200, {4: Bits(frozenset({3}), 70), 5: Bits(frozenset({9}), 200)}, era=6))
    assert blocks_since(metadata, 5) == {9}
    assert blocks_since(metadata, 4) == {3, 9, *range(70, 200)}
    assert blocks_since(made(build_era([1] * 5, {4: Bits(frozenset(), 0)}, era=6)), 2) == set(range(5))


def test_a_device_that_shrank_has_less_than_older_writesets() -> None:
    metadata = made(build_era([1] * 65, {4: Bits(frozenset({3, 64, 65, 199}), 200)}, era=6))
    assert blocks_since(metadata, 4) == {3, 64}


def test_a_device_without_blocks_has_no_changes() -> None:
    metadata = made(build_era([], era=0))
    assert metadata.changes(0, 0) == ChangeMap.empty()
    assert [len(part) for part in sample_eras(metadata, 1, 10, 1)] == [0, 0]


def test_a_writeset_of_the_current_era_is_right_after_the_device_was_closed() -> None:
    closed = made(build_era([0] * 9, {9: Bits(frozenset({1}), 9)}))
    assert blocks_since(closed, 9) == {1}
    assert not closed.is_open
    with pytest.raises(FormatError, match="a writeset of era 9, and the current era is 9: it is damaged"):
        made(build_era([0] * 9, {9: Bits(frozenset({1}), 9)}, Bits(frozenset(), 9))).changes(1, 9 * BLOCK_SIZE)


# ---- is it the same history?


def test_a_sample_has_written_and_unwritten_blocks_and_keeps_its_eras() -> None:
    eras = [0] * 5000
    eras[17], eras[4000] = 3, 7
    bits = Bits(frozenset({9, 17, 4000}), 5000)
    metadata = made(build_era(eras, {8: bits}))
    blocks, found = sample_eras(metadata, 9, 1000, seed=5)
    newest = dict(zip(blocks.tolist(), found.tolist(), strict=True))
    assert newest[17] == newest[4000] == 8
    assert 100 < len(newest) <= 1000
    assert set(newest.values()) == {0, 8}
    assert [part.tolist() for part in sample_eras(metadata, 9, 1000, seed=5)] == [blocks.tolist(), found.tolist()]
    later, now = look_up_eras(metadata, np.array([9, 16, 17, 4999, 5000], np.uint64), 8)
    assert (later.tolist(), now.tolist()) == ([16, 4999], [0, 0])


# ---- damage

GOOD: dict[str, Any] = {"nr_blocks": 100, "era": 3}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"magic": 7}, "block 0: magic 7, not 2126579579: this is no era metadata"),
        ({"number": 3}, "it says that it is block 3: a superblock in the wrong place"),
        ({"version": 2}, "version 2, not 1: not known to this lvmsync"),
        ({"metadata_block_sectors": 16}, "metadata blocks of 16 sectors, not 8"),
        ({"data_block_sectors": 0}, "100 blocks of 0 sectors"),
        ({"data_block_sectors": 12}, "100 blocks of 12 sectors"),
        ({"nr_blocks": (1 << 32) - 1, "data_block_sectors": 1 << 31}, "no device is larger than 8 EiB"),
    ],
)
def test_a_superblock_that_is_not_right_is_refused(fields: dict[str, int], message: str) -> None:
    with pytest.raises(FormatError, match=message) as caught:
        Superblock.parse(build_era_superblock(**{**GOOD, **fields}))
    assert "\n" not in str(caught.value)


def test_a_damaged_superblock_is_refused() -> None:
    block = bytearray(build_era_superblock(**GOOD))
    assert Superblock.parse(bytes(block)).nr_blocks == 100
    block[180] ^= 1
    with pytest.raises(FormatError, match=r"checksum 0x.*, not 0x.*: the superblock is damaged"):
        Superblock.parse(bytes(block))
    with pytest.raises(FormatError, match="100 bytes, not even one block"):
        Superblock.parse(bytes(100))


EIGHT = [1] * 8


@pytest.mark.parametrize(
    ("store", "message"),
    [
        (build_era(EIGHT, nr_blocks=10**6), r"\d+ blocks cannot hold the eras of 1000000 data blocks: it is cut short"),
        (build_era(EIGHT, {12: Bits(frozenset(), 8)}), "a writeset of era 12, and the current era is 9"),
        (build_era([1, 99, 0]), "a block written in era 99, and the current era is 9"),
        (build_era(EIGHT, {2: Bits(frozenset({9}), 8, nr_words=1)}), "a writeset of 8 bits with one behind its end"),
        (build_era(EIGHT, {2: Bits(frozenset({1}), 100, nr_words=1)}), "an array block with 1 entries, not 2"),
        (build_era(EIGHT, {2: Bits(frozenset(), 40_000, nr_words=10)}), "an array block with 10 entries, not 509"),
        (build_era(EIGHT, {2: Bits(frozenset(), (1 << 32) - 1, root=1)}), "writesets of more than the .* blocks"),
        (build_era(EIGHT, None, Bits(frozenset(), 1 << 31, root=1)), "writesets of more than the .* blocks"),
        (build_era(EIGHT, {at: Bits(frozenset(), 8, root=1) for at in range(2, 9)}, spare=0), "writesets of more than"),
        (build_era(EIGHT, {2: Bits(frozenset(), 8, root=7777)}), "leads to block 7777|7777"),
        (build_era(EIGHT, {2: Bits(frozenset(), 8, root=0)}), "block 0"),
        (build_era(EIGHT, array_root=0), "block 0"),
        (build_era(EIGHT, array_root=1 << 60), "leads to block 1152921504606846976"),
        (build_era(EIGHT, tree_root=1), "block 1: checksum"),
        (build_era(EIGHT * 1000, nr_blocks=8), "of more than 1 blocks, for 8 entries|entries, not 8"),
        (build_era(EIGHT, nr_blocks=2000), "an array of 1 blocks, not 2|entries, not 1018"),
    ],
)
def test_damage_gives_one_line_and_never_a_shorter_map(store: Store, message: str) -> None:
    size = Superblock.parse(store.image).nr_blocks * BLOCK_SIZE
    with pytest.raises(FormatError, match=message) as caught:
        made(store).changes(1, size)
    assert "\n" not in str(caught.value)


def test_every_flipped_bit_of_what_is_used_is_noticed() -> None:
    store = build_era([3] * 2000, {7: Bits(frozenset({5}), 2000)}, Bits(frozenset({6}), 2000), spare=0)
    rng = np.random.default_rng(1)
    for number in range(len(store.blocks)):
        for at in rng.integers(0, BLOCK * 8, 20).tolist():
            image = bytearray(store.image)
            image[number * BLOCK + at // 8] ^= 1 << at % 8
            with pytest.raises(FormatError):
                open_era(bytes(image)).changes(1, 2000 * BLOCK_SIZE)


def is_sealed(block: bytearray, xor: int) -> bool:
    """Tell whether a block's checksum is that of a kind; a spare one is of none, which is 0."""
    sealed = bytearray(block)
    seal(sealed, xor)
    return xor == 0 or sealed == block


def test_wrong_numbers_under_right_checksums_give_one_line_or_a_map() -> None:
    writesets = {7: Bits(frozenset({5}), 3000), 8: Bits(frozenset({9}), 3000)}
    store = build_era([3] * 3000, writesets, Bits(frozenset({6}), 3000), spare=3)
    kinds = [next(xor for xor in (ERA_XOR, NODE_XOR, ARRAY_XOR, 0) if is_sealed(one, xor)) for one in store.blocks]
    chance = random.Random(1)
    outcomes = set()
    for _ in range(400):
        image = bytearray(store.image)
        number = chance.randrange(len(store.blocks))
        at = chance.choice([chance.randrange(8, 64), chance.randrange(172, 224), chance.randrange(4, BLOCK - 8)])
        value = chance.choice([0, 1, 2, chance.randrange(len(store.blocks)), 1 << 31, chance.getrandbits(32)])
        block = image[number * BLOCK : (number + 1) * BLOCK]
        block[at : at + 4] = struct.pack("<I", value)
        seal(block, kinds[number])
        image[number * BLOCK : (number + 1) * BLOCK] = block
        try:
            metadata = open_era(bytes(image))
            metadata.changes(1, metadata.superblock.nr_blocks * metadata.superblock.granularity)
            outcomes.add("a map")
        except FormatError as error:
            outcomes.add(str(error))
    assert "a map" in outcomes
    assert len(outcomes) > 20
    assert not any("\n" in outcome for outcome in outcomes)


def test_metadata_of_a_device_of_another_size_is_refused() -> None:
    metadata = made(build_era(EIGHT))
    for size in (0, 7 * BLOCK_SIZE, 8 * BLOCK_SIZE + 1):
        with pytest.raises(FormatError, match=f"8 blocks of 4096 bytes, and the device has {size} bytes"):
            metadata.changes(1, size)


# ---- status and table


def test_every_recorded_status_and_table_is_read() -> None:
    for case in CASES:
        for step in case.facts["status_steps"]:
            found = parse_status(step["status"].split(" ", 3)[3], "x")
            assert 0 < found.used < found.total
            assert found.era > 0
        if case.has_text("dmsetup-table.txt"):
            line = next(line for line in case.text("dmsetup-table.txt").splitlines() if " era " in line)
            assert parse_table(line.split(" era ")[1], "x").granularity == case.facts["block_size"]


def test_a_status_says_what_it_says() -> None:
    assert parse_status("8 14/6144 10 187\n", "x") == EraStatus(14, 6144, 10, 187)
    assert parse_status("8 11/6144 9 -", "x").held_root is None
    assert parse_status("8 3072/6144 9 -", "x").share == 0.5
    assert parse_status("8 0/0 0 -", "x").share == 1
    assert parse_table("98:16 254:0 128", "x") == EraTable((98, 16), (254, 0), 65536)


@pytest.mark.parametrize("text", ["Error", "Fail", " Error\n"])
def test_a_status_of_failure_means_that_changes_are_lost(text: str) -> None:
    with pytest.raises(ChangesLost, match=r"/dev/mapper/x has failed .* compare the whole device instead"):
        parse_status(text, "/dev/mapper/x")


@pytest.mark.parametrize("text", ["", "8 1/2 3", "16 1/2 3 -", "8 1/2 3 x", "8 1/2 -3 -", "8 1/2 3 - more", "1 2 3"])
def test_another_status_is_refused(text: str) -> None:
    with pytest.raises(FormatError, match="expected 8 USED/TOTAL ERA SNAPSHOT"):
        parse_status(text, "x")


@pytest.mark.parametrize("text", ["", "254:0 254:1", "a:b 1:2 8", "254:0 254:1 8 9", "254:0 254:1 99999999999"])
def test_another_table_is_refused(text: str) -> None:
    with pytest.raises(FormatError, match="expected METADATA ORIGIN GRANULARITY"):
        parse_table(text, "x")


# ---- how large metadata must be


@pytest.mark.parametrize(
    # What the kernel needed, found by trying: made only; two eras of writes everywhere; with a metadata snapshot.
    ("count", "array", "writeset", "made_only", "two_eras", "held"),
    [(100, 1, 1, 11, 18, 22), (16384, 17, 1, 27, 48, 70), (102400, 101, 4, 114, 223, 332)],
)
def test_what_is_advised_is_enough(
    count: int, array: int, writeset: int, made_only: int, two_eras: int, held: int
) -> None:
    plan = plan_metadata(count * (2 << 20) - 1, 2 << 20)
    assert (plan.nr_blocks, plan.array_blocks, plan.writeset_blocks) == (count, array, writeset)
    assert plan.idle == made_only
    assert made_only < two_eras < held < plan.least < plan.advised
    assert plan.least / plan.advised <= 0.6
    assert plan.is_possible


def test_the_rule_in_print_falls_short() -> None:
    plan = plan_metadata(200 << 30, 2 << 20)
    assert plan.in_print in range(160, 166)
    assert plan.in_print < 221 < plan.least


def test_metadata_that_the_kernel_cannot_use_is_not_possible() -> None:
    assert not plan_metadata(1 << 60, 4096).is_possible

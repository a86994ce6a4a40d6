"""The metadata of dm-thin pools: of the real kernel against thin_delta, made by hand against plain dictionaries."""

from __future__ import annotations

import functools
import hashlib
import struct
import xml.etree.ElementTree as ET
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from lvmsync.errors import ChangesLost, FormatError
from lvmsync.extents import ChangeMap
from lvmsync.formats import pdata
from lvmsync.formats.thin import (
    Details,
    Pool,
    PoolStatus,
    PoolTable,
    Superblock,
    parse_pool_status,
    parse_pool_table,
    parse_thin_table,
)
from tests.fixture_files import FIXTURES, Case, list_cases
from tests.metadata_store import BLOCK, Cut, Reader, Thin, build_pool, build_superblock

CASES = list_cases("thin")
SMALL = [case for case in CASES if case.facts["volume_size"] < 1 << 30]
VIEWS = [(case, view) for case in CASES for view in case.facts["metadata"]]
PAIRS = [(case, view, pair) for case, view in VIEWS for pair in case.facts["metadata"][view]["pairs"]]
CHUNK = 65536


def name_pair(value: object) -> str:
    return f"{value['snap1']}-{value['snap2']}" if isinstance(value, dict) else str(value)


@functools.lru_cache(2)
def unpack(file: str) -> bytes:
    return zstandard.ZstdDecompressor().stream_reader((FIXTURES / "thin" / file).read_bytes()).read()


def open_pool(image: bytes | bytearray, *, is_held: bool = False) -> Pool:
    reader = Reader(image)
    live = Superblock.parse(reader.read_block(0))
    root = live.held_root if is_held else 0
    shown = Superblock.parse(reader.read_block(root), root)
    return Pool(reader, reader.nr_blocks, shown, live.data_blocks)


def open_view(case: Case, view: str) -> Pool:
    image = case.facts["files"][case.facts["metadata"][view]["image"]]["file"]
    return open_pool(unpack(image), is_held=view.endswith("-m"))


def cover(blocks: Mapping[int, int] | set[int], chunk: int, size: int) -> ChangeMap:
    """Return the bytes of some virtual blocks, clipped."""
    ranges = [(block * chunk, min(chunk, size - block * chunk)) for block in blocks if block * chunk < size]
    return ChangeMap.from_extents(ranges)


def answer_of_thin_delta(file: str) -> dict[str, set[int]]:
    """Return the virtual blocks of each kind in a recorded answer."""
    found: dict[str, set[int]] = {"different": set(), "left_only": set(), "right_only": set(), "same": set()}
    diff = ET.fromstring(unpack(file)).find("diff")
    assert diff is not None
    for run in diff:
        first = int(run.attrib["begin"])
        found[run.tag] |= set(range(first, first + int(run.attrib["length"])))
    return found


# ---- what the kernel wrote


@pytest.mark.parametrize(("case", "view", "pair"), PAIRS, ids=name_pair)
def test_every_pair_of_devices_differs_as_thin_delta_says(case: Case, view: str, pair: dict[str, Any]) -> None:
    size, chunk = case.facts["volume_size"], case.facts["chunk_size"]
    found = open_view(case, view).diff(pair["snap1"], pair["snap2"], size)
    if "changed_ranges" in pair:
        assert found.changes == ChangeMap.from_extents((start, end - start) for start, end in pair["changed_ranges"])
        gone = [
            block for first, count, kind in pair["runs"] if kind == "left_only" for block in range(first, first + count)
        ]
        assert found.holes == cover(set(gone), chunk, size)
    else:
        assert len(found.changes) == pair["changed_ranges_count"]
        packed = np.stack([found.changes.offsets, found.changes.ends], axis=1).astype("<u8").tobytes()
        assert hashlib.sha256(packed).hexdigest() == pair["changed_ranges_sha256_of_le64_pairs"]
        assert found.holes.total_bytes == pair["counts"]["left_only"] * chunk
    if "thin_delta" in pair:
        listed = answer_of_thin_delta(pair["thin_delta"]["file"])
        assert found.changes == cover(listed["different"] | listed["left_only"] | listed["right_only"], chunk, size)
        assert found.holes == cover(listed["left_only"], chunk, size)


@pytest.mark.parametrize(("case", "view"), VIEWS, ids=str)
def test_the_devices_of_a_real_pool_are_known_with_their_details(case: Case, view: str) -> None:
    pool = open_view(case, view)
    listed = case.facts["metadata"][view]
    assert pool.devices(100) == sorted(map(int, listed["devices"]))
    assert pool.devices(2) == sorted(map(int, listed["devices"]))[:2]
    for device, facts in listed["devices"].items():
        assert pool.details(int(device)) == Details(**facts["details"])
        mapped = pool.mapped(int(device), 1 << 62)
        assert mapped.total_bytes == facts["mapped_blocks"] * case.facts["chunk_size"]
    assert pool.details(99) is None
    assert pool.superblock.chunk_size == case.facts["chunk_size"]
    assert {key: getattr(pool.superblock, key) for key in ("blocknr", "flags", "time", "held_root")} == {
        key: listed["superblock"][key] for key in ("blocknr", "flags", "time", "held_root")
    }


@pytest.mark.parametrize(
    ("case", "view"), [(case, view) for case, view in VIEWS if "thin_dump" in case.facts["metadata"][view]], ids=str
)
def test_what_is_mapped_in_a_real_pool_is_what_thin_dump_lists(case: Case, view: str) -> None:
    pool, size = open_view(case, view), case.facts["volume_size"]
    for device in ET.fromstring(unpack(case.facts["metadata"][view]["thin_dump"]["file"])).iter("device"):
        blocks: set[int] = set()
        for one in device:
            first = int(one.attrib.get("origin_block", one.attrib.get("origin_begin", "")))
            blocks |= set(range(first, first + int(one.attrib.get("length", "1"))))
        assert pool.mapped(int(device.attrib["dev_id"]), size) == cover(blocks, case.facts["chunk_size"], size)


@pytest.mark.parametrize("case", SMALL, ids=str)
def test_only_a_snapshot_that_was_written_to_says_so(case: Case) -> None:
    pool, ids = open_view(case, "reserved-m"), case.facts["thin_ids"]
    assert pool.diff(ids["s1b"], ids["vol"], 1 << 30).base_is_written
    assert not pool.diff(ids["s1"], ids["vol"], 1 << 30).base_is_written
    assert not pool.diff(ids["s2"], ids["vol"], 1 << 30).base_is_written


@pytest.mark.parametrize("case", SMALL, ids=str)
def test_the_kernels_own_status_and_tables_are_read(case: Case) -> None:
    held = case.facts["metadata"]["reserved-m"]["live_superblock"]
    status = parse_pool_status(find_line(case, "status", "thin-pool"), "pool")
    assert (status.transaction_id, status.held_root) == (held["transaction_id"], held["held_root"])
    assert status.mode == "rw"
    assert (
        status.data_blocks
        == Superblock.parse(unpack(case.facts["files"]["meta-reserved.img"]["file"])[:BLOCK]).data_blocks
    )
    assert parse_pool_table(find_line(case, "table", "thin-pool"), "pool")[:2] == ((254, 0), (254, 1))
    assert parse_thin_table(find_line(case, "table", "thin"), "x") == ((254, 2), case.facts["thin_ids"]["other"])


def find_line(case: Case, what: str, kind: str) -> str:
    """Return what dmsetup said of the first target of a kind."""
    for line in case.text(f"reserved-dmsetup-{what}.txt").splitlines():
        words = line.split(" ", 4)
        if words[3] == kind:
            return words[4]
    raise AssertionError(f"no {kind} in {case}")


# ---- any two devices, against dictionaries


def cut_at(seed: int, fill: int) -> Cut:
    """Return where nodes begin: at one key of ``fill``, always the same ones for one seed."""
    return lambda key, level: zlib.crc32(struct.pack("<QII", key, level, seed)) % fill == 0


MAPPINGS = st.dictionaries(
    st.integers(0, 60) | st.integers(0, 1 << 40), st.tuples(st.integers(0, 20), st.integers(0, 9)), max_size=60
)


@st.composite
def pairs(draw: st.DrawFn) -> tuple[Thin, Thin]:
    """Two devices: unrelated, or one with changes to the other; their trees shared by chance."""
    old = draw(MAPPINGS)
    new = draw(MAPPINGS)
    if draw(st.booleans()):
        gone = draw(st.sets(st.sampled_from(sorted(old)))) if old else set()
        new = {block: to for block, to in (old | dict(list(new.items())[:5])).items() if block not in gone}
    devices = []
    seed, fill = draw(st.integers(0, 3)), draw(st.integers(2, 9))
    for mappings in (old, new):
        is_alike = draw(st.integers(0, 3)) > 0  # cut like the other one: then nodes are shared
        devices.append(
            Thin(
                mappings,
                creation_time=draw(st.integers(0, 9)),
                cut=cut_at(seed, fill) if is_alike else cut_at(9, draw(st.integers(2, 99))),
                height=draw(st.integers(1, 4)),
                share=is_alike,
                slack=draw(st.integers(0, 2)),
            )
        )
    return devices[0], devices[1]


@settings(deadline=None)
@given(pairs(), st.integers(1, 5), st.integers(0, 70 * CHUNK) | st.integers(0, 1 << 61), st.integers(1, 4))
def test_any_two_devices_differ_as_their_mappings_do(
    devices: tuple[Thin, Thin], factor: int, size: int, batch: int
) -> None:
    base, head = devices
    chunk = factor * CHUNK
    pool = open_pool(build_pool({3: base, 8: head}, data_block_sectors=factor * 128).image)
    old, new = ({block: data for block, (data, _) in one.mappings.items()} for one in devices)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pdata, "BATCH", batch)  # so that pieces end everywhere
        found = pool.diff(3, 8, size)
        assert found.changes == cover({key for key in old | new if old.get(key) != new.get(key)}, chunk, size)
        assert found.holes == cover(old.keys() - new.keys(), chunk, size)
        assert pool.mapped(3, size) == cover(old, chunk, size)
        assert pool.last_mapping(3) == (max(old) * chunk if old else None)
    listed = build_pool({1: base}).image  # all there is of the base, without anything shared
    assert open_pool(listed).mapped(1, 1 << 61) == cover(old, CHUNK, 1 << 61)


@settings(deadline=None)
@given(pairs())
def test_a_device_does_not_differ_from_itself_or_from_its_copy(devices: tuple[Thin, Thin]) -> None:
    one = devices[0]
    pool = open_pool(build_pool({1: one, 2: one, 3: Thin(one.mappings, cut=one.cut, share=False)}).image)
    for pair in ((1, 1), (1, 2), (1, 3), (3, 2)):
        found = pool.diff(*pair, 1 << 61)
        assert not len(found.changes)
        assert not len(found.holes)


def many(count: int, cut: int = 50) -> Thin:
    return Thin({block: (block, 0) for block in range(count)}, cut=lambda key, level: level == 0 and key % cut == 0)


def test_what_two_devices_share_is_not_read() -> None:
    base = many(20_000)
    head = Thin({**base.mappings, 7777: (1, 1)}, cut=base.cut)
    store = build_pool({1: base, 2: head})
    reader = Reader(store.image)
    pool = Pool(reader, reader.nr_blocks, Superblock.parse(bytes(store.blocks[0])), 1 << 20)
    assert list(pool.diff(1, 2, 1 << 60).changes) == [(7777 * CHUNK, CHUNK)]
    assert len(store.blocks) > 400
    assert len(reader.numbers) < 30


# ---- wrong metadata


def test_devices_that_are_not_there_are_refused() -> None:
    pool = open_pool(build_pool({1: many(3)}).image)
    for pair in ((1, 2), (2, 1)):
        with pytest.raises(FormatError, match="thin device 2 has no mappings, or no details"):
            pool.diff(*pair, 1 << 30)
    with pytest.raises(FormatError, match="thin device 5 has no mappings"):
        pool.mapped(5, 1 << 30)
    assert open_pool(build_pool({}).image).devices(5) == []


def test_a_count_that_the_mappings_do_not_have_is_refused() -> None:
    wrong = Thin(many(300).mappings, mapped_blocks=299)
    pool = open_pool(build_pool({1: many(3), 2: wrong}).image)
    with pytest.raises(FormatError, match=r"thin device 2 has \+1 mappings more or less than its details"):
        pool.diff(1, 2, 1 << 30)
    with pytest.raises(FormatError, match=r"thin device 2 has \+1 mappings"):
        pool.mapped(2, 1 << 30)
    with pytest.raises(FormatError, match=r"thin device 1 has -1 mappings"):
        pool.diff(2, 1, 1 << 30)


def test_a_mapping_outside_the_pool_is_refused() -> None:
    pool = open_pool(build_pool({1: Thin({0: (5, 0), 1: (100, 0)}), 2: Thin({})}, data_blocks=100).image)
    with pytest.raises(FormatError, match="a mapping to data block 100, and the pool has 100"):
        pool.diff(1, 2, 1 << 30)
    with pytest.raises(FormatError, match="a mapping to data block 100"):
        pool.mapped(1, 1 << 30)


def test_a_virtual_block_that_no_device_has_is_refused() -> None:
    pool = open_pool(
        build_pool({1: Thin({(1 << 63) // CHUNK: (5, 0)}), 2: Thin({(1 << 63) // CHUNK - 1: (5, 0)})}).image
    )
    with pytest.raises(FormatError, match="no device is so large"):
        pool.mapped(1, 1 << 30)
    assert pool.mapped(2, 1 << 63).end == 1 << 63


def test_metadata_that_is_cut_short_is_refused() -> None:
    image = build_pool({1: many(3)}).image
    with pytest.raises(FormatError, match=r"blocks, not \d+ as the superblock says: it is cut short"):
        open_pool(image[:-BLOCK])


def unsealed(block: bytes) -> bytes:
    return block[:100] + b"\xff" + block[101:]


@pytest.mark.parametrize(
    ("block", "message"),
    [
        (bytes(4095), "4095 bytes, not even one block"),
        (bytes(4096), "magic 0, not 27022010: this is no thin-pool metadata"),
        (build_superblock(magic=2126579579), "magic 2126579579"),
        (unsealed(build_superblock()), "the superblock is damaged"),
        (build_superblock(number=3), "it says that it is block 3: a superblock in the wrong place"),
        (build_superblock(version=0), "version 0 with incompatible features 0x0, not 1 or 2"),
        (build_superblock(version=3), "version 3"),
        (build_superblock(incompat=4), "incompatible features 0x4"),
        (build_superblock(data_block_sectors=0), "a data block of 0 sectors"),
        (build_superblock(data_block_sectors=64), "a data block of 64 sectors"),
        (build_superblock(data_block_sectors=129), "a data block of 129 sectors"),
        (build_superblock(data_block_sectors=2097152 + 128), "a data block of 2097280 sectors"),
        (build_superblock(metadata_block_sectors=16), "metadata blocks of 16 sectors, not 8"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_superblock_that_the_kernel_would_not_take_is_refused(block: bytes, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        Superblock.parse(block)


def test_metadata_that_needs_a_check_is_refused_with_the_way_out() -> None:
    with pytest.raises(ChangesLost, match="run 'lvconvert --repair'"):
        Superblock.parse(build_superblock(flags=1))


@pytest.mark.parametrize("sectors", [128, 384, 2097152])
def test_the_data_blocks_that_the_kernel_allows_are_taken(sectors: int) -> None:
    assert Superblock.parse(build_superblock(data_block_sectors=sectors, number=7), 7).chunk_size == sectors * 512


# ---- status and tables


def test_a_status_tells_what_is_held_and_how_large_the_pool_is() -> None:
    text = "8 66/512 46/256 106 rw no_discard_passdown queue_if_no_space - 128 \n"
    assert parse_pool_status(text, "p") == PoolStatus(8, 256, 46, 512, 66, 106, "rw")
    assert parse_pool_status("1 2/3 4/5 - ro", "p") == PoolStatus(1, 5, 4, 3, 2, None, "ro")
    assert parse_pool_status("1 2/3 4/5 - out_of_data_space x", "p").mode == "out_of_data_space"


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("Fail", ChangesLost, r"p has failed \(status 'Fail'\)"),
        ("Error\n", ChangesLost, "repair the pool first"),
        ("1 2/3 4/5 - rw discard_passdown queue_if_no_space needs_check 128", ChangesLost, "lvconvert --repair"),
        ("", FormatError, "expected ID USED/TOTAL"),
        ("1 2/3 4/5 -", FormatError, "expected ID USED/TOTAL"),
        ("1 2/3 4/5 x rw", FormatError, "expected ID USED/TOTAL"),
    ],
)
def test_a_status_of_a_pool_that_is_not_well_is_refused(text: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        parse_pool_status(text, "p")


def test_the_table_of_a_pool_names_its_devices_and_its_block_size() -> None:
    assert parse_pool_table("254:0 254:1 128 0 0 ", "p") == PoolTable((254, 0), (254, 1), 128)


@pytest.mark.parametrize("text", ["", "254:0 254:1", "254:0 x 128 0"])
def test_another_table_than_a_pools_is_refused(text: str) -> None:
    with pytest.raises(FormatError, match="expected METADATA DATA BLOCK LOW-WATER"):
        parse_pool_table(text, "p")


def test_the_table_of_a_thin_device_names_pool_and_number() -> None:
    assert parse_thin_table("254:2 6", "x") == ((254, 2), 6)
    assert parse_thin_table("254:2 6 7:1\n", "x") == ((254, 2), 6)
    for text in ("", "254:2", "a:b 6", "254:2 6x"):
        with pytest.raises(FormatError, match="expected POOL ID"):
            parse_thin_table(text, "x")

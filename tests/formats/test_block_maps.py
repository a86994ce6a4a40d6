"""Maps for other tools: each says the same as the change map, by the rules of the tool that reads it."""

from __future__ import annotations

import hashlib
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lvmsync.extents import ChangeMap
from lvmsync.formats import bmap, borg_map
from lvmsync.formats.bmap import BLOCK, whole_blocks, write_bmap
from lvmsync.formats.borg_map import write_borg_map
from tests.strategies import DEVICE, change_maps


@given(change_maps(), change_maps(), st.integers(1, DEVICE))
def test_a_borg_map_covers_the_input_and_says_of_each_byte_what_it_is(
    changes: ChangeMap, holes: ChangeMap, size: int
) -> None:
    states = ["same"] * size
    for piece, word in ((changes, "data"), (changes & holes, "zero")):
        for extent in piece.clip(size):
            states[extent.offset : extent.end] = [word] * extent.length
    found: list[str] = []
    for line in "".join(write_borg_map(changes, holes, size)).splitlines():
        start, length, state = line.split()
        assert int(start) == len(found)  # in order, and touching
        assert int(length) > 0
        found += [state] * int(length)
    assert found == states


def test_long_maps_come_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    changes = ChangeMap.from_extents([(at, 1) for at in range(0, 100 * BLOCK, 2 * BLOCK)])
    whole = "".join(write_borg_map(changes, ChangeMap.empty(), 100 * BLOCK))
    digests = [bytes([at]) * 32 for at in range(50)]
    text = "".join(write_bmap(whole_blocks(changes, 100 * BLOCK), digests, 100 * BLOCK))
    monkeypatch.setattr(borg_map, "_LINES", 3)
    monkeypatch.setattr(bmap, "_LINES", 3)
    assert "".join(write_borg_map(changes, ChangeMap.empty(), 100 * BLOCK)) == whole
    assert "".join(write_bmap(whole_blocks(changes, 100 * BLOCK), digests, 100 * BLOCK)) == text


@given(st.lists(st.integers(0, 40 * BLOCK), max_size=20), st.integers(1, 41 * BLOCK))
def test_a_bmap_names_the_blocks_that_hold_a_change(places: list[int], size: int) -> None:
    changes = ChangeMap.from_extents([(place, 1 + place % 9000) for place in places])
    blocks = whole_blocks(changes, size)
    wanted = {
        block for extent in changes.clip(size) for block in range(extent.offset // BLOCK, -(-extent.end // BLOCK))
    }
    digests = [hashlib.sha256(str(extent).encode()).digest() for extent in blocks]
    text = "".join(write_bmap(blocks, digests, size))
    root = ElementTree.fromstring(text)
    found = set()
    sums = []
    for item in root.iter("Range"):
        first, _, last = str(item.text).strip().partition("-")
        found |= set(range(int(first), int(last or first) + 1))
        sums.append(bytes.fromhex(item.attrib["chksum"]))
    assert found == wanted
    assert sums == digests
    assert int(str(root.findtext("ImageSize"))) == size
    assert int(str(root.findtext("BlocksCount"))) == -(-size // BLOCK)
    assert int(str(root.findtext("MappedBlocksCount"))) == len(wanted)
    own = str(root.findtext("BmapFileChecksum")).strip()
    assert hashlib.sha256(text.replace(own, "0" * 64).encode()).hexdigest() == own


def test_the_last_block_may_be_short() -> None:
    blocks = whole_blocks(ChangeMap.from_extents([(BLOCK + 1, 5)]), BLOCK + 700)
    assert np.array_equal(blocks.offsets, [BLOCK])
    assert np.array_equal(blocks.ends, [BLOCK + 700])

"""The checksummed blocks, b-trees and arrays of dm-thin and dm-era: what is right is read, what is wrong refused."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lvmsync.errors import FormatError
from lvmsync.formats import pdata
from lvmsync.formats.pdata import BTree, check_blocks, checksum, max_entries, read_array, unshared_leaves
from tests.fixture_files import find_case
from tests.metadata_store import ARRAY_XOR, BLOCK, INTERNAL, LEAF, NODE_XOR, Reader, Store, seal

WORD = struct.Struct("<Q")
KEYS = st.integers(0, (1 << 64) - 1)


def words(items: dict[int, int]) -> dict[int, bytes]:
    return {key: WORD.pack(value) for key, value in items.items()}


def pack(*numbers: int) -> list[bytes]:
    return [WORD.pack(number) for number in numbers]


def open_tree(store: Store, root: int) -> BTree:
    return BTree(Reader(store.image), len(store.blocks), root)


def read_all(tree: BTree) -> dict[int, int]:
    found: dict[int, int] = {}
    last = -1
    for keys, values in tree.items():
        for key, value in zip(keys.tolist(), values.tolist(), strict=True):
            assert key > last
            found[key] = value
            last = key
    return found


# ---- blocks


def test_a_block_of_the_kernel_has_the_checksum_of_its_type(tmp_path: Path) -> None:
    case = find_case("thin", "c64k-basic")
    image = case.image("meta-clean.img", tmp_path).read_bytes()
    facts = case.facts["metadata"]["clean"]["superblock"]
    for number, xor in ((0, 160774), (facts["mapping_root"], NODE_XOR), (facts["details_root"], NODE_XOR)):
        block = image[number * BLOCK :][:BLOCK]
        assert int.from_bytes(block[:4], "little") == checksum(block, xor)
        assert checksum(memoryview(block), xor) != checksum(block, ARRAY_XOR)


def test_a_nodes_room_is_the_kernels() -> None:
    assert [max_entries(size) for size in (8, 24, 16, 4)] == [252, 126, 168, 336]


def test_a_block_in_another_place_or_of_another_type_is_refused() -> None:
    store = Store()
    number = store.add_tree(words({1: 2}))
    blocks = np.frombuffer(store.image, np.uint8).reshape(-1, BLOCK)[[number, number]]
    right = np.array([number, number], np.uint64)
    check_blocks(blocks, right, NODE_XOR, 8, "node")
    with pytest.raises(FormatError, match=r"block 9: it says that it is block 1: a node in the wrong place") as caught:
        check_blocks(blocks, np.array([1, 9], np.uint64), NODE_XOR, 8, "node")
    assert caught.value.offset == 9 * BLOCK
    with pytest.raises(FormatError, match=r"block 1: checksum 0x[0-9a-f]+, not 0x[0-9a-f]+: it is damaged, or no node"):
        check_blocks(blocks, right, ARRAY_XOR, 8, "node")


# ---- trees that are right


@settings(deadline=None)
@given(
    st.dictionaries(KEYS, KEYS, max_size=80), st.integers(1, 9), st.integers(1, 5), st.integers(0, 3), st.integers(1, 4)
)
def test_a_tree_holds_what_was_put_in(items: dict[int, int], fill: int, height: int, slack: int, batch: int) -> None:
    store = Store()
    root = store.add_tree(words(items), cut=lambda key, _: key % fill == 0, height=height, slack=slack)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pdata, "BATCH", batch)
        tree = open_tree(store, root)
        assert read_all(tree) == items
        assert tree.height >= (height if items else 1)
        assert tree.last_key() == max(items, default=None)
        for key in [*items, 0, 1, 5, (1 << 64) - 1, *(abs(key - 1) for key in items)]:
            found = tree.find(key)
            assert (None if found is None else int(found)) == items.get(key)


def test_a_full_node_is_read() -> None:
    store = Store()
    items = {key: key + 1 for key in range(252 * 252 + 1)}
    tree = open_tree(store, store.add_tree(words(items)))
    assert tree.height == 3
    assert read_all(tree) == items


def test_values_may_have_any_size() -> None:
    store = Store()
    kind = np.dtype([("a", "<u8"), ("b", "<u4"), ("c", "<u4")])
    root = store.add_tree({7: struct.pack("<QII", 1, 2, 3)})
    assert BTree(Reader(store.image), 9, root, kind).find(7).tolist() == (1, 2, 3)


# ---- leaves that are not shared


def leaves_of(one: BTree, other: BTree) -> tuple[list[int], list[int]]:
    ours, theirs = unshared_leaves(one, other)
    return ours.blocks.tolist(), theirs.blocks.tolist()


def test_trees_of_one_root_share_all() -> None:
    store = Store()
    root = store.add_tree(words({key: key for key in range(600)}))
    assert leaves_of(open_tree(store, root), open_tree(store, root)) == ([], [])


def test_a_tree_that_has_grown_shares_what_it_had() -> None:
    store = Store()
    small = store.add_tree(words({key: key for key in range(5)}))
    grown = store.add_tree(words({key: key for key in range(9)}), cut=lambda key, _: key == 5)
    ours, theirs = leaves_of(open_tree(store, small), open_tree(store, grown))
    assert (ours, len(theirs)) == ([], 1)
    ours, theirs = leaves_of(open_tree(store, grown), open_tree(store, small))
    assert (len(ours), theirs) == (1, [])
    higher = store.add_tree(words({key: key for key in range(5)}), height=4)
    assert leaves_of(open_tree(store, small), open_tree(store, higher)) == ([], [])


def test_a_node_in_another_place_of_the_other_tree_is_not_taken_as_shared() -> None:
    # The leaf of 4 to 6 may hold 2 to 6 in one tree: there it starts lower, and both are read.
    store = Store()
    leaf = store.add_node([4, 6], pack(1, 2), LEAF)
    other = store.add_node([0, 1], pack(3, 4), LEAF)
    one = store.add_node([0, 4], pack(other, leaf), INTERNAL)
    two = store.add_node([0, 2], pack(other, leaf), INTERNAL)
    assert leaves_of(open_tree(store, one), open_tree(store, two)) == ([leaf], [leaf])


def test_an_empty_tree_shares_nothing() -> None:
    store = Store()
    empty = store.add_tree({})
    full = store.add_tree(words({key: key for key in range(300)}))
    ours, theirs = leaves_of(open_tree(store, empty), open_tree(store, full))
    assert (ours, len(theirs)) == ([empty], 2)


# ---- trees that are wrong


def leaf(store: Store, *keys: int) -> int:
    return store.add_node(keys, pack(*keys), LEAF)


def over(store: Store, keys: Sequence[int], children: Sequence[int]) -> int:
    return store.add_node(keys, pack(*children), INTERNAL)


def circle(store: Store) -> int:
    """A root that is its own child."""
    number = len(store.blocks)
    return over(store, [0], [number])


def long_circle(store: Store) -> int:
    """A root whose second grandchild is its first child."""
    first = leaf(store, 1)
    low = over(store, [0], [first])
    return over(store, [0, 5], [low, over(store, [5], [low])])


WRONG: list[tuple[Callable[[Store], int], str]] = [
    (lambda _: 0, "leads to block 0"),
    (lambda _: 99, "leads to block 99, and the metadata has"),
    (lambda store: over(store, [0], [77]), "leads to block 77, and the metadata has"),
    (lambda store: over(store, [0, 4], [leaf(store, 1), 1 << 63]), "leads to block 9223372036854775808"),
    (lambda store: over(store, [0, 4], [leaf(store, 1), 0]), "leads to block 0"),
    (circle, "more than 16 levels"),
    (long_circle, "twice"),
    (lambda store: over(store, [0, 4], [leaf(store, 4), leaf(store, 4)]), "twice|keys that belong to another node"),
    (lambda store: over(store, [0, 4], [leaf(store, 1), over(store, [4], [leaf(store, 4)])]), "not a leaf"),
    (lambda store: over(store, [0, 4], [over(store, [0], [leaf(store, 1)]), leaf(store, 4)]), "not an internal node"),
    (lambda store: store.add_node([1], pack(1), 0), "not an internal node"),
    (lambda store: store.add_node([1], pack(1), 3), "not an internal node"),
    (lambda store: store.add_node([1], pack(1), LEAF, value_size=4), "values of another size than 8"),
    (lambda store: store.add_node([1], pack(1), LEAF, max_entries=251), "another number of entries than 252"),
    (lambda store: store.add_node([1], pack(1), LEAF, max_entries=(1 << 32) - 1), "another number of entries than 252"),
    (lambda store: store.add_node([1], pack(1), LEAF, nr_entries=253), "not 0 to 252"),
    (lambda store: store.add_node([1], pack(1), LEAF, nr_entries=(1 << 32) - 1), "not 0 to 252"),
    (lambda store: store.add_node([], [], INTERNAL), "not 1 to 252"),
    (lambda store: over(store, [0, 4], [leaf(store, 1), leaf(store)]), "not 1 to 252"),
    (lambda store: store.add_node([1, 1], pack(1, 1), LEAF), "do not ascend"),
    (lambda store: store.add_node([5, 4], pack(1, 1), LEAF), "do not ascend"),
    (lambda store: over(store, [4, 4], [leaf(store, 4), leaf(store, 5)]), "do not ascend"),
    (lambda store: over(store, [0, 4], [leaf(store, 1, 4), leaf(store, 5)]), "belong to another node"),
    (lambda store: over(store, [2, 4], [leaf(store, 1), leaf(store, 5)]), "belong to another node"),
    (
        lambda store: over(store, [0, 4], [leaf(store, 1), over(store, [3], [leaf(store, 5)])]),
        "another node|not a",
    ),
]


@pytest.mark.parametrize(("build", "message"), WRONG, ids=[message for _, message in WRONG])
def test_a_tree_that_the_kernel_did_not_write_is_refused(build: Callable[[Store], int], message: str) -> None:
    store = Store()
    root = build(store)
    with pytest.raises(FormatError, match=message):
        read_all(open_tree(store, root))


def test_finding_a_key_checks_the_nodes_on_its_way() -> None:
    store = Store()
    root = over(store, [3, 4, 8], [leaf(store, 3), leaf(store, 5), 99])
    tree = open_tree(store, root)
    assert tree.find(0) is None
    assert tree.find(7) is None
    assert int(tree.find(5)) == 5
    with pytest.raises(FormatError, match="leads to block 99"):
        tree.find(8)
    with pytest.raises(FormatError, match="belong to another node"):
        open_tree(store, over(store, [0, 6], [leaf(store, 7), leaf(store, 8)])).find(2)


def test_a_leaf_without_a_height_is_not_believed() -> None:
    store = Store()
    root = over(store, [0], [leaf(store, 1)])
    store.blocks[1][200] ^= 1
    with pytest.raises(FormatError, match="block 1: checksum"):
        _ = open_tree(store, root).height


# ---- arrays


def numbers(count: int) -> list[bytes]:
    return [struct.pack("<I", at * 3) for at in range(count)]


def read(store: Store, root: int, count: int) -> list[int]:
    pieces = list(read_array(Reader(store.image), len(store.blocks), root, count, "<u4"))
    return np.concatenate(pieces).tolist() if pieces else []


@pytest.mark.parametrize("count", [1, 5, 1018, 1019, 5000])
@pytest.mark.parametrize("batch", [1, 2, 512])
def test_an_array_holds_its_values_in_order(count: int, batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pdata, "BATCH", batch)
    store = Store()
    root = store.add_array(numbers(count))
    assert read(store, root, count) == [at * 3 for at in range(count)]


def test_an_empty_array_has_no_values() -> None:
    store = Store()
    assert read(store, store.add_tree({}), 0) == []


@pytest.mark.parametrize("wrong", [{"nr_entries": 4}, {"nr_entries": 1 << 31}, {"max_entries": 9}, {"value_size": 8}])
def test_an_array_block_of_another_shape_is_refused(wrong: dict[str, int]) -> None:
    store = Store()
    root = store.add_array(numbers(5), **wrong)
    with pytest.raises(FormatError, match=r"an array block with \d+ entries, not 5"):
        read(store, root, 5)


def test_an_array_of_another_length_is_refused() -> None:
    store = Store()
    root = store.add_array(numbers(2036))
    with pytest.raises(FormatError, match="an array of 2 blocks, not 3 for 3000 entries"):
        read(store, root, 3000)
    with pytest.raises(FormatError, match="more than 1 blocks, for 100 entries"):
        read(store, root, 100)
    with pytest.raises(FormatError, match="with 1018 entries, not 1017"):
        read(store, root, 2035)


def test_an_array_with_a_gap_or_a_block_twice_is_refused() -> None:
    store = Store()
    store.add_array(numbers(2000))
    for keys, message in (([0, 2], "do not follow each other at 0"), ([1, 2], "do not follow each other")):
        with pytest.raises(FormatError, match=message):
            read(store, store.add_node(keys, pack(1, 2), LEAF), 2000)
    with pytest.raises(FormatError, match="twice"):
        read(store, store.add_node([0, 1], pack(1, 1), LEAF), 2000)
    with pytest.raises(FormatError, match="leads to block 88"):
        read(store, store.add_node([0, 1], pack(1, 88), LEAF), 2000)


def test_a_damaged_array_block_is_refused() -> None:
    store = Store()
    root = store.add_array(numbers(5))
    store.blocks[1][100] ^= 4
    with pytest.raises(FormatError, match="it is damaged, or no array block"):
        read(store, root, 5)
    store.blocks[1][100] ^= 4
    store.blocks[1][16] = 9
    seal(store.blocks[1], ARRAY_XOR)
    with pytest.raises(FormatError, match="it says that it is block 9"):
        read(store, root, 5)

"""Thin metadata on the command line: what is wrong with it gets one line and its status, and nothing is written."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.test_cli import Place, complaint
from tests.metadata_store import BLOCK, Store, Thin, build_pool

CHUNK = 65536
SIZE = 40 * CHUNK - 512
OLD = {block: (block, 0) for block in range(0, 40, 2)}
NEW = {**OLD, 4: (100, 1), 9: (101, 1)}
GONE = {block: to for block, to in NEW.items() if block != 6}
WORD = "thin:./meta,id=2,base=1"
SEND = ["send", WORD, "-r", "./head", "-o", "out"]


def make(**fields: int) -> Store:
    """Return the metadata of a pool with two devices, in trees of two levels."""
    devices = {
        1: Thin(OLD, cut=lambda key, level: not level and key % 10 == 0),
        2: Thin(GONE, creation_time=1, cut=lambda key, level: not level and key % 10 == 0),
    }
    return build_pool(devices, is_held=False, **fields)


IMAGE = make().image


@pytest.fixture
def place(tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Place:
    """A folder with metadata, the contents of both devices, and a target that holds the older one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LVMSYNC_STATE", str(tmp_path / "state"))
    place = Place(tmp_path, capfd)
    base, head = bytearray(SIZE), bytearray(SIZE)
    for mappings, volume in ((OLD, base), (GONE, head)):
        for block, (data, _) in mappings.items():
            part = volume[block * CHUNK : (block + 1) * CHUNK]
            volume[block * CHUNK : (block + 1) * CHUNK] = bytes([data + 1]) * len(part)
    place.write("meta", IMAGE)
    place.write("head", bytes(head))
    place.write("target", bytes(base))
    return place


def changed(store: Store, number: int, at: int) -> bytes:
    """Return an image with one bit of a block flipped."""
    store.blocks[number][at] ^= 1
    return store.image


def test_a_delta_of_a_copy_of_the_metadata_is_sent_and_applied(place: Place) -> None:
    place.do(*SEND)
    place.do("apply", "./out", "./target", "--no-undo")
    assert place.read("target") == place.read("head")


def wrong_images() -> list[tuple[str, bytes, int, str]]:
    store = make()
    node = len(store.blocks) - 3  # a node of the mappings; the two last blocks are the top tree and the details
    return [
        ("empty", b"", 4, "0 bytes, not even one block: this is no thin-pool metadata"),
        ("short", IMAGE[: BLOCK - 1], 4, "0 bytes, not even one block"),
        ("zeros", bytes(16 * BLOCK), 4, "magic 0, not 27022010: this is no thin-pool metadata"),
        ("text", b"no metadata at all " * 1000, 4, "this is no thin-pool metadata"),
        ("flipped", changed(make(), 0, 200), 4, "metadata block 0: checksum 0x"),
        ("flipped node", changed(make(), node, 900), 4, f"metadata block {node}: checksum 0x"),
        ("flipped top", changed(make(), node + 1, 40), 4, f"metadata block {node + 1}: checksum 0x"),
        ("flipped details", changed(make(), node + 2, 33), 4, f"metadata block {node + 2}: checksum 0x"),
        ("needs a check", make(flags=1).image, 5, "marked as needing a check: run 'lvconvert --repair'"),
        ("version", make(version=3).image, 4, "version 3 with incompatible features 0x0, not 1 or 2"),
        ("features", make(incompat=1).image, 4, "incompatible features 0x1"),
        ("chunk", make(data_block_sectors=100).image, 4, "a data block of 100 sectors"),
        ("no trees", make(mapping_root=0).image, 4, "leads to block 0"),
        ("far trees", make(mapping_root=1 << 40).image, 4, "leads to block 1099511627776"),
        ("one tree", make(mapping_root=node + 2).image, 4, "values of another size than 8 bytes"),
        ("small pool", make(data_blocks=50).image, 4, "a mapping to data block 100, and the pool has 50"),
        (
            "counts",
            build_pool({1: Thin(OLD), 2: Thin(NEW, mapped_blocks=9)}).image,
            4,
            "its details say: it is damaged",
        ),
        *((f"cut at {at}", IMAGE[:at], 4, "it is cut short") for at in (BLOCK, BLOCK + 1, 3 * BLOCK, len(IMAGE) - 1)),
    ]


@pytest.mark.parametrize(
    ("image", "status", "message"), [pytest.param(*rest, id=name) for name, *rest in wrong_images()]
)
def test_bad_metadata_gets_one_line_its_status_and_nothing_is_written(
    place: Place, image: bytes, status: int, message: str
) -> None:
    place.write("meta", image)
    before = place.files()
    done = place.call(*SEND)
    line = complaint(done)
    assert message in line
    assert "./meta: " in line
    assert done.returncode == status
    assert place.files() == before


@pytest.mark.parametrize("at", range(0, len(IMAGE), 1500))
def test_metadata_that_is_cut_anywhere_is_refused(place: Place, at: int) -> None:
    place.write("meta", IMAGE[:at])
    before = place.files()
    for words in (SEND, ["changes", f"{WORD},size={SIZE}"], ["sync", WORD, "./target", "-r", "./head"]):
        done = place.call(*words)
        assert "./meta: " in complaint(done)
        assert done.returncode == 4
        after = {name: file for name, file in place.files().items() if not name.startswith("state/")}
        assert after == before


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["send", "thin:./meta", "-o", "out"], 2, "names no thin device: write thin:METADATA,id=N,base=M"),
        (
            ["send", "thin:./meta,id=3,base=1", "-r", "./head", "-o", "out"],
            2,
            "no thin device 3 in this pool; it has 1, 2",
        ),
        (
            ["send", "thin:./meta,id=2,base=7", "-r", "./head", "-o", "out"],
            2,
            "no thin device 7 in this pool; it has 1, 2",
        ),
        (["changes", "thin:./meta,id=9"], 2, "no thin device 9 in this pool; it has 1, 2"),
        (["send", WORD, "-o", "out"], 2, "where is the data of thin device 2? Name it with -r"),
        (["send", WORD, "-r", "./missing", "-o", "out"], 3, "cannot open ./missing: there is no such device"),
        (["send", WORD, "-r", "./short", "-o", "out"], 2, ""),
        (["send", f"{WORD},snap=held", "-r", "./head", "-o", "out"], 3, "no metadata snapshot is reserved"),
        (["changes", f"{WORD},snap=mine"], 2, "snap=mine is out of range"),
        (["changes", "thin:./meta,id=two"], 2, "id=two is out of range: a number from 0 to 16777215"),
        (["changes", "thin:./meta,id=1,origin=./head"], 2, "unknown key 'origin' in a 'thin:' source; known are: id,"),
        (["changes", "thin:./missing,id=1"], 3, "cannot open ./missing: there is no such device or file"),
        (["changes", "thin:/,id=1"], 3, "/ is a directory; a block device or an image file is needed"),
        (["changes", "thin:/dev/null,id=1"], 3, "/dev/null is neither a block device nor a plain file"),
        (["changes", "thin:meta,id=1"], 2, "'meta' is neither VG/LV nor a path: a file needs ./ or / in front"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_words_about_a_pool_get_one_line_and_their_status(
    place: Place, words: list[str], status: int, message: str
) -> None:
    place.write("short", bytes(CHUNK))
    words = [f"{word},size={SIZE}" if "./short" in words and word == WORD else word for word in words]
    before = place.files()
    done = place.call(*words)
    assert (message or f"./short has {CHUNK} bytes, less than the {SIZE}") in complaint(done)
    assert done.returncode == status
    assert place.files() == before

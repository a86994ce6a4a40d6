"""COW files of dattobd and elastio-snap: the recorded ones, and ones made by hand, wrong where a test wants it so.

Made by the rules of fixtures/dattobd/FORMAT.md, with nothing of the reader that is tested.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import zstandard

FOLDER = Path(__file__).resolve().parent.parent / "fixtures" / "dattobd"
BLOCK = 4096
UUID = "000102030405060708090a0b0c0d0e0f"
CLEAN, INDEX_ONLY, VMALLOC_UPPER = 1, 2, 4


@dataclass(frozen=True)
class Case:
    """One recorded case: a folder, and what the manifest says of it."""

    facts: dict[str, Any]

    def __str__(self) -> str:
        return str(self.facts["name"])

    @property
    def size(self) -> int:
        return int(self.facts["device_size"])

    def unpack(self, key: str, folder: Path) -> Path:
        """Unpack a file of the case to ``folder``, with holes where there are zeros, and return its path."""
        entry = self.facts["files"][key]
        path = folder / f"{self}-{key}"
        packed = FOLDER / entry["path"]
        if packed.suffix != ".zst":
            path.write_bytes(packed.read_bytes())
            return path
        with packed.open("rb") as file, path.open("wb") as out:
            reader = zstandard.ZstdDecompressor(max_window_size=1 << 27).stream_reader(file)
            at, whole = 0, hashlib.sha256()
            while piece := reader.read(1 << 20):
                whole.update(piece)
                put(out.fileno(), at, piece)
                at += len(piece)
            out.truncate(at)
        assert whole.hexdigest() == entry["raw_sha256"], f"{packed} is damaged"
        return path

    def bytes(self, key: str) -> bytes:
        """Return a small file of the case."""
        packed = FOLDER / self.facts["files"][key]["path"]
        with packed.open("rb") as file:
            return bytes(zstandard.ZstdDecompressor(max_window_size=1 << 27).stream_reader(file).read())


@functools.cache
def list_cases() -> tuple[Case, ...]:
    return tuple(Case(facts) for facts in json.loads((FOLDER / "manifest.json").read_text())["cases"])


def find_case(name: str) -> Case:
    return next(case for case in list_cases() if str(case) == name)


def put(fd: int, offset: int, content: bytes) -> None:
    """Write what is not zero, and leave holes elsewhere."""
    if content.count(0) == len(content):
        return
    for at in range(0, len(content), BLOCK):
        page = content[at : at + BLOCK]
        if page.count(0) < len(page):
            os.pwrite(fd, page, offset + at)


def merge(ranges: Iterable[Iterable[int]], size: int) -> list[tuple[int, int]]:
    """Return ``[first block, count]`` ranges as bytes, clipped to the device."""
    return [(first * BLOCK, min((first + count) * BLOCK, size) - first * BLOCK) for first, count in ranges]


def blocks_of(numbers: Iterable[int], size: int) -> set[tuple[int, int]]:
    """Return blocks as pairs of offset and length, each for itself."""
    return {(at * BLOCK, min((at + 1) * BLOCK, size) - at * BLOCK) for at in numbers}


def sections_of(size: int) -> int:
    return -(-(size // BLOCK) // 4096)


def first_position(size: int) -> int:
    """Return the block of the file where the datastore begins."""
    return 1 + 8 * sections_of(size)


def build_header(**fields: Any) -> bytes:
    """Return a header of 4096 bytes with these fields; others are those of a clean incremental file."""
    values = {
        "magic": 4776, "flags": CLEAN | INDEX_ONLY, "fpos": 1, "fsize": 1 << 20, "seqid": 1,
        "uuid": bytes.fromhex(UUID), "version": 1, "changed": 0,
    } | fields  # fmt: skip
    return struct.pack("<IIQQQ16sQQ", *values.values()).ljust(BLOCK, b"\0")


def build_cow(size: int, entries: Mapping[int, int], **fields: Any) -> bytes:
    """Return an incremental COW file of a device of ``size`` bytes, whose index has these entries."""
    index = bytearray(sections_of(size) * 4096 * 8)
    for at, value in entries.items():
        struct.pack_into("<Q", index, at * 8, value)
    first = first_position(size)
    given = {"fpos": max([first, *(value + 1 for value in entries.values())]), "changed": len(entries)} | fields
    return build_header(**given) + bytes(index)


def build_snapshot(size: int, kept: Mapping[int, bytes], **fields: Any) -> bytes:
    """Return a COW file in snapshot mode that keeps old content of blocks, in the order given."""
    first = first_position(size)
    entries = {block: first + at for at, block in enumerate(kept)}
    content = b"".join(old.ljust(BLOCK, b"\0") for old in kept.values())
    return build_cow(size, entries, **{"flags": CLEAN, "fpos": first + len(kept)} | fields) + content

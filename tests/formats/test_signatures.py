"""What the first bytes of a device are taken for."""

from __future__ import annotations

import pytest

from lvmsync.formats.signatures import LOOKED_AT, find_signature


def made(offset: int, magic: bytes) -> bytes:
    start = bytearray(LOOKED_AT)
    start[offset : offset + len(magic)] = magic
    return bytes(start)


@pytest.mark.parametrize(
    ("offset", "magic", "words"),
    [
        (512, b"LABELONE", "physical volume"),
        (1536, b"LABELONE", "physical volume"),
        (0, b"LUKS\xba\xbe\0\2", "LUKS"),
        (4096, bytes.fromhex("fc4e2ba901"), "md"),
        (4086, b"SWAPSPACE2", "swap"),
        (512, b"EFI PART", "GPT"),
        (450, b"\x83" + bytes(59) + b"\x55\xaa", "DOS"),
    ],
)
def test_what_others_use_is_seen(offset: int, magic: bytes, words: str) -> None:
    assert words in (find_signature(made(offset, magic)) or "")


@pytest.mark.parametrize(
    "start",
    [
        b"",
        bytes(512),
        bytes(LOOKED_AT),
        made(2048, b"LABELONE"),
        made(510, b"\x55\xaa"),  # a boot sector, and no partition in it
        made(446, b"\x12" + bytes(3) + b"\x83" + bytes(59) + b"\x55\xaa"),  # a flag that no table has
    ],
)
def test_what_tells_nothing_is_nothing(start: bytes) -> None:
    assert find_signature(start) is None

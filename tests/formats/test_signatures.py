"""What the first and the last bytes of a device are taken for."""

from __future__ import annotations

import pytest

from lvmsync.formats.signatures import LOOKED_AT, LOOKED_AT_END, find_signature


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


@pytest.mark.parametrize("size", [1 << 30, (1 << 30) + 512, (1 << 30) + 65024, 131072, 73728])
@pytest.mark.parametrize(
    ("kind", "magic"), [("1.0", "fc4e2ba9"), ("0.90", "fc4e2ba9"), ("0.90", "a92b4efc"), ("none", "fc4e2ba9")]
)
def test_a_member_of_an_array_is_known_by_its_end(size: int, kind: str, magic: str) -> None:
    end = bytearray(min(size, LOOKED_AT_END))
    assert find_signature(b"", bytes(end), size) is None
    sectors = size // 512  # md.c, super_1_load; md_p.h, MD_NEW_SIZE_SECTORS
    at = {"1.0": (sectors - 16) // 8 * 8, "0.90": sectors // 128 * 128 - 128, "none": sectors - 4}[kind] * 512
    end[at - size + len(end) : at - size + len(end) + 4] = bytes.fromhex(magic)
    assert find_signature(b"", bytes(end), size) == (None if kind == "none" else "a member of an array (md)")


def test_the_end_of_a_tiny_device_tells_nothing() -> None:
    assert find_signature(bytes(4096), bytes(4096), 4096) is None

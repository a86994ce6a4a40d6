"""What the first bytes of a device tell of its use by others: only what holds more than itself, or names others.

Sources: LVM 2.03 lib/format_text/layout.h (LABELONE, in one of the first four sectors); Linux v6.1
include/uapi/linux/raid/md_p.h, include/linux/swap.h, block/partitions/{efi,msdos}.c; LUKS2 specification 2.1.
"""

from __future__ import annotations

LOOKED_AT = 8192
"""Bytes at the beginning of a device that are looked at."""

_SECTOR = 512
_SIGNS = (
    *((sector * _SECTOR, b"LABELONE", "a physical volume of LVM") for sector in range(4)),
    (0, b"LUKS\xba\xbe", "an encrypted volume (LUKS)"),
    (0, bytes.fromhex("fc4e2ba9"), "a member of an array (md)"),
    (4096, bytes.fromhex("fc4e2ba9"), "a member of an array (md)"),
    (4096 - 10, b"SWAPSPACE2", "swap space"),
    (_SECTOR, b"EFI PART", "a partition table (GPT)"),
    (4096, b"EFI PART", "a partition table (GPT)"),
)
_ENTRIES, _ENTRY, _COUNT = 446, 16, 4  # of a DOS partition table
_BOOT_FLAGS = (0x00, 0x80)


def find_signature(start: bytes) -> str | None:
    """Return what a device is by its first `LOOKED_AT` bytes (fewer of a smaller one); None if they tell nothing."""
    for offset, magic, words in _SIGNS:
        if start[offset : offset + len(magic)] == magic:
            return words
    return "a partition table (DOS)" if _is_dos(start) else None


def _is_dos(start: bytes) -> bool:
    """Tell whether there is a partition in a DOS table; boot sectors of file systems end with the same two bytes."""
    if start[510:512] != b"\x55\xaa":
        return False
    entries = [start[at : at + _ENTRY] for at in range(_ENTRIES, _ENTRIES + _COUNT * _ENTRY, _ENTRY)]
    return all(entry[0] in _BOOT_FLAGS for entry in entries) and any(entry[4] for entry in entries)

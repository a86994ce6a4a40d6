"""What first and last bytes of a device tell of its use by others: only what holds more than itself, or names others.

Sources: LVM 2.03 lib/format_text/layout.h (LABELONE, in one of the first four sectors); Linux v6.1
include/uapi/linux/raid/md_p.h, include/linux/swap.h, block/partitions/{efi,msdos}.c; LUKS2 specification 2.1.
"""

from __future__ import annotations

LOOKED_AT = 8192
"""Bytes at the beginning of a device that are looked at."""

LOOKED_AT_END = 128 << 10
"""Bytes at its end that are."""

_SECTOR = 512
_MD = (bytes.fromhex("fc4e2ba9"), bytes.fromhex("a92b4efc"))  # of format 0.90 in the byte order of the machine
_SIGNS = (
    *((sector * _SECTOR, b"LABELONE", "a physical volume of LVM") for sector in range(4)),
    (0, b"LUKS\xba\xbe", "an encrypted volume (LUKS)"),
    (0, _MD[0], "a member of an array (md)"),
    (4096, _MD[0], "a member of an array (md)"),
    (4096 - 10, b"SWAPSPACE2", "swap space"),
    (_SECTOR, b"EFI PART", "a partition table (GPT)"),
    (4096, b"EFI PART", "a partition table (GPT)"),
)
_ENTRIES, _ENTRY, _COUNT = 446, 16, 4  # of a DOS partition table
_BOOT_FLAGS = (0x00, 0x80)


def find_signature(start: bytes, end: bytes = b"", size: int = 0) -> str | None:
    """Return what a device is; None if nothing tells.

    Args:
        start: its first `LOOKED_AT` bytes, fewer of a smaller one.
        end: its last `LOOKED_AT_END` bytes, likewise.
        size: bytes of it.
    """
    for offset, magic, words in _SIGNS:
        if start[offset : offset + len(magic)] == magic:
            return words
    for offset in (size - 8192 & -4096, (size & -65536) - 65536):  # format 1.0; and 0.90
        at = offset - (size - len(end))
        if at >= 0 and end[at : at + 4] in _MD:
            return "a member of an array (md)"
    return "a partition table (DOS)" if _is_dos(start) else None


def _is_dos(start: bytes) -> bool:
    """Tell whether there is a partition in a DOS table; boot sectors of file systems end with the same two bytes."""
    if start[510:512] != b"\x55\xaa":
        return False
    entries = [start[at : at + _ENTRY] for at in range(_ENTRIES, _ENTRIES + _COUNT * _ENTRY, _ENTRY)]
    return all(entry[0] in _BOOT_FLAGS for entry in entries) and any(entry[4] for entry in entries)

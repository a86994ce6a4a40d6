"""COW stores of dm-snapshot, made by hand: small, exact, and wrong where a test wants it so.

Source: Linux v6.1, drivers/md/dm-snap-persistent.c: a header chunk, then areas of exceptions with their data chunks.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

MAGIC = 0x70416E53
CHUNK = 4096


def build_store(
    exceptions: Sequence[tuple[int, int]],
    *,
    magic: int = MAGIC,
    valid: int = 1,
    version: int = 1,
    chunk_sectors: int = CHUNK // 512,
    chunks: int = 16,
) -> bytes:
    """Return a store with ``exceptions``, pairs of old and new chunk number, in its first area."""
    header = struct.pack("<4I", magic, valid, version, chunk_sectors).ljust(CHUNK, b"\0")
    area = b"".join(struct.pack("<2Q", old, new) for old, new in exceptions).ljust(CHUNK, b"\0")
    return (header + area).ljust(chunks * CHUNK, b"\xee")

"""The check file of an undo file: how much of it counts after a crash, and the proof of every bit of that.

An entry of 32 bytes a window (so that none crosses a sector), little-endian: u64 bytes of the undo file up
to the end of the window, u64 XXH3 of the window, u64 zero, u64 XXH3 of the 24 bytes before.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

import xxhash

from lvmsync.errors import VerifyError

_ENTRY = struct.Struct("<QQQ")
_SEAL = struct.Struct("<Q")
ENTRY_SIZE = _ENTRY.size + _SEAL.size


class Window(NamedTuple):
    """One window of an undo file that was made durable before anything it saves was overwritten."""

    end: int  # bytes of the undo file, up to the end of this window
    digest: int  # XXH3 (64 bit) of the window's bytes

    def pack(self) -> bytes:
        """Return the entry."""
        entry = _ENTRY.pack(self.end, self.digest, 0)
        return entry + _SEAL.pack(xxhash.xxh3_64_intdigest(entry))


def parse_windows(data: bytes) -> list[Window]:
    """Return the entries of a check file, without one that a crash has cut short at the end.

    Raises:
        VerifyError: an entry is damaged.
    """
    windows: list[Window] = []
    for at in range(0, len(data) - ENTRY_SIZE + 1, ENTRY_SIZE):
        entry = data[at : at + ENTRY_SIZE]
        if not any(entry) and not any(data[at:]):
            break  # the file grew, but the crash came before its last sector was written
        end, digest, _ = _ENTRY.unpack_from(entry)
        if _SEAL.unpack_from(entry, _ENTRY.size)[0] != xxhash.xxh3_64_intdigest(entry[: _ENTRY.size]):
            raise VerifyError(f"check file of the undo is damaged at byte {at}")
        if end < (windows[-1].end if windows else 0):
            raise VerifyError(f"check file of the undo is out of order at byte {at}")
        windows.append(Window(end, digest))
    return windows

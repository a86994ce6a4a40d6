"""The block map of bmap-tools: which blocks of an image ``bmaptool copy --bmap`` copies, and their checksums.

Source: bmap-tools v3.6, bmaptools/BmapCreate.py and BmapCopy.py (format 2.0). Blocks are of 4096 bytes; a range is its
first and last block, or one number. Its checksum is the SHA-256 of its bytes in the image; that of the file is over the
file itself, with zeros in its own place.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

import numpy as np

from lvmsync.extents import ChangeMap

BLOCK = 4096
"""Bytes of a block."""

_NONE = "0" * 64
_HEAD = """<?xml version="1.0" ?>
<bmap version="2.0">
    <ImageSize> {size} </ImageSize>
    <BlockSize> {block} </BlockSize>
    <BlocksCount> {blocks} </BlocksCount>
    <MappedBlocksCount> {mapped} </MappedBlocksCount>
    <ChecksumType> sha256 </ChecksumType>
    <BmapFileChecksum> {checksum} </BmapFileChecksum>
    <BlockMap>
"""
_TAIL = """    </BlockMap>
</bmap>
"""
_LINES = 1 << 12  # at a time


def whole_blocks(changes: ChangeMap, size: int) -> ChangeMap:
    """Return the blocks that hold any of some bytes, clipped to the size of the image.

    Args:
        changes: the bytes.
        size: bytes of the image.
    """
    unit = np.uint64(BLOCK)
    clipped = changes.clip(size)
    starts = clipped.offsets // unit * unit
    ends = np.minimum((clipped.ends + unit - np.uint64(1)) // unit * unit, np.uint64(size))
    return ChangeMap.from_arrays(starts, ends - starts)


def write_bmap(blocks: ChangeMap, digests: Sequence[bytes], size: int) -> Iterator[str]:
    """Yield the text of a block map, some of it at a time.

    Args:
        blocks: ranges of whole blocks, as of `whole_blocks`.
        digests: SHA-256 of the bytes of each of them.
        size: bytes of the image.
    """
    own = hashlib.sha256()
    for piece in _write(blocks, digests, size, _NONE):
        own.update(piece.encode())
    yield from _write(blocks, digests, size, own.hexdigest())


def _write(blocks: ChangeMap, digests: Sequence[bytes], size: int, checksum: str) -> Iterator[str]:
    unit = np.uint64(BLOCK)
    firsts, ends = blocks.offsets // unit, (blocks.ends + unit - np.uint64(1)) // unit
    mapped = int(ends.sum()) - int(firsts.sum())
    yield _HEAD.format(size=size, block=BLOCK, blocks=-(-size // BLOCK), mapped=mapped, checksum=checksum)
    for at in range(0, len(firsts), _LINES):
        part = slice(at, at + _LINES)
        rows = zip(firsts[part].tolist(), (ends[part] - np.uint64(1)).tolist(), digests[part], strict=True)
        yield "".join(
            f'        <Range chksum="{digest.hex()}"> {first if first == last else f"{first}-{last}"} </Range>\n'
            for first, last, digest in rows
        )
    yield _TAIL

"""The checksums of a block map: the head's bytes of each range, read once."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from lvmsync.extents import ChangeMap
from lvmsync.formats.bmap import whole_blocks, write_bmap
from lvmsync.jobs.progress import Progress, Report
from lvmsync.sources.source import Source
from lvmsync.system.device import aligned_buffer

_PIECE = 1 << 20


def make_bmap(source: Source, report: Report) -> Iterator[str]:
    """Return the text of the block map of a source's changes, in pieces, once all of them have been read.

    Args:
        source: what changed; its data can be read everywhere, and it is asked to confirm that.
        report: takes the progress.
    """
    blocks = whole_blocks(source.changes, source.size)
    digests = _digest(source, blocks, report)
    source.confirm()
    return write_bmap(blocks, digests, source.size)


def _digest(source: Source, blocks: ChangeMap, report: Report) -> list[bytes]:
    digests: list[bytes] = []
    buffer = aligned_buffer(_PIECE)
    done, total = 0, blocks.total_bytes
    for extent in blocks:
        hasher = hashlib.sha256()
        for offset in range(extent.offset, extent.end, _PIECE):
            piece = buffer[: min(_PIECE, extent.end - offset)]
            source.data.read([offset], [len(piece)], piece)
            hasher.update(piece)
            done += len(piece)
            report(Progress("reading", done, total))
        digests.append(hasher.digest())
    return digests

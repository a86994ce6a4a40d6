"""What blksnap saw written."""

from __future__ import annotations

from contextlib import AbstractContextManager

from lvmsync.names import BlockMap
from lvmsync.sources.source import Reading, Source


def open_map(name: BlockMap, reading: Reading) -> AbstractContextManager[Source]:
    """Open the changes that a map of blksnap tells; see `open_source`."""
    raise NotImplementedError

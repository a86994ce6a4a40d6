"""What an elastio-snap or dattobd COW file says was written."""

from __future__ import annotations

from contextlib import AbstractContextManager

from lvmsync.names import CowFile
from lvmsync.sources.source import Reading, Source


def open_cow_file(name: CowFile, reading: Reading) -> AbstractContextManager[Source]:
    """Open the changes that a COW file tells; see `open_source`."""
    raise NotImplementedError

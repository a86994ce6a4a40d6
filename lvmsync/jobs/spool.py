"""The stream that an open transaction has staged: read only when all of it was found to be what was written."""

from __future__ import annotations

from collections.abc import Iterator

from lvmsync.stream.frames import Changes, End, Frame, Header
from lvmsync.system.ledger import Ledger
from lvmsync.targets.durable import read_durable


def read_spool(ledger: Ledger) -> Iterator[Frame]:
    """Yield the changes of the stream that the open transaction has staged, proved, and an END behind them."""
    extents = changed = 0
    for frame in open_spool(ledger):
        if not isinstance(frame, Header):
            extents += len(frame.table)
            changed += frame.changed_bytes
            yield frame
    yield End(extents, changed)


def open_spool(ledger: Ledger) -> Iterator[Header | Changes]:
    """Yield header and changes of the stream that the open transaction has staged, proved, and whole.

    Raises:
        VerifyError: it is damaged; nothing was yielded.
    """
    note = ledger.record.transaction
    assert note is not None
    yield from read_durable(ledger.path(note.id, "spool"), ledger.path(note.id, "spool-check"), note.spool_size)

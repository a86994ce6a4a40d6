"""The archive of a receive: asked before anything is overwritten, and given that when it is committed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING

from lvmsync.errors import UsageError
from lvmsync.jobs.progress import Report
from lvmsync.stream.frames import Header
from lvmsync.system import seen
from lvmsync.system.ledger import Ledger
from lvmsync.targets.block import BlockTarget

if TYPE_CHECKING:
    from lvmsync.jobs.archive.shelf import Shelf
    from lvmsync.jobs.receive import ReceiveOptions
    from lvmsync.jobs.transaction import Transaction


def check_archive(word: str, options: ReceiveOptions, version: int) -> str:
    """Return the word of a receive's archive such that it means the same from any folder.

    Raises:
        UsageError: it is no such word, or does not go together with something else.
    """
    from lvmsync.jobs.archive.owed import full_word

    if version == 3:
        raise UsageError("--archive needs a PROTO[4] stream: PROTO[3] does not say what it leads to")
    if not options.undo or options.snapback:
        raise UsageError("--archive keeps what is overwritten: go without --no-undo and --snapback")
    if options.group is not None or options.prepare:
        raise UsageError("--archive is not for a group: sync its volumes one by one, each with an archive of its own")
    return full_word(word)


@contextmanager
def open_keeper(word: str | None) -> Iterator[Keeper]:
    """Open the archive of a receive; without a word there is none.

    Raises:
        LvmsyncError: it is not there, or out of reach.
    """
    if word is None:
        yield Keeper(None, None)
        return
    from lvmsync.jobs.archive.owed import open_shelf  # which most receives have no need of

    with open_shelf(word) as shelf:
        yield Keeper(word, shelf)


class Keeper:
    """The archive of one receive, or none.

    Attributes:
        notes: what the user should know, a sentence each.
        kept: the archive, and the number of the point that the target is at now; None as long as that is not known.
    """

    def __init__(self, word: str | None, shelf: Shelf | None) -> None:
        self._word = word
        self._shelf = shelf
        self.notes: list[str] = []
        self.kept: str | None = None

    def pay(self, ledger: Ledger, report: Report) -> list[str]:
        """Give the archive what it is owed from earlier; return what the user should know.

        Raises:
            LvmsyncError: it failed, and is owed still.
        """
        if not ledger.record.owed:
            return []
        from lvmsync.jobs.archive.owed import pay

        return pay(ledger, report, self._word or "", self._shelf)

    def finish(self, ledger: Ledger, report: Report, word: str) -> list[str]:
        """Give the archive of a transaction that is committed what it is owed; return what the user should know.

        Args:
            ledger: of the target.
            report: takes the progress.
            word: of the archive, as the transaction has it: one that went on may have been begun by another run.

        Raises:
            LvmsyncError: it failed, and is owed still.
        """
        from lvmsync.jobs.archive.fit import find_name
        from lvmsync.jobs.archive.owed import open_shelf, pay

        with nullcontext(self._shelf) if self._shelf and word == self._word else open_shelf(word) as shelf:
            mine = [one for one in ledger.record.owed if one.archive == word]
            notes = pay(ledger, report, word, shelf, tells=False) if mine else []
            found = shelf.catalogue.find(find_name(shelf.catalogue, ledger.record) or "")
            self.kept = f"{shelf.store.name}, point #{found.number}" if found else None
        return notes

    def prepare(
        self,
        transaction: Transaction,
        target: BlockTarget,
        ledger: Ledger,
        header: Header,
        written: seen.Written,
        *,
        is_kept: bool,
    ) -> None:
        """Refuse a receive whose archive cannot have what is overwritten; else let its transaction keep that.

        Args:
            transaction: that is to begin, or goes on.
            target: claimed.
            ledger: of the target.
            header: of the stream.
            written: whether somebody else has written to the target since it was brought to its point.
            is_kept: whether what is overwritten is saved.

        Raises:
            ConflictError: it is another device's archive, or something is missing in it.
            DeviceError: there is no room.
        """
        if self._shelf is None or self._word is None or header.resume is not None:
            return
        if any(one.archive == self._word for one in ledger.record.owed):  # of a dry run: it would have it first
            return
        from lvmsync.jobs.archive.fit import find_lead
        from lvmsync.jobs.archive.owed import require_room

        lead = find_lead(
            self._shelf.catalogue, self._shelf.store.name, target, ledger.record,
            base=header.base, head=header.head, written=written, is_kept=is_kept,
        )  # fmt: skip
        self.notes += lead.notes
        if lead.before:
            require_room(self._shelf, min(header.changed_bytes or 0, target.allocated) + (header.extents or 0) * 32)
        transaction.keep_for(self._word, lead.before, is_needed=lead.is_needed)


def pay(ledger: Ledger, report: Report) -> list[str]:
    """Give every archive what it is owed of a target.

    Raises:
        LvmsyncError: it failed, and is owed still.
    """
    if not ledger.record.owed:
        return []
    from lvmsync.jobs.archive.owed import pay as run

    return run(ledger, report)

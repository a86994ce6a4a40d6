"""What the actions of ``lvmsync archive`` have in common: their words, and how an archive is opened."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lvmsync.cli.actions import Actions
from lvmsync.cli.files import local_target
from lvmsync.places import parse_place

if TYPE_CHECKING:
    from lvmsync.interfaces import Store
    from lvmsync.jobs.archive.restore import Mirror
    from lvmsync.jobs.archive.shelf import Shelf

app = typer.Typer(
    name="archive",
    cls=Actions,
    help="Keep past states of a device as streams: take, list, restore, combine, prune and prove them.",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

ArchiveWord = Annotated[
    str, typer.Argument(metavar="ARCHIVE", help="its folder, or ssh://HOST/PATH, or s3://BUCKET/PREFIX")
]
At = Annotated[str, typer.Option("--at", metavar="POINT", help="number, label, id, time (UTC), or latest")]
MirrorWord = Annotated[
    str | None,
    typer.Option("--mirror", metavar="DEVICE", help="the device that snapbacks lead back from; it is only read"),
]
Label = Annotated[str | None, typer.Option("--label", metavar="WORD", help="a name for the point")]
SshConfig = Annotated[
    str | None,
    typer.Option("-F", "--ssh-config", metavar="FILE", help="for ssh://: in place of ~/.ssh/config"),
]

KeyFile = Annotated[
    Path | None,
    typer.Option(
        "--key-file", metavar="FILE", help="what opens an encrypted archive  [default: $LVMSYNC_ARCHIVE_KEY_FILE]"
    ),
]
PassphraseFile = Annotated[
    Path | None,
    typer.Option(
        "--passphrase-file", metavar="FILE", help="the same, a passphrase  [default: $LVMSYNC_ARCHIVE_PASSPHRASE]"
    ),
]


@dataclass(frozen=True)
class Access:
    """How an archive is reached.

    Attributes:
        ssh_config: path of the ssh config for one on another machine; None: the user's.
        key_file: what opens an encrypted one.
        passphrase_file: the same, with a passphrase.
    """

    ssh_config: SshConfig = None
    key_file: KeyFile = None
    passphrase_file: PassphraseFile = None


@contextmanager
def open_place(word: str, access: Access) -> Iterator[Store]:
    """Open what an archive lies in, or may be made in.

    Raises:
        UsageError: it is no such place.
        TransportError: it is out of reach.
    """
    from lvmsync.stores import open_store

    with open_store(parse_place(word), ssh_config=access.ssh_config) as store:
        yield store


@contextmanager
def open_archive(word: str, access: Access) -> Iterator[Shelf]:
    """Open an archive, and what it is encrypted with.

    Raises:
        LvmsyncError: there is none, it cannot be read, or what was given does not open it.
    """
    from lvmsync.cli.archive.unlocking import unlock
    from lvmsync.jobs.archive.shelf import Shelf

    with open_place(word, access) as store:
        yield Shelf.open(unlock(store, access))


def open_mirror(word: str | None, shelf: Shelf, state: str | None) -> AbstractContextManager[Mirror | None]:
    """Open the mirror that a user has named, and hold it; without a word there is none.

    Raises:
        LvmsyncError: it is not at the point at which the archive has it, or in use.
    """
    if word is None:
        return nullcontext()
    from lvmsync.jobs.archive import mirror
    from lvmsync.system.ledger import state_folder

    return mirror.open_mirror(local_target(word), state_folder(state), shelf.catalogue)


def counted(count: int, word: str) -> str:
    """Return a count with its noun: ``1 point``, ``2 points``."""
    return f"{count} {word}{'' if count == 1 else 's'}"

"""``lvmsync archive key add | remove | list``: what opens an encrypted archive."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from lvmsync.cli.actions import Actions
from lvmsync.cli.archive.app import Access, ArchiveWord, app, open_place
from lvmsync.cli.files import print_text
from lvmsync.cli.options import Debug, Json, Quiet
from lvmsync.cli.verbs import flat

key = typer.Typer(
    name="key",
    cls=Actions,
    help="Change what opens an encrypted archive: key files and passphrases. No member is written anew.",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.add_typer(key)


@key.command()
@flat
def add(
    archive: ArchiveWord,
    new_key_file: Annotated[
        Path | None,
        typer.Option("--new-key-file", metavar="FILE", help="the new one: 32 to 1024 random bytes; made if not there"),
    ] = None,
    new_passphrase_file: Annotated[
        Path | None, typer.Option("--new-passphrase-file", metavar="FILE", help="the new one is a line in this file")
    ] = None,
    label: Annotated[str | None, typer.Option("--label", metavar="WORD", help="a name for it")] = None,
    quiet: Quiet = False,
    *,
    access: Access,
    debug: Debug = False,
) -> None:
    """Let one more key file or passphrase open the archive; a passphrase is typed if no file is named."""
    from lvmsync.cli.archive.unlocking import get_new_secret, get_secret
    from lvmsync.jobs.archive.keys import add_key, open_sealed, require_keys

    with open_place(archive, access) as store:
        ring = require_keys(store)
        secret = get_secret(store, ring, access)
        open_sealed(store, ring, secret)  # before a new one is made or typed
        new = get_new_secret(new_key_file, new_passphrase_file, ("--new-key-file", "--new-passphrase-file"))
        slot = add_key(store, secret, new, label=label)
        if not quiet:
            print(f"key {slot.number} ({slot.kind}) opens {store.name} now, too", file=sys.stderr)


@key.command()
@flat
def remove(
    archive: ArchiveWord,
    number: Annotated[int, typer.Argument(metavar="NUMBER", help="as 'archive key list' shows it", min=1)],
    quiet: Quiet = False,
    *,
    access: Access,
    debug: Debug = False,
) -> None:
    """Let a key file or passphrase open the archive no more; one that stays has to be given, and the last one stays."""
    from lvmsync.cli.archive.unlocking import get_secret
    from lvmsync.jobs.archive.keys import remove_key, require_keys

    with open_place(archive, access) as store:
        slot = remove_key(store, get_secret(store, require_keys(store), access), number)
        if not quiet:
            print(f"key {slot.number} ({slot.kind}) does not open {store.name} any more", file=sys.stderr)


@key.command("list")
@flat
def list_keys(
    archive: ArchiveWord, as_json: Json = False, quiet: Quiet = False, *, access: Access, debug: Debug = False
) -> None:
    """Show what opens the archive; for that, it need not be opened."""
    from lvmsync.jobs.archive.keys import require_keys

    with open_place(archive, access) as store:
        slots = require_keys(store).slots
    if as_json:
        told = [{"number": one.number, "kind": one.kind, "label": one.label, "made": one.made} for one in slots]
        print_text(json.dumps({"archive": store.name, "keys": told}) + "\n")
        return
    rows = [("KEY", "KIND", "MADE", "LABEL")]
    rows += [(str(one.number), one.kind, one.made, one.label or "") for one in slots]
    for row in rows:
        print_text(f"{row[0]:<5}{row[1]:<12}{row[2]:<27}{row[3]}".rstrip() + "\n")

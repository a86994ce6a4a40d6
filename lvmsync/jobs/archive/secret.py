"""What opens an encrypted archive where nobody can be asked: variables of the environment."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from lvmsync.errors import UsageError

if TYPE_CHECKING:
    from lvmsync.chain.keys import Secret

KEY_FILE, PASSPHRASE = "LVMSYNC_ARCHIVE_KEY_FILE", "LVMSYNC_ARCHIVE_PASSPHRASE"
"""The variables: the path of a key file, or a passphrase."""


def find_secret_around() -> Secret | None:
    """Return what the environment says; None: nothing.

    Raises:
        UsageError: both are set.
        DeviceError: the file cannot be read.
    """
    word, path = os.environ.get(PASSPHRASE), path_of(KEY_FILE)
    if not word and not path:
        return None
    from lvmsync.chain import keys  # slow to import, and most runs have no need of it
    from lvmsync.system.secret_file import read_key_file

    if word and path:
        raise UsageError(f"{KEY_FILE} and {PASSPHRASE} are both set: unset one")
    if path:
        return keys.Secret(keys.KEY_FILE, read_key_file(path))
    assert word is not None
    return keys.Secret(keys.PASSPHRASE, os.fsencode(word))


def path_of(variable: str) -> Path | None:
    """Return the path that a variable of the environment names; None where it is not set, or empty."""
    word = os.environ.get(variable)
    return Path(word) if word else None

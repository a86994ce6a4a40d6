"""How an encrypted archive is opened: with a key file or a passphrase, from options, the environment or a terminal."""

from __future__ import annotations

import getpass
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from lvmsync.errors import UsageError
from lvmsync.jobs.archive.secret import KEY_FILE, PASSPHRASE, find_secret_around, path_of

if TYPE_CHECKING:
    from lvmsync.chain.keys import KeyRing, Secret
    from lvmsync.cli.archive.app import Access
    from lvmsync.interfaces import Store

_TERMINAL = Path("/dev/tty")
_WAYS = f"--key-file, --passphrase-file, {KEY_FILE} or {PASSPHRASE}"

_typed: dict[str, Secret] = {}  # of archives: one run opens its own several times, and asks once


def unlock(store: Store, access: Access) -> Store:
    """Return what is in a store, in the clear: as it is, or opened with what the user gave.

    Raises:
        UsageError: it is encrypted and nothing opens it, or it is not though something was given.
    """
    from lvmsync.jobs.archive.keys import load_keys, open_sealed

    ring = load_keys(store)
    if ring is not None:
        return open_sealed(store, ring, get_secret(store, ring, access))
    given = _how(access)
    if given:
        raise UsageError(
            f"{store.name} is not encrypted (it has no keys-... object), and {given} is given: leave that out, if the"
            " archive is as it should be"
        )
    return store


def get_secret(store: Store, ring: KeyRing, access: Access) -> Secret:
    """Return what opens an archive, as the user gives it, or types it.

    Raises:
        UsageError: nothing is given.
    """
    from lvmsync.chain import keys

    secret = find_secret(access)
    if secret is None and any(slot.kind == keys.PASSPHRASE for slot in ring.slots):
        secret = _typed.get(store.name) or _ask(f"Passphrase of {store.name}: ")
        if secret:
            _typed[store.name] = secret
    if secret is None:
        raise UsageError(f"{store.name} is encrypted: say what opens it with {_WAYS}")
    return secret


def get_new_secret(key_file: Path | None, passphrase_file: Path | None, options: tuple[str, str]) -> Secret:
    """Return a secret that will open an archive; a key file that is not there is made.

    Args:
        key_file: its path.
        passphrase_file: path of a file with a passphrase; neither: it is typed, twice.
        options: what these two are called.

    Raises:
        UsageError: nothing is given, or the two that were typed differ.
        DeviceError: a file cannot be read or made.
    """
    from lvmsync.chain import keys
    from lvmsync.system.secret_file import make_key_file

    if key_file and not passphrase_file and not key_file.exists() and not key_file.is_symlink():
        return keys.Secret(keys.KEY_FILE, make_key_file(key_file))
    secret = _read(key_file, passphrase_file, " and ".join(options))
    if secret:
        return secret
    first = _ask("New passphrase: ")
    if first is None:
        raise UsageError(f"there is no terminal to type a passphrase on: use {' or '.join(options)}")
    if _ask("The same again: ") != first:
        raise UsageError("the two passphrases are not the same; nothing was changed")
    return first


def get_first_secret(access: Access) -> Secret:
    """Return what will open an archive that is made now: as of `get_secret`, but a key file is made, if need be."""
    key_file = access.key_file or (None if access.passphrase_file else path_of(KEY_FILE))
    if not key_file and (secret := find_secret(access)):
        return secret
    return get_new_secret(key_file, access.passphrase_file, ("--key-file", "--passphrase-file"))


def find_secret(access: Access) -> Secret | None:
    """Return what options say, or the environment; None: nothing.

    Raises:
        UsageError: two are given.
        DeviceError: a file cannot be read.
    """
    secret = _read(access.key_file, access.passphrase_file, "--key-file and --passphrase-file")
    return secret or find_secret_around()


def _how(access: Access) -> str | None:
    """Return by what a secret is given."""
    if access.key_file:
        return "--key-file"
    if access.passphrase_file:
        return "--passphrase-file"
    return next((name for name in (KEY_FILE, PASSPHRASE) if os.environ.get(name)), None)


def write_down(access: Access) -> Access:
    """Return how an archive is reached by a process that has another environment: a timer's.

    Raises:
        UsageError: a passphrase is only in this environment.
    """
    if access.key_file or access.passphrase_file:
        return access
    if path := path_of(KEY_FILE):
        return replace(access, key_file=path)
    if os.environ.get(PASSPHRASE):
        raise UsageError(
            f"{PASSPHRASE} is not there when a timer runs: name a file with --passphrase-file or --key-file"
        )
    return access


def require_no_secret(access: Access) -> None:
    """Refuse what opens an archive where one is to be made that is not encrypted.

    Raises:
        UsageError: it is given.
    """
    given = _how(access)
    if given:
        raise UsageError(f"{given} is given, and the archive would not be encrypted: add --encrypt, or leave it out")


def _read(key_file: Path | None, passphrase_file: Path | None, options: str) -> Secret | None:
    from lvmsync.chain import keys
    from lvmsync.system.secret_file import read_key_file, read_passphrase_file

    if key_file and passphrase_file:
        raise UsageError(f"{options} are both given; choose one")
    if key_file:
        return keys.Secret(keys.KEY_FILE, read_key_file(key_file))
    if passphrase_file:
        return keys.Secret(keys.PASSPHRASE, read_passphrase_file(passphrase_file))
    return None


def _ask(words: str) -> Secret | None:
    """Return a passphrase that is typed; None: there is nobody to ask.

    Raises:
        UsageError: nothing was typed.
    """
    from lvmsync.chain import keys

    try:
        os.close(os.open(_TERMINAL, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError:
        return None
    try:
        word = getpass.getpass(words)
    except EOFError:
        word = ""
    if not word:
        raise UsageError("no passphrase was typed; nothing was changed")
    return keys.Secret(keys.PASSPHRASE, word.encode(errors="surrogateescape"))

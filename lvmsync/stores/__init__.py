"""Where an archive's objects lie: named, written once, never changed; one module a kind of place, one way in."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from lvmsync.errors import UsageError
from lvmsync.interfaces import Store
from lvmsync.places import BucketPlace, FolderPlace, Place, SshPlace


def open_store(place: Place, *, ssh_config: str | None = None) -> AbstractContextManager[Store]:
    """Return a store, open for the length of the ``with``.

    Args:
        place: where it lies.
        ssh_config: path of the ssh config; None: the user's.

    Raises:
        UsageError: what is needed to reach it is not said.
        TransportError: it is out of reach.
    """
    match place:
        case FolderPlace(path):
            from lvmsync.stores.folder import FolderStore

            return nullcontext(FolderStore(Path(path)))
        case SshPlace() | BucketPlace():
            raise UsageError(f"{place}: an archive is a folder of this machine")

"""Where an archive's objects lie: named, written once, never changed; one module a kind of place, one way in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from lvmsync.interfaces import Store
from lvmsync.places import BucketPlace, FolderPlace, Place, SshPlace


@contextmanager
def open_store(place: Place, *, ssh_config: str | None = None) -> Iterator[Store]:
    """Yield a store, open for the length of the ``with``.

    Args:
        place: where it lies.
        ssh_config: path of the ssh config; None: the user's.

    Raises:
        UsageError: what is needed to reach it is not said.
        TransportError: it is out of reach.
    """
    # Each kind is imported when it is asked for: what speaks to others takes time to load.
    match place:
        case FolderPlace(path):
            from lvmsync.stores.folder import FolderStore

            yield FolderStore(Path(path))
        case SshPlace():
            from lvmsync.stores.ahead import Ahead
            from lvmsync.stores.sftp import SftpStore
            from lvmsync.transport import Ssh
            from lvmsync.transport.asyncssh_files import open_files

            with open_files(place.host, Ssh(port=place.port, config=ssh_config)) as files, closing(Ahead()) as ahead:
                yield SftpStore(place, files, ahead)
        case BucketPlace():
            from lvmsync.stores.ahead import Ahead
            from lvmsync.stores.bucket import BucketStore

            with closing(Ahead()) as ahead:
                yield BucketStore(place, ahead)

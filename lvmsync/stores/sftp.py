"""An archive in a folder of another machine, over SFTP: nothing but sshd is needed there.

As in a folder here, a file gets its name when it is whole and durable, by a hard link, which fails if the name is
taken: of two writers of one name the first wins.
"""

from __future__ import annotations

import errno
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

from lvmsync.errors import ConflictError, DeviceError, TransportError
from lvmsync.interfaces import Blob, NewBlob
from lvmsync.places import SshPlace
from lvmsync.stores.ahead import Ahead, AheadBlob
from lvmsync.stream.frames import Buffer
from lvmsync.transport.asyncssh_files import Files, RemoteFile

_NEW = ".new-"
_FILE, _FOLDER = 0o600, 0o700
_WRITE = 4 << 20  # bytes of a request to write; one is under way while the next is filled
_DEAD_SECONDS = 86400  # a new file to which nobody has written for so long is nobody's


class SftpStore:
    """The objects in a folder of another machine.

    Attributes:
        name: what messages call it.
    """

    def __init__(self, place: SshPlace, files: Files, ahead: Ahead) -> None:
        self.name = str(place)
        self._folder = place.path
        self._files = files
        self._ahead = ahead

    def make(self) -> None:
        """Make the folder, for its owner's eyes only, if it is not there."""
        try:
            self._files.make_folders(self._folder, _FOLDER)
        except OSError as error:
            raise self.failed("make", self.name, error) from error

    def list_objects(self) -> dict[str, int]:
        """Return the names of all objects, with their bytes; see `interfaces.Store`."""
        return {name: size for name, (size, _) in self._list().items() if not name.startswith(".")}

    @contextmanager
    def open(self, name: str) -> Iterator[Blob]:
        """Open an object for reading.

        Raises:
            DeviceError: it is not there, or cannot be opened.
        """
        where = f"{self.name}/{name}"
        try:
            file, size = self._files.open_file(self._path(name))
        except FileNotFoundError as error:
            raise DeviceError(
                f"{where} is not there: was it removed by hand, or pruned just now? 'lvmsync archive verify' tells",
                device=where,
            ) from error
        except OSError as error:
            raise self.failed("open", where, error) from error

        def fetch(start: int, end: int) -> Buffer:
            try:
                return file.read(start, end - start)
            except OSError as error:
                raise self.failed("read", where, error) from error

        try:
            with AheadBlob(where, size, fetch, self._ahead) as blob:
                yield blob
        finally:
            file.close()

    def read(self, name: str) -> bytes | None:
        """Return a small object whole; None if it is not there."""
        try:
            file, size = self._files.open_file(self._path(name))
            try:
                return file.read(0, size)
            finally:
                file.close()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self.failed("read", f"{self.name}/{name}", error) from error

    @contextmanager
    def create(self, name: str, most: int | None = None) -> Iterator[NewBlob]:
        """Yield what an object is written to; see `interfaces.Store`."""
        where, new = f"{self.name}/{name}", f"{_NEW}{uuid.uuid4().hex}"
        try:
            file = self._files.create(self._path(new), _FILE)
        except OSError as error:
            raise self.failed("make", f"{self.name}/{new}", error) from error
        try:
            blob = _Upload(self, where, file)
            yield blob
            blob.finish()
            self._name(file, new, name)
        finally:
            file.close()
            with suppress(OSError, TransportError):
                self._files.remove(self._path(new), is_farewell=True)

    def put_new(self, name: str, data: bytes) -> bool:
        """Write a small object, whole and durable; False if there is one of that name already: one writer wins."""
        try:
            with self.create(name) as blob:
                blob.write([data])
        except ConflictError:
            return False
        return True

    def delete(self, *names: str) -> None:
        """Remove objects, in this order; they may be gone already."""
        for name in names:
            try:
                self._files.remove(self._path(name))
            except OSError as error:
                raise self.failed("remove", f"{self.name}/{name}", error) from error

    def room(self) -> int | None:
        """Return the bytes that are free over there; None where its server does not say."""
        return self._files.room(self._folder)

    def list_unfinished(self) -> list[str]:
        """Return the names of new files to which nobody has written for a day, by the clock over there."""
        new = {name: when for name, (_, when) in self._list().items() if name.startswith(_NEW)}
        if not new:
            return []
        now = self._read_clock()
        return sorted(name for name, when in new.items() if now - when > _DEAD_SECONDS)

    def _list(self) -> dict[str, tuple[int, int]]:
        try:
            return self._files.list_files(self._folder)
        except FileNotFoundError as error:
            raise DeviceError(
                f"there is no archive at {self.name}: 'lvmsync archive init {self.name}' makes one", device=self.name
            ) from error
        except OSError as error:
            raise self.failed("read", self.name, error) from error

    def _read_clock(self) -> int:
        """Return the time over there, in seconds; the time here where it cannot be had."""
        probe = f"{_NEW}{uuid.uuid4().hex}"
        try:
            self._files.create(self._path(probe), _FILE).close()
            try:
                return self._list()[probe][1]
            finally:
                self._files.remove(self._path(probe))
        except (OSError, KeyError):
            return int(time.time())

    def _name(self, file: RemoteFile, new: str, name: str) -> None:
        """Make a new file durable, and give it its name, durably, unless that is taken.

        Raises:
            ConflictError: it is.
            DeviceError: it cannot be done.
        """
        where = f"{self.name}/{name}"
        try:
            file.sync()
            try:
                self._files.link(self._path(new), self._path(name))
            except OSError as error:
                if error.errno != errno.EOPNOTSUPP:
                    raise
                self._files.rename(self._path(new), self._path(name))
            # A folder cannot be synced over SFTP; the file systems that matter write a new name with its file.
            file.sync()
        except FileExistsError as error:
            raise ConflictError(f"{where} is there already", device=where) from error
        except OSError as error:
            if error.errno == errno.EOPNOTSUPP:
                raise DeviceError(
                    f"{self.name}: the SFTP server cannot make a file durable (fsync@openssh.com): an archive there"
                    " would not survive a crash; use a server that can, as OpenSSH's",
                    device=self.name,
                ) from error
            raise self.failed("write", where, error) from error

    def _path(self, name: str) -> str:
        return f"{self._folder}/{name}"

    def failed(self, what: str, where: str, error: OSError) -> DeviceError:
        """Say in one line what the far side refused."""
        is_full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        if what in ("write", "make") and error.errno == errno.EIO:
            is_full = self._files.is_full(self._folder)
        words = "No space left on device; make room, and run it again" if is_full else error.strerror
        return DeviceError(f"cannot {what} {where}: {words}", device=where)


class _Upload:
    """An object that is being written (an `interfaces.NewBlob`)."""

    def __init__(self, store: SftpStore, where: str, file: RemoteFile) -> None:
        self.stored = 0
        self._store = store
        self._where = where
        self._file = file
        self._pieces: list[bytes] = []
        self._sent = 0

    def write(self, buffers: Sequence[Buffer]) -> None:
        """Append every byte of ``buffers``."""
        for buffer in buffers:
            piece = bytes(buffer)
            self._pieces.append(piece)
            self.stored += len(piece)
        if self.stored - self._sent >= _WRITE:
            self._flush()

    def finish(self) -> None:
        """Send what is left, and wait until it has arrived."""
        self._flush()
        self._call(self._file.finish)

    def _flush(self) -> None:
        if self._pieces:
            data, at = b"".join(self._pieces), self._sent
            self._pieces, self._sent = [], self.stored
            self._call(lambda: self._file.write(at, data))

    def _call(self, request: Callable[[], None]) -> None:
        try:
            request()
        except OSError as error:
            raise self._store.failed("write", self._where, error) from error

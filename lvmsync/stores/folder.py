"""An archive in a folder: one file an object.

A file gets its name when it is whole and durable, by a hard link, which fails if the name is taken: of two writers of
one name the first wins. Until then it is called ``.new-...``; what a crash leaves under such a name is nothing.
"""

from __future__ import annotations

import errno
import fcntl
import os
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from lvmsync.errors import ConflictError, DeviceError
from lvmsync.stream.frames import Buffer
from lvmsync.system.ledger import make_folders, sync_folder
from lvmsync.system.space import free_bytes

_NEW, _LOCK = ".new-", ".lock"
_MODE = 0o600
_WINDOW = 64 << 20  # bytes of a new object that are left to the kernel's own time
_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}


class FileBlob:
    """An object that is open for reading; a context manager.

    Attributes:
        name: what messages call it.
        size: bytes.
    """

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise DeviceError(
                f"{path} is not there: was it removed by hand, or pruned just now? 'lvmsync archive verify' tells",
                device=str(path),
            ) from error
        except OSError as error:
            raise DeviceError(f"cannot open {path}: {error.strerror}", device=str(path)) from error
        self.size = os.fstat(self._fd).st_size

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close it; harmless when it is closed."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def read_at(self, offset: int, length: int) -> memoryview:
        """Return bytes from a place; fewer only at the end of the object.

        Raises:
            DeviceError: it cannot be read.
        """
        out = np.empty(length, np.uint8).data
        done = 0
        try:
            while done < length and (count := os.preadv(self._fd, [out[done:]], offset + done)):
                done += count
        except OSError as error:
            raise DeviceError(
                f"cannot read {self.name}: {error.strerror}", device=self.name, offset=offset + done
            ) from error
        return out[:done]

    def prefetch(self, offset: int, length: int) -> None:
        """Tell the kernel what will be read soon."""
        with suppress(OSError):
            os.posix_fadvise(self._fd, offset, length, os.POSIX_FADV_WILLNEED)


class NewFile:
    """An object that is being written.

    Attributes:
        stored: bytes so far.
    """

    def __init__(self, path: Path, fd: int) -> None:
        self._path = path
        self._fd = fd
        self._flushed = 0
        self.stored = 0

    def write(self, buffers: Sequence[Buffer]) -> None:
        """Append every byte of ``buffers``.

        Raises:
            DeviceError: there is no room, or it cannot be written.
        """
        try:
            for buffer in buffers:
                view = memoryview(buffer).cast("B")
                while len(view):
                    count = os.write(self._fd, view)
                    self.stored += count
                    view = view[count:]
            if self.stored - self._flushed >= _WINDOW:
                # Begins to write what is dirty, so that the last sync is short, and lets go of what is written.
                self._flushed = self.stored
                os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_DONTNEED)
        except OSError as error:
            raise _failed("write", self._path, error) from error


class FolderStore:
    """The objects in a folder.

    Attributes:
        name: what messages call it.
    """

    def __init__(self, folder: Path) -> None:
        self.name = str(folder)
        self._folder = folder

    def make(self) -> None:
        """Make the folder, for its owner's eyes only, if it is not there.

        Raises:
            DeviceError: it cannot be made, or is no folder.
        """
        try:
            make_folders(self._folder)
        except OSError as error:
            raise _failed("make", self._folder, error) from error

    def list_objects(self) -> dict[str, int]:
        """Return the names of all objects, with their bytes.

        Raises:
            DeviceError: there is no such folder, or it cannot be read.
        """
        try:
            with os.scandir(self._folder) as entries:
                found = [one for one in entries if not one.name.startswith(".") and one.is_file(follow_symlinks=False)]
                return {one.name: one.stat(follow_symlinks=False).st_size for one in found}
        except FileNotFoundError as error:
            if self._folder.exists():
                return self.list_objects()  # one of them was removed meanwhile
            raise DeviceError(
                f"there is no archive at {self._folder}: 'lvmsync archive init {self._folder}' makes one",
                device=self.name,
            ) from error
        except OSError as error:
            raise _failed("read", self._folder, error) from error

    def open(self, name: str) -> FileBlob:
        """Open an object for reading.

        Raises:
            DeviceError: it is not there, or cannot be opened.
        """
        return FileBlob(self._folder / name)

    def read(self, name: str) -> bytes | None:
        """Return a small object whole; None if it is not there."""
        try:
            return (self._folder / name).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _failed("read", self._folder / name, error) from error

    @contextmanager
    def create(self, name: str, most: int | None = None) -> Iterator[NewFile]:
        """Yield what an object is written to; it is there, whole and durable, when the ``with`` ends well.

        Raises:
            ConflictError: there is one of that name already.
            DeviceError: it cannot be written.
        """
        path, new = self._folder / name, self._folder / f"{_NEW}{uuid.uuid4().hex}"
        try:
            fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _MODE)
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)  # as long as it is held, somebody writes
        except OSError as error:
            raise _failed("make", new, error) from error
        try:
            blob = NewFile(path, fd)
            yield blob
            try:
                os.fsync(fd)
                self._name(new, path)
                sync_folder(self._folder)
            except FileExistsError as error:
                raise ConflictError(f"{path} is there already", device=str(path)) from error
            except OSError as error:
                raise _failed("write", path, error) from error
        finally:
            with suppress(OSError):
                new.unlink(missing_ok=True)
            os.close(fd)

    def put_new(self, name: str, data: bytes) -> bool:
        """Write a small object, whole and durable; False if there is one of that name already.

        Raises:
            DeviceError: it cannot be written.
        """
        try:
            with self.create(name) as blob:
                blob.write([data])
        except ConflictError:
            return False
        return True

    def delete(self, *names: str) -> None:
        """Remove objects, durably; they may be gone already.

        Raises:
            DeviceError: one cannot be removed; those before it are.
        """
        path = self._folder
        try:
            for path in [self._folder / name for name in names]:
                path.unlink(missing_ok=True)
            sync_folder(self._folder)
        except OSError as error:
            raise _failed("remove", path, error) from error

    def room(self) -> int | None:
        """Return the bytes that are free there.

        Raises:
            DeviceError: there is no such folder.
        """
        return free_bytes(self._folder)

    def list_unfinished(self) -> list[str]:
        """Return the names of files that were being written when their writer died."""
        left = []
        for path in sorted(self._folder.glob(f"{_NEW}*")):
            with suppress(OSError):
                fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    left.append(path.name)
                except BlockingIOError:
                    pass  # its writer is at work
                finally:
                    os.close(fd)
        return left

    def _name(self, new: Path, path: Path) -> None:
        """Give a file its name, unless that is taken.

        Raises:
            FileExistsError: it is.
            OSError: it cannot be done.
        """
        try:
            os.link(new, path)
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            # No hard links here (FAT, some network file systems): who holds the lock looks, and renames.
            lock = os.open(self._folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, _MODE)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX)
                if path.exists():
                    raise FileExistsError from None
                new.rename(path)
            finally:
                os.close(lock)


def _failed(what: str, path: Path, error: OSError) -> DeviceError:
    way = "; make room, and run it again" if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
    return DeviceError(f"cannot {what} {path}: {error.strerror}{way}", device=str(path))

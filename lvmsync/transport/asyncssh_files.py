"""Files on another machine, over SFTP: blocking calls in front of asyncssh, its loop in a thread of its own.

What the far side refuses is raised as the OSError that it would be here; what the line does, as a TransportError.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Coroutine, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from typing import Any, TypeVar, cast

import asyncssh
from asyncssh.constants import FILEXFER_TYPE_REGULAR
from asyncssh.sftp import SFTPClient, SFTPClientFile

from lvmsync.errors import TransportError
from lvmsync.names import Host
from lvmsync.transport import STALL_TIMEOUT, Ssh
from lvmsync.transport.asyncssh_login import hang_up, log_in, wait_for_login
from lvmsync.transport.loop import run_loop

_FAREWELL = 5.0  # seconds for tidying up
_ERRORS: list[tuple[type[asyncssh.SFTPError], int]] = [
    (asyncssh.SFTPNoSuchFile, errno.ENOENT),
    (asyncssh.SFTPNoSuchPath, errno.ENOENT),
    (asyncssh.SFTPFileAlreadyExists, errno.EEXIST),
    (asyncssh.SFTPPermissionDenied, errno.EACCES),
    (asyncssh.SFTPWriteProtect, errno.EROFS),
    (asyncssh.SFTPNoSpaceOnFilesystem, errno.ENOSPC),
    (asyncssh.SFTPQuotaExceeded, errno.EDQUOT),
    (asyncssh.SFTPOpUnsupported, errno.EOPNOTSUPP),
    (asyncssh.SFTPNotADirectory, errno.ENOTDIR),
]
_T = TypeVar("_T")


@contextmanager
def open_files(host: Host, options: Ssh) -> Iterator[Files]:
    """Log in to ``host``, and yield its files.

    Raises:
        TransportError: no connection, an unknown host key, no login, or no SFTP there.
    """
    with run_loop() as loop:
        files = Files(host, loop)
        try:
            files.open(options)
            yield files
        finally:
            files.hang_up()


class RemoteFile:
    """A file of another machine; made by `Files`. Any thread may read."""

    def __init__(self, files: Files, file: SFTPClientFile) -> None:
        self._files = files
        self._file = file
        self._writing: Future[int] | None = None

    def read(self, offset: int, length: int) -> bytes:
        """Return bytes from a place; fewer only at the end.

        Raises:
            OSError: it cannot be read.
            TransportError: the line is gone.
        """
        return cast(bytes, self._files.run(self._file.read(length, offset)))

    def write(self, offset: int, data: bytes) -> None:
        """Write bytes at a place. They are under way when this returns; the next call tells how that went.

        Raises:
            OSError: it cannot be written.
            TransportError: the line is gone.
        """
        self.finish()
        self._writing = self._files.start(self._file.write(data, offset))

    def finish(self) -> None:
        """Wait until what was written has arrived; raises as `write`."""
        writing, self._writing = self._writing, None
        if writing:
            self._files.wait(writing)

    def sync(self) -> None:
        """Make all that was written durable.

        Raises:
            OSError: it cannot be; EOPNOTSUPP: the far side does not know how.
        """
        self.finish()
        self._files.run(self._file.fsync())

    def close(self) -> None:
        """Close it; what is still under way is called off."""
        writing, self._writing = self._writing, None
        if writing:
            writing.cancel()
        with suppress(OSError, TransportError, ValueError):
            self._files.run(self._file.close(), _FAREWELL)


class Files:
    """The files of another machine; made by `open_files`. Any thread may call."""

    def __init__(self, host: Host, loop: asyncio.AbstractEventLoop) -> None:
        self._host = host
        self._loop = loop
        self._connection: asyncssh.SSHClientConnection | None = None
        self._sftp: SFTPClient

    def open(self, options: Ssh) -> None:
        """Log in, and start SFTP."""
        wait_for_login(self._open(options), self._loop, self._host, options)

    def hang_up(self) -> None:
        """Close the connection, whatever its state."""
        hang_up(self._connection, self._loop)

    def make_folders(self, path: str, mode: int) -> None:
        """Make a folder and those above it, where they are not there."""
        self.run(self._sftp.makedirs(path, asyncssh.SFTPAttrs(permissions=mode), exist_ok=True))

    def list_files(self, path: str) -> dict[str, tuple[int, int]]:
        """Return the names of all files of a folder, with their bytes and the second of the last change."""
        found = self.run(self._sftp.readdir(path))
        return {
            str(one.filename): (one.attrs.size or 0, one.attrs.mtime or 0)
            for one in found
            if one.attrs.type == FILEXFER_TYPE_REGULAR
        }

    def open_file(self, path: str) -> tuple[RemoteFile, int]:
        """Open a file for reading, and return it with its size."""
        file = self.run(self._open_file(path, "rb", asyncssh.SFTPAttrs()))
        return RemoteFile(self, file), self.run(file.stat()).size or 0

    def create(self, path: str, mode: int) -> RemoteFile:
        """Make a new file, for writing.

        Raises:
            FileExistsError: there is one.
        """
        attrs = asyncssh.SFTPAttrs(permissions=mode)
        return RemoteFile(self, self.run(self._open_file(path, "xb", attrs)))

    def link(self, old: str, new: str) -> None:
        """Give a file one more name, if that is free.

        Raises:
            FileExistsError: it is not.
            OSError: EOPNOTSUPP: the far side has no such thing.
        """
        self._make_name(self._sftp.link(old, new), new)

    def rename(self, old: str, new: str) -> None:
        """Give a file another name, if that is free: what SFTP calls a rename overwrites nothing.

        Raises:
            FileExistsError: it is not.
        """
        self._make_name(self._sftp.rename(old, new), new)

    def remove(self, path: str, *, is_farewell: bool = False) -> None:
        """Remove a file; it may be gone already.

        Args:
            path: of it.
            is_farewell: who asks has failed, and does not wait for long.
        """
        with suppress(FileNotFoundError):
            self.run(self._sftp.remove(path), _FAREWELL if is_farewell else None)

    def room(self, path: str) -> int | None:
        """Return the bytes that are free where a folder is; None where the far side does not say."""
        try:
            found = self.run(self._sftp.statvfs(path))
        except OSError:
            return None
        return found.bavail * found.frsize

    def is_full(self, path: str) -> bool:
        """Tell whether the file system has no room, as far as the far side says so."""
        try:
            found = self.run(self._sftp.statvfs(path))
        except OSError:
            return False
        return found.bavail * found.frsize < 1 << 20 or (found.files > 0 and found.favail == 0)

    def start(self, request: Coroutine[Any, Any, _T], patience: float | None = None) -> Future[_T]:
        """Begin a request, which may take so many seconds; `wait` ends it."""
        return asyncio.run_coroutine_threadsafe(asyncio.wait_for(request, patience or STALL_TIMEOUT), self._loop)

    def wait(self, under_way: Future[_T]) -> _T:
        """Wait for a request.

        Raises:
            OSError: the far side refuses it.
            TransportError: the line is gone, or nothing came for two minutes.
        """
        try:
            return under_way.result()
        except TimeoutError as error:
            raise TransportError(f"{self._host}: no answer for {STALL_TIMEOUT:g} s: the line is dead") from error
        except (asyncssh.SFTPConnectionLost, asyncssh.SFTPNoConnection) as error:
            raise TransportError(f"{self._host}: connection lost: {error.reason}") from error
        except asyncssh.SFTPError as error:
            number = next((number for kind, number in _ERRORS if isinstance(error, kind)), errno.EIO)
            # The names that the error is raised by are those of the built-in ones: FileNotFoundError, and so on
            raise OSError(number, str(error.reason) or type(error).__name__) from error
        except (asyncssh.Error, OSError) as error:
            raise TransportError(f"{self._host}: connection lost: {error}") from error
        except BaseException:
            under_way.cancel()
            raise

    def run(self, request: Coroutine[Any, Any, _T], patience: float | None = None) -> _T:
        """Make a request, and wait for it; raises as `wait`."""
        return self.wait(self.start(request, patience))

    def _make_name(self, request: Coroutine[Any, Any, None], new: str) -> None:
        try:
            self.run(request)
        except OSError as error:
            # Version 3 of the protocol, which OpenSSH speaks, has one word for all that fails
            if error.errno == errno.EIO and self.run(self._sftp.lexists(new)):
                raise FileExistsError(errno.EEXIST, "File exists") from error
            raise

    async def _open(self, options: Ssh) -> None:
        self._connection = await log_in(self._host, options)
        async with asyncio.timeout(options.connect_timeout):
            try:
                self._sftp = await self._connection.start_sftp_client()
            except (asyncssh.ChannelOpenError, asyncssh.SFTPError) as error:
                raise TransportError(
                    f"{self._host}: logged in, but there is no SFTP ({error}): has its sshd a Subsystem sftp?"
                ) from error

    async def _open_file(self, path: str, mode: str, attrs: asyncssh.SFTPAttrs) -> SFTPClientFile:
        return await self._sftp.open(path, mode, attrs, encoding=None)

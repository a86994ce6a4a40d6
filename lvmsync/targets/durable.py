"""Stream files that survive a crash: an undo, a snapback or a spool, written durably and read with proof."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import xxhash

from lvmsync.errors import DeviceError, StreamError, VerifyError
from lvmsync.extents import Offsets
from lvmsync.stream import checks, v3, v4
from lvmsync.stream.frames import Changes, Data, End, Frame, Header, Hole, Zero
from lvmsync.stream.session import Receiver
from lvmsync.system.ledger import sync_folder


@dataclass(frozen=True)
class Edge:
    """The beginning of a PROTO[4] stream file, up to the end of a window.

    Attributes:
        size: its bytes.
        extents: how many extents are in it.
        changed_bytes: how many bytes those cover.
        encoder: makes the frame that comes next.
        behind: the changes that follow it, proved.
    """

    size: int
    extents: int
    changed_bytes: int
    encoder: v4.Encoder
    behind: Iterator[Changes]


class DurableFile:
    """A stream file that grows: frames are appended, and made durable window by window.

    Beside it grows the check, with an entry a window that is made durable after the window is. So after a
    crash it is known how much of the undo file counts, and every bit of that can be proved. Entries that are lost
    at the end of the check do not show there: how many bytes count at the least is noted in the ledger.

    Attributes:
        path: of the stream file.
        extents: how many extents are in it.
        changed_bytes: how many bytes those cover.
        durable: bytes of it that count.
    """

    def __init__(self, path: Path, check: Path, header: Header, version: int) -> None:
        """Create both files, which must not be there yet, with ``header`` in the stream file, durably.

        Args:
            path: of the stream file.
            check: of the check file.
            header: of the stream.
            version: 3 or 4, the format of the stream.

        Raises:
            DeviceError: a file is there already, or cannot be made.
        """
        self.path = path
        self.extents = 0
        self.changed_bytes = 0
        self.durable = 0
        self._encoder = v4.Encoder() if version == 4 else v3.Encoder()
        self._size = 0
        self._window = xxhash.xxh3_64()
        self._check_fd = _create(check)
        try:
            self._fd = _create(path)
        except BaseException:
            os.close(self._check_fd)
            check.unlink()
            raise
        try:
            self._append(header)
            self.sync()
        except BaseException:  # nobody knows of the files yet
            self.close()
            path.unlink()
            check.unlink()
            raise

    @classmethod
    def reopen(cls, path: Path, check: Path, new_check: Path, edge: Edge) -> Self:
        """Open both files again, cut back to an edge that `find_edge` has found.

        A crash leaves the old check or the new one; either counts no byte that is not there.

        Args:
            path: of the stream file.
            check: of the check file.
            new_check: a name beside it, for the moment.
            edge: what stays of the stream file.

        Raises:
            DeviceError: a file cannot be written.
        """
        file = cls.__new__(cls)
        file.path = path
        file.extents, file.changed_bytes = edge.extents, edge.changed_bytes
        file._encoder, file._size, file._window = edge.encoder, edge.size, xxhash.xxh3_64()
        file.durable = edge.size
        try:
            _cut_check(check, new_check, edge.size)
            file._fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
            try:
                os.ftruncate(file._fd, edge.size)
                file._check_fd = os.open(check, os.O_WRONLY | os.O_CLOEXEC)
            except BaseException:
                os.close(file._fd)
                raise
            for fd in (file._fd, file._check_fd):
                os.lseek(fd, 0, os.SEEK_END)
        except OSError as error:
            raise file._failed(error) from error
        return file

    def save(self, frame: Changes) -> None:
        """Append changes."""
        self.extents += len(frame.table)
        self.changed_bytes += frame.changed_bytes
        self._append(frame)

    def finish(self) -> None:
        """Append the END, durably: from here on the stream is whole."""
        self._append(End(self.extents, self.changed_bytes))
        self.sync()

    def sync(self) -> None:
        """Make everything appended durable, then the entry that says so."""
        try:
            os.fdatasync(self._fd)
            os.write(self._check_fd, checks.Window(self._size, self._window.intdigest()).pack())
            os.fdatasync(self._check_fd)
        except OSError as error:
            raise self._failed(error) from error
        self._window.reset()
        self.durable = self._size

    def close(self) -> None:
        """Close both files."""
        os.close(self._fd)
        os.close(self._check_fd)

    def _append(self, frame: Frame) -> None:
        try:
            for buffer in _joined(self._encoder.encode(frame)):
                view = memoryview(buffer)
                self._size += len(view)
                self._window.update(view)
                while view:
                    view = view[os.write(self._fd, view) :]
        except OSError as error:
            raise self._failed(error) from error

    def _failed(self, error: OSError) -> DeviceError:
        return DeviceError(f"cannot write {self.path}: {error.strerror}", device=str(self.path))


def _cut_check(check: Path, new_check: Path, size: int) -> None:
    """Replace a check file by one that counts ``size`` bytes of the stream file, durably and at once."""
    windows = [window for window in checks.parse_windows(check.read_bytes()) if window.end <= size]
    fd = os.open(new_check, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        view = memoryview(b"".join(window.pack() for window in windows))
        while view:
            view = view[os.write(fd, view) :]
        os.fsync(fd)
    finally:
        os.close(fd)
    new_check.rename(check)
    sync_folder(check.parent)


@contextmanager
def find_edge(path: Path, check: Path, offset: int, least: int) -> Iterator[Edge]:
    """Yield the edge of a PROTO[4] stream file before which is what lies below ``offset`` of the device.

    It must be where a window ends. Only that window is proved, and what is behind it: all before it was found whole
    when it was written, and is proved when it is needed. Of that only the headers are read.

    Args:
        path: of the stream file.
        check: of its check file.
        offset: byte of the device.
        least: bytes of the stream file that are known to have been durable.

    Raises:
        VerifyError: there is no such edge, or one of the files is damaged.
        DeviceError: it cannot be read.
    """
    try:
        windows = _read_windows(path, check, least)
        with path.open("rb", buffering=0) as file:
            fd = file.fileno()
            skimmer, extents, changed = _skim(fd, windows[-1].end, offset)
            number = next((at for at, window in enumerate(windows) if window.end == skimmer.position), None)
            if number is None:
                raise VerifyError(
                    f"{path} has no edge at byte {skimmer.position}, where byte {offset} of the device should be",
                    device=str(path),
                )
            _prove(fd, path, windows[number:], windows[number - 1].end if number else 0)
            behind = _read_behind(fd, skimmer.decoder(), windows[-1].end)
            yield Edge(skimmer.position, extents, changed, skimmer.encoder(), behind)
    except StreamError as error:
        raise VerifyError(f"{path} is damaged: {error}", device=str(path)) from error
    except FileNotFoundError as error:
        raise _gone(path) from error
    except OSError as error:
        raise DeviceError(f"cannot read {path}: {error.strerror}", device=str(path)) from error


def _skim(fd: int, size: int, offset: int) -> tuple[v4.Skimmer, int, int]:
    """Skim a stream up to the first change that ends behind ``offset``; return extents and bytes before it, too."""
    skimmer = v4.Skimmer()
    extents = changed = 0
    while skimmer.position < size:
        count, payload = skimmer.look(os.pread(fd, v4.HEAD_SIZE, skimmer.position))
        if count:
            table = _read_table(fd, skimmer.position, count)
            if len(table) < count or int(table[-1].sum()) > offset:
                break
            extents += count
            changed += payload or int(table[:, 1].sum())
        elif skimmer.position > len(v4.MAGIC):
            break  # the END
        skimmer.skip()
    return skimmer, extents, changed


def read_tables(path: Path) -> Iterator[Offsets]:
    """Yield the tables of all changes in a PROTO[4] stream file; nothing else is read, and nothing is proved.

    Raises:
        VerifyError: it is damaged.
        DeviceError: it cannot be read.
    """
    try:
        with path.open("rb", buffering=0) as file:
            fd, size = file.fileno(), path.stat().st_size
            skimmer = v4.Skimmer()
            while skimmer.position < size:
                count, _ = skimmer.look(os.pread(fd, v4.HEAD_SIZE, skimmer.position))
                if count:
                    table = _read_table(fd, skimmer.position, count)
                    if len(table) < count:
                        raise VerifyError(f"{path} is damaged: it ends in a table at byte {size}", device=str(path))
                    yield table
                skimmer.skip()
    except StreamError as error:
        raise VerifyError(f"{path} is damaged: {error}", device=str(path)) from error
    except OSError as error:
        raise DeviceError(f"cannot read {path}: {error.strerror}", device=str(path)) from error


def _read_table(fd: int, at: int, count: int) -> Offsets:
    """Return the table of the frame at byte ``at``, as far as the file has it."""
    data = os.pread(fd, count * 16, at + v4.HEAD_SIZE)
    return np.frombuffer(data[: len(data) // 16 * 16], "<u8").reshape(-1, 2)


def _read_behind(fd: int, decoder: v4.Decoder, size: int) -> Iterator[Changes]:
    at = decoder.position
    while at < size:
        count = os.preadv(fd, [decoder.get_buffer()[: size - at]], at)
        decoder.received(count)
        at += count
        yield from (frame for frame in decoder.frames() if isinstance(frame, (Data, Zero, Hole)))


def read_durable(path: Path, check: Path | None, least: int = 0) -> Iterator[Header | Changes]:
    """Yield header and changes of a stream file that a crash may have cut short: all that were made durable.

    Every window is proved before anything is yielded. Without a check file it is every whole
    frame up to the first that is not, which needs a format with checksums.

    Args:
        path: of the stream file.
        check: of its check file.
        least: bytes of the stream file that are known to have been durable.

    Raises:
        VerifyError: a durable part of the file, or of its check, is damaged or gone; nothing was yielded.
        StreamError: it is not a stream file.
        DeviceError: it cannot be read.
    """
    try:
        with path.open("rb", buffering=0) as file:
            size = None
            if check:
                windows = _read_windows(path, check, least)
                _prove(file.fileno(), path, windows)
                size = windows[-1].end
            session = Receiver()
            yield from _read_changes(file.fileno(), session, size)
            if size is None and session.version != 4:
                raise StreamError(f"{path} has no checksums, and no check file: what counts of it cannot be known")
    except FileNotFoundError as error:
        raise _gone(path) from error
    except OSError as error:
        raise DeviceError(f"cannot read {path}: {error.strerror}", device=str(path)) from error


def _read_windows(path: Path, check: Path, least: int) -> list[checks.Window]:
    """Return the entries of a check file, one at the least, that count ``least`` bytes of the stream file or more."""
    try:
        windows = checks.parse_windows(check.read_bytes())
    except FileNotFoundError as error:
        raise _gone(check) from error
    except VerifyError as error:
        raise VerifyError(f"{check}: {error}", device=str(check)) from error
    if not windows:  # there is one from the beginning, for the header
        raise VerifyError(f"{check} is empty: how much of {path} counts cannot be known", device=str(check))
    if windows[-1].end < least:
        raise VerifyError(
            f"{check} has lost its end: it counts {windows[-1].end} bytes of {path}, and {least} were durable; without"
            " the rest the target cannot be brought back: do not use it",
            device=str(check),
        )
    return windows


def _gone(path: Path) -> DeviceError:
    return DeviceError(
        f"{path} is gone, and without it the target cannot be brought back: find it, and do not use the target",
        device=str(path),
    )


def _prove(fd: int, path: Path, windows: Sequence[checks.Window], at: int = 0) -> None:
    """Prove windows that follow each other, the first of which begins at byte ``at``."""
    hasher = xxhash.xxh3_64()
    for window in windows:
        hasher.reset()
        for piece in _read_pieces(fd, at, window.end):
            hasher.update(piece)
            at += len(piece)
        if at < window.end or hasher.intdigest() != window.digest:
            raise VerifyError(
                f"{path} is damaged before byte {window.end}, in a part that was durable: it cannot bring the target"
                " back; do not use the target",
                device=str(path),
                offset=at,
            )


def _read_pieces(fd: int, at: int, end: int) -> Iterator[memoryview]:
    """Yield the bytes of a range, as far as the file has them; each piece is good until the next."""
    buffer = memoryview(bytearray(1 << 20))
    while at < end:
        count = os.preadv(fd, [buffer[: end - at]], at)
        if not count:
            return
        yield buffer[:count]
        at += count


def _read_changes(fd: int, session: Receiver, size: int | None) -> Iterator[Header | Changes]:
    at = 0
    while size is None or at < size:
        buffer = session.get_buffer()
        count = os.preadv(fd, [buffer if size is None else buffer[: size - at]], at)
        try:
            session.received(count)
            frames = list(session.frames() if count else session.receive_eof())
        except StreamError:
            if size is None and at:
                return  # the tail that the crash cut
            raise
        yield from (frame for frame in frames if isinstance(frame, (Header, Data, Zero, Hole)))
        if not count:
            return
        at += count
    if session.version == 3:
        # Its decoder holds back until it has enough, or the end.
        yield from (frame for frame in session.receive_eof() if isinstance(frame, (Header, Data, Zero, Hole)))


def _create(path: Path) -> int:
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            sync_folder(path.absolute().parent)
        except BaseException:
            os.close(fd)
            path.unlink()
            raise
    except FileExistsError as error:
        raise DeviceError(
            f"{path} is there already and is never overwritten; choose another name", device=str(path)
        ) from error
    except OSError as error:
        raise DeviceError(f"cannot make {path}: {error.strerror}", device=str(path)) from error
    return fd


def _joined(buffers: Sequence[bytes | bytearray | memoryview]) -> Sequence[bytes | bytearray | memoryview]:
    """Return many short buffers as one, for fewer calls; a few long ones as they are."""
    return [b"".join(buffers)] if len(buffers) > 8 else buffers

"""What tests put in the place of real things: sources in memory, streams made by hand, and a disk that dies."""

from __future__ import annotations

import errno
import io
import os
import random
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from lvmsync.extents import ChangeMap, as_table
from lvmsync.interfaces import Readable
from lvmsync.jobs.progress import ignore
from lvmsync.jobs.send import Sender, StreamOptions
from lvmsync.sources.source import Source
from lvmsync.stream import v3, v4
from lvmsync.stream.frames import Changes, Data, End, Frame, Header, Hole, Mark, Zero
from lvmsync.system import ioctl

Ranges = Iterable[tuple[int, int]]

# Sources and streams


class Memory:
    """A `Readable` of bytes."""

    name = "memory"

    def __init__(self, content: bytes) -> None:
        self._content = content

    @property
    def size(self) -> int:
        return len(self._content)

    def read(self, offsets: Sequence[int], lengths: Sequence[int], out: memoryview) -> None:
        pieces = [self._content[at : at + length] for at, length in zip(offsets, lengths, strict=True)]
        out[:] = b"".join(pieces)


def make_source(
    data: bytes | Readable, changes: Ranges, *, confirm: Callable[[], None] = lambda: None, granularity: int = 4096
) -> Source:
    """Return a source of bytes, or of anything that can be read, with the ranges that changed."""
    readable = Memory(data) if isinstance(data, bytes) else data
    return Source(
        kind="fake",
        name="fake",
        size=readable.size,
        granularity=granularity,
        base=None,
        head=None,
        changes=ChangeMap.from_extents(changes),
        holes=ChangeMap.empty(),
        data=readable,
        confirm=confirm,
    )


def send(source: Source, options: StreamOptions | None = None) -> bytes:
    """Return the stream that the real sender makes of a source."""
    stream = bytearray()

    def keep(buffers: Sequence[bytes | bytearray | memoryview]) -> None:
        for buffer in buffers:
            stream.extend(buffer)

    Sender(source, keep, options or StreamOptions(), ignore).deliver()
    return bytes(stream)


def reader(stream: bytes) -> Callable[[memoryview], int]:
    """Return a function that receives ``stream`` bit by bit into buffers."""
    return io.BytesIO(stream).readinto


MARK = Mark(0, 0)
"""A mark in a list of frames for `encode`, which puts the right numbers into it."""


def data(*pieces: tuple[int, bytes]) -> Data:
    """Return a frame of ``(offset, content)`` pieces."""
    table = as_table([offset for offset, _ in pieces], [len(content) for _, content in pieces])
    return Data(table, memoryview(b"".join(content for _, content in pieces)))


def zero(*ranges: tuple[int, int]) -> Zero:
    """Return a frame of ``(offset, length)`` ranges of zeros."""
    return Zero(as_table([offset for offset, _ in ranges], [length for _, length in ranges]))


def hole(*ranges: tuple[int, int]) -> Hole:
    """Return a frame of ``(offset, length)`` ranges that are unmapped."""
    return Hole(as_table([offset for offset, _ in ranges], [length for _, length in ranges]))


def encode(frames: Iterable[Frame], header: Header | None = None, version: int = 4, *, end: bool = True) -> bytes:
    """Return the stream of frames, with its header and, unless told otherwise, its END."""
    encoder = v4.Encoder() if version == 4 else v3.Encoder()
    stream = [*encoder.encode(header or Header())]
    extents = changed = 0
    for frame in frames:
        if isinstance(frame, Mark):
            stream += encoder.encode(Mark(extents, changed))
            continue
        if isinstance(frame, (Data, Zero, Hole)):
            extents, changed = extents + len(frame.table), changed + frame.changed_bytes
        stream += encoder.encode(frame)
    if end:
        stream += encoder.encode(End(extents, changed))
    return b"".join(stream)


def change(image: bytes, frames: Iterable[Frame]) -> bytes:
    """Return what an image becomes by frames: the simplest way to say it."""
    content = bytearray(image)
    for frame in frames:
        if isinstance(frame, Data):
            at = 0
            for offset, length in frame.table.tolist():
                content[offset : offset + length] = frame.payload[at : at + length]
                at += length
        elif isinstance(frame, (Zero, Hole)):
            for offset, length in frame.table.tolist():
                content[offset : offset + length] = bytes(length)
    assert len(content) == len(image)
    return bytes(content)


def count_bytes(frames: Iterable[Frame]) -> int:
    return sum(frame.changed_bytes for frame in frames if isinstance(frame, (Data, Zero, Hole)))


# A disk that dies

SECTOR = 512
_FOLDER = -1


@dataclass(frozen=True)
class Step:
    """One operation that changes a disk, or makes changes durable.

    Attributes:
        kind: "write", "zero", "truncate" and "sync" of a file, "link", "unlink", "rename" and "sync folder" of names.
        file: inode that it is about; of a folder that is made, `_FOLDER`.
        folder: folder whose names it is about.
        name: in ``folder``.
        new_name: that a rename gives.
        offset: of a write, a range of zeros, or the new end of a truncated file.
        length: of a range of zeros.
        data: that is written.
    """

    kind: Literal["write", "zero", "truncate", "sync", "link", "unlink", "rename", "sync folder"]
    file: int = 0
    folder: str = ""
    name: str = ""
    new_name: str = ""
    offset: int = 0
    length: int = 0
    data: bytes = b""


@dataclass(frozen=True)
class State:
    """All that a disk holds: the content of files by inode, the names in folders, and what the names mean."""

    files: dict[int, bytes]
    folders: dict[str, dict[str, int]]


Fate = Literal["kept", "lost"] | random.Random
"""What becomes of changes that were not made durable: each is kept, is lost, or has a fate of its own."""


@dataclass
class Wreck:
    """A disk after some steps: what is durable on it, and what a crash may keep or lose.

    Nothing orders changes but a sync of the file, for its content, or of the folder, for its names. A write that
    was not synced may be kept in part: any of its sectors, which do not tear themselves.
    """

    files: dict[int, bytes]
    folders: dict[str, dict[str, int]]
    open_files: dict[int, list[Step]] = field(default_factory=lambda: defaultdict(list))
    open_folders: dict[str, list[Step]] = field(default_factory=lambda: defaultdict(list))

    def do(self, step: Step) -> None:
        """Do one step more."""
        if step.kind == "sync":
            self.files[step.file] = _content(self.files.get(step.file, b""), self.open_files.pop(step.file, []), "kept")
        elif step.kind == "sync folder":
            self.folders[step.folder] = _names(
                self.folders.get(step.folder, {}), self.open_folders.pop(step.folder, []), "kept"
            )
        elif step.folder:
            self.open_folders[step.folder].append(step)
        else:
            self.open_files[step.file].append(step)

    def crash(self, fate: Fate) -> State:
        """Return what is found after the crash."""
        files, folders = dict(self.files), dict(self.folders)
        for inode, steps in self.open_files.items():
            files[inode] = _content(files.get(inode, b""), steps, fate)
        for folder, steps in self.open_folders.items():
            folders[folder] = _names(folders.get(folder, {}), steps, fate)
        return State(files, folders)


def _content(durable: bytes, steps: Iterable[Step], fate: Fate) -> bytes:
    content = bytearray(durable)
    for step in steps:
        share = {"kept": 1.0, "lost": 0.0}[fate] if isinstance(fate, str) else fate.choice((0.0, 0.5, 1.0))
        if step.kind == "truncate":
            if share == 1.0:
                del content[step.offset :]
                content.extend(bytes(step.offset - len(content)))
        elif step.kind == "zero":
            if share == 1.0:
                stop = min(step.offset + step.length, len(content))
                content[step.offset : stop] = bytes(max(0, stop - step.offset))
        elif share:
            _write(content, step, share, fate)
    return bytes(content)


def _write(content: bytearray, step: Step, share: float, fate: Fate) -> None:
    """Write the sectors of a step that are kept; a file that was made longer may have zeros for the lost ones."""
    stop = step.offset + len(step.data)
    if share == 1.0 or (not isinstance(fate, str) and fate.random() < 0.5):
        content.extend(bytes(max(0, stop - len(content))))
    at = step.offset
    while at < stop:
        to = min((at // SECTOR + 1) * SECTOR, stop)
        if share == 1.0 or (not isinstance(fate, str) and fate.random() < share):
            content.extend(bytes(max(0, to - len(content))))
            content[at:to] = step.data[at - step.offset : to - step.offset]
        at = to


def _names(durable: dict[str, int], steps: Iterable[Step], fate: Fate) -> dict[str, int]:
    names = dict(durable)
    for step in steps:
        if not (fate == "kept" if isinstance(fate, str) else fate.random() < 0.5):
            continue
        if step.kind == "link":
            names[step.name] = step.file
        elif step.kind == "unlink":
            names.pop(step.name, None)
        else:
            names.pop(step.name, None)
            names[step.new_name] = step.file
    return names


@dataclass
class Record:
    """The steps that were done on a disk, and what it held before."""

    before: State
    steps: list[Step]

    def wrecks(self) -> Iterator[tuple[int, Wreck]]:
        """Yield how many steps were done, and the disk as it is then; one object, from none to all of them."""
        wreck = Wreck(dict(self.before.files), dict(self.before.folders))
        yield 0, wreck
        for done, step in enumerate(self.steps, 1):
            wreck.do(step)
            yield done, wreck


class Crash(BaseException):
    """The machine stopped: no operation on its disk can be done any more, whoever tries."""


class Disk:
    """A folder that records every operation which changes it, and can be put into the state after any crash.

    The operations are done for real, but for syncs. Files keep their inodes in every state.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir()
        self._vault = root.with_name(f"{root.name}.vault")  # a second name for each file that ever was
        self._vault.mkdir()
        self._fds: dict[int, int | str] = {}  # inode of an open file, path of an open folder

    def read(self) -> State:
        """Return what the disk holds."""
        files: dict[int, bytes] = {}
        folders: dict[str, dict[str, int]] = {}
        for folder, names, file_names in os.walk(self.root):
            folders[folder] = dict.fromkeys(names, _FOLDER)
            for name in file_names:
                path = Path(folder, name)
                inode = path.stat().st_ino
                folders[folder][name] = inode
                files[inode] = path.read_bytes()
                self._keep(path, inode)
        return State(files, folders)

    def lay_out(self, state: State) -> None:
        """Make the disk hold ``state``."""
        for path in self.root.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        self._lay_out_folder(state, str(self.root))

    def _lay_out_folder(self, state: State, folder: str) -> None:
        for name, inode in state.folders.get(folder, {}).items():
            path = Path(folder, name)
            if inode == _FOLDER:
                path.mkdir()
                self._lay_out_folder(state, str(path))
            else:
                path.hardlink_to(self._vault / str(inode))
                _fill(path, state.files.get(inode, b""))

    @contextmanager
    def recorded(self, before: Callable[[int, Step], None] = lambda number, step: None) -> Iterator[Record]:
        """Record every step that is done in the ``with``.

        Args:
            before: called with the number of a step (from 0) and the step, before it is done; what it raises
                comes out of the operation, which is not done then.
        """
        record = Record(self.read(), [])

        def note(step: Step) -> None:
            before(len(record.steps), step)
            record.steps.append(step)

        with pytest.MonkeyPatch.context() as patch:
            self._patch_files(patch, note)
            self._patch_names(patch, note)
            yield record

    def dying_at(self, number: int) -> Callable[[int, Step], None]:
        """Return a ``before`` for `recorded`: the machine stops before step ``number``, for good."""

        def stop(done: int, _: Step) -> None:
            if done >= number:
                raise Crash

        return stop

    def _keep(self, path: Path, inode: int) -> None:
        if not (self._vault / str(inode)).exists():
            (self._vault / str(inode)).hardlink_to(path)

    def _is_here(self, path: Any) -> bool:
        text: str = os.path.abspath(path)  # noqa: PTH100  # links are not followed
        return text == str(self.root) or text.startswith(f"{self.root}/")

    def _patch_files(self, patch: pytest.MonkeyPatch, note: Callable[[Step], None]) -> None:
        fds = self._fds
        names = ("open", "close", "write", "pwrite", "ftruncate", "posix_fallocate", "fsync")
        real = {name: getattr(os, name) for name in names}
        real_open, real_fallocate, real_link = io.open, ioctl.fallocate, os.link

        def open_(path: Any, flags: int, mode: int = 0o777, **more: Any) -> int:
            if not self._is_here(path):
                return int(real["open"](path, flags, mode, **more))
            path = Path(os.path.abspath(path))  # noqa: PTH100
            is_new = not path.exists()
            if is_new and flags & os.O_CREAT:
                # Its inode is known only once it is there; nothing was done before the step is noted.
                temporary = self._vault / "new"
                fd = int(real["open"](temporary, flags, mode, **more))
                inode = os.fstat(fd).st_ino
                try:
                    note(Step("link", inode, str(path.parent), path.name))
                except BaseException:
                    real["close"](fd)
                    temporary.unlink()
                    raise
                real_link(temporary, path)
                temporary.rename(self._vault / str(inode))
            else:
                if flags & os.O_TRUNC and path.stat().st_size:
                    note(Step("truncate", path.stat().st_ino, offset=0))
                fd = int(real["open"](path, flags, mode, **more))
                inode = os.fstat(fd).st_ino
            if path.is_dir():
                fds[fd] = str(path)
            elif flags & (os.O_WRONLY | os.O_RDWR):
                fds[fd] = inode
            return fd

        def close(fd: int) -> None:
            fds.pop(fd, None)
            real["close"](fd)

        def write(fd: int, content: bytes | memoryview) -> int:
            if isinstance(inode := fds.get(fd), int):
                note(Step("write", inode, offset=os.lseek(fd, 0, os.SEEK_CUR), data=bytes(content)))
            return int(real["write"](fd, content))

        def pwrite(fd: int, content: bytes | memoryview, offset: int) -> int:
            if isinstance(inode := fds.get(fd), int):
                note(Step("write", inode, offset=offset, data=bytes(content)))
            return int(real["pwrite"](fd, content, offset))

        def ftruncate(fd: int, size: int) -> None:
            if isinstance(inode := fds.get(fd), int):
                note(Step("truncate", inode, offset=size))
            real["ftruncate"](fd, size)

        def posix_fallocate(fd: int, offset: int, length: int) -> None:
            if isinstance(inode := fds.get(fd), int):
                note(Step("write", inode, offset=offset, data=bytes(length)))
            real["posix_fallocate"](fd, offset, length)

        def sync(fd: int) -> None:
            match fds.get(fd):
                case str(folder):
                    note(Step("sync folder", folder=folder))
                case int(inode):
                    note(Step("sync", inode))
                case None:
                    real["fsync"](fd)

        def fallocate(fd: int, mode: int, offset: int, length: int) -> bool:
            if not isinstance(inode := fds.get(fd), int):
                return real_fallocate(fd, mode, offset, length)
            assert mode & ioctl.FALLOC_FL_KEEP_SIZE
            note(Step("zero", inode, offset=offset, length=length))
            if not real_fallocate(fd, mode, offset, length):  # a file system that cannot: zeros, all the same
                size = min(offset + length, os.fstat(fd).st_size) - offset
                real["pwrite"](fd, bytes(max(0, size)), offset)
            return True

        def open_file(path: Any, mode: str = "r", *args: Any, **more: Any) -> Any:
            if isinstance(path, int) or "r" in mode or not self._is_here(path):
                return real_open(path, mode, *args, **more)
            assert mode == "w"
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
            return io.TextIOWrapper(io.BufferedWriter(_Raw(fd)), encoding="utf-8")

        for name, function in {
            "open": open_, "close": close, "write": write, "pwrite": pwrite, "ftruncate": ftruncate,
            "posix_fallocate": posix_fallocate, "fsync": sync, "fdatasync": sync,
        }.items():  # fmt: skip
            patch.setattr(os, name, function)
        patch.setattr(ioctl, "fallocate", fallocate)
        patch.setattr(io, "open", open_file)

    def _patch_names(self, patch: pytest.MonkeyPatch, note: Callable[[Step], None]) -> None:
        real_unlink, real_rename, real_mkdir, real_link = os.unlink, os.rename, os.mkdir, os.link

        def unlink(path: Any, **more: Any) -> None:
            if self._is_here(path) and os.path.lexists(path):
                note(Step("unlink", folder=str(Path(path).parent), name=Path(path).name))
            real_unlink(path, **more)

        def rename(old: Any, new: Any, **more: Any) -> None:
            if self._is_here(old):
                old, new = Path(old), Path(new)
                assert old.parent == new.parent
                note(Step("rename", old.stat().st_ino, str(old.parent), old.name, new.name))
            real_rename(old, new, **more)

        def link(old: Any, new: Any, **more: Any) -> None:
            if self._is_here(new) and not os.path.lexists(new):
                note(Step("link", Path(old).stat().st_ino, str(Path(new).parent), Path(new).name))
            real_link(old, new, **more)

        def mkdir(path: Any, mode: int = 0o777, **more: Any) -> None:
            if self._is_here(path) and not os.path.lexists(path):
                note(Step("link", _FOLDER, str(Path(path).parent), Path(path).name))
            real_mkdir(path, mode, **more)

        patch.setattr(os, "unlink", unlink)
        patch.setattr(os, "rename", rename)
        patch.setattr(os, "link", link)
        patch.setattr(os, "mkdir", mkdir)


def _fill(path: Path, content: bytes) -> None:
    """Give a file its content, with holes where there are zeros."""
    with path.open("r+b", buffering=0) as file:
        file.truncate(0)
        for at in range(0, len(content), 4096):
            page = content[at : at + 4096]
            if page.count(0) < len(page):
                os.pwrite(file.fileno(), page, at)
        file.truncate(len(content))


class _Raw(io.RawIOBase):
    """An open file whose writes go through ``os``, where they are recorded."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def fileno(self) -> int:
        return self._fd

    def writable(self) -> bool:
        return True

    def write(self, content: Any) -> int:
        return os.write(self._fd, content)

    def close(self) -> None:
        if not self.closed:
            super().close()
            os.close(self._fd)


def failing(kind: str, file: Path, code: int = errno.EIO, *, times: int = 1, skip: int = 0) -> Callable[..., None]:
    """Return a ``before`` for `Disk.recorded`: steps of a kind on a file fail with an OSError."""
    inode = file.stat().st_ino
    left = [skip, times]

    def fail(_: int, step: Step) -> None:
        if step.kind != kind or step.file != inode:
            return
        if left[0]:
            left[0] -= 1
        elif left[1]:
            left[1] -= 1
            raise OSError(code, os.strerror(code))

    return fail


def frames_of(frames: Iterable[Frame]) -> list[Changes]:
    return [frame for frame in frames if isinstance(frame, (Data, Zero, Hole))]

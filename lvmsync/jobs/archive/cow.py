"""The store of a past state that is mounted: how large it is, where it has room, and its bytes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lvmsync.chain.layers import DATA
from lvmsync.errors import DeviceError
from lvmsync.extents import ChangeMap
from lvmsync.formats.snapshot_store import NewStore
from lvmsync.jobs.archive.past import Past
from lvmsync.jobs.progress import Progress, Report
from lvmsync.system import ioctl
from lvmsync.system.device import aligned_buffer
from lvmsync.system.space import free_bytes
from lvmsync.units import size_words

_BATCH = 1 << 20


def plan_store(past: Past, *, is_over_mirror: bool) -> NewStore:
    """Return the store that makes a past state of a mirror, or of zeros.

    Its chunks are of 4 KiB: the past is known by sectors, and what lies next to them in a chunk is read from the past
    as well; larger ones would only cost more. They are larger where there would be too many.
    """
    kinds: Sequence[int] = () if is_over_mirror else (DATA,)
    changes = past.segments.map(*kinds) if len(past.segments) else ChangeMap.empty()
    return NewStore.of(changes, past.size)


def require_room(folder: Path, needed: int) -> None:
    """Refuse a folder whose file system has too little room for a store.

    Raises:
        DeviceError: it has, or is not there.
    """
    free = free_bytes(folder)
    if needed > free:
        raise DeviceError(
            f"{folder} has {size_words(free)} free, and the store of that state may need {size_words(needed)}: make"
            " room, or name another place with --store FOLDER or --store VG",
            device=str(folder),
        )


def make_file(path: Path, size: int, *, is_reserved: bool) -> int:
    """Make the file of a store, for its owner only; return its open descriptor.

    Args:
        path: of the new file.
        size: bytes.
        is_reserved: whether it takes all its room now, so that it cannot be lacking later.

    Raises:
        DeviceError: it cannot be made.
    """
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(fd, size)
            if is_reserved:
                ioctl.fallocate(fd, 0, 0, size)
        except BaseException:
            os.close(fd)
            raise
    except OSError as error:
        raise DeviceError(f"cannot make {path}: {error.strerror}", device=str(path)) from error
    return fd


def write_store(store: NewStore, past: Past, fd: int, name: str, report: Report, *, is_blank: bool) -> int:
    """Write a store; return how many bytes of data were written.

    Args:
        store: what is in it.
        past: the state.
        fd: where it is written.
        name: of that, for messages.
        report: told how far it is.
        is_blank: what is not written there reads as zeros.

    Raises:
        DeviceError: it cannot be written.
        StreamError: a member is damaged.
    """
    total, done, written = store.exceptions * store.chunk_size, 0, 0
    buffer = aligned_buffer(max(_BATCH, store.chunk_size))
    try:
        _write(fd, memoryview(store.header()), 0)
        for position, area in store.areas():
            _write(fd, memoryview(area), position)
        for piece in store.pieces(_BATCH):
            data = buffer[: sum(piece.lengths)]
            past.read(piece.offsets, piece.lengths, data)
            for start, end in _runs(data, store.chunk_size) if is_blank else [(0, len(data))]:
                _write(fd, data[start:end], piece.position + start)
                written += end - start
            done += len(data)
            report(Progress("preparing", done, total))
        if not is_blank:  # a device: what reads it next goes past its cache
            os.fsync(fd)
    except OSError as error:
        raise DeviceError(f"cannot write {name}: {error.strerror}", device=name) from error
    return written


def _runs(data: memoryview, chunk: int) -> list[tuple[int, int]]:
    """Return the parts of some data, in whole chunks, that are not zeros."""
    whole = len(data) // chunk * chunk
    used = np.frombuffer(data[:whole], np.uint64).reshape(-1, chunk // 8).any(axis=1)
    used = np.append(used, any(data[whole:]))
    edges = np.flatnonzero(np.diff(used.astype(np.int8), prepend=0, append=0))
    return [(int(start) * chunk, min(int(end) * chunk, len(data))) for start, end in edges.reshape(-1, 2)]


def _write(fd: int, view: memoryview, position: int) -> None:
    while view:
        count = os.pwrite(fd, view, position)
        view, position = view[count:], position + count

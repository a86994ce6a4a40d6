"""Room for what will be written: checked before the first write, and looked at while it goes on.

A thin pool that is full gives errors to all that is in it, so the receive stops before that. A file system that is full
fails the one write, which is undone.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

from lvmsync.errors import DeviceError
from lvmsync.formats.snapshot import SECTOR
from lvmsync.stream.frames import DELTA, Changes, Header, Hole
from lvmsync.system import dm
from lvmsync.system.fill import ThinPool, find_pool
from lvmsync.system.lvm_commands import not_zeroing
from lvmsync.targets.block import BlockTarget

_EVERY = 1.0  # seconds


def require_headroom(target: BlockTarget, header: Header, limit: float) -> Callable[[Changes], None]:
    """Refuse a stream that a target's pool or file system cannot take; return what is to be called with each frame.

    Args:
        target: claimed.
        header: of the stream.
        limit: percent of the pool, data or metadata, at which to stop; 100: nothing is looked at.

    Raises:
        DeviceError: there is not enough room, or the pool does not zero its blocks; what is returned raises it at the
            limit.
    """
    pool = find_pool(target.number) if target.number else None
    if pool and not pool.has_zeros:
        raise not_zeroing(pool.device.path)
    if limit >= 100:
        return lambda frame: None
    if target.number is None:
        _require_in_file_system(target, header)
        return lambda frame: None
    if pool is None:
        return lambda frame: None
    watch = PoolWatch(pool, limit, is_blank=target.is_blank)
    _require_in_pool(target, header, pool, limit)
    return watch


class PoolWatch:
    """Looks at a pool each second, and sooner where what is written could fill a quarter of what is left."""

    def __init__(self, pool: ThinPool, limit: float, *, is_blank: bool = False) -> None:
        """Look at it for the first time.

        Args:
            pool: it.
            limit: percent of it at which to stop.
            is_blank: whether holes are written to nothing but their edges; see `BlockTarget`.

        Raises:
            DeviceError: it is at the limit.
        """
        from lvmsync.system.fill_watch import FillWatch, pool_gauge  # few targets have a pool

        self._pool = pool
        self._limit = limit
        self._is_blank = is_blank
        self._watch = FillWatch([pool_gauge(pool)], limit=limit, every=0)
        self._look()

    def __call__(self, frame: Changes) -> None:
        """Take the frame that is written next, and look if it is time."""
        # A chunk may be shared with a snapshot: a few bytes written to it take a whole one.
        written = 0 if self._is_blank and isinstance(frame, Hole) else frame.changed_bytes
        self._unseen += max(written, len(frame.table) * self._pool.chunk)
        if self._unseen >= self._allowance or time.monotonic() >= self._next:
            self._look()

    def _look(self) -> None:
        self._watch.check()
        data = self._pool.read_fill().data
        self._allowance = (data.total * self._limit / 100 - data.used) / 4
        self._unseen = 0
        self._next = time.monotonic() + _EVERY


def _require_in_pool(target: BlockTarget, header: Header, pool: ThinPool, limit: float) -> None:
    data = pool.read_fill().data
    room = int(data.total * limit / 100) - data.used
    # A block that is mapped already needs no other, unless a snapshot shares it: that is seen while it goes on.
    need = min(max(_data_bytes(header), (header.extents or 0) * pool.chunk), target.size - mapped_bytes(target.number))
    if need > room:
        raise DeviceError(
            f"thin pool {pool.device.path} has room for {room} bytes up to {limit:g}%, and {target.name} may need"
            f" {need}; {_done(header)} was written. Make it larger with lvextend, or raise --pool-limit (100: do not"
            " look)",
            device=target.name,
        )


def mapped_bytes(number: dm.Number | None) -> int:
    """Return how many bytes of a thin volume are mapped; 0 for what only lies on one."""
    device = dm.find_device(number)
    lines = dm.read_status(device) if device else []
    if [line.kind for line in lines] != ["thin"]:
        return 0
    sectors = lines[0].text.split(" ")[0]  # MAPPED HIGHEST; "Fail" is found out by the first read
    return int(sectors) * SECTOR if sectors.isdecimal() else 0


def _require_in_file_system(target: BlockTarget, header: Header) -> None:
    if header.intent != DELTA:
        return  # how much of a whole device is zeros, which a file keeps as holes, is not known yet
    need = min(_data_bytes(header), target.size - min(target.allocated, target.size))
    state = os.statvfs(Path(target.name).resolve().parent)
    free = state.f_bavail * state.f_frsize
    if need > free:
        raise DeviceError(
            f"the file system of {target.name} has {free} bytes free, and up to {need} are needed; {_done(header)} was"
            " written. Make room",
            device=target.name,
        )


def _done(header: Header) -> str:
    return "nothing" if header.resume is None else "nothing more"


def _data_bytes(header: Header) -> int:
    return (header.changed_bytes or 0) if header.data_bytes is None else header.data_bytes

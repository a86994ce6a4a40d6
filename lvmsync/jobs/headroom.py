"""Room for what will be written: checked before the first write, and looked at while it goes on.

A thin pool that is full gives errors to all that is in it, and the store of a snapshot that is full has lost it, so the
receive stops before that. A file system that is full fails the one write, which is undone.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from lvmsync.errors import ChangesLost, CommandError, DeviceError
from lvmsync.formats.snapshot import SECTOR
from lvmsync.stream.frames import DELTA, Changes, Header, Hole
from lvmsync.system import dm
from lvmsync.system.fill import Fill, ThinPool, find_pool
from lvmsync.system.fill_watch import NEVER_FULL, Gauge, Limits, pool_gauge, pool_name, snapshot_gauge, until_whole
from lvmsync.system.lvm_commands import not_zeroing
from lvmsync.system.snapshot_advice import whole_store
from lvmsync.targets.block import BlockTarget
from lvmsync.units import size_words

_EVERY = 1.0  # seconds
_PER_MAPPING = 64  # bytes of a pool's metadata for a chunk, at the most: 16 in a node that is a quarter full


def require_headroom(target: BlockTarget, header: Header, limits: Limits) -> RoomWatch:
    """Refuse a stream that a target's pool or file system cannot take; return what is to be called with each frame.

    Args:
        target: claimed.
        header: of the stream.
        limits: of the pool, data or metadata, and of snapshots of the target; 100: nothing is looked at.

    Raises:
        DeviceError: there is not enough room, or the pool does not zero its blocks; what is returned raises it at the
            limit.
        UsageError: the command that extends is no command.
    """
    pool = find_pool(target.number) if target.number else None
    if pool and not pool.has_zeros:
        raise not_zeroing(pool.device.path)
    if limits.limit >= 100:
        return RoomWatch(target, None, [], limits)
    if target.number is None:
        _require_in_file_system(target, header)
        return RoomWatch(target, None, [], limits)
    watch = RoomWatch(target, pool, _filling(target), limits)
    if pool and not limits.extend_cmd:  # else it is extended when it is time
        _require_in_pool(target, header, pool, limits.limit)
    return watch


class RoomWatch:
    """Looks at a pool each second, and sooner where what is written could fill a quarter of what is left.

    So it does at the stores of snapshots of the target, which keep what is overwritten: one that is full is lost.

    Attributes:
        notes: what happened, a sentence each.
    """

    def __init__(
        self, target: BlockTarget, pool: ThinPool | None, snapshots: Sequence[dm.Snapshot], limits: Limits
    ) -> None:
        """Look for the first time.

        Args:
            target: that is written to.
            pool: that it takes its space from.
            snapshots: of the target, whose stores may overflow.
            limits: what is too full.

        Raises:
            DeviceError: something is at the limit.
        """
        self._target = target
        self._pool = pool
        self._limit = limits.limit
        self._chunk = max([pool.chunk if pool else 0, *(one.chunk for one in snapshots)])
        self.notes: list[str] = []
        if not self._chunk:
            return
        stores = (
            until_whole(_while_it_lasts(snapshot_gauge(one)), whole_store(target.size, one.chunk)) for one in snapshots
        )
        gauges = [*([pool_gauge(pool)] if pool else []), *stores]
        self._watch = limits.watch(gauges, every=0)
        self.notes = self._watch.notes
        self._look()
        self._unseen = 0

    def __call__(self, frame: Changes) -> None:
        """Take the frame that is written next, and look if it is time."""
        if not self._chunk:
            return
        # A chunk may be shared with a snapshot: a few bytes written to it take a whole one.
        written = 0 if self._target.is_blank and isinstance(frame, Hole) else frame.changed_bytes
        self._unseen += max(written, len(frame.table) * self._chunk)
        if self._unseen >= self._allowance:
            self._target.sync()  # what is in the page cache has taken no space yet
            self._look()
            self._unseen = 0
        elif time.monotonic() >= self._next:
            self._look()

    def _look(self) -> None:
        self._watch.check()
        room = [self._left(fill) for fill in self._watch.fills.values()]
        if self._pool:  # of which that was the fuller half
            filled = self._pool.read_fill()
            chunks = self._left(filled.metadata) / _PER_MAPPING
            room += [self._left(filled.data), chunks * self._chunk]
        self._allowance = min(room) / 4
        self._next = time.monotonic() + _EVERY

    def _left(self, fill: Fill) -> float:
        return fill.total * self._limit / 100 - fill.used


def _filling(target: BlockTarget) -> list[dm.Snapshot]:
    """Return the snapshots of a target whose stores may overflow by what is written to it."""
    found = []
    for one in dm.list_snapshots_of(target.number):
        try:
            total = one.read_usage().total * SECTOR
        except (ChangesLost, CommandError):  # it is lost already, or gone
            continue
        if total < whole_store(target.size, one.chunk):
            found.append(one)
    return found


def _while_it_lasts(gauge: Gauge) -> Gauge:
    """Return a gauge that shows nothing once its snapshot was removed, as its owner may at any time."""

    def read() -> tuple[str, Fill]:
        try:
            return gauge.read()
        except CommandError:
            return gauge.volume, NEVER_FULL

    return replace(gauge, read=read)


def _require_in_pool(target: BlockTarget, header: Header, pool: ThinPool, limit: float) -> None:
    data = pool.read_fill().data
    room = int(data.total * limit / 100) - data.used
    # A block that is mapped already needs no other, unless a snapshot shares it: that is seen while it goes on.
    need = min(max(_data_bytes(header), (header.extents or 0) * pool.chunk), target.size - mapped_bytes(target.number))
    if need > room:
        name = pool_name(pool)
        raise DeviceError(
            f"thin pool {name} has room for {size_words(max(room, 0))} up to {limit:g}%, and {target.name} may need"
            f" {size_words(need)}; {_done(header)} was written. Make it larger with 'lvextend -L +SIZE {name}', or"
            " raise --pool-limit (100: do not look)",
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

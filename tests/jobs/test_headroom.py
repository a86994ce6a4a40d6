"""The pool of a target is looked at as often as what is written to it can fill it."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from lvmsync.errors import ChangesLost, CommandError, DeviceError
from lvmsync.extents import as_table
from lvmsync.formats.snapshot import Usage
from lvmsync.jobs import headroom
from lvmsync.jobs.headroom import RoomWatch, require_headroom
from lvmsync.stream.frames import Changes, Header, Hole, Zero
from lvmsync.system import dm, fill_watch
from lvmsync.system.fill import Fill, PoolFill, ThinPool
from lvmsync.system.fill_watch import Limits

GIB = 1 << 30


@pytest.mark.parametrize(
    ("frame", "is_blank", "looks"),
    [
        (Zero(as_table([0], [GIB])), True, 100),
        (Hole(as_table([0], [GIB])), False, 100),
        (Hole(as_table([0], [GIB])), True, 0),
        (Hole(as_table([0], [4096])), True, 0),
    ],
)
def test_a_hole_of_a_blank_target_fills_no_pool(
    monkeypatch: pytest.MonkeyPatch, frame: Changes, is_blank: bool, looks: int
) -> None:
    pool = Pool(monkeypatch)
    watch = pool.watch(is_blank=is_blank)
    for _ in range(100):
        watch(frame)
    assert pool.looks == 2 * looks  # at the fuller half of it, and at both


@dataclass(frozen=True)
class Played(ThinPool):
    """A pool whose fill is told by ``play``."""

    play: Callable[[], PoolFill] = field(kw_only=True)

    def read_fill(self) -> PoolFill:
        return self.play()


class Pool:
    """A thin pool of 1 GiB; what is written to it takes space only when that is made durable, or not even then.

    Attributes:
        used: bytes of its data, as the kernel tells.
        metadata: bytes of 4 MiB of its metadata.
        total: bytes of its data.
        written: bytes that are to be used at the next sync.
        looks: how often it was looked at.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, chunk: int = 65536) -> None:
        self.used = self.written = self.looks = self.metadata = 0
        self.total = GIB
        self.played = Played(dm.Mapped("vg-pool-tpool", "", (253, 2), 1), chunk, play=self.read_fill)
        monkeypatch.setattr(headroom, "_EVERY", 1000.0)

    def read_fill(self) -> PoolFill:
        self.looks += 1
        data, metadata = Fill(self.used, self.total), Fill(self.metadata, 4 << 20)
        return PoolFill(self.played.device, data, metadata, self.played.chunk, "rw")

    def sync(self) -> None:
        self.used, self.written = self.used + self.written, 0

    def write(self, watch: RoomWatch, count: int, *, length: int = 1 << 20, metadata: int = 0) -> None:
        """Let so many extents be written, each of which takes so much of the metadata."""
        for _ in range(count):
            watch(Zero(as_table([0], [length])))
            self.written += length
            self.metadata += metadata

    def watch(self, *, is_blank: bool = False, extend_cmd: str | None = None) -> RoomWatch:
        target = cast(Any, SimpleNamespace(number=(253, 3), is_blank=is_blank, sync=self.sync))
        watch = RoomWatch(target, self.played, [], Limits(extend_cmd, limit=95))
        self.looks = 0
        return watch


def test_what_is_still_in_the_page_cache_counts_before_a_pool_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = Pool(monkeypatch)
    watch = pool.watch()
    with pytest.raises(DeviceError, match=r"over the limit of 95%"):
        pool.write(watch, 2000)  # MiB: twice as much as it has
    assert pool.used + pool.written < GIB


def test_a_pool_is_looked_at_before_its_metadata_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = Pool(monkeypatch)
    pool.total = 1 << 40
    watch = pool.watch()
    with pytest.raises(DeviceError, match=r"the metadata of thin pool /dev/mapper/vg-pool-tpool is 9\d"):
        pool.write(watch, 1 << 18, length=65536, metadata=48)


def test_a_pool_is_extended_while_it_is_written_to_and_that_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = Pool(monkeypatch)
    monkeypatch.setattr(fill_watch, "run_to_end", lambda *_, **__: setattr(pool, "total", pool.total + GIB))
    watch = pool.watch(extend_cmd="make room")
    pool.write(watch, 2000)
    assert any(re.search(r"was 7\d.\d% full; 'make' extended it", note) for note in watch.notes)
    assert pool.total >= 2 * GIB


def test_a_command_that_makes_no_room_is_told_with_the_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = Pool(monkeypatch)
    watch = pool.watch(extend_cmd="/nowhere/extend")
    with pytest.raises(DeviceError) as caught:
        pool.write(watch, 2000)
    assert "/nowhere/extend" in " ".join(caught.value.__notes__)


def test_snapshots_of_the_target_are_watched_as_long_as_they_last(monkeypatch: pytest.MonkeyPatch) -> None:
    usages: dict[str, Usage | Exception] = {
        "small": Usage(100, 8192, 16),
        "lost": ChangesLost("overflowed"),
        "whole": Usage(100, 1 << 30, 16),
    }

    def read_usage(name: str) -> Usage:
        usage = usages[name]
        if isinstance(usage, Exception):
            raise usage
        return usage

    def snapshot(name: str) -> Any:
        return SimpleNamespace(
            device=dm.Mapped(f"vg-{name}", "", (253, 9), 0), chunk=4096, read_usage=lambda: read_usage(name)
        )

    monkeypatch.setattr(dm, "list_snapshots_of", lambda number: list(map(snapshot, usages)))
    monkeypatch.setattr(headroom, "find_pool", lambda number: None)
    monkeypatch.setattr(headroom, "_EVERY", 0.0)
    target = cast(Any, SimpleNamespace(number=(253, 3), size=1 << 30, is_blank=False, sync=lambda: None))
    watch = require_headroom(target, Header(size=1 << 30), Limits())
    frame = Zero(as_table([0], [4096]))
    watch(frame)
    usages["small"] = Usage(7900, 8192, 16)
    with pytest.raises(DeviceError, match=r"the store of /dev/mapper/vg-small is 96.4% full.*lvextend"):
        watch(frame)
    usages["small"] = Usage(100, 8192, 16)
    watch = require_headroom(target, Header(size=1 << 30), Limits())
    usages["small"] = CommandError("it is gone")
    watch = require_headroom(target, Header(size=1 << 30), Limits())
    watch(frame)
    usages["small"] = Usage(8000, 8192, 16)
    monkeypatch.setattr(fill_watch, "run_to_end", lambda *_, **__: usages.update(small=Usage(8000, 1 << 22, 16)))
    watch = require_headroom(target, Header(size=1 << 30), Limits("make room"))
    usages["small"] = Usage((1 << 22) - 8, 1 << 22, 16)  # as full as it will ever be
    watch(frame)


@pytest.mark.parametrize("limit", [95.0, 100.0])
def test_a_pool_that_does_not_zero_its_blocks_is_refused(monkeypatch: pytest.MonkeyPatch, limit: float) -> None:
    lines = [
        dm.Line(dm.Mapped("vg-lv", "", (253, 3), 0), 0, 8, "thin", "253:2 1"),
        dm.Line(
            dm.Mapped("vg-pool-tpool", "", (253, 2), 1), 0, 8, "thin-pool", "253:0 253:1 128 0 1 skip_block_zeroing"
        ),
    ]
    monkeypatch.setattr(dm, "is_mapped", lambda number: True)
    monkeypatch.setattr(dm, "list_tables", lambda: lines)
    target = cast(Any, SimpleNamespace(number=(253, 3), is_blank=False))
    with pytest.raises(DeviceError, match=r"vg-pool-tpool does not zero its blocks.*lvchange -Zy"):
        require_headroom(target, Header(size=1 << 20), Limits(limit=limit))
    lines[1] = replace(lines[1], text="253:0 253:1 128 0 0")
    assert require_headroom(target, Header(size=1 << 20), Limits(limit=100.0)) is not None

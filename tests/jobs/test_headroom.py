"""The pool of a target is looked at as often as what is written to it can fill it."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from lvmsync.errors import DeviceError
from lvmsync.extents import as_table
from lvmsync.jobs import headroom
from lvmsync.jobs.headroom import PoolWatch, require_headroom
from lvmsync.stream.frames import Changes, Header, Hole, Zero
from lvmsync.system import dm, fill_watch

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
    asked = 0

    def read_fill() -> Any:
        nonlocal asked
        asked += 1
        return SimpleNamespace(data=SimpleNamespace(used=0, total=GIB))

    monkeypatch.setattr(fill_watch, "pool_gauge", lambda pool: None)
    monkeypatch.setattr(fill_watch, "FillWatch", lambda *_, **__: SimpleNamespace(check=lambda: None))
    monkeypatch.setattr(headroom, "_EVERY", 1000.0)
    pool = cast(Any, SimpleNamespace(chunk=65536, read_fill=read_fill))
    watch = PoolWatch(pool, 95, is_blank=is_blank)
    for _ in range(100):
        watch(frame)
    assert asked - 1 == looks


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
        require_headroom(target, Header(size=1 << 20), limit)
    lines[1] = replace(lines[1], text="253:0 253:1 128 0 0")
    assert require_headroom(target, Header(size=1 << 20), 100.0) is not None

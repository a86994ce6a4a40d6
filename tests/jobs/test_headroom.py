"""The pool of a target is looked at as often as what is written to it can fill it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from lvmsync.extents import as_table
from lvmsync.jobs import headroom
from lvmsync.jobs.headroom import PoolWatch
from lvmsync.stream.frames import Changes, Hole, Zero
from lvmsync.system import fill_watch

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

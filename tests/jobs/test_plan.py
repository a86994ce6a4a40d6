"""What changes would cost with other chunks, and whether there is room for what a sync would do."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lvmsync.extents import ChangeMap
from lvmsync.jobs.plan import Forecast, _look_ahead, weigh_chunks
from lvmsync.jobs.replica.record import Record
from lvmsync.jobs.standing import PoolRoom, Standing

K = 1 << 10
GIB = 1 << 30


@given(st.lists(st.integers(0, 600), max_size=60))
def test_the_cost_of_a_chunk_size_is_that_of_the_chunks_that_are_touched(blocks: list[int]) -> None:
    size = 600 * 4 * K + 4 * K
    changes = ChangeMap.from_chunks(np.array(blocks, np.uint64), 4 * K, size)
    costs = {one.chunk: one for one in weigh_chunks(changes, 4 * K)}
    assert set(costs) == ({4 * K << step for step in range(8)} if blocks else set())
    for chunk, cost in costs.items():
        touched = {block * 4 * K // chunk for block in blocks}
        assert cost.bytes == len(touched) * chunk
        assert cost.times == round(cost.bytes / changes.total_bytes, 2)
        assert cost.store > cost.bytes


def test_chunks_that_are_smaller_than_the_map_tells_are_left_out() -> None:
    changes = ChangeMap.from_extents([(0, 64 * K)])
    assert [one.chunk // K for one in weigh_chunks(changes, 64 * K)] == [64, 128, 256, 512]
    assert [one.times for one in weigh_chunks(changes, 64 * K)] == [1, 2, 4, 8]
    assert weigh_chunks(changes, 1 << 20) == []


STANDING = Standing("vg/lv", "1", "now", exists=True, kind="thin", size=10 * GIB, undo_free=5 * GIB)
POOL = PoolRoom("vg-pool", 10 * GIB, 4 * GIB, 64 * K, 60.0, 5.0)
RECORD = Record("ab" * 8, "id", "vg/lv", "vg/lv", rate=float(GIB))


def forecast(changed: int, *, kind: str = "delta", standing: Standing = STANDING, extents: int = 1) -> Forecast:
    made = Forecast("vg/lv", "t", kind, 10 * GIB, standing=standing, changed_bytes=changed, extents=extents)
    _look_ahead(made, RECORD)
    return made


def test_time_is_by_the_last_rate_and_unknown_without() -> None:
    assert forecast(3 * GIB).seconds == 3
    made = Forecast("a", "b", "delta", GIB, standing=STANDING, changed_bytes=5)
    _look_ahead(made, replace(RECORD, rate=None))
    assert (made.seconds, made.rate) == (None, None)
    _look_ahead(made, None)
    assert made.seconds is None


@pytest.mark.parametrize(
    ("made", "problems"),
    [
        (forecast(GIB), []),
        (forecast(6 * GIB), ["the target's side keeps"]),
        (forecast(6 * GIB, kind="first"), ["the target's side keeps"]),
        (forecast(6 * GIB, kind="first", standing=replace(STANDING, made=True)), []),
        (forecast(6 * GIB, standing=replace(STANDING, exists=False)), []),
        (forecast(6 * GIB, standing=replace(STANDING, undo_free=None)), []),
        (forecast(GIB, standing=replace(STANDING, pool=POOL)), []),
        (forecast(GIB, standing=replace(STANDING, pool=POOL), extents=100_000), ["the target's pool vg-pool"]),
        (forecast(4 * GIB, standing=replace(STANDING, pool=POOL)), ["the target's pool vg-pool"]),
        (forecast(0, standing=replace(STANDING, pool=replace(POOL, free=0))), []),
    ],
)
def test_room_that_may_not_be_there_is_told(made: Forecast, problems: list[str]) -> None:
    assert len(made.problems) == len(problems)
    for said, begin in zip(made.problems, problems, strict=True):
        assert said.startswith(begin)

"""Copies kept up to date over the simulated module, of all three generations, through the real sender and receiver."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.blksnap_machine import BLOCK, GENERATIONS, Machine, machine


@pytest.fixture(params=GENERATIONS)
def here(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    with machine(tmp_path, monkeypatch, request.param) as one:
        yield one


def test_the_first_sync_sends_everything_and_the_next_ones_what_was_written(here: Machine) -> None:
    (receipt,) = here.sync()
    assert here.is_equal()
    assert here.sent[-1].is_full
    assert receipt.bytes == here.disk.size
    for _ in range(6):
        here.scribble()
        (receipt,) = here.sync()
        assert here.is_equal()
        assert here.sent[-1].base
        assert 0 < receipt.bytes <= 8 * BLOCK
    assert here.kernel.held() == []
    assert here.noted() == []

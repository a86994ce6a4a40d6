"""Memory does not grow with the device or the stream; ``tests/bench/bench_memory.py`` measures a big one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.bench.bench_memory import Scattered, scatter, transfer


@pytest.fixture(scope="module")
def scattered(tmp_path_factory: pytest.TempPathFactory) -> Scattered:
    folder = tmp_path_factory.mktemp("scattered")
    return scatter(folder, folder / "target", 200_000_000, 48_000)


@pytest.mark.parametrize("stream_format", [4, 3])
def test_both_sides_stay_below_the_limit(scattered: Scattered, stream_format: int, tmp_path: Path) -> None:
    """1 TiB; the first transfer fills the sparse target, the second saves all of that."""
    peaks = transfer(scattered, tmp_path, stream_format)
    assert peaks.send < scattered.goal, f"{peaks.send} bytes, and {scattered.goal} are the limit"
    assert peaks.receive < scattered.goal, f"{peaks.receive} bytes, and {scattered.goal} are the limit"

"""Power cuts in the middle of taking, combining and pruning: a sample of `scripts/powercuts archives`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.lab.archive_cuts import run_round


@pytest.mark.parametrize("number", range(2))
def test_no_point_is_lost_when_the_power_goes(lab_machine: None, tmp_path: Path, number: int) -> None:
    cut = run_round(tmp_path / "round", number, 1)
    print(cut)
    assert not cut.wrong

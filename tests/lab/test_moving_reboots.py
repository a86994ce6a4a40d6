"""Both sites lose their power in the middle of a copy: a sample of scripts/moving reboots."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.lab.moving_reboots import reboot


@pytest.mark.parametrize(("kind", "cut", "seed"), [("classic", "delta", 6)])  # this seed cuts once
def test_a_copy_goes_on_after_power_cuts(lab_machine: None, tmp_path: Path, kind: str, cut: str, seed: int) -> None:
    outcome = reboot(tmp_path, kind, cut, random.Random(seed))
    outcome.check("is as it should be after a power cut")

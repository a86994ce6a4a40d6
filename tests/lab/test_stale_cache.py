"""Page caches of store, origin and target that are out of date: nothing of them is believed."""

from __future__ import annotations

import pytest

from tests.lab import guest
from tests.lab.cases import Outcome, cases_of, noise, run_cases
from tests.lab.conftest import Lab

SCRIPT = guest.LAB / "stale_cache.sh"


@pytest.fixture(scope="module")
def outcome(lab_machine: None, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    lab = Lab(tmp_path_factory.mktemp("stale_cache"))
    return run_cases(lab, SCRIPT, disks=[lab.disk("lvm", 128 << 20), noise(lab.folder / "noise.img", 64 << 20)])


@pytest.mark.parametrize("case", cases_of(SCRIPT))
def test_lvmsync(outcome: Outcome, case: str) -> None:
    outcome.check(case)

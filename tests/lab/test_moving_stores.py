"""The stores of snapshots become full while a volume in use is copied: never with an OK."""

from __future__ import annotations

import pytest

from tests.lab import guest
from tests.lab.cases import Outcome, cases_of, run_cases
from tests.lab.conftest import Lab

SCRIPT = guest.LAB / "moving_stores.sh"


@pytest.fixture(scope="module")
def outcome(lab_machine: None, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    lab = Lab(tmp_path_factory.mktemp("moving"))
    return run_cases(lab, SCRIPT, disks=[lab.disk("lvm", 256 << 20)], modules=["sch_netem"], timeout=900)


@pytest.mark.parametrize("case", cases_of(SCRIPT))
def test_moving_stores(outcome: Outcome, case: str) -> None:
    outcome.check(case)

"""The pool of a copy becomes full while it is written: noticed in time, and gone on with when there is room."""

from __future__ import annotations

import pytest

from tests.lab import guest
from tests.lab.cases import Outcome, cases_of, run_cases
from tests.lab.conftest import Lab

SCRIPT = guest.LAB / "moving_pools.sh"


@pytest.fixture(scope="module")
def outcome(lab_machine: None, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    lab = Lab(tmp_path_factory.mktemp("moving"))
    return run_cases(lab, SCRIPT, disks=[lab.disk("lvm", 256 << 20)], modules=["sch_netem"], timeout=900)


@pytest.mark.parametrize("case", cases_of(SCRIPT))
def test_moving_pools(outcome: Outcome, case: str) -> None:
    outcome.check(case)

"""A file system in use is copied over a bad line, by an lvmsync that is killed on either site."""

from __future__ import annotations

import pytest

from tests.lab import guest
from tests.lab.cases import Outcome, cases_of, run_cases
from tests.lab.conftest import Lab

LINES = guest.LAB / "moving_lines.sh"


@pytest.fixture(scope="module")
def lines(lab_machine: None, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    lab = Lab(tmp_path_factory.mktemp("moving"))
    env = {"KIND": "classic"}
    return run_cases(lab, LINES, disks=[lab.disk("lvm", 400 << 20)], modules=["sch_netem"], env=env, timeout=900)


@pytest.mark.parametrize("case", cases_of(LINES))
def test_moving_over_a_bad_line(lines: Outcome, case: str) -> None:
    lines.check(case)

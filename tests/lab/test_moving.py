"""Volumes in use move over bad lines, copies are spoilt, stores and pools become full: each kind once, in one guest."""

from __future__ import annotations

import pytest

from tests.lab import guest
from tests.lab.cases import Outcome, cases_of, run_cases
from tests.lab.conftest import Lab

SCRIPTS = [guest.LAB / f"moving_{name}.sh" for name in ("lines", "wrong", "stores")]


@pytest.fixture(scope="module")
def outcome(lab_machine: None, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    lab = Lab(tmp_path_factory.mktemp("moving"))
    script = "\n".join(path.read_text() for path in SCRIPTS)
    disks = [lab.disk("lvm", 128 << 20)]
    return run_cases(lab, script, disks=disks, modules=["sch_netem"], env={"KIND": "classic"}, timeout=900)


@pytest.mark.parametrize("case", [case for path in SCRIPTS for case in cases_of(path)])
def test_moving(outcome: Outcome, case: str) -> None:
    outcome.check(case)

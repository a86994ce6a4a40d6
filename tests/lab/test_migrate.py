"""A file system in use goes to another site: within its downtime, whole, and back on every failure."""

from __future__ import annotations

import pytest

from tests.lab import guest
from tests.lab.cases import Outcome, cases_of, run_cases
from tests.lab.conftest import Lab

SCRIPT = guest.LAB / "migrate.sh"


@pytest.fixture(scope="module")
def outcome(lab_machine: None, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    lab = Lab(tmp_path_factory.mktemp("migrate"))
    return run_cases(lab, SCRIPT, disks=[lab.disk("lvm", 192 << 20)])


@pytest.mark.parametrize("case", cases_of(SCRIPT))
def test_migrate(outcome: Outcome, case: str) -> None:
    outcome.check(case)

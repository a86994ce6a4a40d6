"""A key that is served, on a real kernel: which names lead to which volumes, pushes and pulls."""

from __future__ import annotations

import pytest

from tests.lab import guest
from tests.lab.cases import Outcome, cases_of, noise, run_cases
from tests.lab.conftest import Lab

SCRIPT = guest.LAB / "serve.sh"


@pytest.fixture(scope="module")
def outcome(lab_machine: None, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    lab = Lab(tmp_path_factory.mktemp("serve"))
    disks = [lab.disk("lvm", 256 << 20), noise(lab.folder / "noise.img", 64 << 20), lab.disk("copies", 128 << 20)]
    return run_cases(lab, SCRIPT, disks=disks)


@pytest.mark.parametrize("case", cases_of(SCRIPT))
def test_lvmsync(outcome: Outcome, case: str) -> None:
    outcome.check(case)

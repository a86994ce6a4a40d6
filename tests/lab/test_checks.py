"""plan, verify, repair and doctor, with real LVM."""

from __future__ import annotations

import pytest

from tests.lab import checks
from tests.lab.cases import Outcome, noise, run_cases
from tests.lab.conftest import Lab


@pytest.fixture(scope="module")
def outcome(lab_machine: None, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    lab = Lab(tmp_path_factory.mktemp("checks"))
    disks = [lab.disk("lvm", 256 << 20), noise(lab.folder / "noise.img", 64 << 20)]
    return run_cases(lab, "python3 -m tests.lab.checks", disks=disks)


@pytest.mark.parametrize("name", checks.case.names)
def test_lvmsync(outcome: Outcome, name: str) -> None:
    outcome.check(name)

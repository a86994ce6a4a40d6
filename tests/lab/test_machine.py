"""What lvmsync changes on a machine, on a real kernel: LVM's volumes, frozen file systems, suspended devices."""

from __future__ import annotations

import pytest

from tests.lab import machine
from tests.lab.cases import Outcome, run_cases
from tests.lab.conftest import Lab


@pytest.fixture(scope="module")
def outcome(lab_machine: None, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    lab = Lab(tmp_path_factory.mktemp("machine"))
    return run_cases(lab, "python3 -m tests.lab.machine", disks=[lab.disk("lvm", 256 << 20)])


@pytest.mark.parametrize("name", machine.NAMES)
def test_lvmsync(outcome: Outcome, name: str) -> None:
    outcome.check(name)

"""A receiver on real volumes, thick and thin."""

from __future__ import annotations

import pytest

from tests.lab import receive_on_volumes
from tests.lab.cases import Outcome, run_cases
from tests.lab.conftest import Lab


@pytest.fixture(scope="module")
def outcome(lab_machine: None, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    lab = Lab(tmp_path_factory.mktemp("receive_on_volumes"))
    return run_cases(lab, "python3 -m tests.lab.receive_on_volumes", disks=[lab.disk("lvm", 128 << 20)])


@pytest.mark.parametrize("name", receive_on_volumes.case.names)
def test_lvmsync(outcome: Outcome, name: str) -> None:
    outcome.check(name)

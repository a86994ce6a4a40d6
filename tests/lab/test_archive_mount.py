"""Past states of real volumes as block devices of a real kernel."""

from __future__ import annotations

import pytest

from tests.lab import guest
from tests.lab.cases import Outcome, cases_of, noise, run_cases
from tests.lab.conftest import Lab

SCRIPT = guest.LAB / "archive_mount.sh"


@pytest.fixture(scope="module")
def outcome(lab_machine: None, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    lab = Lab(tmp_path_factory.mktemp("archive_mount"))
    disks = [lab.disk("lvm", 320 << 20), noise(lab.folder / "noise.img", 32 << 20)]
    return run_cases(lab, SCRIPT, disks=disks, modules=["dm-zero"])


@pytest.mark.parametrize("case", cases_of(SCRIPT))
def test_a_past_state_as_a_device(outcome: Outcome, case: str) -> None:
    outcome.check(case)

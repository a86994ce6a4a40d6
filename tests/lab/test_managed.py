"""Volumes whose snapshots lvmsync takes, with real LVM and sshd: pushed, cut off at any step, refused, pulled."""

from __future__ import annotations

import pytest

from tests.lab import guest
from tests.lab.cases import Outcome, cases_of, noise, run_cases
from tests.lab.conftest import Lab

SCRIPT = guest.LAB / "managed.sh"


@pytest.fixture(scope="module")
def outcome(lab_machine: None, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    lab = Lab(tmp_path_factory.mktemp("managed"))
    disks = [lab.disk("lvm", 256 << 20), noise(lab.folder / "noise.img", 64 << 20)]
    return run_cases(lab, SCRIPT, disks=disks)


@pytest.mark.parametrize("case", cases_of(SCRIPT))
def test_a_managed_volume(outcome: Outcome, case: str) -> None:
    outcome.check(case)

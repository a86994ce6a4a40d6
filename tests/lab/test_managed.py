"""Volumes whose snapshots lvmsync takes, with real LVM and sshd: pushed, refused, pulled, cut off at any step."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.lab import guest
from tests.lab.cases import Outcome, cases_of, noise, run_cases
from tests.lab.conftest import Lab

PUSHED = guest.LAB / "managed.sh"
REFUSED = guest.LAB / "managed_refusals.sh"


def run(script: Path, folder: Path) -> Outcome:
    lab = Lab(folder)
    disks = [lab.disk("lvm", 512 << 20), noise(lab.folder / "noise.img", 64 << 20)]
    return run_cases(lab, script, disks=disks, timeout=900)


@pytest.fixture(scope="module")
def pushed(lab_machine: None, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    return run(PUSHED, tmp_path_factory.mktemp("pushed"))


@pytest.fixture(scope="module")
def refused(lab_machine: None, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    return run(REFUSED, tmp_path_factory.mktemp("refused"))


@pytest.mark.parametrize("case", cases_of(PUSHED))
def test_a_volume_is_pushed(pushed: Outcome, case: str) -> None:
    pushed.check(case)


@pytest.mark.parametrize("case", cases_of(REFUSED))
def test_a_copy_is_refused_or_pulled(refused: Outcome, case: str) -> None:
    refused.check(case)

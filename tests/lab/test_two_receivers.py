"""Two receivers of one target, and a reboot: the lock, the ledger and the order of snapbacks hold."""

from __future__ import annotations

import pytest

from tests.lab import guest
from tests.lab.cases import Outcome, cases_of, noise, run_cases
from tests.lab.conftest import Lab

SCRIPT = guest.LAB / "two_receivers.sh"
AFTER_REBOOT = guest.LAB / "after_reboot.sh"


@pytest.fixture(scope="module")
def outcomes(lab_machine: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Outcome, Outcome]:
    first, second = (Lab(tmp_path_factory.mktemp(name)) for name in ("two_receivers", "after_reboot"))
    disks = [first.disk("lvm", 128 << 20), noise(first.folder / "noise.img", 64 << 20), first.disk("state", 32 << 20)]
    return run_cases(first, SCRIPT, disks=disks), run_cases(second, AFTER_REBOOT, disks=disks)


@pytest.mark.parametrize("case", cases_of(SCRIPT))
def test_lvmsync(outcomes: tuple[Outcome, Outcome], case: str) -> None:
    outcomes[0].check(case)


@pytest.mark.parametrize("case", cases_of(AFTER_REBOOT))
def test_lvmsync_after_a_reboot(outcomes: tuple[Outcome, Outcome], case: str) -> None:
    outcomes[1].check(case)

"""Era devices on a real kernel: made, copied in rounds, killed at each step, cut off, and brought back."""

from __future__ import annotations

import pytest

from tests.lab import guest
from tests.lab.cases import Outcome, cases_of, noise, run_cases
from tests.lab.conftest import Lab

SCRIPT = guest.LAB / "era.sh"
AFTER_CUT = guest.LAB / "era_after_cut.sh"
SIZE = (32 << 20) + (20 << 10)  # the last block of 16 KiB has 4 KiB


@pytest.fixture(scope="module")
def outcomes(lab_machine: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Outcome, Outcome]:
    first, second = (Lab(tmp_path_factory.mktemp(name)) for name in ("era", "era_after_cut"))
    disks = [first.disk("origin", SIZE), first.disk("metadata", 16 << 20), first.disk("copy", SIZE)]
    disks += [noise(first.folder / "noise.img", 64 << 20), first.disk("state", 128 << 20)]
    return run_cases(first, SCRIPT, disks=disks), run_cases(second, AFTER_CUT, disks=disks)


@pytest.mark.parametrize("case", cases_of(SCRIPT))
def test_lvmsync(outcomes: tuple[Outcome, Outcome], case: str) -> None:
    outcomes[0].check(case)


@pytest.mark.parametrize("case", cases_of(AFTER_CUT))
def test_lvmsync_after_a_power_cut(outcomes: tuple[Outcome, Outcome], case: str) -> None:
    outcomes[1].check(case)

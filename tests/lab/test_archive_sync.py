"""Mirrors of real volumes whose syncs keep their past in an archive: pruned, killed, restored to the byte."""

from __future__ import annotations

import pytest

from tests.lab import guest
from tests.lab.cases import Outcome, cases_of, noise, run_cases
from tests.lab.conftest import Lab

SCRIPT = guest.LAB / "archive_sync.sh"


@pytest.fixture(scope="module")
def outcome(lab_machine: None, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    lab = Lab(tmp_path_factory.mktemp("archive_sync"))
    disks = [lab.disk("lvm", 320 << 20), noise(lab.folder / "noise.img", 32 << 20)]
    return run_cases(lab, SCRIPT, disks=disks, modules=["sch_netem"])


@pytest.mark.parametrize("case", cases_of(SCRIPT))
def test_a_mirror_with_its_past(outcome: Outcome, case: str) -> None:
    outcome.check(case)

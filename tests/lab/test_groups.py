"""Groups on a real kernel: a writer whose writes are in a known order, kills on both sides, what is frozen."""

from __future__ import annotations

import pytest

from tests.lab import groups
from tests.lab.cases import Outcome, run_cases
from tests.lab.conftest import Lab


@pytest.fixture(scope="module")
def outcome(lab_machine: None, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    lab = Lab(tmp_path_factory.mktemp("groups"))
    disks = [lab.disk("lvm", 256 << 20), lab.disk("far", 64 << 20)]
    return run_cases(lab, "python3 -m tests.lab.groups", disks=disks)


@pytest.mark.parametrize("name", groups.case.names)
def test_a_group(outcome: Outcome, name: str) -> None:
    outcome.check(name)

"""What lvmsync changes on a machine, on a real kernel: LVM's volumes, frozen file systems, suspended devices."""

from __future__ import annotations

import pytest

from tests.lab import machine_dm, machine_lvm, machine_still
from tests.lab.cases import Outcome, run_cases
from tests.lab.conftest import Lab


@pytest.fixture(scope="module")
def lvm_outcome(lab_machine: None, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    lab = Lab(tmp_path_factory.mktemp("machine_lvm"))
    return run_cases(lab, "python3 -m tests.lab.machine_lvm", disks=[lab.disk("lvm", 128 << 20)])


@pytest.mark.parametrize("name", machine_lvm.case.names)
def test_lvmsync_with_lvm(lvm_outcome: Outcome, name: str) -> None:
    lvm_outcome.check(name)


@pytest.fixture(scope="module")
def still_outcome(lab_machine: None, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    lab = Lab(tmp_path_factory.mktemp("machine_still"))
    return run_cases(lab, "python3 -m tests.lab.machine_still", disks=[lab.disk("lvm", 256 << 20)])


@pytest.mark.parametrize("name", machine_still.case.names)
def test_lvmsync_with_what_stands_still(still_outcome: Outcome, name: str) -> None:
    still_outcome.check(name)


@pytest.fixture(scope="module")
def dm_outcome(lab_machine: None, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    lab = Lab(tmp_path_factory.mktemp("machine_dm"))
    return run_cases(lab, "python3 -m tests.lab.machine_dm", disks=[lab.disk("lvm", 128 << 20)])


@pytest.mark.parametrize("name", machine_dm.case.names)
def test_the_device_mapper(dm_outcome: Outcome, name: str) -> None:
    dm_outcome.check(name)

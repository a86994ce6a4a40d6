"""Thin snapshots of real pools: exact copies, maps that thin_delta agrees with, and one metadata snapshot for all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.lab import guest
from tests.lab.cases import Outcome, cases_of, noise, run_cases
from tests.lab.conftest import Lab

SCRIPT = guest.LAB / "thin.sh"
RESERVATION = guest.LAB / "thin_reservation.sh"
CUT = guest.LAB / "thin_cut.sh"
AFTER_CUT = guest.LAB / "thin_after_cut.sh"

SEED = os.environ.get("LVMSYNC_SEED", "3")
ROUNDS = int(os.environ.get("LVMSYNC_THIN_ROUNDS", "3"))
"""How many pools get a random workload; more of them are for a long run by hand."""


def make_disks(lab: Lab) -> list[Path]:
    """Make disks for LVM, of noise, and for what the script wants."""
    return [lab.disk("lvm", 512 << 20), noise(lab.folder / "noise.img", 64 << 20), lab.disk("more", 64 << 20)]


@pytest.fixture(scope="module")
def outcome(lab_machine: None, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    lab = Lab(tmp_path_factory.mktemp("thin"))
    return run_cases(lab, SCRIPT, disks=make_disks(lab))


@pytest.fixture(scope="module")
def reserved(lab_machine: None, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    lab = Lab(tmp_path_factory.mktemp("thin_reservation"))
    return run_cases(lab, RESERVATION, disks=make_disks(lab))


@pytest.fixture(scope="module")
def after_cut(lab_machine: None, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """Cut the power while lvmsync holds the metadata snapshot, and look at what is left."""
    first, second = (Lab(tmp_path_factory.mktemp(name)) for name in ("thin_cut", "thin_after_cut"))
    disks = make_disks(first)
    with first.start(CUT, disks=disks) as machine:
        machine.wait_for("held", timeout=120)
        machine.cut()
    return run_cases(second, AFTER_CUT, disks=disks)


@pytest.mark.parametrize("case", cases_of(SCRIPT))
def test_lvmsync(outcome: Outcome, case: str) -> None:
    outcome.check(case)


@pytest.mark.parametrize("case", cases_of(RESERVATION))
def test_lvmsync_and_the_metadata_snapshot(reserved: Outcome, case: str) -> None:
    reserved.check(case)


@pytest.mark.parametrize("case", cases_of(AFTER_CUT))
def test_lvmsync_after_a_power_cut(after_cut: Outcome, case: str) -> None:
    after_cut.check(case)


def test_random_workloads_are_mapped_and_replicated_exactly(lab: Lab) -> None:
    script = f"python3 -m tests.lab.random_thin {SEED} {ROUNDS}"
    result = lab.run(script, disks=make_disks(lab), timeout=200 + 60 * ROUNDS)
    print(result.console)
    assert len(list(lab.share.glob("round-*"))) == ROUNDS

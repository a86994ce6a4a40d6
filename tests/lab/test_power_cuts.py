"""Power cuts in the middle of a receive: a sample of scripts/powercuts. The target ends wholly old or wholly new."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.lab.power_cuts import KINDS, Material, Round, make_material

SEED = 1
# Of that seed: a staged stream in the middle, an original's in the middle and the recovery as well, one behind
# its end (and back with the snapback), and one early in the middle.
ROUNDS = (2, 5, 37, 48)


@pytest.fixture(scope="module")
def material(lab_machine: None, tmp_path_factory: pytest.TempPathFactory) -> Material:
    return make_material(tmp_path_factory.mktemp("material"), SEED)


@pytest.mark.parametrize("number", ROUNDS, ids=lambda number: list(KINDS)[number % len(KINDS)])
def test_a_cut_receive_is_recovered_to_wholly_old_or_wholly_new(
    material: Material, tmp_path: Path, number: int
) -> None:
    cut = Round(material, tmp_path / "round", number, SEED).run()
    print(cut)
    assert not cut.wrong

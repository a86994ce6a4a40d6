"""How full stores and pools are: what dmsetup printed, read in bytes."""

from __future__ import annotations

from pathlib import Path

import pytest

from lvmsync.errors import ChangesLost, CommandError
from lvmsync.system import dm, fill
from tests.fake_programs import FakeProgram

GROUP = "AFRDyDkPK0Y6LyvpH4SyOEh91K7k8fDr"
STATUS = "0 32768 thin-pool 8 66/512 46/256 - rw discard_passdown queue_if_no_space - 128 \n"


def thin_pool(dmsetup: FakeProgram, status: str = STATUS) -> None:
    dmsetup.answer(
        f"vg-pool-tpool|LVM-{GROUP}{'p' * 32}-tpool|254|2|3\n"
        f"vg-thin|LVM-{GROUP}{'t' * 32}|254|4|0\n"
        f"crypt||254|5|0\n"
        f"vg-plain|LVM-{GROUP}{'l' * 32}|254|6|0\n",
        "info",
    )
    dmsetup.answer(
        "vg-pool-tpool: 0 32768 thin-pool 254:0 254:1 128 0 0 \n"
        "vg-thin: 0 16384 thin 254:2 7\n"
        "crypt: 0 16384 crypt aes 0 254:4 0\n"
        "vg-plain: 0 16384 linear 98:0 2048\n",
        "table",
    )
    dmsetup.answer(status, "status", "-j", "254", "-m", "2")


@pytest.fixture
def dmsetup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeProgram:
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(dm, "MISC_DEVICES", tmp_path / "misc")
    monkeypatch.setattr(dm, "SYSFS_BLOCK", tmp_path / "sys")
    (tmp_path / "misc").write_text("236 device-mapper\n")
    for minor in (2, 4, 5, 6):
        (tmp_path / f"sys/254:{minor}/dm").mkdir(parents=True)
        (tmp_path / f"sys/254:{minor}/slaves").mkdir()
    below = tmp_path / "sys/254:5/slaves/dm-4"
    below.mkdir()
    (below / "dev").write_text("254:4\n")
    return FakeProgram(tmp_path, "dmsetup")


@pytest.mark.parametrize("number", [(254, 4), (254, 2), (254, 5)], ids=["a thin volume", "the pool", "a crypt device"])
def test_the_pool_of_a_device_is_found_through_what_lies_between(dmsetup: FakeProgram, number: dm.Number) -> None:
    thin_pool(dmsetup)
    found = fill.pool_fill_of(number)
    assert found is not None
    assert (found.device.name, found.chunk, found.mode) == ("vg-pool-tpool", 65536, "rw")
    assert found.data == fill.Fill(46 * 65536, 256 * 65536)
    assert found.metadata == fill.Fill(66 * 4096, 512 * 4096)
    assert found.percent == found.data.percent == 100 * 46 / 256


def test_a_device_without_a_pool_has_no_fill(dmsetup: FakeProgram) -> None:
    thin_pool(dmsetup)
    assert fill.pool_fill_of((254, 6)) is None
    assert fill.pool_fill_of((7, 0)) is None


def test_full_metadata_count_though_there_is_room_for_data(dmsetup: FakeProgram) -> None:
    thin_pool(dmsetup, "0 32768 thin-pool 8 500/512 46/256 - out_of_data_space x\n")
    found = fill.pool_fill_of((254, 4))
    assert found is not None
    assert found.percent == 100 * 500 / 512
    assert found.mode == "out_of_data_space"


def test_a_failed_or_vanished_pool_is_an_error(dmsetup: FakeProgram) -> None:
    thin_pool(dmsetup, "0 32768 thin-pool Fail\n")
    with pytest.raises(ChangesLost, match="has failed"):
        fill.pool_fill_of((254, 4))
    thin_pool(dmsetup, "0 32768 linear \n")
    with pytest.raises(CommandError, match="is no thin pool any more"):
        fill.pool_fill_of((254, 4))


def test_what_has_no_size_is_full() -> None:
    assert fill.Fill(0, 0).percent == 100
    assert fill.Fill(3, 10).free == 7

"""The cycle of dattobd, end to end: a real file system, real sender and receiver, a driver that is played."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lvmsync.cli.classic import run
from tests.dattobd_driver import Driver, running


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Driver]:
    monkeypatch.setenv("LVMSYNC_STATE", str(tmp_path / "state"))
    with running(tmp_path, monkeypatch) as one:
        yield one


class Runner:
    """Runs the cycle, and keeps what it said."""

    def __init__(self, driver: Driver, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
        self.driver, self.capfd = driver, capfd
        self.target = folder / "copy.img"
        self.status = 0
        self.errors = ""

    def __call__(self, *words: str) -> dict[str, Any]:
        self.status = run(["dattobd", *words])
        out, self.errors = self.capfd.readouterr()
        assert "Traceback" not in self.errors
        return dict(json.loads(out)) if self.status == 0 and "--json" in words else {}

    def cycle(self, *options: str) -> dict[str, Any]:
        create = [] if self.target.exists() else ["--create"]
        return self("cycle", str(self.driver.loop), str(self.target), "--json", "--no-unit", *create, *options)

    def equals_snapshot(self) -> bool:
        """Whether the copy is the device as it is now: nothing was written since the snapshot but by the driver."""
        return self.target.read_bytes() == self.driver.last


@pytest.fixture
def runner(driver: Driver, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Runner:
    return Runner(driver, tmp_path, capfd)


def test_the_first_run_copies_all_and_the_next_ones_what_changed(runner: Runner, driver: Driver) -> None:
    driver.write("a", os.urandom(300_000))
    done = runner.cycle()
    assert (runner.status, done["how"], done["seqid"]) == (0, "full", 1), runner.errors
    assert runner.equals_snapshot()
    for seqid in (2, 3, 4):
        driver.write("a", os.urandom(5000), 70_000)
        driver.write(f"b{seqid}", os.urandom(50_000))
        if seqid == 3:
            (driver.point / "b2").unlink()
        done = runner.cycle()
        assert (runner.status, done["how"], done["seqid"]) == (0, "delta", seqid), runner.errors
        assert runner.equals_snapshot()
        assert 0 < done["receipt"]["bytes"] < driver.size // 2
        assert [path.name for path in driver.point.glob(".lvmsync-cow*")] == [f".lvmsync-cow.{seqid}"]
        assert driver.devices[0].state == 2

"""The README's lines for cron, run on simulated drivers: from the first copy to a later delta."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path

import pytest

from lvmsync.cli.classic import run
from tests import blksnap_machine, dattobd_driver

README = (Path(__file__).resolve().parents[2] / "README.md").read_text()


def line_of(kind: str, **places: object) -> list[str]:
    """Return the words of the README's line, with other places in it."""
    (line,) = re.findall(rf"^ {{4}}lvmsync ({kind} .*)$", README, re.MULTILINE)
    words = shlex.split(line)
    for was, place in {"/dev/vda1": places["device"], "backup:/dev/vg/copy": places["target"], **places}.items():
        words = [str(place) if word == was else word for word in words]
    return words


def test_the_line_for_dattobd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LVMSYNC_STATE", str(tmp_path / "state"))
    target = tmp_path / "copy"
    with dattobd_driver.running(tmp_path, monkeypatch) as driver:
        target.write_bytes(bytes(driver.size))
        words = line_of("dattobd cycle", device=driver.loop, target=target)
        for _ in range(3):
            driver.write("file", os.urandom(50_000))
            assert run([*words, "--no-unit"]) == 0
            assert target.read_bytes() == driver.last


@pytest.mark.parametrize("abi", blksnap_machine.GENERATIONS)
def test_the_line_for_blksnap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, abi: str) -> None:
    with blksnap_machine.machine(tmp_path, monkeypatch, abi) as machine:
        monkeypatch.setenv("LVMSYNC_STATE", str(machine.state))
        places = {"device": machine.disk.node, "target": machine.target(), "/mnt/spare": machine.room.word}
        for _ in range(3):
            machine.scribble()
            assert run([*line_of("blksnap sync", **places), "--limit", "16M"]) == 0
            assert machine.is_equal()

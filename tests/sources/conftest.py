from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lvmsync.system import dm
from tests.fixture_files import Case
from tests.losetup import attach
from tests.sources.machine import Machine


def _has_loops(folder: Path) -> bool:
    image = folder / "probe"
    image.write_bytes(bytes(4096))
    try:
        subprocess.run(["losetup", "-d", str(attach(image))], check=True)
    except (OSError, subprocess.CalledProcessError):
        return False
    return True


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Case], Machine]]:
    """Make a machine of a recorded case; see `Machine`."""
    if os.getuid() or not _has_loops(tmp_path):
        pytest.skip("needs root and loop devices")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(dm, "NODES", tmp_path / "mapper")
    monkeypatch.setattr(dm, "CLOSE_WAIT", 0.001)
    (tmp_path / "misc").write_text("236 device-mapper\n")
    monkeypatch.setattr(dm, "MISC_DEVICES", tmp_path / "misc")
    made: list[Machine] = []

    def make(case: Case) -> Machine:
        made.append(Machine(tmp_path, case))
        return made[-1]

    yield make
    for one in made:
        one.stop()

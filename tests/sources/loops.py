"""Loop devices for tests of sources that read real block devices."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.losetup import attach


@contextmanager
def loop_of(image: Path) -> Iterator[Path]:
    """Yield a loop device over a file; the test is skipped where there are none."""
    if os.getuid():
        pytest.skip("needs root and loop devices")
    try:
        device = attach(image)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs loop devices")
    try:
        yield device
    finally:
        subprocess.run(["losetup", "-d", str(device)], check=True)


def sparse(path: Path, size: int, *pieces: tuple[int, bytes]) -> Path:
    """Write a file of ``size`` bytes that has only these pieces of ``(offset, data)``."""
    with path.open("wb") as file:
        file.truncate(size)
        for offset, data in pieces:
            file.seek(offset)
            file.write(data)
    return path

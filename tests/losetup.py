"""Loop devices for tests, one after the other: two programs that look for a free one at a time open each other's."""

from __future__ import annotations

import fcntl
import subprocess
from pathlib import Path

CONTROL = Path("/dev/loop-control")


def attach(image: Path, *words: str) -> Path:
    """Attach an image to a loop device, and return that."""
    with CONTROL.open("rb") as control:
        fcntl.flock(control, fcntl.LOCK_EX)
        argv = ["losetup", "-f", "--show", *words, str(image)]
        return Path(subprocess.run(argv, check=True, capture_output=True, text=True).stdout.strip())

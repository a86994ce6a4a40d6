"""Running another program: its output, or one line that says why not."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence

from lvmsync.errors import CommandError

_SAYS_NOTHING = ("Command failed", "Command failed.")


def run(argv: Sequence[str], *, timeout: float = 60) -> str:
    """Run a program without a shell and return its standard output.

    Args:
        argv: program and arguments; no shell sees them.
        timeout: seconds after which the program is killed.

    Raises:
        CommandError: it is not there, failed, or took too long.
    """
    program = argv[0]
    called = " ".join(argv[:1] if argv[1:2] == [] or argv[1].startswith("-") else argv[:2])
    try:
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env=os.environ | {"LC_ALL": "C"},
            timeout=timeout,
            check=False,
        )
    except OSError as error:
        raise CommandError(f"cannot run '{program}': {error.strerror}; is it installed, and in PATH?") from error
    except subprocess.TimeoutExpired as error:
        raise CommandError(
            f"'{called}' did not end within {timeout:g} s; does a device or a lock hang? Try it by hand"
        ) from error
    if done.returncode:
        lines = [line.strip() for line in done.stderr.decode(errors="replace").splitlines() if line.strip()]
        told = [line for line in lines if line not in _SAYS_NOTHING] or lines or ["it gave no reason"]
        raise CommandError(f"'{called}' failed with status {done.returncode}: {told[-1]}")
    return done.stdout.decode(errors="replace")

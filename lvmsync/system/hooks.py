"""Commands of the user that are run at a step of a job: to stop a guest, to start it elsewhere."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping
from contextlib import suppress

from lvmsync.errors import CommandError, UsageError
from lvmsync.system.command import search_path

TIMEOUT = 600.0
_LAST = 4096  # bytes of its output that an error may show


def run_hook(command: str, *, env: Mapping[str, str] = {}, timeout: float = TIMEOUT) -> str:
    """Run the user's own command line with ``sh -c``, and return what it printed, stderr included.

    It has a process group of its own: what it leaves in the background lives on, and ^C does not reach it. What it
    needs to know comes as environment, never as text put into the command.

    Args:
        command: as the user wrote it.
        env: added to its environment.
        timeout: seconds after which it is ended, with all that it started: first asked, then killed.

    Raises:
        UsageError: the command is empty.
        CommandError: it failed, or took too long.
    """
    if not command.strip():
        raise UsageError("the command of a hook is empty")
    # A file, not a pipe: a program that it leaves in the background would keep a pipe open.
    with os.fdopen(os.memfd_create("hook"), "w+b") as out:
        try:
            process = subprocess.Popen(
                ["sh", "-c", command],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PATH": search_path(), **env},
                process_group=0,
            )
        except OSError as error:
            raise CommandError(f"cannot run 'sh': {error.strerror}") from error
        status = None
        try:
            status = process.wait(timeout)
        except subprocess.TimeoutExpired as error:
            raise CommandError(f"'{command}' did not end within {timeout:g} s, and was ended{_said(out)}") from error
        finally:
            if status is None:
                _end(process)
        said = _said(out)
        if status:
            how = f"was ended by {signal.Signals(-status).name}" if status < 0 else f"failed with status {status}"
            raise CommandError(f"'{command}' {how}{said}")
        out.seek(0)
        return out.read().decode(errors="replace")


def _end(process: subprocess.Popen[bytes]) -> None:
    for number, seconds in ((signal.SIGTERM, 5.0), (signal.SIGKILL, None)):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
            return


def _said(out: object) -> str:
    """Return the last line of a hook's output, to be put behind an error."""
    assert hasattr(out, "fileno")
    fd = out.fileno()
    size = os.fstat(fd).st_size
    text = os.pread(fd, _LAST, max(0, size - _LAST)).decode(errors="replace")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return f": {lines[-1]}" if lines else ""

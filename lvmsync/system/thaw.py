"""The process that runs a command which thaws something, whatever becomes of us.

Run as a program, by its path; it imports nothing of lvmsync. Standard input has a line of JSON {"command", "limit"},
later the words ``hold`` and ``thaw``; standard output gets ``ready``, and at the end a line of JSON {"how", "status"}.
The command is run once: at ``thaw``, at the end of standard input (we are gone), or so many seconds after ``hold``; not
if standard input ends before that.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import time
from contextlib import suppress

_TIMEOUT = 60.0  # seconds that the command may take


def main() -> None:
    """Wait, and thaw."""
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGPIPE, signal.SIGTSTP):
        signal.signal(number, signal.SIG_IGN)
    order = json.loads(_read_line(None) or "{}")
    if not order:
        return
    _say("ready")
    if _read_line(None) != "hold":
        return
    word = _read_line(time.monotonic() + order["limit"])
    how = "late" if word is None else "thawed" if word == "thaw" else "alone"
    try:
        done = subprocess.run(
            ["/bin/sh", "-c", order["command"]],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=False,
            timeout=_TIMEOUT,
        ).returncode
    except subprocess.TimeoutExpired:
        done = 124  # as timeout(1) says it
    except OSError as error:
        done = error.errno or 127
    _say(json.dumps({"how": how, "status": done}))


def _read_line(over: float | None) -> str | None:
    """Return a line of standard input, empty at its end; None when ``over`` comes first."""
    line = bytearray()
    while not line.endswith(b"\n"):
        wait = None if over is None else max(0.0, over - time.monotonic())
        if not select.select([0], [], [], wait)[0]:
            return None
        byte = os.read(0, 1)
        if not byte:
            return ""
        line += byte
    return line.decode().strip()


def _say(text: str) -> None:
    with suppress(OSError):
        os.write(1, text.encode() + b"\n")


if __name__ == "__main__":
    main()

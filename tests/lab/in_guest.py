"""Cases in python that run in a guest, many to one start of python: see cases.py for those in bash.

A module has functions marked with ``@case("does something")``; ``python3 -m tests.lab.MODULE`` runs them in order.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

Case = Callable[[], None]


class Cases:
    """The cases of one module, in order."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self._functions: list[Case] = []

    def __call__(self, name: str) -> Callable[[Case], Case]:
        def register(function: Case) -> Case:
            assert name not in self.names
            self.names.append(name)
            self._functions.append(function)
            return function

        return register

    def run(self) -> int:
        """Run all, tell the host of each, and return an exit status; one that fails does not end the rest."""
        share = Path(os.environ["SHARE"])
        wanted = sys.argv[1:]
        began = time.monotonic()
        with (share / "cases").open("a", buffering=1) as results:
            for name, function in zip(self.names, self._functions, strict=True):
                if wanted and not any(word in name for word in wanted):
                    continue
                print(f"--- {time.monotonic() - began:.1f} s: it {name}", flush=True)
                results.write(f"case\t{name}\n")
                try:
                    function()
                except Exception:  # noqa: BLE001 - whatever it is, it is what is wrong with this case
                    text = traceback.format_exc()
                    print(text, flush=True)
                    results.write("wrong\t" + text.strip().splitlines()[-1] + "\n")
        return 0


def sh(command: str) -> str:
    """Run a line of shell and return what it printed; it must succeed."""
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", f'. "$LAB/sites.sh"; {command}'],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"status {done.returncode}: {command}: {done.stdout}"
    return done.stdout.strip()


def until(is_true: Callable[[], object], what: str, seconds: float = 30) -> None:
    """Wait until something is so."""
    over = time.monotonic() + seconds
    while not is_true():
        assert time.monotonic() < over, f"waited in vain: {what}"
        time.sleep(0.02)

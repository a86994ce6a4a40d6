"""Cases that a guest's script checks one after another, each of them a test: see cases.sh."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.lab import guest
from tests.lab.conftest import Lab

_CASE = re.compile(r'^it "(.+)"$', re.MULTILINE)


@dataclass(frozen=True)
class Outcome:
    """What one guest found.

    Attributes:
        wrong: what was wrong with each case that was begun, in order.
        result: of the guest.
    """

    wrong: dict[str, list[str]]
    result: guest.Result

    def check(self, case: str) -> None:
        """Fail unless ``case`` was reached, and nothing was wrong with it."""
        if case not in self.wrong:
            raise AssertionError(f"not reached; the guest's console:\n{self.result.console}")
        if self.wrong[case]:
            raise AssertionError("\n".join([*self.wrong[case], "", "The guest's console:", self.result.console]))
        if case == list(self.wrong)[-1]:
            self.result.check()  # the script may have ended in it


def cases_of(script: Path) -> list[str]:
    """Return the names of a script's cases."""
    names = _CASE.findall(script.read_text())
    assert len(set(names)) == len(names) > 0
    return names


def run_cases(
    lab: Lab,
    script: str | Path,
    *,
    disks: Sequence[Path],
    modules: Sequence[str] = (),
    env: Mapping[str, str] = {},
    timeout: float = 400,
) -> Outcome:
    """Run a script in a guest, and return what it found."""
    return noted(guest.run(script, disks=disks, share=lab.share, modules=modules, env=env, timeout=timeout))


def noted(result: guest.Result) -> Outcome:
    """Return what a guest that is off has found."""
    wrong: dict[str, list[str]] = {}
    path = result.share / "cases"
    for line in path.read_text().splitlines() if path.exists() else []:
        kind, _, text = line.partition("\t")
        if kind == "case":
            wrong[text] = []
        elif wrong:
            wrong[list(wrong)[-1]].append(f"{kind} {text}".removeprefix("wrong "))
    return Outcome(wrong, result)


def noise(path: Path, size: int, seed: int = 1) -> Path:
    """Make a disk of ``size`` random bytes, the same for each ``seed``."""
    path.write_bytes(random.Random(seed).randbytes(size))
    return path

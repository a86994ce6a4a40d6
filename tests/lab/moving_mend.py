"""Runs in the guest, on one site: does what ``lvmsync doctor`` says, and tells what is left.

    run moving_mend.py [TARGET...]

Findings of other kinds than these are about the guest. Prints a line for each command that it runs, and one that begins
with "left:" for each finding that no command mends; that a target holds a part of a first copy is one of those.
"""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys

KINDS = ("leftover", "unfinished", "broken")
OF_THE_OTHER_SITE = "no record on this machine knows its replica"  # they share their LVM
ROUNDS = 4


def examine() -> list[dict[str, str]]:
    """Return what doctor finds."""
    done = subprocess.run(["lvmsync", "doctor", "--json"], capture_output=True, text=True, check=False)
    assert done.returncode in (0, 3), done.stderr
    found: list[dict[str, str]] = json.loads(done.stdout)["findings"]
    return [one for one in found if one["kind"] in KINDS and OF_THE_OTHER_SITE not in one["problem"]]


def command_of(remedy: str) -> tuple[str, ...]:
    """Return the first command that a remedy names, if it is one of ours or of LVM; else nothing."""
    match = re.match(r"(?:if it is not needed(?: any more, for good)?: )?((?:lvmsync|lvremove) [^,;]*)", remedy)
    return tuple(shlex.split(match[1].split(" or ")[0])) if match else ()


def main() -> int:
    """Do what is said until nothing more helps."""
    done: set[tuple[str, ...]] = set()
    found = examine()
    for _ in range(ROUNDS):
        news = {command_of(one["remedy"]) for one in found} - done - {()}
        if not news:
            break
        for words in sorted(news):
            done.add(words)
            argv = [*words, "-y"] if words[0] == "lvremove" else [*words]
            ended = subprocess.run(argv, capture_output=True, text=True, check=False)
            print(f"{' '.join(words)}: {ended.returncode} {ended.stderr.strip()[-300:]}")
        found = examine()
    for one in found:
        print(f"left: {one['what']}: {one['problem']}; {one['remedy']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

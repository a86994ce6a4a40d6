"""Power cuts while a volume is copied between two sites of one guest, with all choices from a seed.

The guest begins a copy, is cut in the middle, perhaps cut again in the run that goes on, and finishes it in its next
boot, where moving_reboot.sh checks the copy, the file system and what is left; and then begins another one.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.lab import guest
from tests.lab.cases import Outcome, noted
from tests.lab.conftest import Lab

SCRIPT = guest.LAB / "moving_reboot.sh"
STATE_SIZE = 128 << 20
DISK_SIZE = 160 << 20
SENT = {"first": 3_500_000, "delta": 1_600_000, "again": 900_000}
"""Bytes after which a run may be cut, at the most: about what it has to send."""


def reboot(folder: Path, kind: str, cut: str, rng: random.Random) -> Outcome:
    """Play one round, and return what its last boot found.

    Args:
        folder: of its disks.
        kind: "classic" or "thin".
        cut: "first" or "delta": what is cut.
        rng: makes the choices.
    """
    return list(play(folder, kind, [cut, *["again"] * rng.choice([0, 1, 1, 2])], rng))[-1]


def play(folder: Path, kind: str, cuts: Sequence[str], rng: random.Random) -> Iterator[Outcome]:
    """Cut the power of one machine again and again, and yield what each of its boots found.

    Args:
        folder: of its disks.
        kind: "classic" or "thin".
        cuts: what is cut: "first", "delta", or "again", the run that goes on.
        rng: chooses the moments.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lvm, state = guest.make_disk(folder / "lvm.img", DISK_SIZE), guest.make_disk(folder / "state.img", STATE_SIZE)
    subprocess.run(["mkfs.ext4", "-q", "-F", "-m", "0", str(state)], check=True)
    for number, cut in enumerate([*cuts, "finish"]):
        step = "begin" if not number else cut if cut in ("again", "finish") else "next"
        lab = Lab(folder / f"boot{number}")
        lab.folder.mkdir()
        env = {"KIND": kind, "CUT": cut, "STEP": step, "BYTES": str(rng.randrange(1 << 16, SENT.get(cut, 1 << 17)))}
        print(f"{kind} {cut} {step} {env['BYTES']}", flush=True)
        with guest.Guest.start(SCRIPT, disks=[lvm, state], share=lab.share, env=env, modules=["sch_netem"]) as running:
            if step == "finish":
                assert running.wait(600), f"it does not end; the guest's console:\n{running.console}"
            else:
                running.wait_for("moving", 400)
                time.sleep(rng.uniform(0, 0.5))
            running.cut()
            result = running.result()
        print(result.console, flush=True)
        yield noted(result)


def choose(count: int, rng: random.Random) -> list[str]:
    """Return what is cut by so many cuts, first copies and deltas in turn, and now and then what goes on."""
    cuts: list[str] = []
    while len(cuts) < count:
        cuts += [("first", "delta")[(len(cuts) - cuts.count("again")) % 2], *["again"] * rng.choice([0, 0, 1])]
    return cuts[:count]


def main() -> int:
    """Play rounds from the command line (scripts/moving)."""
    parser = argparse.ArgumentParser(prog="scripts/moving reboots")
    parser.add_argument("count", type=int, nargs="?", default=20, metavar="N", help="how many power cuts (20)")
    parser.add_argument("seed", type=int, nargs="?", default=1, metavar="SEED", help="for all choices (1)")
    options = parser.parse_args()
    failed = 0
    for kind, count in (("thin", (options.count + 1) // 2), ("classic", options.count // 2)):
        rng = random.Random(f"{options.seed}-{kind}")
        cuts = choose(count, rng)
        with tempfile.TemporaryDirectory(prefix="lvmsync-moving-") as folder:
            for number, outcome in enumerate(play(Path(folder), kind, cuts, rng)):
                wrong = [line for lines in outcome.wrong.values() for line in lines]
                if number == count and outcome.result.status != 0:
                    wrong.append(f"status {outcome.result.status}")
                failed += bool(wrong)
                what = f"cut {number + 1}, {kind} {cuts[number]}" if number < count else f"{kind}, the last boot"
                print(f"{what}: {'WRONG ' + '; '.join(wrong) if wrong else 'as it should be'}", flush=True)
    print(f"{options.count} power cuts, {failed} boots wrong")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

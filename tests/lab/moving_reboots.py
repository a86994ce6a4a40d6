"""Power cuts while a volume is copied between two sites of one guest: rounds with all choices from a seed.

The guest begins a copy, is cut in the middle, perhaps cut again in the run that goes on, and finishes it in its last
boot, where moving_reboot.sh checks the copy, the file system and what is left.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.lab import guest
from tests.lab.cases import Outcome, noted
from tests.lab.conftest import Lab

SCRIPT = guest.LAB / "moving_reboot.sh"
STATE_SIZE = 128 << 20
DISK_SIZE = 160 << 20
SENT = 3_500_000  # bytes that a run has to send, about
COPIES = [("thin", "first"), ("classic", "delta"), ("thin", "delta"), ("classic", "first")]


def reboot(folder: Path, kind: str, cut: str, rng: random.Random) -> Outcome:
    """Play one round, and return what its last boot found.

    Args:
        folder: of its disks.
        kind: "classic" or "thin".
        cut: "first" or "delta": what is cut.
        rng: makes the choices.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lvm, state = guest.make_disk(folder / "lvm.img", DISK_SIZE), guest.make_disk(folder / "state.img", STATE_SIZE)
    subprocess.run(["mkfs.ext4", "-q", "-F", "-m", "0", str(state)], check=True)
    steps = ["begin", *["again"] * rng.choice([0, 1, 1, 2]), "finish"]
    for number, step in enumerate(steps):
        lab = Lab(folder / f"boot{number}")
        lab.folder.mkdir()
        env = {"KIND": kind, "CUT": cut, "STEP": step, "BYTES": str(rng.randrange(1 << 16, SENT // len(steps)))}
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
    return noted(result)


def main() -> int:
    """Play rounds from the command line (scripts/moving)."""
    parser = argparse.ArgumentParser(prog="scripts/moving reboots")
    parser.add_argument("count", type=int, nargs="?", default=20, metavar="N", help="how many rounds (20)")
    parser.add_argument("seed", type=int, nargs="?", default=1, metavar="SEED", help="for all choices (1)")
    options = parser.parse_args()
    failed: list[int] = []
    for number in range(options.count):
        rng = random.Random(f"{options.seed}-{number}")
        kind, cut = COPIES[number % len(COPIES)]
        with tempfile.TemporaryDirectory(prefix="lvmsync-moving-") as folder:
            outcome = reboot(Path(folder), kind, cut, rng)
        wrong = [line for lines in outcome.wrong.values() for line in lines]
        is_wrong = bool(wrong) or outcome.result.status != 0
        if is_wrong:
            failed.append(number)
        print(
            f"round {number}: {kind} {cut}: {'WRONG ' + '; '.join(wrong) if is_wrong else 'as it should be'}",
            flush=True,
        )
    print(f"{options.count} rounds, wrong: {failed or 'none'}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

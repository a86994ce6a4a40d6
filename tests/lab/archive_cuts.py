"""Power cuts of a guest that takes into an archive, combines and prunes, judged from outside by sha256.

After each cut and a new boot ``archive verify`` has to be clean, each point that was listed before has to be there
(unless the step that was cut was about to drop it), every one of them with the bytes that it had, and the archive has
to go on. All choices come from the seed, but for the moment of the cut, which is a random time.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from tests.lab import guest
from tests.lab.archive_work import make_history

_DISK_SIZE = 256 << 20


@dataclass
class Cut:
    """How one round ended.

    Attributes:
        number: of the round.
        listed: points that were listed when the power went.
        restored: points that were there afterwards.
        said: by ``archive verify``.
        wrong: what was wrong; empty when all was well.
    """

    number: int
    listed: int = 0
    restored: int = 0
    said: str = ""
    wrong: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        wrong = f" WRONG: {'; '.join(self.wrong)}" if self.wrong else ""
        return f"{self.number:3} {self.listed:3} points listed, {self.restored:3} restored: {self.said}{wrong}"


def run_round(folder: Path, number: int, seed: int) -> Cut:
    """Cut the power of one guest, boot another one with its disk, and judge what is there."""
    cut, chance = Cut(number), random.Random(f"{seed}-{number}")
    folder.mkdir(parents=True)
    disk = guest.make_disk(folder / "disk", _DISK_SIZE)
    subprocess.run(["mkfs.ext4", "-q", "-F", "-m", "0", "-E", "lazy_itable_init=1", str(disk)], check=True)
    history = make_history(seed * 1000 + number)
    with _boot(folder / "work", disk, "work", seed * 1000 + number) as running:
        running.wait_for("started", 120)
        running.wait_for("told", 60)
        time.sleep(chance.uniform(0.2, 6))
        running.cut()
    told = json.loads((folder / "work/told").read_text())
    with _boot(folder / "check", disk, "check", seed * 1000 + number) as running:
        if not running.wait(300):
            raise AssertionError(f"the check does not end; the guest's console:\n{running.console}")
        console = running.console
    cut.said = " ".join((folder / "check/said").read_text().split())[-200:]
    if (folder / "check/ended").read_text() != "0\n":
        cut.wrong.append(f"the archive is not whole, or does not go on: {console[-2000:]}")
    states = {path.stem: path for path in (folder / "check").glob("*.state")}
    cut.listed, cut.restored = len(told["listed"]), len(states)
    lost = set(told["listed"]) - set(told["dropping"]) - states.keys()
    if lost:
        cut.wrong.append(f"lost: {sorted(lost)}")
    wanted = {one.id: hashlib.sha256(one.data).hexdigest() for one in history.states}
    for name, path in states.items():
        if hashlib.sha256(path.read_bytes()).hexdigest() != wanted[name]:
            cut.wrong.append(f"{name} is not what it was")
    if not cut.wrong:
        shutil.rmtree(folder)
    return cut


def _boot(share: Path, disk: Path, step: str, seed: int) -> guest.Guest:
    share.mkdir()
    return guest.Guest.start(
        guest.LAB / "archive_cut.sh", disks=[disk], share=share, env={"STEP": step, "SEED": str(seed)}, memory="512M"
    )


def main() -> int:
    """Run a storm from the command line (scripts/powercuts archives)."""
    parser = argparse.ArgumentParser(prog="scripts/powercuts archives", description="Power cuts of archives.")
    parser.add_argument("count", type=int, nargs="?", default=20, metavar="N", help="how many cuts (20)")
    parser.add_argument("seed", type=int, nargs="?", default=1, metavar="SEED", help="for all choices (1)")
    options = parser.parse_args()
    lacking = guest.missing()
    if lacking:
        print(f"scripts/powercuts: {lacking}", file=sys.stderr)
        return 3
    folder = Path(tempfile.mkdtemp(prefix="lvmsync-powercuts-"))
    wrong = 0
    for number in range(options.count):
        cut = run_round(folder / f"round{number}", number, options.seed)
        print(cut, flush=True)
        wrong += bool(cut.wrong)
    print(f"{options.count} cuts, wrong: {wrong}")
    if wrong:
        print(f"disks and shares of what went wrong: {folder}", file=sys.stderr)
        return 1
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())

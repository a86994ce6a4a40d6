"""``compare:`` and the hashing of a far comparison: one core, from the page cache, beside ``cmp`` and a numpy loop."""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

from tests.bench.common import GIB, LVMSYNC, alternate, report, seconds, warm, write_data

SIZE = 3 * GIB
ONE_CORE = "taskset -c 1 "

_LOOP = """
import os, sys
import numpy as np
fds = [os.open(path, os.O_RDONLY) for path in sys.argv[1:3]]
a, b = (np.empty(1 << 17, np.uint64) for _ in fds)
at = 0
while count := os.preadv(fds[0], [a], at):
    os.preadv(fds[1], [b], at)
    if not np.array_equal(a, b):
        print(at)
    at += count
"""
_HASH = """
import sys
from lvmsync.jobs.hash_tree import hash_leaves
from lvmsync.system.device import open_device
with open_device(sys.argv[1]) as device:
    print(sum(len(digests) for digests in hash_leaves(device, device.size, 5)))
"""


def main(runs: int = 5) -> None:
    """Run and report."""
    with tempfile.TemporaryDirectory(prefix="lvmsync-bench-", dir="/tmp") as name:
        folder = Path(name)
        new, old, none = folder / "new", folder / "old", folder / "none"
        write_data(new, SIZE)
        shutil.copy(new, old)
        none.write_bytes(b"")
        with new.open("r+b") as file:
            for at in range(0, SIZE, SIZE // 100):
                file.seek(at)
                file.write(b"changed")
        (folder / "loop.py").write_text(_LOOP)
        (folder / "hash.py").write_text(_HASH)
        for path in (new, old):
            warm(path)

        def ours(new: Path, old: Path) -> float:
            return seconds(f"{ONE_CORE}{LVMSYNC} changes -q compare:{new},old={old} > /dev/null")

        def run(script: str, *paths: Path) -> float:
            words = " ".join(map(str, paths))
            return seconds(f"PYTHONPATH=. {ONE_CORE}{sys.executable} {folder / script} {words} > /dev/null")

        def cmp() -> float:
            return seconds(
                f"{{ {ONE_CORE}cmp -l {new} {old} || [ $? = 1 ]; }} | wc -l"
            )  # into /dev/null it stops at once

        jobs = (
            lambda: ours(new, old), lambda: ours(none, none), lambda: run("loop.py", new, old),
            lambda: run("loop.py", none, none), lambda: run("hash.py", new), lambda: run("hash.py", none), cmp,
        )  # fmt: skip
        compare, start, loop, loop_start, hashed, hash_start, peer = alternate(runs, *jobs)
        rows: list[dict[str, object]] = [
            {"job": job, "seconds": took, "start_up_s": before, "GB/s a core": SIZE / 1e9 / (took - before)}
            for job, took, before in (
                ("lvmsync compare:", compare, start),
                ("numpy loop, 1 MiB at a time", loop, loop_start),
                ("cmp -l", peer, 0.0),
                ("lvmsync, hashing one side", hashed, hash_start),
            )
        ]
        report("two files of 3 GiB in the page cache, 100 differences; GB/s of one side", rows)


if __name__ == "__main__":
    main()

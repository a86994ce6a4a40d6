"""Scattered 4 KiB chunks of a disk with a cold cache, beside reading them one at a time: a file and a loop device."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import numpy as np

from tests.bench.common import GIB, LVMSYNC, alternate, cool, loop_device, report, seconds, write_data, write_store

_ONE_AT_A_TIME = """
import mmap, os, sys
import numpy as np
fd = os.open(sys.argv[1], os.O_RDONLY | (os.O_DIRECT if sys.argv[1].startswith("/dev/") else 0))
os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
buffer = [mmap.mmap(-1, 4096)]
for offset in np.load(sys.argv[2]).tolist():
    os.preadv(fd, buffer, offset)
"""


def main(runs: int = 3) -> None:
    """Run and report."""
    with tempfile.TemporaryDirectory(prefix="lvmsync-bench-", dir="/tmp") as name:
        folder = Path(name)
        origin, store, empty, offsets, loop = (
            folder / word for word in ("origin", "store", "empty", "offsets", "loop.py")
        )
        write_data(origin, 8 * GIB)
        loop.write_text(_ONE_AT_A_TIME)
        chunks = np.random.default_rng(4).permutation(8 * GIB // 4096)[:40_000]
        write_store(store, chunks, 4096)
        write_store(empty, chunks[:0], 4096)
        np.save(offsets.with_suffix(".npy"), np.sort(chunks) * 4096)

        def cold(command: str) -> float:
            cool(origin)
            return seconds(command)

        start = seconds(f"{sys.executable} -c 'import numpy'")

        def measure(place: str) -> dict[str, object]:
            ours, nothing, single = alternate(
                runs,
                lambda: cold(f"{LVMSYNC} send -q --frozen snapshot:{store},origin={place} > /dev/null"),
                lambda: seconds(f"{LVMSYNC} send -q --frozen snapshot:{empty},origin={place} > /dev/null"),
                lambda: cold(f"{sys.executable} {loop} {place} {offsets}.npy"),
            )
            return {
                "place": place,
                "lvmsync_s": ours,
                "start_up_s": nothing,
                "one_at_a_time_s": single,
                "times_faster": (single - start) / (ours - nothing),
            }

        rows = [measure(str(origin)) | {"place": "file"}]
        if os.geteuid() == 0:
            for mode in ("off", "on"):
                with loop_device(origin, f"--direct-io={mode}") as device:
                    rows.append(measure(device) | {"place": f"loop device, direct-io={mode}"})
        report("40,000 scattered 4 KiB chunks, cold cache", rows)


if __name__ == "__main__":
    main()

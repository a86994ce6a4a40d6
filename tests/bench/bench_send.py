"""``lvmsync send`` from the page cache to /dev/null, beside a bare preadv loop in Python over the same ranges."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np

from tests.bench.common import GIB, LVMSYNC, alternate, report, seconds, warm, write_data, write_store

_LOOP = """
import os, sys
import numpy as np
fd = os.open(sys.argv[1], os.O_RDONLY)
offsets = np.load(sys.argv[2]).tolist()
length = int(sys.argv[3])
buffer = [bytearray(length)]
for offset in offsets:
    os.preadv(fd, buffer, offset)
"""


def main(runs: int = 5) -> None:
    """Run and report."""
    random = np.random.default_rng(2)
    with tempfile.TemporaryDirectory(prefix="lvmsync-bench-", dir="/tmp") as name:
        folder = Path(name)
        origin, loop = folder / "origin", folder / "loop.py"
        write_data(origin, 8 * GIB)
        warm(origin)
        loop.write_text(_LOOP)
        empty = folder / "empty"
        write_store(empty, np.empty(0, np.int64), 4096)
        scattered = random.permutation(2 * GIB // 1024)[: GIB // 1024]
        rows: list[dict[str, object]] = []
        for label, chunks, chunk_size, batch in (
            ("contiguous", np.arange(4 * GIB // 65536), 65536, 1 << 20),
            ("1 million scattered 4 KiB", scattered, 4096, 4096),
        ):
            store, offsets = folder / "store", folder / "offsets.npy"
            write_store(store, chunks, chunk_size)
            np.save(offsets, np.arange(0, 4 * GIB, batch) if batch > chunk_size else np.sort(chunks) * chunk_size)
            size = len(chunks) * chunk_size

            def send(path: Path) -> float:
                return seconds(f"{LVMSYNC} send -q snapshot:{path},origin={origin} > /dev/null")

            def peer(offsets: Path = offsets, batch: int = batch) -> float:
                return seconds(f"{sys.executable} {loop} {origin} {offsets} {batch}")

            start = seconds(f"{sys.executable} -c 'import numpy'")
            ours, nothing, bare = alternate(runs, lambda store=store: send(store), lambda: send(empty), peer)  # type: ignore[misc]
            rows.append(
                {
                    "map": label,
                    "lvmsync_s": ours,
                    "start_up_s": nothing,
                    "lvmsync_GB/s": size / 1e9 / (ours - nothing),
                    "preadv_loop_GB/s": size / 1e9 / (bare - start),
                }
            )
        report("send from page cache, checksums on, compression off", rows)


if __name__ == "__main__":
    main()

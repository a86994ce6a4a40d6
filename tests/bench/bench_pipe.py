"""``send | receive`` of 4 GiB through a pipe into a new file, beside ``dd | dd``."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from tests.bench.common import GIB, LVMSYNC, alternate, report, seconds, warm, write_data, write_store


def main(runs: int = 5) -> None:
    """Run and report."""
    with tempfile.TemporaryDirectory(prefix="lvmsync-bench-", dir="/tmp") as name:
        folder = Path(name)
        origin, store, copy = folder / "origin", folder / "store", folder / "copy"
        write_data(origin, 4 * GIB)
        write_store(store, np.arange(4 * GIB // 65536), 65536)
        warm(origin)

        def run(command: str) -> float:
            copy.unlink(missing_ok=True)
            return seconds(command, {"LVMSYNC_STATE": str(folder / "state")})

        ours, dd = alternate(
            runs,
            lambda: run(
                f"{LVMSYNC} send -q snapshot:{store},origin={origin} | {LVMSYNC} receive -q --create --no-undo {copy}"
            ),
            lambda: run(f"dd if={origin} bs=1M | dd of={copy} bs=1M iflag=fullblock"),
        )
        report(
            "4 GiB through a pipe into a new file (ours durable at the end, dd not)",
            [{"lvmsync_s": ours, "dd_s": dd, "ratio": ours / dd}],
        )


if __name__ == "__main__":
    main()

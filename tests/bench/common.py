"""What the benchmarks share: stores, commands side by side, a table and JSON. Never a pass or fail on time."""

from __future__ import annotations

import json
import os
import statistics
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt

LVMSYNC = str(Path(sys.executable).with_name("lvmsync"))
GIB = 1 << 30


def write_store(path: Path, chunks: npt.NDArray[np.int64], chunk_size: int) -> None:
    """Write a COW store that lists ``chunks``, in that order, without the old data."""
    per_area = chunk_size // 16
    with path.open("wb") as file:
        file.write(struct.pack("<4I", 0x70416E53, 1, 1, chunk_size // 512))
        areas = len(chunks) // per_area + 1
        file.truncate((1 + areas * (per_area + 1)) * chunk_size)
        for area in range(areas):
            part = chunks[area * per_area : (area + 1) * per_area]
            table = np.zeros((per_area, 2), "<u8")
            first = 1 + area * (per_area + 1)
            table[: len(part), 0] = part
            table[: len(part), 1] = np.arange(first + 1, first + 1 + len(part))
            file.seek(first * chunk_size)
            file.write(table.tobytes())


def write_data(path: Path, size: int) -> None:
    """Write ``size`` bytes that neither compress nor repeat."""
    block = np.random.default_rng(1).integers(0, 1 << 63, (8 << 20) // 8, dtype=np.int64)
    with path.open("wb") as file:
        for _ in range(0, size, 8 << 20):
            block += 1
            file.write(block.tobytes())
        os.fsync(file.fileno())


def warm(path: Path) -> None:
    """Bring a file into the page cache."""
    with path.open("rb", buffering=0) as file:
        while file.read(8 << 20):
            pass


def cool(path: Path) -> None:
    """Drop one file, and nothing else, from the page cache."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def seconds(command: str, env: dict[str, str] | None = None) -> float:
    """Run a shell command, which must succeed, and return the seconds that it took."""
    began = time.monotonic()
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**os.environ, **(env or {})},
        check=False,
    )
    took = time.monotonic() - began
    if done.returncode:
        raise SystemExit(f"{command}: status {done.returncode}: {done.stderr.decode()}")
    return took


def alternate(runs: int, *jobs: Callable[[], float]) -> list[float]:
    """Run the jobs in turns, so that noise meets all of them, and return the median of each."""
    times: list[list[float]] = [[] for _ in jobs]
    for _ in range(runs):
        for index, job in enumerate(jobs):
            times[index].append(job())
    return [statistics.median(each) for each in times]


@contextmanager
def loop_device(path: Path, *options: str) -> Iterator[str]:
    """Yield a read-only loop device over a file; needs root."""
    device = subprocess.run(
        ["losetup", "--find", "--show", "--read-only", *options, str(path)], check=True, capture_output=True, text=True
    ).stdout.strip()
    try:
        yield device
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)


def report(title: str, rows: list[dict[str, object]]) -> None:
    """Print a table on stderr for people, and JSON on stdout."""
    print(title, file=sys.stderr)
    keys = list(rows[0])
    table = [
        keys,
        *([f"{row[key]:.3f}" if isinstance(row[key], float) else str(row[key]) for key in keys] for row in rows),
    ]
    widths = [max(len(line[column]) for line in table) for column in range(len(keys))]
    for line in table:
        print("  " + "  ".join(word.ljust(width) for word, width in zip(line, widths, strict=True)), file=sys.stderr)
    print(json.dumps({"benchmark": title, "rows": rows}))

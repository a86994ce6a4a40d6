"""How long the changes of a big snapshot take to read: 10 million exceptions in chunks of 4 KiB.

    python -m tests.bench.bench_exceptions [--count N] [--loop] [--naive] [--folder DIRECTORY]

Writes a store of header and areas only (a sparse file), and opens it as a source in a process of its
own: from the page cache, with --loop also with O_DIRECT from a loop device (as root), with --naive also
by a plain loop over the entries.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

CHUNK = 4096
PER_AREA = CHUNK // 16

# ru_maxrss would be no use: a child starts with its parent's.
PEAK = """
def peak():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) >> 10 for line in lines if line.startswith("VmHWM"))
"""

OPEN = """
import sys, time
from lvmsync.names import parse_source
from lvmsync.sources import open_source
before = peak()
start = time.perf_counter()
with open_source(parse_source(sys.argv[1])) as source:
    took = time.perf_counter() - start
    extents, total = len(source.changes), source.changes.total_bytes
    start = time.perf_counter()
    source.confirm()
    confirmed = time.perf_counter() - start
print(f"{took:.2f} s (confirm {confirmed:.3f} s), peak {peak()} MiB (before {before}), "
      f"{extents} extents, {total} bytes")
"""

NAIVE = """
import struct, sys, time
start = time.perf_counter()
chunks = []
with open(sys.argv[1].split(":", 1)[1].split(",")[0], "rb") as store:
    store.seek(4096)
    while True:
        area = store.read(4096)
        entries = [(old, new) for old, new in struct.iter_unpack("<QQ", area)]
        stop = next((i for i, entry in enumerate(entries) if entry[1] == 0), None)
        chunks += [old for old, _ in entries[:stop]]
        if stop is not None or not area:
            break
        store.seek(256 * 4096, 1)
ranges = []
for chunk in sorted(chunks):
    if ranges and ranges[-1][1] == chunk * 4096:
        ranges[-1][1] += 4096
    else:
        ranges.append([chunk * 4096, chunk * 4096 + 4096])
print(f"{time.perf_counter() - start:.2f} s, "
      f"peak {peak()} MiB, {len(ranges)} extents")
"""


def write_store(folder: Path, count: int) -> tuple[Path, Path]:
    """Write a store with ``count`` exceptions, of random chunks of an origin four times as large."""
    store, origin = folder / "cow", folder / "origin"
    chunks = count * 4
    old = np.random.default_rng(1).permutation(chunks)[:count].astype("<u8")
    areas = count // PER_AREA + 1
    table = np.zeros((areas * PER_AREA, 2), "<u8")
    table[:count, 0] = old
    table[:count, 1] = np.arange(count) + 2 + np.arange(count) // PER_AREA
    with store.open("wb") as file:
        file.write(np.array([0x70416E53, 1, 1, CHUNK // 512], "<u4").tobytes())
        for area in range(areas):
            file.seek((1 + area * (PER_AREA + 1)) * CHUNK)
            file.write(table[area * PER_AREA : (area + 1) * PER_AREA].tobytes())
        file.truncate((1 + areas * (PER_AREA + 1)) * CHUNK)
    with origin.open("wb") as file:
        file.truncate(chunks * CHUNK)
    return store, origin


def measure(title: str, program: str, store: str, origin: Path) -> None:
    """Run a program on the store three times and print what it says."""
    for _ in range(3):
        argv = [sys.executable, "-c", PEAK + program, f"snapshot:{store},origin={origin}"]
        done = subprocess.run(argv, capture_output=True, text=True, check=True)
        print(f"{title:24} {done.stdout.strip()}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=10_000_000)
    parser.add_argument("--loop", action="store_true")
    parser.add_argument("--naive", action="store_true")
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        store, origin = write_store(Path(name), options.count)
        measure("file, warm", OPEN, str(store), origin)
        if options.naive:
            measure("file, warm, naive", NAIVE, str(store), origin)
        if options.loop:
            argv = ["losetup", "-f", "--show", "-r", str(store)]
            loop = subprocess.run(argv, capture_output=True, text=True, check=True).stdout.strip()
            try:
                measure("loop device, O_DIRECT", OPEN, loop, origin)
            finally:
                subprocess.run(["losetup", "-d", loop], check=True)


if __name__ == "__main__":
    main()

"""How much memory a big job takes: a sparse origin of 1 TiB with scattered changes, sent and received.

    python -m tests.bench.bench_memory [--gib N] [--extents N] [--folder DIRECTORY] [--target-folder DIRECTORY]

Pipes `lvmsync send` into `lvmsync receive` for both formats, with and without undo, and prints the peak
memory of either side. The goal for both: 150 MB and 16 bytes an extent. Needs three times the changes on
disk: in the origin, the target and the undo. Millions of small extents are slow on some file systems, which
look for room for each; for the target, a folder in memory helps (--target-folder /dev/shm).
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

TIB = 1 << 40
LVMSYNC = Path(sys.executable).with_name("lvmsync")
BASE = 150_000_000
PER_EXTENT = 16

# Runs a program and writes down its status and peak memory (KiB). In a small process of its own: the
# kernel counts the memory of the process that a program was started from as its own.
LAUNCHER = """
import os, sys
pid = os.posix_spawn(sys.argv[2], sys.argv[2:], os.environ)
_, status, usage = os.wait4(pid, 0)
with open(sys.argv[1], "w") as file:
    file.write(f"{os.waitstatus_to_exitcode(status)} {usage.ru_maxrss}")
"""


@dataclass(frozen=True)
class Scattered:
    """A snapshot of a sparse origin, in plain files.

    Attributes:
        store: its COW store, sparse but for the tables.
        origin: with data where it changed, and holes elsewhere.
        target: a sparse file of the same size.
        extents: of its change map.
        changed_bytes: of its change map.
    """

    store: Path
    origin: Path
    target: Path
    extents: int
    changed_bytes: int

    @property
    def goal(self) -> int:
        """Bytes of memory that either side may take."""
        return BASE + PER_EXTENT * self.extents


def scatter(folder: Path, target: Path, changed_bytes: int, extents: int, size: int = TIB) -> Scattered:
    """Make a snapshot whose changes are so many extents of one chunk each, scattered over the origin."""
    chunk = 1 << (changed_bytes // extents).bit_length() - 1
    count = changed_bytes // chunk
    chance = np.random.default_rng(1)
    # Every second chunk at the most, so that no two touch.
    chunks = np.sort(chance.choice(size // chunk // 2, count, replace=False)).astype("<u8") * 2
    store, origin = folder / "cow", folder / "origin"
    _write_store(store, chance.permutation(chunks), chunk)
    noise = chance.bytes(chunk + 4096)
    with origin.open("wb", buffering=0) as file:
        file.truncate(size)
        for number, at in enumerate(chunks.tolist()):
            file.seek(at * chunk)
            file.write(memoryview(noise)[number % 4096 :][:chunk])
    with target.open("wb") as file:
        file.truncate(size)
    return Scattered(store, origin, target, count, count * chunk)


def _write_store(store: Path, chunks: np.ndarray[tuple[int], np.dtype[np.uint64]], chunk: int) -> None:
    """Write a COW store's header and tables; its data chunks are never read."""
    per_area = chunk // 16
    areas = len(chunks) // per_area + 1
    table = np.zeros((areas * per_area, 2), "<u8")
    table[: len(chunks), 0] = chunks
    table[: len(chunks), 1] = np.arange(len(chunks)) + 2 + np.arange(len(chunks)) // per_area
    with store.open("wb") as file:
        file.write(np.array([0x70416E53, 1, 1, chunk // 512], "<u4").tobytes())
        for area in range(areas):
            file.seek((1 + area * (per_area + 1)) * chunk)
            file.write(table[area * per_area : (area + 1) * per_area].tobytes())
        file.truncate((1 + areas * (per_area + 1)) * chunk)


@dataclass(frozen=True)
class Peaks:
    """What one transfer took.

    Attributes:
        send: peak memory of the sender, bytes.
        receive: peak memory of the receiver, bytes.
        seconds: for all of it.
    """

    send: int
    receive: int
    seconds: float


def transfer(given: Scattered, folder: Path, stream_format: int, *options: str) -> Peaks:
    """Pipe a sender into a receiver, both the installed command, and return their peaks."""
    began = time.perf_counter()
    measured = folder / "send.rss", folder / "receive.rss"
    source = f"snapshot:{given.store},origin={given.origin}"
    words = (
        ["send", source, "--format", str(stream_format), "--quiet"],
        ["receive", str(given.target), "--state", str(folder / "state"), "--quiet", *options],
    )
    argv = [
        [sys.executable, "-S", "-c", LAUNCHER, str(rss), str(LVMSYNC), *more]
        for rss, more in zip(measured, words, strict=True)
    ]
    with subprocess.Popen(argv[0], stdout=subprocess.PIPE) as sender:
        assert sender.stdout
        subprocess.run(argv[1], stdin=sender.stdout, check=True)
    (sent, sender_peak), (received, receiver_peak) = (map(int, rss.read_text().split()) for rss in measured)
    assert (sent, received) == (0, 0)
    return Peaks(sender_peak << 10, receiver_peak << 10, time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gib", type=float, default=10)
    parser.add_argument("--extents", type=int, default=10 << 14)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--target-folder", type=Path)
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(dir=options.folder) as name,
        tempfile.TemporaryDirectory(dir=options.target_folder) as target_name,
    ):
        folder = Path(name)
        given = scatter(folder, Path(target_name, "target"), int(options.gib * (1 << 30)), options.extents)
        print(f"{given.changed_bytes} bytes in {given.extents} extents; goal {given.goal / 1e6:.0f} MB", flush=True)
        for stream_format in (4, 3):
            # The first fills a sparse target, so that the second has everything to save.
            for words in (["--no-undo"], []):
                peaks = transfer(given, folder, stream_format, *words)
                print(
                    f"v{stream_format} {'no undo' if words else 'undo':8} send {peaks.send / 1e6:6.1f} MB"
                    f"  receive {peaks.receive / 1e6:6.1f} MB  {peaks.seconds:6.1f} s",
                    flush=True,
                )


if __name__ == "__main__":
    main()

"""How long the difference of two devices of a thin pool takes, against thin_delta on the same metadata.

    python -m tests.bench.bench_thin [--count N] [--runs N] [--folder DIRECTORY] [--only CASE] [--no-guest]

    long runs     two devices of N mappings (5 million), each one run of data blocks; nothing is shared
    scattered     two devices of N / 5 mappings, no two of them side by side; nothing is shared
    1 % scatter   a device of N mappings and its snapshot, then 1 % of the blocks written, anywhere
    1 % clusters  the same in runs of 16 to 256 blocks (1 to 16 MiB), as a database or a copied file does

The last two are made by a real kernel in a guest (metadata from thin_restore, data on dm-zero), so that the
snapshot shares what it shares in life. Both programs print their whole answer, and the answers are compared.
Needs thin-provisioning-tools, and about 600 MB.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

from tests.bench.common import LVMSYNC, report, warm
from tests.lab import guest
from tests.lab.thin_answers import as_ranges, read_delta

CHUNK = 65536
METADATA = 600 << 20  # bytes, sparse
GOAL_BASE, GOAL_PER_EXTENT = 100_000_000, 16

# Runs a program and writes down its status, peak memory (KiB) and seconds; see bench_memory.
LAUNCHER = """
import os, sys, time
began = time.perf_counter()
pid = os.posix_spawn(sys.argv[2], sys.argv[2:], os.environ)
_, status, usage = os.wait4(pid, 0)
took = time.perf_counter() - began
with open(sys.argv[1], "w") as file:
    file.write(f"{os.waitstatus_to_exitcode(status)} {usage.ru_maxrss} {took}")
"""

# Runs in the guest: /dev/ubda is the metadata; thin device 0 has all mappings, device 1 becomes its snapshot.
SNAPSHOT = """
sectors=$((COUNT * 128))
dmsetup create data --table "0 $((2 * sectors)) zero"
dmsetup create pool --table "0 $((2 * sectors)) thin-pool /dev/ubda /dev/mapper/data 128 0 1 skip_block_zeroing"
dmsetup message pool 0 'create_snap 1 0'
dmsetup create thin --table "0 $sectors thin /dev/mapper/pool 0"
python3 - <<'END'
import mmap, os, random
count, pattern = int(os.environ["COUNT"]), os.environ["PATTERN"]
chance, wanted = random.Random(1), int(os.environ["COUNT"]) // 100
fd = os.open("/dev/mapper/thin", os.O_RDWR | os.O_DIRECT)
buffer = mmap.mmap(-1, 65536)  # whole blocks, so that nothing has to be copied
written = set()
while len(written) < wanted:
    first = chance.randrange(count)
    length = 1 if pattern == "scatter" else chance.randint(16, 256)
    for block in range(first, min(first + length, count, first + wanted - len(written))):
        os.pwrite(fd, buffer, block * 65536)
        written.add(block)
END
dmsetup remove thin
dmsetup remove pool
"""

Mappings = Callable[[TextIO, int, int], None]


def write_runs(xml: TextIO, count: int, first: int) -> None:
    """Write the mappings of a device as one run, to data blocks from ``first`` on."""
    xml.write(f'<range_mapping origin_begin="0" data_begin="{first}" length="{count}" time="0"/>\n')


def write_scattered(xml: TextIO, count: int, first: int) -> None:
    """Write single mappings, of every second block, to data blocks in no order."""
    step = next(one for one in (7919, 7907, 7901) if count % one)
    for at in range(count):
        xml.write(f'<single_mapping origin_block="{2 * at}" data_block="{first + at * step % count}" time="0"/>\n')


def restore(folder: Path, count: int, devices: int, write: Mappings) -> Path:
    """Make metadata with so many devices of so many mappings each."""
    path, xml_path = folder / "metadata", folder / "xml"
    with xml_path.open("w") as xml:
        xml.write(
            '<superblock uuid="" time="1" transaction="0" flags="0" version="2"'
            f' data_block_size="128" nr_data_blocks="{2 * count}">\n'
        )
        for device in range(devices):
            xml.write(
                f'<device dev_id="{device}" mapped_blocks="{count}" transaction="0" creation_time="0" snap_time="0">\n'
            )
            write(xml, count, device * count)
            xml.write("</device>\n")
        xml.write("</superblock>\n")
    with path.open("wb") as file:
        file.truncate(METADATA)
    subprocess.run(["thin_restore", "-q", "-i", str(xml_path), "-o", str(path)], check=True)
    xml_path.unlink()
    return path


def snapshot(folder: Path, count: int, pattern: str) -> Path:
    """Make metadata of a device and its snapshot, with 1 % written since, by a real kernel."""
    path = restore(folder, count, 1, write_runs)
    env = {"COUNT": str(count), "PATTERN": pattern}
    guest.run(SNAPSHOT, disks=[path], share=folder / "share", env=env, modules=["dm-zero"], timeout=900).check()
    return path


def measure(argv: list[str], folder: Path, output: Path) -> tuple[float, int]:
    """Run a program, and return its seconds and the peak of its memory in bytes."""
    note = folder / "measured"
    with output.open("wb") as file:
        subprocess.run([sys.executable, "-S", "-c", LAUNCHER, str(note), *argv], stdout=file, check=True)
    status, peak, took = note.read_text().split()
    if int(status):
        raise SystemExit(f"{' '.join(argv)}: status {status}")
    return float(took), int(peak) << 10


def compare(title: str, metadata: Path, folder: Path, base: int, head: int, runs: int) -> dict[str, object]:
    """Run both programs in turns; their answers must be the same."""
    warm(metadata)
    said, delta = folder / "changes.json", folder / "delta.xml"
    jobs = (
        [LVMSYNC, "changes", "--json", f"thin:{metadata},id={head},base={base}"],
        ["/usr/sbin/thin_delta", "--thin1", str(base), "--thin2", str(head), str(metadata)],
    )
    found: list[list[tuple[float, int]]] = [[], []]
    for _ in range(runs):
        for at, (argv, output) in enumerate(zip(jobs, (said, delta), strict=True)):
            found[at].append(measure(argv, folder, output))
    ours = json.loads(said.read_text())
    if (as_ranges(ours["extents"]), as_ranges(ours["holes"])) != read_delta(delta.read_text(), CHUNK, 1 << 62):
        raise SystemExit(f"{title}: lvmsync and thin_delta do not say the same")
    times = [statistics.median(seconds for seconds, _ in each) for each in found]
    peaks = [max(peak for _, peak in each) for each in found]
    extents = len(ours["extents"])
    return {
        "case": title,
        "extents": extents,
        "lvmsync s": times[0],
        "thin_delta s": times[1],
        "ratio": times[1] / times[0],
        "lvmsync MB": peaks[0] / 1e6,
        "thin_delta MB": peaks[1] / 1e6,
        "goal MB": (GOAL_BASE + GOAL_PER_EXTENT * extents) / 1e6,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=5_000_000)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--only", metavar="CASE", help="one of the cases, by its name")
    parser.add_argument("--no-guest", action="store_true", help="leave out what needs a real kernel")
    options = parser.parse_args()
    count: int = options.count
    makers: list[tuple[str, int, int, Callable[[Path], Path]]] = [
        ("long runs", 0, 1, lambda folder: restore(folder, count, 2, write_runs)),
        ("scattered", 0, 1, lambda folder: restore(folder, count // 5, 2, write_scattered)),
    ]
    if not options.no_guest:
        makers += [
            ("1 % scatter", 1, 0, lambda folder: snapshot(folder, count, "scatter")),
            ("1 % clusters", 1, 0, lambda folder: snapshot(folder, count, "clusters")),
        ]
    rows = []
    for title, base, head, make in makers:
        if options.only not in (None, title):
            continue
        with tempfile.TemporaryDirectory(dir=options.folder) as name:
            folder = Path(name)
            rows.append(compare(title, make(folder), folder, base, head, options.runs))
    report(f"thin: {count} mappings, median of {options.runs}", rows)


if __name__ == "__main__":
    main()

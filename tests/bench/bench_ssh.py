"""Bytes a second through ssh: the built-in one against the ssh program, to an sshd on this machine.

    python -m tests.bench.bench_ssh [--mib 1024] [--runs 5]

The runs of the two alternate; the table goes to stderr, JSON to stdout. It never fails on a figure.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

from lvmsync.names import Host
from lvmsync.transport import Ssh, open_transport
from tests.sshd import Sshd, run_sshd

MIB = 1 << 20


def measure(sshd: Sshd, way: str, mib: int) -> float:
    """Return the MiB/s of one transfer, the login not counted."""
    data = os.urandom(MIB)
    is_pull = way.endswith("pull")
    words = ["head", "-c", str(mib * MIB), "/dev/zero"] if is_pull else ["sh", "-c", "cat >/dev/null"]
    rsh = ["ssh", "-F", str(sshd.config)] if way.startswith("ssh") else None
    ssh = Ssh(config=str(sshd.config))
    with open_transport(Host(None, "127.0.0.1"), words, rsh=rsh, ssh=ssh, on_stderr=print) as line:
        buffer = memoryview(bytearray(MIB))
        if is_pull:  # the first bytes: the far side runs
            line.receive_some(buffer[:1])
        start = time.perf_counter()
        if is_pull:
            while line.receive_some(buffer):
                pass
        else:
            for _ in range(mib):
                line.send_all([data])
        line.send_eof()
        status = line.aclose()
        seconds = time.perf_counter() - start
    assert status == 0
    return mib / seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    ways = ["asyncssh push", "ssh push", "asyncssh pull", "ssh pull"]
    rates: dict[str, list[float]] = {way: [] for way in ways}
    with tempfile.TemporaryDirectory() as folder, run_sshd(Path(folder)) as sshd:
        for _ in range(options.runs):
            for way in ways:
                rates[way].append(measure(sshd, way, options.mib))
    medians = {way: statistics.median(rates[way]) for way in ways}
    print(f"{options.runs} runs of {options.mib} MiB, MiB/s     median   lowest  highest", file=sys.stderr)
    for way in ways:
        print(f"{way:28} {medians[way]:10.0f} {min(rates[way]):8.0f} {max(rates[way]):8.0f}", file=sys.stderr)
    result = {"mib": options.mib, "runs": options.runs, "median_mib_per_second": medians, "rates": rates}
    print(json.dumps(result))


if __name__ == "__main__":
    main()

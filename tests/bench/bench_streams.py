"""``--streams``: 256 MiB over an sshd on this machine, as it is, and through a proxy that makes each connection slow.

    python -m tests.bench.bench_streams [--mib 256] [--runs 3]

The proxy holds 1 MiB of a connection each way at the most, so a delay acts as it does on a small TCP window.
The first figure is of the whole command, logins and all, the second of the transfer. It never fails on a figure.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.bench.common import LVMSYNC, write_data
from tests.proxy import Proxy, run_proxy
from tests.sshd import Sshd, run_sshd, write_config, write_known_hosts

MIB = 1 << 20
LINES = {  # delay in seconds each way, bytes a second of each connection
    "loopback": (0.0, None),
    "20 MiB/s each": (0.0, 20 * MIB),
    "100 ms each way": (0.1, None),
}
WAYS = ("asyncssh", "ssh")
STREAMS = (1, 2, 4, 8)


def configure(folder: Path, sshd: Sshd, port: int) -> Path:
    """Write an ssh config that leads to a port, as a home folder has it; return it."""
    ssh = folder / "home" / ".ssh"
    ssh.mkdir(parents=True, exist_ok=True)
    write_known_hosts(ssh / "known_hosts", port, sshd.folder / "host.pub")
    write_config(ssh / "config", port, known_hosts=ssh / "known_hosts", key=sshd.user_key)
    return ssh / "config"


def measure(folder: Path, sshd: Sshd, proxy: Proxy | None, way: str, streams: int) -> tuple[float, float]:
    """Return the seconds of one sync, and of its transfer alone."""
    config = configure(folder, sshd, proxy.port if proxy else sshd.port)
    rsh = ["-e", f"ssh -F {config}"] if way == "ssh" else []
    began = time.monotonic()
    done = subprocess.run(
        [
            LVMSYNC, "sync", f"full:{folder / 'origin'}", f"127.0.0.1:{folder / 'copy'}", *rsh, "--json",
            "--streams", str(streams), "--compress", "none", "--no-undo", "-q", "--remote-command", LVMSYNC,
        ],
        env={**os.environ, "HOME": str(folder / "home")},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        check=True,
    )  # fmt: skip
    return time.monotonic() - began, json.loads(done.stdout)["seconds"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", type=int, default=256)
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    found: dict[str, tuple[float, float]] = {}
    with tempfile.TemporaryDirectory(prefix="lvmsync-bench-", dir="/tmp") as name:
        folder = Path(name)
        (folder / "sshd").mkdir()
        write_data(folder / "origin", options.mib * MIB)
        (folder / "copy").write_bytes(b"")
        os.truncate(folder / "copy", options.mib * MIB)
        with run_sshd(folder / "sshd", env={"LVMSYNC_STATE": str(folder / "state")}) as sshd:
            for line, (delay, rate) in LINES.items():
                for way in WAYS:
                    for streams in STREAMS:
                        times = []
                        for _ in range(options.runs):
                            if line == "loopback":
                                times.append(measure(folder, sshd, None, way, streams))
                                continue
                            with run_proxy(sshd.port) as proxy:
                                proxy.delay, proxy.rate = delay, rate
                                times.append(measure(folder, sshd, proxy, way, streams))
                        whole, transfer = (statistics.median(each) for each in zip(*times, strict=True))
                        found[f"{line}, {way}, {streams}"] = whole, transfer
                        print(
                            f"{line:16} {way:9} {streams:2} streams {whole:6.1f} s, of these {transfer:6.1f} s at"
                            f" {options.mib / transfer:5.0f} MiB/s",
                            file=sys.stderr,
                        )
    print(json.dumps({"mib": options.mib, "runs": options.runs, "median_seconds": found}))


if __name__ == "__main__":
    main()

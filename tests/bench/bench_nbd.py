"""``archive serve --nbd`` of 2 GiB in the page cache, read by ``nbdcopy``, beside ``qemu-nbd`` (and ``nbdkit``).

And 1 TiB with little in it: how long its map takes, and how much memory the server.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.bench.common import GIB, LVMSYNC, alternate, report, seconds, warm, write_data

SIZE = 2 * GIB


@contextmanager
def server(socket: Path, *words: str) -> Iterator[int]:
    """Run a server until its socket is there, and end it at last; yield its process id."""
    process = subprocess.Popen(words, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        while not socket.exists():
            if process.poll() is not None:
                raise SystemExit(f"{words}: status {process.returncode}")
            time.sleep(0.05)
        yield process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


def uri(socket: Path) -> str:
    """Return what a client is given."""
    return f"nbd+unix:///?socket={socket}"


def peak(pid: int) -> int:
    """Return the most memory that a process had, in bytes."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) << 10
    return 0


def archive(folder: Path, name: str, image: Path, *options: str) -> Path:
    """Make an archive of one point, a full copy of an image."""
    made = folder / name
    for words in (["init", str(made)], ["take", str(made), f"full:{image}", *options, "-q"]):
        subprocess.run([LVMSYNC, "archive", *words], check=True, stderr=subprocess.DEVNULL)
    return made


def main(runs: int = 5) -> None:
    """Run and report."""
    with tempfile.TemporaryDirectory(prefix="lvmsync-bench-", dir="/tmp") as name, ExitStack() as stack:
        folder = Path(name)
        os.environ["LVMSYNC_STATE"] = str(folder / "state")
        image = folder / "image"
        write_data(image, SIZE)
        plain = archive(folder, "plain", image, "--compress", "none")
        warm(image)
        for member in plain.glob("*.stream"):
            warm(member)
        servers = {
            "lvmsync": [LVMSYNC, "archive", "serve", str(plain), "--nbd", f"unix:{folder}/lvmsync"],
            "qemu_nbd": ["qemu-nbd", "-r", "-f", "raw", "-t", "-e", "16", "-k", f"{folder}/qemu_nbd", str(image)],
        }
        if shutil.which("nbdkit"):
            servers["nbdkit"] = ["nbdkit", "-f", "-r", "-U", f"{folder}/nbdkit", "file", str(image)]
        for key, words in servers.items():
            stack.enter_context(server(folder / key, *words))
        rows: list[dict[str, object]] = []
        for size in (256 << 10, 4 << 20, 32 << 20):
            jobs = [
                (lambda key=key: seconds(f"nbdcopy --request-size={size} '{uri(folder / key)}' null:"))  # noqa: B023
                for key in servers
            ]
            times = dict(zip(servers, alternate(runs, *jobs), strict=True))
            rows.append({"request": size} | {f"{key}_GB/s": SIZE / took / 1e9 for key, took in times.items()})
        report("2 GiB by nbdcopy, from the page cache to null:", rows)
        sparse = folder / "sparse"
        with sparse.open("wb") as file:
            file.truncate(1 << 40)
            for at in range(0, 1 << 40, 1 << 30):
                file.seek(at)
                file.write(os.urandom(4096))
        thin = archive(folder, "thin", sparse)
        with server(folder / "s", LVMSYNC, "archive", "serve", str(thin), "--nbd", f"unix:{folder}/s") as pid:
            report(
                "1 TiB with 1024 blocks in it",
                [
                    {
                        "nbdinfo_map_s": seconds(f"nbdinfo --map '{uri(folder / 's')}' >/dev/null"),
                        "qemu_img_map_s": seconds(f"qemu-img map '{uri(folder / 's')}' >/dev/null"),
                        "nbdcopy_s": seconds(f"nbdcopy '{uri(folder / 's')}' null:"),
                        "peak_MB": peak(pid) / 1e6,
                    }
                ],
            )


if __name__ == "__main__":
    main()

"""Writes files with checksums in their names, as fast as it is told to, until SIGTERM; used by migrate.sh.

    migrate_writer.py FOLDER LOG BYTES SECONDS

Each file is synced and renamed to NUMBER-SHA256; then a line with its name goes to LOG: from then on it must be
there, whole. The oldest of 100 are removed, with a line "-NAME" before. SECONDS is the time between two files.
"""

from __future__ import annotations

import hashlib
import os
import signal
import sys
import time
from pathlib import Path


def main() -> None:
    folder, log, size, pause = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
    ends: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: ends.append(number))
    names = sorted(path.name for path in folder.glob("*-*"))
    number = int(names[-1].partition("-")[0]) + 1 if names else 0
    with open(log, "a", buffering=1) as done:
        while not ends:
            data = os.urandom(size)
            name = f"{number:08d}-{hashlib.sha256(data).hexdigest()}"
            with (folder / "new").open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            (folder / "new").rename(folder / name)
            names.append(name)
            done.write(f"{name}\n")
            if len(names) > 100:
                done.write(f"-{names[0]}\n")
                (folder / names.pop(0)).unlink()
            number += 1
            time.sleep(pause)
        folder_fd = os.open(folder, os.O_RDONLY)
        os.fsync(folder_fd)


if __name__ == "__main__":
    main()

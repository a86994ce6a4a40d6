"""Runs in the guest: writes 4 KiB blocks of noise to random places of a device, past the cache, until SIGTERM.

    moving_blocks.py DEVICE SECONDS BLOCKS

SECONDS is the time between two; BLOCKS is where it ends (0: the whole device).
"""

from __future__ import annotations

import mmap
import os
import random
import signal
import sys
import time

BLOCK = 4096


def main() -> None:
    device, pause, count = sys.argv[1], float(sys.argv[2]), int(sys.argv[3])
    ends: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: ends.append(number))
    rng = random.Random(device)
    buffer = mmap.mmap(-1, BLOCK)
    fd = os.open(device, os.O_WRONLY | os.O_DIRECT | os.O_SYNC)
    blocks = count or os.lseek(fd, 0, os.SEEK_END) // BLOCK
    while not ends:
        buffer[:] = rng.randbytes(BLOCK)
        os.pwrite(fd, buffer, rng.randrange(blocks) * BLOCK)
        time.sleep(pause)


if __name__ == "__main__":
    main()

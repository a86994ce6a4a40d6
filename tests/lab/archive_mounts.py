"""Runs in the guest: mounts points of archives with random histories, and compares every byte with what it was.

archive_mounts.py FOLDER
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from lvmsync.chain.catalogue import ArchivedPoint
from lvmsync.jobs.archive.mount import mount
from lvmsync.jobs.archive.mount_plan import MountOptions
from lvmsync.jobs.archive.mounted import list_mounted
from lvmsync.jobs.archive.umount import umount
from lvmsync.jobs.progress import ignore
from lvmsync.system.device import aligned_buffer, open_device
from tests.archive_history import Archive, Both, Forward, History, Reverse

ODD = 3 * 512  # so that the last chunk is a part of one


def main() -> None:
    folder = Path(sys.argv[1])
    for seed, kind in enumerate((Forward, Reverse, Both)):
        history = History.make(seed + 40, 9, (192 << 10) + ODD)
        where = folder / kind.__name__
        where.mkdir(parents=True)
        archive = kind(where, history)
        points = archive.shelf.catalogue.points
        for number in history.chance.sample(range(len(points)), 4):
            check(archive, points[number], where)
        check(archive, points[0], where, is_writable=True)


def check(archive: Archive, point: ArchivedPoint, folder: Path, *, is_writable: bool = False) -> None:
    """Mount one point, and hold its bytes against the oracle; write to it, and hold them again."""
    image = None if isinstance(archive, Forward) else archive.image
    before = image.read_bytes() if image else b""
    state = folder / "state"
    options = MountOptions(is_writable=is_writable)
    receipt = mount(archive.shelf, point, str(image) if image else None, state, options, ignore)
    wanted = bytearray(archive.history.data_of(point))
    assert read(receipt.device) == wanted, f"point #{point.number} of {folder}"
    if is_writable:
        fd = os.open(receipt.device, os.O_WRONLY | os.O_DIRECT)
        for at in (512, len(wanted) // 1024 * 512, len(wanted) - ODD):
            out = aligned_buffer(ODD)
            out[:] = archive.history.chance.randbytes(ODD)
            os.pwrite(fd, out, at)
            wanted[at : at + ODD] = out
        os.close(fd)
        assert read(receipt.device) == wanted, f"point #{point.number} of {folder}, written to"
    for record in list_mounted(state):
        assert not umount(state, record).notes
    assert (image.read_bytes() if image else b"") == before
    print(f"{folder.name}: point #{point.number} is as it was: {receipt.exceptions} chunks", flush=True)


def read(path: str) -> bytes:
    with open_device(path) as device:
        return bytes(device.read_bytes(0, device.size))


if __name__ == "__main__":
    main()

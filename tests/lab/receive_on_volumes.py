"""Runs in the guest: what a receiver sees of real volumes: that somebody wrote to them, or nobody did."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lvmsync.errors import ConflictError
from lvmsync.history import Point
from lvmsync.jobs.progress import Receipt, ignore
from lvmsync.jobs.receive import ReceiveOptions, receive
from lvmsync.jobs.send import Resume, Sender, StreamOptions
from lvmsync.jobs.standing import Standing, standing
from lvmsync.sources.source import Source
from tests.fakes import make_source, reader
from tests.lab.in_guest import Cases, sh

case = Cases()
M = 1 << 20
SIZE = 4 * M  # a guest is slow
STATE = Path("/tmp/state")
POINTS = [Point(f"lv:{number}") for number in range(9)]
VOLUMES = ("vg/thick", "vg/thin")


def content(number: int) -> bytes:
    """Return what a volume holds at a point."""
    return np.random.default_rng(number).bytes(SIZE)


def step(number: int, *, full: bool = False) -> Source:
    """Return the changes that lead to a point, which are all over the volume."""
    changed = [(0, SIZE)] if full else [(at, 4096) for at in range(0, SIZE, 64 << 10)]
    data = bytearray(content(0))
    for at, length in [] if full else changed:
        data[at : at + length] = content(number)[at : at + length]
    source = make_source(bytes(data), changed)
    return replace(source, base=None if full else POINTS[number - 1], head=POINTS[number], is_full=full)


def encode(source: Source, resume: Resume | None = None) -> bytes:
    sent: list[bytes] = []

    def keep(buffers: Sequence[bytes | bytearray | memoryview]) -> None:
        sent.extend(map(bytes, buffers))

    Sender(source, keep, StreamOptions(resumable=True), ignore, resume=resume).deliver()
    return b"".join(sent)


def deliver(volume: str, source: Source, cut: int = 0, resume: Resume | None = None, **options: Any) -> Receipt:
    stream = encode(source, resume)
    chosen = ReceiveOptions(f"/dev/{volume}", STATE, **{"require_base": True, "resumable": True, **options})
    return receive(reader(stream[: len(stream) - cut]), chosen, ignore)


def stand(volume: str) -> Standing:
    found = standing(volume, STATE)
    assert found.exists
    assert found.in_use is None, found.in_use
    return found


@case("knows what kind of volume it is, and its pool")
def kinds() -> None:
    assert [stand(volume).kind for volume in VOLUMES] == ["thick", "thin"]
    assert stand("vg/thick").pool is None
    pool = stand("vg/thin").pool
    assert pool
    assert (pool.name, pool.size, pool.free, pool.chunk) == ("vg-pool-tpool", 8 * M, 8 * M, 64 << 10)


@case("proves that nobody wrote to a volume since its copy")
def untouched() -> None:
    for volume in VOLUMES:
        deliver(volume, step(0, full=True), undo=False)
        assert stand(volume).written == "no", volume
        sh(f"sha256sum </dev/{volume}; blkid -p /dev/{volume} || true; sync")
        subprocess.run([sys.executable, "-m", "lvmsync", "recover", "--state", str(STATE), volume], check=True)
        assert stand(volume).written == "no", volume
        deliver(volume, step(1))
        assert stand(volume).written == "no", volume


@case("refuses a volume that somebody wrote to, mounted or zeroed or discarded it")
def written() -> None:
    for volume, command in (
        ("vg/thick", "dd if=/dev/vg/thick of=/dev/vg/thick bs=4096 count=1 conv=notrunc,fsync status=none"),
        ("vg/thin", "blkdiscard -o 0 -l 65536 /dev/vg/thin"),
    ):
        sh(command)
        assert stand(volume).written == "yes", volume
        with pytest.raises(ConflictError, match="was written to since"):
            deliver(volume, step(2))
        deliver(volume, step(1, full=True), undo=False)  # brings it to point 1 again
        assert stand(volume).written == "no", volume


@case("does not know of a volume that was off meanwhile")
def reactivated() -> None:
    sh("timeout 30 lvchange -an vg/thick && timeout 30 lvchange -ay vg/thick")
    assert stand("vg/thick").written == "unknown"
    deliver("vg/thick", step(2))
    assert stand("vg/thick").written == "no"


def main() -> int:
    sh("make_vg vg /dev/ubda; lvcreate -q -y -W n -L 4m -n thick vg")
    sh("lvcreate -q -y -L 8m -c 64k --thinpool pool vg; lvcreate -q -y -V 4m --thinpool vg/pool -n thin")
    return case.run()


if __name__ == "__main__":
    sys.exit(main())

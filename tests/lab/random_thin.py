"""Runs in the guest: rounds of a thin pool with random geometry and workloads, mapped, compared and replicated.

    python3 random_thin.py SEED ROUNDS

Each round makes a pool with dmsetup, and in it an origin that is written, discarded, grown and snapshotted at
random; some snapshots are written to or cloned, and now and then the pool is taken down and put up again. Then,
for random pairs of its devices: the map equals that of ``thin_delta``, all that differs is in it, and what it
calls a hole reads as zeros. At every snapshot a replica is brought up to date from the one before by ``lvmsync
send`` and ``receive``, and must equal it byte for byte. /dev/ubda is the pool's and the replica's disk, /dev/ubdb
is noise.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lvmsync.cli.classic import run
from lvmsync.names import parse_source
from lvmsync.sources import open_source
from tests.lab.random_stores import NOISE, SECTOR, Disk, dmsetup
from tests.lab.thin_answers import merge, read_delta

KIB = 1 << 10
MIB = 1 << 20
META, STORE, REPLICA = 8 * MIB, 160 * MIB, 32 * MIB  # sizes of the parts of /dev/ubda, in this order
CHUNKS = (64, 64, 128, 192, 320, 1024)  # KiB


@dataclass
class World:
    """A pool and what is in it.

    Attributes:
        chunk: bytes of a data block.
        sizes: bytes of each thin device, by its number; 0 is the origin.
        replicated: number of the snapshot that the replica equals.
        story: what was done.
    """

    rng: random.Random
    chunk: int
    sizes: dict[int, int]
    replicated: int | None = None
    story: list[str] = field(default_factory=list)

    def make_pool(self) -> None:
        table = f"0 {STORE // SECTOR} thin-pool /dev/mapper/meta /dev/mapper/store {self.chunk // SECTOR} 0"
        dmsetup("create", "pool", "--table", table)

    def activate(self, number: int) -> None:
        table = f"0 {self.sizes[number] // SECTOR} thin /dev/mapper/pool {number}"
        dmsetup("create", f"thin{number}", "--table", table)

    def write(self, number: int) -> None:
        size = self.sizes[number]
        with Disk(f"thin{number}") as disk, Disk("/dev/ubdb") as noise:
            for _ in range(self.rng.randrange(1, 12)):
                length = min(self.rng.choice([SECTOR, 4 * KIB, 20 * KIB, self.chunk, 5 * self.chunk + SECTOR]), size)
                at = self.rng.randrange((size - length) // SECTOR + 1) * SECTOR
                where = at if self.rng.random() < 0.2 else self.rng.randrange((NOISE - length) // SECTOR) * SECTOR
                disk.copy_from(noise, at, length, where)  # where == at: mostly what is there already
            if self.rng.random() < 0.3:
                disk.copy_from(noise, size - SECTOR, SECTOR, self.rng.randrange(1000) * SECTOR)

    def discard(self, number: int) -> None:
        size = self.sizes[number]
        length = min(self.rng.choice([self.chunk, 3 * self.chunk, 4 * KIB, 2 * self.chunk - SECTOR]), size)
        at = self.rng.randrange((size - length) // SECTOR + 1) * SECTOR
        if self.rng.random() < 0.6:
            at -= at % self.chunk
        if self.rng.random() < 0.2:
            length = size - at  # to the end, which is seldom one of a block
        subprocess.run(["blkdiscard", "-o", str(at), "-l", str(length), f"/dev/mapper/thin{number}"], check=True)

    def snapshot(self, origin: int) -> int:
        number = max(self.sizes) + self.rng.randrange(1, 4)
        dmsetup("suspend", f"thin{origin}")
        dmsetup("message", "pool", "0", f"create_snap {number} {origin}")
        dmsetup("resume", f"thin{origin}")
        self.sizes[number] = self.sizes[origin]
        self.activate(number)
        return number

    def grow(self) -> None:
        self.sizes[0] += self.rng.randrange(1, 2 * MIB // SECTOR) * SECTOR
        dmsetup("suspend", "thin0")
        dmsetup("load", "thin0", "--table", f"0 {self.sizes[0] // SECTOR} thin /dev/mapper/pool 0")
        dmsetup("resume", "thin0")

    def restart(self) -> None:
        for number in self.sizes:
            dmsetup("remove", f"thin{number}")
        dmsetup("remove", "pool")
        self.make_pool()
        for number in self.sizes:
            self.activate(number)

    def step(self) -> None:
        """Do one random thing."""
        kind = self.rng.choices(["write", "discard", "other", "grow", "restart"], [8, 5, 2, 1, 1])[0]
        self.story.append(kind)
        if kind == "write":
            self.write(0)
        elif kind == "discard":
            self.discard(0)
        elif kind == "grow":
            self.grow()
        elif kind == "restart":
            self.restart()
        elif len(self.sizes) > 1:
            number = self.rng.choice([one for one in self.sizes if one not in (0, self.replicated)] or [0])
            self.rng.choice([self.write, self.discard, self.snapshot])(number)

    def read(self, number: int) -> npt.NDArray[np.uint8]:
        return read_device(f"/dev/mapper/thin{number}", self.sizes[number])

    def replicate(self) -> None:
        """Take a snapshot, and bring the replica from the one before to it."""
        number = self.snapshot(0)
        size = self.sizes[number]
        if self.replicated is None:
            with Disk("replica") as replica, Disk(f"thin{number}") as source:
                replica.copy_from(source, 0, size, 0)
        else:
            name = f"thin:/dev/mapper/meta,id={number},base={self.replicated}"
            stream = "/run/random.stream"
            assert run(["send", "-q", name, "-o", stream]) == 0, self
            assert run(["receive", "-q", "-i", stream, "/dev/mapper/replica"]) == 0, self
            Path(stream).unlink()
        assert np.array_equal(read_device("/dev/mapper/replica", size), self.read(number)), f"replica: {self}"
        self.replicated = number
        self.story.append(f"replicated {number}")

    def check_pair(self, base: int, head: int) -> int:
        """Check what is said of a pair of devices, and return how many bytes have changed."""
        size = self.sizes[head]
        name = f"thin:/dev/mapper/meta,id={head},base={base},size={size}"
        dmsetup("message", "pool", "0", "reserve_metadata_snap")
        argv = ["thin_delta", "-m", "--snap1", str(base), "--snap2", str(head), "/dev/mapper/meta"]
        delta = subprocess.run(argv, check=True, capture_output=True, text=True).stdout
        with open_source(parse_source(f"{name},snap=held")) as source:
            changes, holes = [
                [[extent.offset, extent.offset + extent.length] for extent in one]
                for one in (source.changes, source.holes)
            ]
        dmsetup("message", "pool", "0", "release_metadata_snap")
        assert (changes, holes) == read_delta(delta, self.chunk, size), f"{base} to {head}: {source} {delta} {self}"
        old, new = self.read(base), self.read(head)
        common = min(len(old), len(new))
        may_differ = np.zeros(size, bool)
        for start, end in changes:
            may_differ[start:end] = True
        differs = np.ones(size, bool)  # all behind the base's end may
        differs[:common] = old[:common] != new[:common]
        differs[common:] = new[common:] != 0
        assert not (differs & ~may_differ).any(), f"{base} to {head}: differs outside of the map: {source} {self}"
        assert not any(new[start:end].any() for start, end in holes), f"{base} to {head}: a hole with data: {self}"
        assert changes == merge(changes, size)
        return sum(end - start for start, end in changes)


def read_device(path: str, size: int) -> npt.NDArray[np.uint8]:
    """Read the first ``size`` bytes of a device, past its page cache."""
    found = np.empty(size, np.uint8)
    with Disk(path) as disk:
        for at in range(0, size, MIB):
            view = disk.buffer[: min(MIB, size - at)]
            assert os.preadv(disk.fd, [view], at) == len(view)
            found[at : at + len(view)] = np.frombuffer(view, np.uint8)
    return found


def run_round(seed: str) -> str:
    rng = random.Random(seed)
    for name, at, size in (("meta", 0, META), ("store", META, STORE), ("replica", META + STORE, REPLICA)):
        dmsetup("create", name, "--table", f"0 {size // SECTOR} linear /dev/ubda {at // SECTOR}")
    subprocess.run(["blkdiscard", "-z", "-l", "4096", "/dev/mapper/meta"], check=True)  # so that it is made anew
    subprocess.run(["blkdiscard", "-z", "/dev/mapper/replica"], check=True)
    size = rng.randrange(3 * MIB // SECTOR, 10 * MIB // SECTOR) * SECTOR
    world = World(rng, rng.choice(CHUNKS) * KIB, {0: size})
    world.make_pool()
    dmsetup("message", "pool", "0", "create_thin 0")
    world.activate(0)
    for _ in range(4):
        world.write(0)
    for _ in range(3):
        world.replicate()
        for _ in range(rng.randrange(2, 7)):
            world.step()
    pairs = rng.sample([(a, b) for a in world.sizes for b in world.sizes if a != b], 4)
    changed = [world.check_pair(*pair) for pair in pairs]
    for number in world.sizes:
        dmsetup("remove", f"thin{number}")
    for name in ("pool", "meta", "store", "replica"):
        dmsetup("remove", name)
    return (
        f"chunk {world.chunk // KIB} KiB, size {size}, {len(world.sizes)} devices, {' '.join(world.story)};"
        f" changed {changed}"
    )


def main() -> None:
    seed, rounds = sys.argv[1], int(sys.argv[2])
    for number in range(rounds):
        print(f"round {number}: {run_round(f'{seed}-{number}')}", flush=True)
        Path(os.environ["SHARE"], f"round-{number}").touch()


if __name__ == "__main__":
    main()

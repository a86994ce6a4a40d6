"""Runs in the guest: rounds of a snapshot with random geometry and writes, sent to a copy and brought back.

    python3 random_stores.py SEED ROUNDS

Each round: an origin whose size is mostly no multiple of the chunk, a store that often ends near the border of
an area, a copy taken from the snapshot's view, writes to origin and snapshot, and perhaps a reactivation. Then
``lvmsync send | lvmsync receive``: the copy must equal the origin, and with the snapback be as before. A store
that overflowed must be refused. /dev/ubda holds origin, store and copy; /dev/ubdb is 64 MiB of noise. What was
done goes into $SHARE/N.json, and the stream into $SHARE/N.stream, for a check of the map from outside.
"""

from __future__ import annotations

import json
import mmap
import os
import random
import subprocess
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path

SECTOR = 512
NOISE = 64 << 20
PIECE = 1 << 20
SHARE = Path(os.environ.get("SHARE", "."))
PLACES = {"real": 0, "copy": 64 << 20, "before": 128 << 20, "cow": 192 << 20}  # on /dev/ubda


@dataclass
class Round:
    """What one round is about; its JSON is read outside."""

    seed: str
    size: int
    chunk_size: int
    store_size: int
    chunks: list[int] = field(default_factory=list)  # that origin or snapshot wrote to
    reactivated: bool = False
    status: str = ""  # of the snapshot, at the end


def dmsetup(*words: str) -> str:
    return subprocess.run(["dmsetup", *words], check=True, capture_output=True, text=True).stdout


def open_direct(name: str) -> int:
    return os.open(f"/dev/mapper/{name}" if "/" not in name else name, os.O_RDWR | os.O_DIRECT)


class Disk:
    """A device that is read and written in whole sectors, past all caches."""

    def __init__(self, name: str) -> None:
        self.fd = open_direct(name)
        self.buffer = memoryview(mmap.mmap(-1, PIECE))

    def __enter__(self) -> Disk:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)

    def copy_from(self, other: Disk, offset: int, length: int, where: int) -> None:
        done = 0
        while done < length:
            view = self.buffer[: min(PIECE, length - done)]
            assert os.preadv(other.fd, [view], where + done) == len(view)
            assert os.pwritev(self.fd, [view], offset + done) == len(view)
            done += len(view)


def same(a: str, b: str, size: int) -> bool:
    with Disk(a) as first, Disk(b) as second:
        for at in range(0, size, PIECE):
            length = min(PIECE, size - at)
            os.preadv(first.fd, [first.buffer[:length]], at)
            os.preadv(second.fd, [second.buffer[:length]], at)
            if first.buffer[:length] != second.buffer[:length]:
                return False
    return True


def plan(rng: random.Random) -> tuple[Round, list[int]]:
    """Choose geometry, and the chunks that will change."""
    chunk = rng.choice([4096, 4096, 4096, 8192, 16384, 32768, 65536, 131072, 262144, 524288])
    sectors = rng.randrange(6 << 11, 20 << 11)
    size = rng.choice([sectors, sectors - sectors % 8, sectors // 16 * 16 + 8]) * SECTOR
    chunks = -(-size // chunk)
    per_area = chunk // 16
    borders = [n for k in (1, 2, 3) for n in (k * per_area - 1, k * per_area, k * per_area + 1) if n <= chunks]
    count = rng.choice(borders) if borders and rng.random() < 0.7 else rng.randrange(1, chunks + 1)
    areas = count // per_area + 1
    need = 1 + areas + count
    slack = rng.choice([0, 1, 2, 3, -1, min(per_area, chunks), chunks // 8])
    store = max(need + slack, 3) * chunk + rng.randrange(chunk // SECTOR) * SECTOR
    done = Round("", size, chunk, store)
    order = rng.sample(range(chunks), count)
    if rng.random() < 0.3:
        order.sort()
    return done, order


def write_chunks(rng: random.Random, done: Round, disk: Disk, noise: Disk, chunks: list[int]) -> None:
    """Write somewhere into each chunk; runs of neighbours in one write."""
    at = 0
    while at < len(chunks):
        end = at + 1
        while end < len(chunks) and chunks[end] == chunks[end - 1] + 1 and end - at < 8:
            end += 1
        first = chunks[at] * done.chunk_size // SECTOR
        last = min((chunks[end - 1] + 1) * done.chunk_size, done.size) // SECTOR
        per_chunk = done.chunk_size // SECTOR
        start = first + rng.randrange(min(per_chunk, last - first))  # in the first chunk, to the end of the last
        stop = rng.randint(max(start + 1, last - per_chunk + 1), last)
        length = (stop - start) * SECTOR
        where = rng.randrange((NOISE - length) // SECTOR) * SECTOR
        try:
            disk.copy_from(noise, start * SECTOR, length, where)
        except OSError:
            assert "Invalid" in dmsetup("status", "snap"), "a write failed"
        done.chunks += chunks[at:end]
        at = end


def activate(done: Round) -> None:
    sectors = done.size // SECTOR
    dmsetup(
        *("create", "snap", "--table"),
        f"0 {sectors} snapshot /dev/mapper/real /dev/mapper/cow P {done.chunk_size // SECTOR}",
    )
    dmsetup("create", "origin", "--table", f"0 {sectors} snapshot-origin /dev/mapper/real")


def run_lvmsync(number: int, seed: str, done: Round) -> None:
    """Send, receive, compare; go back, compare."""
    os.chdir("/run")
    back = Path("/run/round.back")
    script = f"lvmsync send -q /dev/mapper/snap | tee {SHARE}/{number}.stream | lvmsync receive -q copy -b {back}"
    script = script.replace(" copy ", " /dev/mapper/copy ")
    ended = subprocess.run(["bash", "-c", f"{script}; echo ${{PIPESTATUS[*]}}"], capture_output=True, text=True)
    said = f"round {number} (seed {seed}): {asdict(done)}: {ended.stdout} {ended.stderr}"
    if done.status == "Invalid":
        assert ended.stdout.split() == ["5", "0", "6"], said
        assert not back.exists(), said
        assert not (SHARE / f"{number}.stream").stat().st_size, said
        return
    assert ended.stdout.split() == ["0", "0", "0"], said
    assert same("/dev/mapper/origin", "/dev/mapper/copy", done.size), f"not the same: {said}"
    applied = subprocess.run(["lvmsync", "apply", "-q", str(back), "/dev/mapper/copy"], capture_output=True, text=True)
    assert applied.returncode == 0, f"{said} {applied.stderr}"
    assert same("/dev/mapper/before", "/dev/mapper/copy", done.size), f"not back: {said}"
    back.unlink()


def run_round(number: int, seed: str) -> Round:
    rng = random.Random(seed)
    done, order = plan(rng)
    done.seed = seed
    for name, size in (("real", done.size), ("copy", done.size), ("cow", done.store_size), ("before", done.size)):
        dmsetup("create", name, "--table", f"0 {size // SECTOR} linear /dev/ubda {PLACES[name] // SECTOR}")
    with Disk("/dev/ubdb") as noise, Disk("real") as real, Disk("before") as before:
        where = rng.randrange((NOISE - done.size) // SECTOR) * SECTOR
        real.copy_from(noise, 0, done.size, where)
        before.copy_from(noise, 0, done.size, where)
    with Disk("cow") as cow:
        os.pwritev(cow.fd, [memoryview(mmap.mmap(-1, 4096))], 0)  # no header; the rest is of the round before
    activate(done)
    cuts = sorted(rng.randrange(len(order) + 1) for _ in range(2))
    with Disk("/dev/ubdb") as noise:
        with Disk("origin") as origin, Disk("snap") as snap, Disk("copy") as copy:
            write_chunks(rng, done, origin, noise, order[: cuts[0]])
            if "Invalid" not in dmsetup("status", "snap"):
                copy.copy_from(snap, 0, done.size, 0)
            write_chunks(rng, done, origin, noise, rng.sample(done.chunks, len(done.chunks) // 4))  # once more
            write_chunks(rng, done, snap, noise, order[cuts[0] : cuts[1]] if rng.random() < 0.5 else [])
        done.reactivated = rng.random() < 0.5
        if done.reactivated:
            dmsetup("remove", "origin")
            dmsetup("remove", "snap")
            activate(done)
        with Disk("origin") as origin:
            write_chunks(rng, done, origin, noise, order[cuts[1] :])
            write_chunks(rng, done, origin, noise, rng.sample(done.chunks, len(done.chunks) // 8))
    done.chunks = sorted(set(done.chunks))
    done.status = dmsetup("status", "snap").split()[3]
    run_lvmsync(number, seed, done)
    for name in ("origin", "snap", "cow", "real", "copy", "before"):
        dmsetup("remove", name)
    return done


def main() -> None:
    seed, rounds = sys.argv[1], int(sys.argv[2])
    for number in range(rounds):
        done = run_round(number, f"{seed}-{number}")
        print(
            f"round {number}: size {done.size}, chunk {done.chunk_size}, store {done.store_size},"
            f" {len(done.chunks)} chunks, {done.status}",
            flush=True,
        )
        (SHARE / f"{number}.json").write_text(json.dumps(asdict(done)))


if __name__ == "__main__":
    main()

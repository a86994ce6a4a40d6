"""Damaged COW files of dattobd and saved maps of blksnap: one of our errors, or exactly what is right.

Both formats are so small that a slow and strict reader in plain Python knows the answer to any bytes: where it
refuses, ours must refuse, and where it answers, ours must give the same ranges. See `tests.damage`.
"""

from __future__ import annotations

import random
import struct
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lvmsync.errors import LvmsyncError
from lvmsync.names import BlockMap, CowFile, SourceName, Volume
from lvmsync.sources import Reading, open_source
from tests.damage import Damaged, Tally, limits

BLOCK = 4096
SECTION = 4096  # entries
HEADER = struct.Struct("<IIQQQ16sQQ")
MAGIC, CLEAN, INDEX_ONLY = 4776, 1, 2

Ranges = list[tuple[int, int]]


@dataclass(frozen=True)
class Case:
    """A sound file, and what is asked of it; ``numbers`` are what hurts when it is put into its fields."""

    name: str
    image: bytes
    size: int
    since: int = 0
    number: int | None = None
    block_size: int = BLOCK


@dataclass(frozen=True)
class Tracker:
    """A kind of file: its samples, the damage done to them, how ours is asked, and what is right."""

    name: str
    samples: Callable[[], Sequence[Case]]
    damage: Callable[[random.Random, Case], tuple[str, bytes, Case]]
    source: Callable[[Path, Case], SourceName]
    check: Callable[[bytes, Case], Ranges]


def blocks_to_ranges(numbers: Sequence[int], block_size: int, size: int) -> Ranges:
    """Return blocks as merged ranges of bytes, clipped to the device."""
    found: Ranges = []
    for number in numbers:
        offset, end = number * block_size, min((number + 1) * block_size, size)
        if found and sum(found[-1]) == offset:
            found[-1] = (found[-1][0], end - found[-1][0])
        elif end > offset:
            found.append((offset, end - offset))
    return found


# ---- COW files


def build_cow(rng: random.Random, size: int, *, is_incremental: bool, version: int) -> bytes:
    blocks, last = size // BLOCK, -(-size // BLOCK)
    sections = -(-blocks // SECTION)
    first = 1 + 8 * sections
    entries = [0] * (sections * SECTION)
    stored = 0
    for at in range(last):
        if at < len(entries) and rng.random() < 0.01:
            entries[at] = 1 if is_incremental and rng.random() < 0.6 else first + stored
            stored += entries[at] != 1
    flags = CLEAN | (INDEX_ONLY if is_incremental else 0) | rng.choice([0, 4])
    changed = len(entries) - entries.count(0)
    uuid = rng.randbytes(16)
    header = HEADER.pack(MAGIC, flags, first + stored, 1 << 23, rng.randrange(1, 99), uuid, version, changed)
    body = header.ljust(BLOCK, b"\0") + struct.pack(f"<{len(entries)}Q", *entries)
    return body if is_incremental else body + rng.randbytes(BLOCK * (stored + rng.randrange(3)))


def cow_samples() -> list[Case]:
    rng = random.Random(7)
    cases = []
    for size in (3 << 20, 16 << 20, (16 << 20) + 512, (20 << 20) + 1536, 33 << 20, (1 << 20) + 512):
        for is_incremental in (True, False):
            for version in (0, 1):
                image = build_cow(rng, size, is_incremental=is_incremental, version=version)
                cases.append(Case(f"{size} {'incremental' if is_incremental else 'snapshot'} v{version}", image, size))
    return cases


def check_cow(image: bytes, case: Case) -> Ranges:
    """Read a COW file entry by entry, and refuse all that no clean file of this size can hold."""
    size = case.size
    blocks, last = size // BLOCK, -(-size // BLOCK)
    first = 1 + 8 * -(-blocks // SECTION)
    if len(image) < BLOCK or len(image) < BLOCK + 8 * blocks:
        raise Damaged("too short")
    magic, flags, fpos, _, seqid, _, version, changed = HEADER.unpack_from(image)
    if magic != MAGIC or flags & ~7 or not flags & CLEAN or version not in (0, 1) or fpos < first:
        raise Damaged("bad header")
    if not 0 < seqid < (1 << 64) - 1:
        raise Damaged("no sequence number")
    index = image[BLOCK : BLOCK * first]
    entries = [one for (one,) in struct.iter_unpack("<Q", index[: len(index) // 8 * 8])]
    found = [at for at, entry in enumerate(entries) if entry]
    if found and found[-1] >= last:
        raise Damaged("an entry past the end")
    if version and len(found) != changed:
        raise Damaged("another count")
    if len(found) < fpos - first:
        raise Damaged("fewer entries than were stored")
    if not flags & INDEX_ONLY:
        places = [entries[at] for at in found]
        if (
            len(places) != fpos - first
            or len(set(places)) < len(places)
            or any(not first <= one < fpos for one in places)
        ):
            raise Damaged("a bad position")
        if any((one + 1) * BLOCK > len(image) for one in places):
            raise Damaged("a position past the end of the file")
    # The last block, if it is short, has an entry or not; what a tracker that goes on says of it is not relied on.
    is_told = last <= SECTION * -(-blocks // SECTION) and not flags & INDEX_ONLY
    if size % BLOCK and not is_told and (not found or found[-1] < blocks):
        found.append(blocks)
    return blocks_to_ranges(found, BLOCK, size)


def damage_cow(rng: random.Random, case: Case) -> tuple[str, bytes, Case]:
    image = bytearray(case.image)
    first = 1 + 8 * -(-(case.size // BLOCK) // SECTION)
    kind = rng.choices(["header", "entry", "bits", "cut", "grow", "size", "zeros"], [35, 30, 10, 10, 5, 7, 3])[0]
    some = [0, 1, 2, 3, 4, 8, first - 1, first, first + 1, len(image) // BLOCK, (1 << 32) - 1, 1 << 63, (1 << 64) - 1]
    if kind == "header":
        fields = [(0, 4), (4, 4), (4, 4), (8, 8), (8, 8), (16, 8), (24, 8), (24, 8), (48, 8), (56, 8), (56, 8)]
        at, width = rng.choice(fields)
        old = int.from_bytes(image[at : at + width], "little")
        value = rng.choice([rng.choice(some), old + rng.choice([-1, 1]), old ^ 1 << rng.randrange(8 * width)])
        image[at : at + width] = (value % (1 << 8 * width)).to_bytes(width, "little")
        return f"{kind} byte {at}: {value:#x}", bytes(image), case
    if kind == "entry":
        # Some of the entries are given one another's values, and the count is mended, so that it gives nothing away.
        for _ in range(rng.choice([1, 1, 2, 5])):
            at = BLOCK + 8 * rng.randrange((first - 1) * BLOCK // 8)
            other = BLOCK + 8 * rng.randrange((first - 1) * BLOCK // 8)
            value = rng.choice([rng.choice(some), first + rng.randrange(90), *struct.unpack_from("<Q", image, other)])
            struct.pack_into("<Q", image, at, value % (1 << 64))
        if rng.random() < 0.8:
            entries = struct.unpack_from(f"<{(first - 1) * BLOCK // 8}Q", image, BLOCK)
            struct.pack_into("<Q", image, 56, len(entries) - entries.count(0))
        return kind, bytes(image), case
    if kind == "bits":
        for _ in range(rng.choice([1, 2, 8])):
            bit = rng.randrange(8 * (64 if rng.random() < 0.5 else len(image)))
            image[bit // 8] ^= 1 << bit % 8
        return kind, bytes(image), case
    if kind == "cut":
        blocks = case.size // BLOCK
        length = rng.choice([rng.randrange(len(image)), BLOCK + 8 * blocks, BLOCK + 8 * blocks - 1, 63, 64, BLOCK, 0])
        return f"{kind} at {length}", bytes(image[:length]), case
    if kind == "grow":
        return kind, bytes(image) + rng.randbytes(rng.choice([1, 8, BLOCK])), case
    if kind == "zeros":
        at = rng.randrange(len(image))
        return f"{kind} from {at}", bytes(image[:at]) + bytes(len(image) - at), case
    size = max(512, case.size + 512 * rng.choice([-8, 8, -1, 1, 7, 32768, -32768, 65536]))
    return f"{kind} {size}", bytes(image), Case(case.name, case.image, size)


# ---- maps


def map_samples() -> list[Case]:
    rng = random.Random(9)
    cases = []
    for blocks, block_size, tail in ((1, 65536, 0), (384, 65536, 512), (641, 65536, 20992), (5000, 1 << 20, 4096)):
        for number in (2, 7, 254):
            image = bytes(rng.choice([0, 0, 0, number, rng.randrange(number + 1)]) for _ in range(blocks))
            size = blocks * block_size - tail
            cases.append(Case(f"{blocks} blocks at {number}", image, size, number - 1, number, block_size))
    return cases


def check_map(image: bytes, case: Case) -> Ranges:
    """Read a map byte by byte, by the rules for a base of the same generation."""
    if len(image) != -(-case.size // case.block_size):
        raise Damaged("another number of blocks")
    if case.number is not None and (case.since >= case.number or any(one > case.number for one in image)):
        raise Damaged("not the map of that snapshot")
    if case.since >= 254 or case.number == 255:  # the snapshot that would be the head begins the numbers anew
        raise Damaged("no map leads there")
    found = [at for at, one in enumerate(image) if one > case.since]
    if not found and case.number is None:
        raise Damaged("nothing changed, or all is lost")
    return blocks_to_ranges(found, case.block_size, case.size)


def damage_map(rng: random.Random, case: Case) -> tuple[str, bytes, Case]:
    image = bytearray(case.image)
    kind = rng.choices(["bytes", "cut", "grow", "number", "size"], [40, 15, 10, 25, 10])[0]
    if kind == "bytes":
        for _ in range(rng.choice([1, 2, 9])):
            image[rng.randrange(len(image))] = rng.choice([0, 1, case.since, case.since + 1, 254, 255])
        return kind, bytes(image), case
    if kind == "cut":
        return kind, bytes(image[: rng.randrange(len(image))]), case
    if kind == "grow":
        return kind, bytes(image) + bytes(rng.choice([1, 7])), case
    if kind == "number":
        number = rng.choice([None, 0, 1, case.since, 254, 255])
        since = rng.choice([0, 1, case.since, 254, 255])
        return f"{kind} {since} {number}", bytes(image), Case("", b"", case.size, since, number, case.block_size)
    size = max(512, case.size + rng.choice([-case.block_size, case.block_size, -512, 512]))
    return f"{kind} {size}", bytes(image), Case("", b"", size, case.since, case.number, case.block_size)


TRACKERS = {
    one.name: one
    for one in (
        Tracker(
            "dattobd", cow_samples, damage_cow, lambda path, case: CowFile(Volume(str(path)), case.size), check_cow
        ),
        Tracker(
            "blksnap",
            map_samples,
            damage_map,
            lambda path, case: BlockMap(Volume(str(path)), case.since, case.block_size, case.number, None, case.size),
            check_map,
        ),
    )
}


@contextmanager
def one_file() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
        yield Path(folder) / "image"


def judge(kind: Tracker, path: Path, image: bytes, case: Case) -> tuple[str, str]:
    """Return how one file came out, and if it came out wrong why."""
    path.write_bytes(image)
    try:
        expected: Ranges | None = kind.check(image, case)
        why = ""
    except Damaged as error:
        expected, why = None, str(error)
    try:
        with limits(), open_source(kind.source(path, case), Reading(with_data=False)) as source:
            found = [(one.offset, one.length) for one in source.changes]
    except LvmsyncError as error:
        if expected is not None:
            return "wrong", f"refused, though sound: {error}"
        return f"refused: {type(error).__name__}", ""
    except Exception:  # noqa: BLE001  # whatever it is, it is the failure that is looked for
        return "wrong", traceback.format_exc(limit=-6)
    if expected is None:
        return "wrong", f"it is damaged ({why}), and was taken"
    return ("answered", "") if found == expected else ("wrong", f"the answer is {found[:5]}, not {expected[:5]}")


def storm(kind: Tracker, count: int, seed: int, report: Callable[[int, Tally], None] = lambda *_: None) -> Tally:
    """Damage ``count`` files and judge each; the number of a file and the seed make it again."""
    samples = kind.samples()
    tally = Tally()
    with one_file() as path:
        for case in samples:
            assert judge(kind, path, case.image, case) == ("answered", ""), case.name
        for number in range(count):
            rng = random.Random(f"{seed} {number}")
            sample = rng.choice(samples)
            done, image, case = kind.damage(rng, sample)
            verdict, why = judge(kind, path, image, case)
            tally.counts[verdict] += 1
            tally.kinds[f"{done.split(' ')[0]}: {verdict}"] += 1
            if why:
                tally.wrong.append(f"seed {seed} file {number}: {sample.name}: {done}: {why}")
            report(number + 1, tally)
    return tally

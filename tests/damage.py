"""Damaged metadata: whatever is wrong with an image, the answer is one of our errors, or it is right.

    python -m tests.damage [--count 100000] [--seed 1] [--format thin|era|dattobd|blksnap]

Each image is a sound one with one piece of damage: flipped bits, a field with a value that was chosen to hurt (a
huge count, a number that makes a tree a circle), a block over another one, a cut. Most of them get their checksum
mended, so that no checksum gives the damage away. Right is the answer to the sound image, or what a slow and strict
reader in plain Python makes of the image; of blocks that our reader did not need, the damage does not count.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import random
import resource
import signal
import struct
import sys
import time
import traceback
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import zstandard
from crc32c import crc32c

from lvmsync.errors import LvmsyncError
from lvmsync.extents import ChangeMap
from lvmsync.formats import era, thin
from tests.era_store import ERA_MAGIC, ERA_XOR, Bits, build_era
from tests.fixture_files import FIXTURES, list_cases
from tests.metadata_store import (
    ARRAY_XOR,
    BLOCK,
    INTERNAL,
    LEAF,
    NODE_XOR,
    THIN_MAGIC,
    THIN_XOR,
    Reader,
    Thin,
    build_pool,
    room,
)

SECONDS = 2.0
"""Longer may no image take."""
MEGABYTES = 64
"""More memory may none need."""

Question = tuple[Any, ...]
Answer = Any


class Damaged(Exception):
    """The strict reader's verdict."""


@dataclass(frozen=True)
class Format:
    """A kind of metadata.

    Attributes:
        name: as on the command line.
        xors: the constants of the checksums of its blocks; the superblock's first.
        samples: makes the sound images, and what is asked of each.
        answer: asks our reader.
        check: asks the strict reader; raises `Damaged`.
    """

    name: str
    xors: tuple[int, ...]
    samples: Callable[[], Sequence[tuple[str, bytes, Sequence[Question]]]]
    answer: Callable[[Reader, Question], Answer]
    check: Callable[[bytes, Question], Answer]


@dataclass(frozen=True)
class Sample:
    """A sound image, one question, and the answer.

    Attributes:
        numbers: of the blocks that are read for it; damage elsewhere changes nothing.
    """

    name: str
    image: bytes
    question: Question
    answer: Answer
    numbers: Sequence[int]


@dataclass
class Tally:
    """How images came out: counts by what was done and what came of it; ``wrong`` are the failures."""

    counts: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)


# ---- damage


def sum_of(block: bytes | bytearray, xor: int) -> bytes:
    return struct.pack("<I", crc32c(bytes(block[4:])) ^ 0xFFFFFFFF ^ xor)


def mend(image: bytearray, number: int, xors: Sequence[int], sound: bytes) -> None:
    """Give a block the checksum that goes with its bytes, by the constant of what was there."""
    before, at = sound[number * BLOCK :][:BLOCK], number * BLOCK
    xor = next((one for one in xors if sum_of(before, one) == before[:4]), xors[-1])
    image[at : at + 4] = sum_of(image[at : at + BLOCK], xor)


def find_fields(block: bytes | bytearray, is_superblock: bool) -> list[tuple[int, int]]:
    """Return offset and width of the fields of a block, as far as it looks like a node or superblock."""
    header = [(4, 4), (8, 4), (8, 8), (12, 4), (16, 4), (16, 8), (20, 4), (24, 4), (28, 4)]
    if is_superblock:
        return [(at, width) for width in (4, 8) for at in range(4, 400, width)]
    count, most, size = struct.unpack_from("<3I", block, 16)
    if count > most or not 0 < size <= 64 or most != room(size):
        return [*header, *((at, 8) for at in range(24, BLOCK, 8))]
    values = 32 + 8 * most
    keys = [(32 + 8 * at, 8) for at in range(count + 1)]
    words = [(values + size * at + part, min(8, size)) for at in range(count + 1) for part in range(0, size, 8)]
    fields = header * (1 + count // 4) + keys + words
    return [(at, width) for at, width in fields if at + width <= BLOCK]


def choose_value(rng: random.Random, old: int, near: int, width: int, sample: Sample) -> int:
    """Return a value that may hurt."""
    blocks = len(sample.image) // BLOCK
    some = [0, 1, 2, 3, 84, 126, 127, 252, 253, blocks - 1, blocks, blocks + 1]
    some += [(1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 63, (1 << 64) - 1, 1 << 24, 1 << 40, (1 << 47) // 65536]
    value = rng.choice(
        [
            rng.choice(some),
            old + rng.choice([-1, 1, 2, -2, 64, 1 << 24, -(1 << 24)]),
            old ^ 1 << rng.randrange(8 * width),
            near,
            near + rng.choice([-1, 1]),
            rng.choice(sample.numbers),
            rng.choice(sample.numbers),
            rng.choice(sample.numbers) << 24,
            rng.getrandbits(8 * width),
        ]
    )
    return value % (1 << 8 * width)


def damage(rng: random.Random, sample: Sample, xors: Sequence[int]) -> tuple[str, bytearray]:
    """Return a damaged copy of an image, and what was done to it."""
    image = bytearray(sample.image)
    blocks = len(image) // BLOCK
    number = rng.choice(sample.numbers) if rng.random() < 0.97 else rng.randrange(blocks)
    at = number * BLOCK
    kind = rng.choices(["field", "bits", "raw bits", "block", "wipe", "cut"], [60, 12, 8, 10, 3, 7])[0]
    if kind == "field":
        block = image[at : at + BLOCK]
        is_superblock = sum_of(block, xors[0]) == block[:4]
        offset, width = rng.choice(find_fields(block, is_superblock))
        old = int.from_bytes(block[offset : offset + width], "little")
        near = int.from_bytes(block[offset + width : offset + 2 * width], "little")
        value = choose_value(rng, old, near, width, sample)
        image[at + offset : at + offset + width] = value.to_bytes(width, "little")
        mend(image, number, xors, sample.image)
        return f"{kind} block {number} byte {offset}: {old:#x} to {value:#x}", image
    if kind in ("bits", "raw bits"):
        bits = [rng.randrange(32, 8 * BLOCK) for _ in range(rng.choice([1, 1, 2, 3, 8, 100]))]
        if rng.random() < 0.5:
            bits = [32 + bit % 480 for bit in bits]  # most of it matters
        for bit in bits:
            image[at + bit // 8] ^= 1 << bit % 8
        if kind == "bits":
            mend(image, number, xors, sample.image)
        return f"{kind} block {number}: {bits}", image
    if kind == "block":
        other = rng.choice(sample.numbers)
        image[at : at + BLOCK] = sample.image[other * BLOCK :][:BLOCK]
        is_renumbered = rng.random() < 0.7
        if is_renumbered:
            own = at + (8 if image[at + 8 : at + 16] == struct.pack("<Q", other) else 16)
            image[own : own + 8] = struct.pack("<Q", number)
            mend(image, number, xors, sample.image[:at] + sample.image[other * BLOCK :][:BLOCK])
        return f"{kind} {number}: a copy of {other}, {'renumbered' if is_renumbered else 'as it is'}", image
    if kind == "wipe":
        filler = rng.choice([bytes(BLOCK), b"\xff" * BLOCK, rng.randbytes(BLOCK)])
        image[at : at + BLOCK] = filler
        if rng.random() < 0.5:
            mend(image, number, xors, sample.image)
        return f"{kind} block {number}: {filler[:4].hex()}...", image
    length = rng.randrange(len(image)) if rng.random() < 0.5 else rng.randrange(blocks) * BLOCK
    return f"{kind} at {length}", image[:length]


# ---- verdicts


@contextmanager
def limits() -> Iterator[None]:
    """Raise for what takes too long, or too much memory."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"more than {SECONDS} s")

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    previous = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    if resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before > MEGABYTES << 10:
        raise MemoryError(f"more than {MEGABYTES} MB")


def restore(image: bytes, sound: bytes, numbers: set[int]) -> bytes:
    """Return an image in which only these blocks may be damaged, or missing."""
    whole = bytearray(sound[: len(image)])
    for number in numbers:
        whole[number * BLOCK : (number + 1) * BLOCK] = image[number * BLOCK : (number + 1) * BLOCK]
    return bytes(whole)


def judge(kind: Format, sample: Sample, image: bytes, rng: random.Random) -> tuple[str, str]:
    """Return how one image came out, and if it came out wrong why."""
    reader = Reader(image)
    try:
        with limits():
            found = kind.answer(reader, sample.question)
    except LvmsyncError as error:
        if rng.random() < 0.05 and is_sound(kind, sample, image):
            return f"refused, though sound: {type(error).__name__}", ""
        return f"refused: {type(error).__name__}", ""
    except Exception:  # noqa: BLE001  # whatever it is, it is the failure that is looked for
        return "wrong", traceback.format_exc(limit=-6)
    if found == sample.answer:
        return "answered: as if sound", ""
    try:
        expected = kind.check(restore(image, sample.image, set(reader.numbers)), sample.question)
    except Damaged as error:
        return "wrong", f"it is damaged ({error}), and the answer {found} is not {sample.answer}"
    if found == expected:
        return "answered: as the image says", ""
    return "wrong", f"the answer is {found}, not {expected}"


def is_sound(kind: Format, sample: Sample, image: bytes) -> bool:
    try:
        return bool(kind.check(image, sample.question) == sample.answer)
    except Damaged:
        return False


def prepare(kind: Format) -> list[Sample]:
    """Return the sound samples, each with its answer; both readers agree on them."""
    found = []
    for name, image, questions in kind.samples():
        for question in questions:
            reader = Reader(image)
            answer = kind.answer(reader, question)
            assert answer == kind.check(image, question), f"{name} {question}: the readers do not agree"
            found.append(Sample(name, image, question, answer, sorted(set(reader.numbers))))
    return found


def storm(kind: Format, count: int, seed: int, report: Callable[[int, Tally], None] = lambda *_: None) -> Tally:
    """Damage ``count`` images and judge each; the number of an image and the seed make it again."""
    samples = prepare(kind)
    tally = Tally()
    for number in range(count):
        rng = random.Random(f"{seed} {number}")
        sample = rng.choice(samples)
        done, image = damage(rng, sample, kind.xors)
        verdict, why = judge(kind, sample, bytes(image), rng)
        tally.counts[verdict] += 1
        tally.kinds[f"{done.split(' block ')[0].split(' at ')[0].split(' ')[0]}: {verdict}"] += 1
        if why:
            tally.wrong.append(f"seed {seed} image {number}: {sample.name} {sample.question}: {done}: {why}")
        report(number + 1, tally)
    return tally


# ---- thin


def walk(
    image: bytes, number: int, size: int, seen: set[int], low: int = 0, high: int = (1 << 64) - 1, depth: int = 1
) -> tuple[dict[int, bytes], int]:
    """Return what a tree holds, and its height; all that the kernel demands of it is checked."""
    is_root = not seen
    if not 0 < number < len(image) // BLOCK:
        raise Damaged(f"block {number} is not there")
    if number in seen or depth > 16:
        raise Damaged(f"block {number} is in a circle")
    seen.add(number)
    block = image[number * BLOCK :][:BLOCK]
    flags, own, count, most, value_size = struct.unpack_from("<IQ3I", block, 4)
    if sum_of(block, NODE_XOR) != block[:4] or own != number or flags not in (INTERNAL, LEAF):
        raise Damaged(f"block {number} is no node")
    expected = 8 if flags == INTERNAL else size
    if value_size != expected or most != room(expected) or count > most or not count > (-1 if is_root else 0):
        raise Damaged(f"block {number} has a bad header")
    if not count and flags == INTERNAL:
        raise Damaged(f"block {number} is empty")
    keys = struct.unpack_from(f"<{count}Q", block, 32)
    if any(not low <= key <= high for key in keys) or any(a >= b for a, b in itertools.pairwise(keys)):
        raise Damaged(f"block {number} has bad keys")
    first = 32 + 8 * most
    values = [block[first + expected * at :][:expected] for at in range(count)]
    if flags == LEAF:
        return dict(zip(keys, values, strict=True)), 1
    found: dict[int, bytes] = {}
    heights = set()
    for key, value, after in zip(keys, values, [*keys[1:], high + 1], strict=True):
        part, height = walk(image, int.from_bytes(value, "little"), size, seen, key, after - 1, depth + 1)
        found |= part
        heights.add(height)
    if len(heights) != 1:
        raise Damaged(f"block {number} has children of different heights")
    return found, heights.pop() + 1


def check_superblock(image: bytes, number: int) -> dict[str, int]:
    """Return the fields of a thin superblock that matter."""
    block = image[number * BLOCK :][:BLOCK]
    if len(block) < BLOCK or sum_of(block, THIN_XOR) != block[:4]:
        raise Damaged("no superblock")
    flags, own = struct.unpack_from("<IQ", block, 4)
    magic, version = struct.unpack_from("<QI", block, 32)
    roots = struct.unpack_from("<2Q2IQ3I", block, 320)
    if (own, magic, version, flags & 1, roots[7]) != (number, THIN_MAGIC, 2, 0, 0):
        raise Damaged("a strange superblock")
    if roots[2] % 128 or not 128 <= roots[2] <= 2097152 or roots[3] != 8 or roots[4] > len(image) // BLOCK:
        raise Damaged("a strange superblock")
    held, data_blocks = (struct.unpack_from("<Q", block, at)[0] for at in (56, 64))
    names = ("mappings", "details", "sectors")
    return dict(zip(names, roots, strict=False)) | {"held": held, "data_blocks": data_blocks}


def check_thin(image: bytes, question: Question) -> Answer:
    """Answer as `answer_thin` does, slowly."""
    what, is_held, *devices, size = question
    live = check_superblock(image, 0)
    shown = check_superblock(image, live["held"]) if is_held else live
    tops, _ = walk(image, shown["mappings"], 8, set())
    details, _ = walk(image, shown["details"], 24, set())
    chunk = shown["sectors"] * 512
    found: list[dict[int, int]] = []
    for device in devices:
        if device not in tops or device not in details:
            raise Damaged(f"no device {device}")
        mappings, _ = walk(image, int.from_bytes(tops[device], "little"), 8, set())
        if len(mappings) != int.from_bytes(details[device][:8], "little"):
            raise Damaged(f"device {device} has another number of mappings")
        found.append({block: int.from_bytes(value, "little") >> 24 for block, value in mappings.items()})
        if any(data >= live["data_blocks"] for data in found[-1].values()):
            raise Damaged("a mapping outside the pool")
        if any(block >= (1 << 63) // chunk for block in mappings):
            raise Damaged("a block outside any device")
    if what == "mapped":
        return [cover(set(found[0]), chunk, size)]
    old, new = found
    changed = {block for block in old | new if old.get(block) != new.get(block)}
    return [cover(changed, chunk, size), cover(old.keys() - new.keys(), chunk, size)]


def cover(blocks: set[int], chunk: int, size: int) -> ChangeMap:
    """Return the bytes of some virtual blocks, clipped."""
    inside = ((block * chunk, min(chunk, size - block * chunk)) for block in blocks if block * chunk < size)
    return ChangeMap.from_extents(inside)


def answer_thin(reader: Reader, question: Question) -> Answer:
    """Ask lvmsync what is mapped, or how two devices differ: ``(what, is_held, device..., size)``."""
    what, is_held, *devices, size = question
    live = thin.Superblock.parse(reader.read_block(0) if reader.nr_blocks else b"")
    root = live.held_root if is_held else 0
    shown = thin.Superblock.parse(reader.read_block(root), root)
    pool = thin.Pool(reader, reader.nr_blocks, shown, live.data_blocks)
    if what == "mapped":
        return [pool.mapped(devices[0], size)]
    delta = pool.diff(devices[0], devices[1], size)
    return [delta.changes, delta.holes]


def unpack(mechanism: str, file: str) -> bytes:
    packed = (FIXTURES / mechanism / file).read_bytes()
    data: bytes = zstandard.ZstdDecompressor().stream_reader(packed).read()
    return data


def thin_samples() -> list[tuple[str, bytes, list[Question]]]:
    """Return pools of the kernel's, and pools with small nodes, so with trees of several levels."""
    found: list[tuple[str, bytes, list[Question]]] = []
    for case in list_cases("thin"):
        if case.facts["volume_size"] > 1 << 30:
            continue
        for view in ("later", "later-m"):
            file = case.facts["files"][case.facts["metadata"][view]["image"]]["file"]
            size, is_held = case.facts["volume_size"], view == "later-m"
            asked: list[Question] = [("diff", is_held, *pair, size) for pair in ((3, 1), (3, 6), (4, 5))]
            image = unpack("thin", file)
            found.append((f"{case} {view}", image, [*asked, ("mapped", is_held, 1, size)]))
    rng = random.Random(7)
    for levels, fill in ((2, 5), (3, 4), (5, 3)):
        old = {block: (rng.randrange(900), 1) for block in rng.sample(range(2000), 150)}
        gone = set(rng.sample(sorted(old), 9))
        new = {block: to for block, to in old.items() if block not in gone}
        new |= {rng.randrange(2000): (rng.randrange(900, 999), 2) for _ in range(9)}

        def cut(key: int, level: int, fill: int = fill) -> bool:
            return zlib.crc32(struct.pack("<QI", key, level)) % fill == 0

        devices = {
            1: Thin(old, cut=cut, height=levels),
            2: Thin(new, cut=cut, height=levels, creation_time=1),
            5: Thin(new | {3000: (998, 3)}, cut=cut, height=levels + 1, slack=1),
            6: Thin({}),
        }
        image = build_pool(devices, is_held=True, data_blocks=1000, data_block_sectors=128 * levels).image
        end = 65536 * levels * 2000 - 512
        questions: list[Question] = [("diff", False, *pair, end) for pair in ((1, 2), (2, 5), (5, 1), (6, 2))]
        found.append((f"small nodes, {levels} levels", image, [*questions, ("mapped", True, 5, end)]))
    return found


# ---- era


def read_words(image: bytes, root: int, count: int, size: int) -> list[int]:
    """Return the values of a dm-array."""
    index, _ = walk(image, root, 8, set())
    most = (BLOCK - 24) // size
    if sorted(index) != list(range(-(-count // most))):
        raise Damaged(f"array {root} has other blocks")
    found: list[int] = []
    seen: set[int] = set()
    for key in sorted(index):
        number = int.from_bytes(index[key], "little")
        if not 0 < number < len(image) // BLOCK or number in seen:
            raise Damaged(f"array {root} leads to block {number}")
        seen.add(number)
        block = image[number * BLOCK :][:BLOCK]
        used = min(most, count - key * most)
        if sum_of(block, ARRAY_XOR) != block[:4] or struct.unpack_from("<3IQ", block, 4) != (most, used, size, number):
            raise Damaged(f"block {number} is no array block, or none of {used} entries")
        found += [int.from_bytes(block[at : at + size], "little") for at in range(24, 24 + used * size, size)]
    return found


def check_era_superblock(image: bytes, number: int) -> dict[str, int]:
    """Return the fields of an era superblock that matter."""
    block = image[number * BLOCK :][:BLOCK]
    if len(block) < BLOCK or sum_of(block, ERA_XOR) != block[:4]:
        raise Damaged("no superblock")
    names = ("sectors", "metadata_sectors", "count", "era", "bits", "current", "tree", "array", "held")
    found = dict(zip(names, struct.unpack_from("<5I4Q", block, 172), strict=True))
    if struct.unpack_from("<Q16xQI", block, 8) != (number, ERA_MAGIC, 1) or found["metadata_sectors"] != 8:
        raise Damaged("a strange superblock")
    if found["sectors"] < 8 or found["sectors"] % 8:
        raise Damaged("a strange superblock")
    return found


def check_era(image: bytes, question: Question) -> Answer:
    """Answer as `answer_era` does, slowly."""
    is_held, since, size = question
    shown = check_era_superblock(image, 0)
    if is_held:
        shown = check_era_superblock(image, shown["held"])
    block, count, current = shown["sectors"] * 512, shown["count"], shown["era"]
    if -(-size // block) != count:
        raise Damaged("of a device of another size")
    newest = read_words(image, shown["array"], count, 4)
    if any(one > current for one in newest):
        raise Damaged("a block of a later era")
    tree, _ = walk(image, shown["tree"], 12, set())
    sets = {key: struct.unpack("<IQ", value) for key, value in tree.items()}
    if any(key > current - bool(shown["current"]) for key in sets):
        raise Damaged("a writeset of a later era")
    if shown["current"] and not is_held:
        sets[current] = (shown["bits"], shown["current"])
    for key, (nr_bits, root) in sets.items():
        if key < since:
            continue  # what it says does not matter
        words = read_words(image, root, -(-nr_bits // 64), 8)
        if words and nr_bits % 64 and words[-1] >> nr_bits % 64:
            raise Damaged("a bit behind the end of a writeset")
        for at in range(count):
            if at >= nr_bits or words[at // 64] >> at % 64 & 1:
                newest[at] = max(newest[at], key)
    return cover({at for at, one in enumerate(newest) if one >= since}, block, size)


def answer_era(reader: Reader, question: Question) -> Answer:
    """Ask lvmsync what was written since an era: ``(is_held, since, size)``."""
    is_held, since, size = question
    live = era.Superblock.parse(reader.read_block(0) if reader.nr_blocks else b"")
    root = live.metadata_snap if is_held else 0
    shown = era.Superblock.parse(reader.read_block(root), root)
    return era.Metadata(reader, reader.nr_blocks, shown, is_snapshot=is_held).changes(since, size)


def era_samples() -> list[tuple[str, bytes, list[Question]]]:
    """Return metadata of the kernel's, cut behind the last block that is used, and some made by hand."""
    found: list[tuple[str, bytes, list[Question]]] = []
    for case in list_cases("era"):
        if case.name not in ("g16k", "g64k", "g4k-crash"):
            continue
        size = case.facts["origin_size"]
        for key, facts in case.facts["images"].items():
            for view in facts["views"]:
                image = unpack("era", case.facts["files"][key]["file"])
                questions: list[Question] = [(view != "live", since, size) for since in (1, 3, 5, 8)]
                reader = Reader(image)
                for question in questions:
                    answer_era(reader, question)
                end = (max(reader.numbers) + 4) * BLOCK
                found.append((f"{case} {key} {view}", image[:end], questions))
    rng = random.Random(8)
    for count in (700, 3000):

        def bits(part: int, known: int) -> Bits:
            return Bits(frozenset(rng.sample(range(known), known // part)), known)

        eras = [rng.randrange(5) for _ in range(count)]
        archived = {at: bits(9, count - 70 * (at == 4)) for at in (4, 5, 6, 7, 8)}
        image = build_era(eras, archived, bits(20, count), is_held=True).image
        end = count * 4096 - 512
        found.append((f"{count} blocks", image, [(is_held, since, end) for is_held in (0, 1) for since in (2, 5, 9)]))
    return found


FORMATS = {
    "thin": Format("thin", (THIN_XOR, NODE_XOR), thin_samples, answer_thin, check_thin),
    "era": Format("era", (ERA_XOR, NODE_XOR, ARRAY_XOR), era_samples, answer_era, check_era),
}


def main() -> int:
    parser = argparse.ArgumentParser(description="Damage metadata and judge the answers.")
    parser.add_argument("--count", type=int, default=100_000, help="images of each format")
    parser.add_argument("--seed", type=int, default=1)
    storms: dict[str, Callable[..., Tally]] = tracker_storms()
    storms |= {name: functools.partial(storm, kind) for name, kind in FORMATS.items()}
    parser.add_argument("--format", choices=sorted(storms), action="append", help="all without it")
    words = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))
    failures = 0
    for name in words.format or sorted(storms):
        begin = time.monotonic()
        tally = storms[name](words.count, words.seed, functools.partial(show, name, words.count))
        failures += len(tally.wrong)
        print(f"\n{name}: {words.count} images, seed {words.seed}, {time.monotonic() - begin:.0f} s")
        for verdict, count in sorted(tally.counts.items()):
            print(f"  {count:8} {verdict}")
        for text in tally.wrong[:20]:
            print(f"wrong: {text}")
    return 1 if failures else 0


def tracker_storms() -> dict[str, Callable[..., Tally]]:
    """Return the storms on files of the trackers outside the kernel."""
    from tests import damage_trackers

    return {name: functools.partial(damage_trackers.storm, kind) for name, kind in damage_trackers.TRACKERS.items()}


def show(name: str, total: int, count: int, tally: Tally) -> None:
    """Show how far it is, on a terminal."""
    if count % 100 == 0 and sys.stderr.isatty():
        print(f"\r{name}: {count} of {total}, {len(tally.wrong)} wrong", end="", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())

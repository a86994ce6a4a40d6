"""A storm of power cuts: a receive is cut at a random moment, recovered after a new boot, and judged from outside.

The target is a disk of the guest, whole, so its image on the host is what is judged: after ``lvmsync recover``
it must be exactly the old state or exactly the new one, and the new one for certain where the receive had
ended before the cut. Some recoveries are cut as well and done again. All choices come from the seed; when a
cut comes is told by what the target's image holds (a part of the changes, or all of them and a little later),
so that a quick machine and a slow one are cut in the same phases.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from lvmsync.extents import as_table
from lvmsync.stream import v3, v4
from lvmsync.stream.frames import Changes, Data, End, Frame, Header, Hole, Mark, Zero
from tests.lab import guest

SIZE = 80 << 20
STATE_SIZE = 320 << 20
FRAME = 1 << 20
KINDS = {  # name -> stream format, arguments of receive
    "undo": (4, ""),
    "snapback": (4, "--snapback /run/state/keep.back"),
    "atomic": (4, "--atomic"),
    "v3": (3, ""),
    "atomic-snapback": (4, "--atomic --snapback /run/state/keep.back"),
    "v3-snapback": (3, "--snapback /run/state/keep.back"),
}


@dataclass(frozen=True)
class Material:
    """What all rounds of a storm share.

    Attributes:
        old: the target before.
        new: the target after.
        extents: offset and length of each change, none shorter than 512 bytes.
        streams: format -> the stream from old to new.
        state: an empty ext4 file system.
    """

    old: Path
    new: Path
    extents: list[tuple[int, int]]
    streams: dict[int, Path]
    state: Path


@dataclass
class Cut:
    """What one round did and how it ended.

    Attributes:
        number: of the round.
        kind: of the receive.
        trigger: when it was to be cut.
        written: part of the changes that the target held when the power went.
        had_ended: whether the receive had succeeded before.
        recoveries: how often recover was started.
        said: by the last recover.
        result: "old" or "new".
        wrong: what was wrong; empty when all was well.
    """

    number: int
    kind: str
    trigger: str = ""
    written: float = 0.0
    had_ended: bool = False
    recoveries: int = 0
    said: str = ""
    result: str = ""
    wrong: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return (
            f"{self.number:3} {self.kind:16} cut {self.trigger:24} {100 * self.written:5.1f} % written"
            f"{', ended' if self.had_ended else ''} -> {self.result} after {self.recoveries} recover"
            f"{' WRONG: ' + '; '.join(self.wrong) if self.wrong else ''}"
        )


def make_material(folder: Path, seed: int) -> Material:
    """Make old and new state, the streams between them, and a file system for the state folder."""
    rng = random.Random(seed)
    old = bytearray(rng.randbytes(SIZE))
    new = bytearray(old)
    frames: list[Changes] = []
    extents: list[tuple[int, int]] = []
    batch: list[tuple[int, int]] = []

    def close_batch() -> None:
        if not batch:
            return
        table = as_table([offset for offset, _ in batch], [length for _, length in batch])
        kind = rng.choice([Data] * 6 + [Zero, Hole])
        if kind is Data:
            payload = rng.randbytes(sum(length for _, length in batch))
            frames.append(Data(table, memoryview(payload)))
        else:
            payload = bytes(sum(length for _, length in batch))
            frames.append(Zero(table) if kind is Zero else Hole(table))
        at = 0
        for offset, length in batch:
            new[offset : offset + length] = payload[at : at + length]
            at += length
        extents.extend(batch)
        batch.clear()

    offset = rng.randrange(4096)
    while True:
        length = rng.choice([rng.randrange(512, 65536), rng.randrange(1, 32) * 16384])
        if offset + length > SIZE:
            break
        if sum(done for _, done in batch) + length > FRAME:
            close_batch()
        batch.append((offset, length))
        gap = rng.choice([rng.randrange(512, 16384), rng.randrange(1, 8) * 4096])
        offset = min(offset + length + gap, SIZE) // 512 * 512 if rng.random() < 0.8 else offset + length + gap
    close_batch()

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "old").write_bytes(old)
    (folder / "new").write_bytes(new)
    streams = {3: folder / "stream.3", 4: folder / "stream.4"}
    for version, path in streams.items():
        encoder = v4.Encoder() if version == 4 else v3.Encoder()
        with path.open("wb") as file:
            for frame in _whole_stream(frames, extents):
                if version == 4 or not isinstance(frame, Mark):
                    file.writelines(encoder.encode(frame))
    state = guest.make_disk(folder / "state", STATE_SIZE)
    subprocess.run(["mkfs.ext4", "-q", "-F", "-m", "0", "-E", "lazy_itable_init=1", str(state)], check=True)
    return Material(folder / "old", folder / "new", extents, streams, state)


def _whole_stream(frames: Sequence[Changes], extents: Sequence[tuple[int, int]]) -> Iterator[Frame]:
    changed = sum(length for _, length in extents)
    yield Header(size=SIZE, extents=len(extents), changed_bytes=changed, source="snapshot", stream="0" * 32)
    count = done = marked = 0
    for frame in frames:
        yield frame
        count += len(frame.table)
        done += frame.changed_bytes
        if done - marked > 24 << 20:
            marked = done
            yield Mark(count, done)
    yield End(count, done)


class Round:
    """One receive that is cut, and what follows, in a folder of its own."""

    def __init__(self, material: Material, folder: Path, number: int, seed: int) -> None:
        self._material = material
        self._rng = random.Random(f"{seed}-{number}")
        self._folder = folder
        self._target = folder / "target.img"
        self._state = folder / "state.img"
        self._steps = 0
        self._share = folder / "share"
        kind = list(KINDS)[number % len(KINDS)]
        self.cut = Cut(number, kind)

    def run(self) -> Cut:
        """Run the round; what goes wrong is told in the result."""
        self._folder.mkdir(parents=True)
        shutil.copyfile(self._material.old, self._target)
        subprocess.run(["cp", "--sparse=always", str(self._material.state), str(self._state)], check=True)
        cut, rng = self.cut, self._rng
        self._cut_receive()
        if rng.random() < 0.35:
            self._step("recover", after=rng.uniform(0.5, 3.0))
            cut.recoveries += 1
        if self._step("recover") != 0:
            cut.wrong.append(f"recover failed: {self._said()}")
        cut.recoveries += 1
        cut.said = self._said()
        cut.result = self._judge()
        if cut.result not in ("old", "new"):
            cut.wrong.append("neither old nor new")
        if cut.had_ended and cut.result != "new":
            cut.wrong.append("the receive had succeeded")
        if "rolled back" in cut.said and cut.result != "old":
            cut.wrong.append(f"recover said: {cut.said}")
        self._check_files()
        if not cut.wrong:
            self._go_on()
        if not cut.wrong:
            shutil.rmtree(self._folder)
        return cut

    def _go_on(self) -> None:
        """Use the target again: back with the snapback, or forward with the same stream."""
        cut, rng = self.cut, self._rng
        if cut.result == "new" and "snapback" in cut.kind:
            if self._step("apply") != 0 or self._judge() != "old":
                cut.wrong.append(f"the snapback did not bring the target back: {self._said()}")
        elif cut.result == "old" and rng.random() < 0.3 and (self._step("receive") != 0 or self._judge() != "new"):
            cut.wrong.append(f"the stream was not applied again: {self._said()}")

    def _check_files(self) -> None:
        """What a transaction needs is gone with it, and a snapback is there if and only if the change stands."""
        files = (self._share / "files").read_text().split()
        rest = [file for file in files if file.endswith((".undo", ".spool", "-check"))]
        if rest:
            self.cut.wrong.append(f"left behind: {rest}")
        kept = "./keep.back" in files
        if kept != (self.cut.result == "new" and "snapback" in self.cut.kind):
            self.cut.wrong.append(f"the snapback is {'' if kept else 'not '}there")

    def _cut_receive(self) -> None:
        """Start the receive and cut it where the dice say."""
        cut, rng = self.cut, self._rng
        dice = rng.random()
        wanted, delay = rng.random(), rng.uniform(0, 0.05)
        if dice < 0.12:
            wanted, delay = 0.0, rng.uniform(0.3, 2.5)
            cut.trigger = f"{delay:.2f} s after its start"
        elif dice < 0.65:
            cut.trigger = f"behind {100 * wanted:.0f} %"
        elif dice < 0.85:
            wanted, delay = 1.0, rng.uniform(0, 0.7)
            cut.trigger = f"{delay:.2f} s behind 100 %"
        else:
            wanted = 2.0  # more than there is: only its end counts
            cut.trigger = "after its end"
        probe = Probe(self._material, self._target, rng)
        with self._boot("receive") as running:
            running.wait_for("started", 120)
            deadline = time.monotonic() + 120
            while probe.written() < wanted and not self._is("ended"):
                if time.monotonic() > deadline:
                    raise AssertionError(f"nothing goes on; the guest's console:\n{running.console}")
                time.sleep(0.005)
            time.sleep(delay)
            running.cut()
            cut.had_ended = self._is("ended") and (self._share / "ended").read_text() == "0\n"
            if self._is("ended") and not cut.had_ended:
                cut.wrong.append(f"receive failed: {self._said()}")
        cut.written = written_part(self._material, self._target)

    def _step(self, step: str, *, after: float | None = None) -> int | None:
        """Boot for one step and return its status; with ``after`` cut it that many seconds behind its start."""
        with self._boot(step) as running:
            if after is None:
                if not running.wait(300):
                    raise AssertionError(f"{step} does not end; the guest's console:\n{running.console}")
            else:
                running.wait_for("started", 120)
                time.sleep(after)
            running.cut()
        return int((self._share / "ended").read_text()) if self._is("ended") else None

    def _boot(self, step: str) -> guest.Guest:
        self._steps += 1
        self._share = self._folder / f"share{self._steps}"
        self._share.mkdir()
        version, arguments = KINDS[self.cut.kind]
        (self._share / "stream").hardlink_to(self._material.streams[version])
        return guest.Guest.start(
            guest.LAB / "power_cut.sh",
            disks=[self._state, self._target],
            share=self._share,
            env={"STEP": step, "ARGUMENTS": arguments},
            memory="512M",
        )

    def _is(self, name: str) -> bool:
        return (self._share / name).exists()

    def _said(self) -> str:
        path = self._share / "said"
        return " ".join(path.read_text().split()) if path.exists() else ""

    def _judge(self) -> str:
        found = checksum(self._target)
        names = {checksum(self._material.old): "old", checksum(self._material.new): "new"}
        return names.get(found, "MIXED")


def checksum(path: Path) -> str:
    """Return the sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Probe:
    """Tells cheaply how much of the change a target holds: from some places in it."""

    def __init__(self, material: Material, target: Path, rng: random.Random) -> None:
        self._target = target
        places = rng.sample(material.extents, 64)
        with material.new.open("rb") as new:
            self._places = [(offset, _read(new.fileno(), offset, min(length, 512))) for offset, length in places]

    def written(self) -> float:
        """Return the part of the places that are new."""
        with self._target.open("rb") as file:
            fd = file.fileno()
            return sum(_read(fd, at, len(new)) == new for at, new in self._places) / len(self._places)


def _read(fd: int, offset: int, length: int) -> bytes:
    return os.pread(fd, length, offset)


def written_part(material: Material, target: Path) -> float:
    """Return which part of the bytes that differ between old and new are new in the target."""
    old, new, now = (np.fromfile(path, np.uint8) for path in (material.old, material.new, target))
    differ = old != new
    return float((now[differ] == new[differ]).mean())


def storm(folder: Path, count: int, seed: int, *, jobs: int = 1, numbers: Sequence[int] | None = None) -> Iterator[Cut]:
    """Run ``count`` rounds (or those with the given numbers), and yield each as it ends."""
    material = make_material(folder / "material", seed)

    def run(number: int) -> Cut:
        return Round(material, folder / f"round{number}", number, seed).run()

    with ThreadPoolExecutor(jobs) as pool:
        yield from pool.map(run, range(count) if numbers is None else numbers)


def summarize(cuts: Sequence[Cut]) -> str:
    """Return the figures of a storm."""
    ended = Counter(cut.result for cut in cuts)
    middle = [cut for cut in cuts if 0 < cut.written < 1]
    untouched = sum(cut.written == 0 for cut in cuts)
    whole = [cut for cut in cuts if cut.written == 1]
    return (
        f"{len(cuts)} cuts: {ended['old']} ended old, {ended['new']} new, {len(cuts) - ended['old'] - ended['new']}"
        f" mixed. When the power went, {untouched} targets were untouched, {len(middle)} half written,"
        f" {len(whole)} wholly written ({sum(cut.had_ended for cut in whole)} of these receives had ended)."
        f" {sum(cut.recoveries > 1 for cut in cuts)} recoveries were cut, too."
        f" Wrong: {sum(bool(cut.wrong) for cut in cuts)}."
    )


def main() -> int:
    """Run a storm from the command line (scripts/powercuts)."""
    parser = argparse.ArgumentParser(prog="scripts/powercuts", description="A storm of power cuts of receive.")
    parser.add_argument("count", type=int, nargs="?", default=50, metavar="N", help="how many cuts (50)")
    parser.add_argument("seed", type=int, nargs="?", default=1, metavar="SEED", help="for all choices (1)")
    parser.add_argument("-j", "--jobs", type=int, default=2, help="guests at a time (2)")
    parser.add_argument("-o", "--only", type=int, action="append", metavar="NUMBER", help="only this round")
    options = parser.parse_args()
    lacking = guest.missing()
    if lacking:
        print(f"scripts/powercuts: {lacking}", file=sys.stderr)
        return 3
    began = time.monotonic()
    cuts = []
    folder = Path(tempfile.mkdtemp(prefix="lvmsync-powercuts-"))
    for cut in storm(folder, options.count, options.seed, jobs=options.jobs, numbers=options.only):
        print(cut, flush=True)
        cuts.append(cut)
    print(f"{summarize(cuts)} {time.monotonic() - began:.0f} s.")
    if any(cut.wrong for cut in cuts):
        print(f"disks and shares of what went wrong: {folder}", file=sys.stderr)
        return 1
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())

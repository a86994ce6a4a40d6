"""`archive combine` of 100 deltas of a 1 GiB volume in one pass, beside `cat`, and Ceph's `rbd merge-diff`.

Each delta has 6000 scattered blocks of 4 KiB. The command is the installed one; its peak memory is what the kernel
says. The same is done with an archive that is encrypted. `cat` reads all members and writes as many bytes as the
combination has, synced: what the disk allows. `rbd merge-diff` (where it is installed) merges two diffs at a time; it
gets ten of these deltas only: a hundred are a hundred passes over a diff that grows.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from lvmsync.chain.keys import KEY_FILE, Secret
from lvmsync.extents import ChangeMap
from lvmsync.history import Point
from lvmsync.jobs.archive.keys import init_sealed
from lvmsync.jobs.archive.shelf import Shelf
from lvmsync.jobs.archive.take import take
from lvmsync.jobs.progress import ignore
from lvmsync.jobs.send import StreamOptions
from lvmsync.sources.source import Source
from lvmsync.stores.folder import FolderStore
from tests.bench.bench_memory import LAUNCHER
from tests.bench.common import GIB, LVMSYNC, report, seconds
from tests.fakes import make_source

DELTAS, BLOCKS, BLOCK = 100, 6000, 4096
_PEERS_DELTAS = 10
_KEY = bytes(32)


class _Noise:
    """Bytes that neither compress nor repeat, another 1 GiB for each delta."""

    name = "noise"
    size = GIB

    def __init__(self, seed: int) -> None:
        self._noise = np.random.default_rng(seed).integers(0, 256, 1 << 20, np.uint8)

    def read(self, offsets: Sequence[int], lengths: Sequence[int], out: memoryview) -> None:
        at, target = 0, np.frombuffer(out, np.uint8)
        for offset, length in zip(offsets, lengths, strict=True):
            start = (offset // BLOCK * 61) % (len(self._noise) - length)
            target[at : at + length] = self._noise[start : start + length]
            at += length


def main(runs: int = 3) -> None:
    """Run and report."""
    with tempfile.TemporaryDirectory(prefix="lvmsync-bench-", dir="/tmp") as name:
        folder = Path(name)
        _make(folder / "master")
        _make(folder / "sealed", is_sealed=True)
        rows = []
        for level in ("none", "zstd:1"):
            for master in ("master", "sealed") * runs:
                rows.append(_measure(folder, level, master) | {"compress": level, "archive": master})
        report(f"{DELTAS} deltas of {BLOCKS} blocks of 4 KiB as one", rows)
        peer = _measure_rbd(folder)
        if peer:
            report(f"{_PEERS_DELTAS} of these deltas as one", [peer])


def _make(folder: Path, *, is_sealed: bool = False) -> None:
    store = FolderStore(folder)
    shelf = init_sealed(store, lambda: Secret(KEY_FILE, _KEY)) if is_sealed else Shelf.init(store)
    first = replace(_source(0), is_full=True, changes=ChangeMap.whole(GIB), holes=ChangeMap.whole(GIB))
    take(shelf, first, StreamOptions(level=0), ignore)
    for number in range(1, DELTAS + 1):
        chosen = np.sort(np.random.default_rng(number).choice(GIB // BLOCK, BLOCKS, replace=False)).astype(np.uint64)
        starts = chosen * np.uint64(BLOCK)
        changes = ChangeMap.from_arrays(starts, np.full_like(starts, BLOCK))
        take(shelf, replace(_source(number), base=_point(number - 1), changes=changes), StreamOptions(level=0), ignore)


def _source(number: int) -> Source:
    return replace(make_source(_Noise(number), []), head=_point(number), name="vg/lv")


def _point(number: int) -> Point:
    return Point(f"lv:{number}", None, None)


def _measure(folder: Path, level: str, master: str) -> dict[str, object]:
    """Combine a copy of the archive, and do the peer's work with the same files."""
    copy = folder / "copy"
    subprocess.run(["cp", "-a", str(folder / master), str(copy)], check=True)
    members = sorted(copy.glob("*.stream"), key=lambda one: one.stat().st_size)[-DELTAS:]
    there = sum(one.stat().st_size for one in members)
    subprocess.run(["sync", "-f", str(copy)], check=True)
    words = [LVMSYNC, "archive", "combine", str(copy), "2", str(DELTAS + 1), "-q", "--compress", level]
    if master == "sealed":
        (folder / "key").write_bytes(_KEY)
        (folder / "key").chmod(0o600)
        words += ["--key-file", str(folder / "key")]
    began = time.monotonic()
    subprocess.run([sys.executable, "-c", LAUNCHER, str(folder / "peak"), *words], check=True)
    ours = time.monotonic() - began
    status, peak = map(int, (folder / "peak").read_text().split())
    assert status == 0
    new = max(copy.glob("*.stream"), key=lambda one: one.stat().st_mtime).stat().st_size
    shutil.rmtree(copy)
    subprocess.run(["cp", "-a", str(folder / master), str(copy)], check=True)
    subprocess.run(["sync", "-f", str(copy)], check=True)
    files = " ".join(str(one) for one in members)
    cat = seconds(
        f"cat {files} > /dev/null; set +o pipefail;"  # head ends before cat does
        f" cat {files} | head -c {new} | dd of={folder}/out bs=1M iflag=fullblock conv=fsync status=none"
    )
    (folder / "out").unlink()
    shutil.rmtree(copy)
    return {
        "in_mb": there / 1e6,
        "out_mb": new / 1e6,
        "lvmsync_s": ours,
        "in_mb_per_s": there / 1e6 / ours,
        "peak_mb": peak * 1024 / 1e6,
        "cat_s": cat,
        "cat_is_faster": ours / cat,
    }


def _measure_rbd(folder: Path) -> dict[str, object] | None:
    """Merge some of the deltas with rbd, and with lvmsync; None where there is no rbd or no diffs for it."""
    if shutil.which("rbd") is None:
        return None
    copy = folder / "copy"
    subprocess.run(["cp", "-a", str(folder / "master"), str(copy)], check=True)
    diffs = [folder / f"{number}.diff" for number in range(1, _PEERS_DELTAS + 1)]
    for number, path in enumerate(diffs, 1):
        seconds(f"{LVMSYNC} archive export {copy} --from {number} --at {number + 1} --format rbd-diff -q -o {path}")
    began = time.monotonic()
    merged = diffs[0]
    for count, path in enumerate(diffs[1:]):
        out = folder / f"merged{count}"
        seconds(f"rbd merge-diff --no-progress {merged} {path} {out}", {"CEPH_ARGS": "--no-mon-config"})
        merged = out
    rbd = time.monotonic() - began
    ours = seconds(f"{LVMSYNC} archive combine {copy} 2 {_PEERS_DELTAS + 1} -q --compress none")
    return {"lvmsync_s": ours, "rbd_merge_diff_s": rbd, "times_faster": rbd / ours, "cores": os.cpu_count() or 0}


if __name__ == "__main__":
    main(*(int(word) for word in sys.argv[1:]))

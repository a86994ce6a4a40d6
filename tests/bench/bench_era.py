"""How long the changes of a big era device take to read, beside era_invalidate: 1 TiB in blocks of 64 KiB.

    python -m tests.bench.bench_era [--blocks N] [--runs N] [--folder DIRECTORY]

Metadata are made with era_restore, of several densities; each question is put to `lvmsync changes --json` and to
`era_invalidate` in turns, both from start to end of the process, with the metadata in the page cache and output
to /dev/null. Answers are compared once.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tests.bench.common import LVMSYNC, alternate, report, seconds, warm

GRANULARITY = 64 << 10
ERA = 20


def write_metadata(folder: Path, eras: npt.NDArray[np.uint32]) -> Path:
    """Write metadata with these eras, as era_restore makes it."""
    xml, path = folder / "eras.xml", folder / "metadata"
    path.unlink(missing_ok=True)
    with path.open("wb") as file:
        file.truncate((len(eras) // 1018 * 2 + 4096) * 4096)
    with xml.open("w") as text:
        text.write(
            f'<superblock uuid="" block_size="{GRANULARITY // 512}" nr_blocks="{len(eras)}" current_era="{ERA}">\n'
            "<era_array>\n"
        )
        for begin in range(0, len(eras), 1 << 16):
            part = enumerate(eras[begin : begin + (1 << 16)].tolist(), begin)
            text.write("\n".join(f'<era block="{block}" era="{era}"/>' for block, era in part) + "\n")
        text.write("</era_array>\n</superblock>\n")
    subprocess.run(["era_restore", "-i", str(xml), "-o", str(path)], check=True, capture_output=True)
    xml.unlink()
    return path


def make_eras(blocks: int, share: float, run: int) -> npt.NDArray[np.uint32]:
    """Return an era for each block: ``share`` of them were written, in runs of ``run`` blocks."""
    chance = np.random.default_rng(1)
    runs = -(-blocks // run)
    eras = np.where(chance.random(runs) < share, chance.integers(1, ERA, runs), 0)
    return np.repeat(eras, run)[:blocks].astype(np.uint32)


def require_same(ours: str, theirs: str) -> None:
    """Compare the answers of both programs."""
    found = json.loads(subprocess.run(["bash", "-c", ours], check=True, capture_output=True, text=True).stdout)
    text = subprocess.run(["bash", "-c", theirs], check=True, capture_output=True, text=True).stdout
    total = len(re.findall(r"<block ", text))
    total += sum(int(end) - int(begin) for begin, end in re.findall(r'begin="(\d+)" end\s*=\s*"(\d+)"', text))
    if found["changed_bytes"] != total * GRANULARITY:
        raise SystemExit(f"{found['changed_bytes']} bytes, and era_invalidate says {total} blocks")


def measure_peak(command: str) -> int:
    """Return the most memory that a command had, in MiB."""
    code = "import resource, subprocess, sys; subprocess.run(['bash', '-c', 'exec ' + sys.argv[1]], check=True)"
    code += "; print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss >> 10, file=sys.stderr)"
    done = subprocess.run(["python3", "-c", code, command], check=True, capture_output=True, text=True)
    return int(done.stderr.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--blocks", type=int, default=1 << 24)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        for title, share, run in (("1 % in runs of 16", 0.01, 16), ("10 % scattered", 0.1, 1), ("all", 1.0, 1)):
            path = write_metadata(Path(name), make_eras(options.blocks, share, run))
            warm(path)
            for since in (1, ERA // 2, ERA):
                ours = f"{LVMSYNC} changes --quiet --json era:{path},since={since}"
                theirs = f"era_invalidate --written-since {since} {path}"
                require_same(ours, theirs)
                mine, other = alternate(
                    options.runs,
                    lambda command=ours: seconds(f"{command} >/dev/null"),  # type: ignore[misc]
                    lambda command=theirs: seconds(f"{command} >/dev/null"),  # type: ignore[misc]
                )
                extents = json.loads(subprocess.run(["bash", "-c", ours], check=True, capture_output=True).stdout)
                row = {"written": title, "since": since, "extents": len(extents["extents"]), "lvmsync": mine}
                peaks = {"MiB": measure_peak(f"{ours} >/dev/null"), "its MiB": measure_peak(f"{theirs} >/dev/null")}
                rows.append({**row, "era_invalidate": other, "ratio": mine / other, **peaks})
                print(json.dumps(rows[-1]), file=sys.stderr, flush=True)  # the next may take a while
    report(f"changes of {options.blocks} blocks, seconds", rows)


if __name__ == "__main__":
    main()

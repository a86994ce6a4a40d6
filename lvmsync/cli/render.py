"""How jobs look in a terminal, a log, and a file: progress, receipts, and pictures of change maps."""

from __future__ import annotations

import io
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from html import escape

import numpy as np
import numpy.typing as npt

from lvmsync.cli.files import print_text
from lvmsync.errors import UsageError
from lvmsync.extents import ChangeMap
from lvmsync.jobs.agent.peer import Peer
from lvmsync.jobs.progress import GroupReceipt, Progress, Receipt, Report, ignore
from lvmsync.sources.source import Source
from lvmsync.units import size_words

_SHADES = "·░▒▓█"
_ROWS = 1 << 14  # extents that are printed at a time
_EVERY = 5.0  # seconds between two lines of progress where there is no terminal
_LESS = 1.05  # times less than a full copy: what is below that is not worth a word

size = size_words
"""A number of bytes for people."""


def counted(extents: int) -> str:
    """Return a number of extents for people."""
    return f"{extents} extent{'' if extents == 1 else 's'}"


@contextmanager
def progress(style: str) -> Iterator[Report]:
    """Yield a report function that shows progress on stderr.

    Args:
        style: "auto" (a bar in a terminal, else a line now and then), "json" (lines of JSON) or "none".
    """
    if style not in ("auto", "json", "none"):
        raise UsageError(f"--progress {style}: choose auto, json or none")
    if style == "none":
        yield ignore
    elif style == "json":
        yield _throttled(_print_json, 0.5)
    elif sys.stderr.isatty():
        with _bar() as report:
            yield _throttled(report, 0.1)
    else:
        began = time.monotonic()
        yield _throttled(lambda state: _print_line(state, began), _EVERY, wait=True)


def _throttled(report: Report, every: float, *, wait: bool = False) -> Report:
    """Call ``report`` so often at the most; with ``wait`` not at the very beginning either."""
    last = time.monotonic() if wait else float("-inf")

    def maybe(state: Progress) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= every:
            last = now
            report(state)

    return maybe


def _print_json(state: Progress) -> None:
    print(json.dumps(asdict(state)), file=sys.stderr, flush=True)


def _print_line(state: Progress, began: float) -> None:
    rate = state.done / max(time.monotonic() - began, 1e-9)
    of = f" of {size(state.total)} ({100 * state.done / state.total:.0f} %)" if state.total else ""
    left = f", {(state.total - state.done) / rate:.0f} s left" if state.total and rate else ""
    print(f"{state.phase}: {size(state.done)}{of}, {size(rate)}/s{left}", file=sys.stderr, flush=True)


@contextmanager
def _bar() -> Iterator[Report]:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
    from rich.progress import Progress as Bars

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(binary_units=True))
    with Bars(
        *columns, TransferSpeedColumn(), TimeRemainingColumn(), console=Console(stderr=True), transient=True
    ) as bars:
        task = bars.add_task("starting", total=None)

        def report(state: Progress) -> None:
            bars.update(task, description=state.phase, completed=state.done, total=state.total)

        yield report


def print_receipt(receipt: Receipt, *, as_json: bool, quiet: bool, write: Callable[[str], object] = print_text) -> None:
    """Say what was done: one JSON object to ``write``, or a few lines on stderr."""
    if as_json:
        write(json.dumps(asdict(receipt)) + "\n")
        return
    for note in receipt.notes:
        print(f"note: {note}", file=sys.stderr)
    for offset, length in receipt.dropped:
        print(f"dropped: {length} bytes at {offset}, past the end of the target", file=sys.stderr)
    if not quiet:
        print(_summary(receipt), file=sys.stderr)


def print_group(receipt: GroupReceipt, *, as_json: bool, quiet: bool) -> None:
    """Say what was done with a group: one JSON object to stdout, or lines on stderr."""
    if as_json:
        print_text(json.dumps(asdict(receipt)) + "\n")
        return
    for one in receipt.members:
        print_receipt(replace(one, notes=[f"{one.source}: {note}" for note in one.notes]), as_json=False, quiet=quiet)
    for note in receipt.notes:
        print(f"note: {note}", file=sys.stderr)
    if not quiet:
        was = "was" if len(receipt.members) == 1 else "were"
        done = "would be committed" if receipt.dry_run else f"{was} committed"
        still = f"; writes stood still for {receipt.still_seconds:.1f} s at the most" if receipt.still_seconds else ""
        count = f"{len(receipt.members)} volume{'' if len(receipt.members) == 1 else 's'}"
        print(f"group {receipt.group}: {count} {done} together{still}", file=sys.stderr)


def _kept(receipt: Receipt) -> str:
    """Return where what was overwritten is."""
    if receipt.archive:
        return f"; its past is in {receipt.archive}"
    return f"; snapback {receipt.snapback}" if receipt.snapback else ""


def _summary(receipt: Receipt) -> str:
    if receipt.job == "recover":
        return f"{receipt.target}: done in {receipt.seconds:.1f} s"
    what = f"{size(receipt.bytes)} in {counted(receipt.extents)}"
    is_less = receipt.ratio is not None and receipt.ratio >= _LESS
    ratio = f", {receipt.ratio:.1f} times less than a full copy" if is_less else ""
    rate = f", {size(receipt.rate)}/s" if receipt.bytes else ""
    speed = f"{receipt.seconds:.1f} s{rate}{ratio}"
    if receipt.dry_run:
        return f"dry run: nothing was written; it would be {what} (a device of {size(receipt.size or 0)})"
    if not receipt.bytes:
        what = f"nothing {'differed' if receipt.job == 'repair' else 'had changed'}: 0 bytes"
    match receipt.job:
        case "send":
            return f"sent {what} in {speed}; written, not confirmed by a receiver"
        case "repair":
            kept = _kept(receipt)
            return f"{receipt.target} is a copy of {receipt.source} again: sent {what} in {speed}; durable there{kept}"
        case "sync":
            kept = _kept(receipt)
            done = f"synced {what} to" if receipt.bytes else f"{what} had to go to"
            return f"{done} {receipt.target} in {speed}; confirmed and durable there{kept}"
        case _:
            kept = _kept(receipt)
            return f"{receipt.target}: applied {what} in {speed}; durable{kept}"


def hear(peer: Peer, line: str) -> None:
    """Show a line that the far side wrote on its stderr, and remember it."""
    peer.last_words = line
    if line.startswith("lvmsync: "):
        return  # its error: ours will quote it
    print(f"{peer.place}: {line}", file=sys.stderr)


def changes_json(source: Source) -> Iterator[str]:
    """Yield, in pieces, the JSON object that ``changes --json`` prints: a map may have millions of extents."""
    facts = {
        "source": source.name,
        "size": source.size,
        "granularity": source.granularity,
        "changed_bytes": source.changes.total_bytes,
    }
    yield json.dumps(facts)[:-1]
    for key, ranges in (("extents", source.changes), ("holes", source.holes)):
        yield f', "{key}": '
        yield from ranges_json(ranges)
    yield "}\n"


def ranges_json(ranges: ChangeMap) -> Iterator[str]:
    """Yield, in pieces, the JSON list of a map's extents as ``[offset, length]``."""
    yield "["
    for begin in range(0, len(ranges), _ROWS):
        offsets = ranges.offsets[begin : begin + _ROWS]
        pairs = np.stack([offsets, ranges.ends[begin : begin + _ROWS] - offsets], axis=1).ravel().tolist()
        # One format for many numbers takes half the time of json.dumps.
        yield (", " if begin else "") + ", ".join(["[%d, %d]"] * len(offsets)) % tuple(pairs)
    yield "]"


def density(changes: ChangeMap, device_size: int, cells: int) -> npt.NDArray[np.float64]:
    """Return which part of each of ``cells`` equal pieces of the device is in the map: 0 to 1."""
    edges = np.linspace(0, device_size, cells + 1)
    # Bytes of the map before a position: whole extents by a running sum, and a part of the one it cuts.
    lengths = (changes.ends - changes.offsets).astype(np.float64)
    before = np.concatenate([[0.0], np.cumsum(lengths)])
    index = np.searchsorted(changes.offsets, edges.astype(np.uint64), "right")
    covered = before[index]
    inside = index > 0
    ends = changes.ends[index[inside] - 1].astype(np.float64)
    covered[inside] -= np.maximum(ends - edges[inside], 0.0)
    width = device_size / cells if device_size else 1.0
    return np.clip(np.diff(covered) / width, 0.0, 1.0)


def print_map(changes: ChangeMap, device_size: int, width: int, *, color: bool) -> None:
    """Draw the device in the terminal: a row of cells after another, darker where more of it changed."""
    from rich.console import Console
    from rich.text import Text

    rows = max(1, min(16, -(-device_size // (width * 4096))))
    cells = density(changes, device_size, width * rows)
    picture = io.StringIO()
    console = Console(
        file=picture, force_terminal=color, color_system="standard" if color else None, highlight=False, soft_wrap=True
    )
    label = max(len(size(device_size)), 9)
    for row in range(rows):
        line = Text(f"{size(device_size * row / rows):>{label}} ")
        for part in cells[row * width : (row + 1) * width]:
            shade = 0 if part == 0 else 1 + min(3, int(part * 4))
            line.append(_SHADES[shade], style=("dim", "cyan", "green", "yellow", "red")[shade])
        console.print(line)
    console.print("".rjust(label) + " {} unchanged  {} < 25 %  {} < 50 %  {} < 75 %  {} more".format(*_SHADES))
    print_text(picture.getvalue())


def _printable(text: str) -> str:
    """Return text without what XML cannot hold."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def draw_svg(changes: ChangeMap, device_size: int, title: str) -> str:
    """Return the device as an SVG picture of 64 columns, a colour for how much of each cell changed."""
    columns, rows, side = 64, 32, 12
    cells = density(changes, device_size, columns * rows)
    boxes = []
    for index in np.flatnonzero(cells).tolist():
        part = float(cells[index])
        x, y = index % columns * side, 40 + index // columns * side
        start = size(device_size * index / (columns * rows))
        boxes.append(
            f'<rect x="{x}" y="{y}" width="{side - 1}" height="{side - 1}" fill="hsl({120 - 120 * part:.0f},70%,45%)">'
            f"<title>at {start}: {100 * part:.1f} % changed</title></rect>"
        )
    width, height = columns * side, 40 + rows * side
    changed = changes.total_bytes
    share = 100 * changed / device_size if device_size else 0
    caption = f"{size(changed)} of {size(device_size)} changed ({share:.2f} %), {counted(len(changes))}"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
        f' font-family="sans-serif" font-size="13">\n<rect width="{width}" height="{height}" fill="#fff"/>\n'
        f'<rect y="40" width="{width}" height="{rows * side}" fill="#e8e8e8"/>\n'
        f'<text x="4" y="16">{escape(_printable(title), quote=False)}</text>\n'
        f'<text x="4" y="33">{caption}</text>\n' + "\n".join(boxes) + "\n</svg>\n"
    )

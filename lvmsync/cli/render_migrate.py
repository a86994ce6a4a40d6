"""How a migration looks while it runs: a few live lines in a terminal, plain lines in a log, or JSON."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict

from lvmsync.errors import UsageError
from lvmsync.jobs.migrate.move import Outcome, Status, Tell
from lvmsync.units import size_words

_EVERY = 5.0  # seconds between two lines where there is no terminal
_JSON_EVERY = 0.5
_LIVE_EVERY = 0.1


@contextmanager
def view(style: str) -> Iterator[Tell]:
    """Yield what shows a migration on stderr.

    Args:
        style: "auto" (live lines in a terminal, else a line now and then), "json" (lines of JSON) or "none".
    """
    if style not in ("auto", "json", "none"):
        raise UsageError(f"--progress {style}: choose auto, json or none")
    if style == "none":
        yield lambda _: None
    elif style == "json":
        yield _seldom(lambda status: _print(json.dumps(asdict(status))), _JSON_EVERY)
    elif sys.stderr.isatty():
        with _live() as tell:
            yield tell
    else:
        yield _seldom(lambda status: _print(f"migrate: {status.words or line(status)}"), _EVERY)


def _print(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _seldom(show: Tell, every: float) -> Tell:
    """Show what has words at once, and numbers so often at the most."""
    last = time.monotonic()

    def tell(status: Status) -> None:
        nonlocal last
        now = time.monotonic()
        if status.words or now - last >= every:
            last = now
            show(status)

    return tell


@contextmanager
def _live() -> Iterator[Tell]:
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    console = Console(stderr=True)
    last = 0.0
    with Live(console=console, transient=True, auto_refresh=False) as live:

        def tell(status: Status) -> None:
            nonlocal last
            if status.words:
                console.print(Text(status.words))
            now = time.monotonic()
            if status.words or now - last >= _LIVE_EVERY:
                last = now
                live.update(Text("\n".join(block(status))), refresh=True)

        yield tell


def block(status: Status) -> list[str]:
    """Return the live lines: what it does, how fast, and how long the source would stand still."""
    fills = [
        f"{name} {100 * part:.0f} % full"
        for name, part in (("snapshot stores", status.store_fill), ("target pool", status.pool_fill))
        if part is not None
    ]
    speeds = [
        f"{size_words(rate)}/s {what}"
        for rate, what in ((status.rate, "sent"), (status.dirty_rate, "change"))
        if rate is not None
    ]
    downtime = "not known yet" if status.predicted is None else f"{status.predicted:.1f} s"
    return [
        f"pass {status.pass_number}  {_bar(status)}",
        f"rates     {', '.join(speeds) or 'not known yet'}",
        f"downtime  {downtime} if stopped now, {status.max_downtime:g} s allowed",
        *([f"space     {', '.join(fills)}"] if fills else []),
    ]


def line(status: Status) -> str:
    """Return how it is getting on, in one line."""
    if not status.total:
        return f"pass {status.pass_number}: {status.step}"
    predicted = "" if status.predicted is None else f", predicted downtime {status.predicted:.1f} s"
    done = f"{size_words(status.done)} of {size_words(status.total)} ({100 * status.done / status.total:.0f} %)"
    return f"pass {status.pass_number}: {status.step} {done}{predicted}"


def _bar(status: Status, width: int = 30) -> str:
    if not status.total:
        return status.step
    full = min(width, width * status.done // status.total)
    return f"{'━' * full}{'╌' * (width - full)} {size_words(status.done)} of {size_words(status.total)}, {status.step}"


def print_outcome(outcome: Outcome, *, as_json: bool, quiet: bool) -> None:
    """Say what was done: one JSON object on standard output, or a few lines on stderr."""
    from lvmsync.cli.files import print_text

    if as_json:
        print_text(json.dumps(asdict(outcome)) + "\n")
        return
    for note in outcome.notes:
        _print(f"note: {note}")
    if not quiet:
        _print(summary(outcome))


def summary(outcome: Outcome) -> str:
    """Return what a migration did, in one sentence."""
    checked = {"whole": ", compared as a whole", "changes": ", changes compared"}.get(outcome.verified, "")
    until = "until the start command had returned" if "start" in outcome.parts else "until the target was whole"
    passes = f"{len(outcome.passes)} pass{'' if len(outcome.passes) == 1 else 'es'}"
    return (
        f"migrated {outcome.source} to {outcome.target}: {size_words(outcome.bytes)} in {passes} and"
        f" {outcome.seconds:.1f} s{checked}; downtime {outcome.downtime:.1f} s {until} (predicted"
        f" {outcome.predicted_downtime:.1f} s, allowed {outcome.max_downtime:g} s)"
    )

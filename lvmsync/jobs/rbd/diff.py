"""A source as an RBD diff: to ``rbd import-diff``, or to a file for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lvmsync.formats.rbd_diff import END, DiffHeader, encode_changes, encode_header
from lvmsync.jobs.progress import Progress, Receipt, Report, Stopwatch
from lvmsync.jobs.send import read_frames
from lvmsync.sources.source import Source
from lvmsync.stream.frames import Buffer, Data


@dataclass(frozen=True)
class Sent:
    """What was sent.

    Attributes:
        extents: how many of changes.
        bytes: of changes.
        wire_bytes: of the diff.
    """

    extents: int = 0
    bytes: int = 0
    wire_bytes: int = 0


def write_diff(
    source: Source,
    start: str | None,
    end: str | None,
    send: Callable[[Sequence[Buffer]], None],
    report: Report,
    *,
    is_blank: bool = False,
) -> Sent:
    """Send all changes of a source, and the end mark only if it confirms them.

    Args:
        source: what changed.
        start: name of the snapshot that the diff starts from; None: from an empty image.
        end: name of the snapshot that it leads to.
        send: takes the bytes.
        report: takes the progress.
        is_blank: it goes onto what reads as zeros everywhere, so that those need not be sent.
    """
    total = source.changes.total_bytes - (source.changes & source.holes).total_bytes
    header = encode_header(DiffHeader(start, end, source.size))
    send([header])
    done, wire = 0, len(header)
    report(Progress("sending", 0, total))
    for frame, _ in read_frames(source, 0):
        is_data = isinstance(frame, Data)
        if is_data or not is_blank:
            buffers = encode_changes(frame)
            send(buffers)
            wire += sum(map(len, buffers))
        done += frame.changed_bytes if is_data else 0
        report(Progress("sending", done, total))
    source.confirm()
    send([END])
    return Sent(len(source.changes), source.changes.total_bytes, wire + len(END))


def export_diff(
    source: Source, start: str | None, end: str, send: Callable[[Sequence[Buffer]], None], report: Report
) -> Receipt:
    """Send a source as a diff; arguments as of `write_diff`."""
    watch = Stopwatch()
    sent = write_diff(source, start, end, send, report)
    return Receipt(
        job="archive export", source=source.name, bytes=sent.bytes, extents=sent.extents, wire_bytes=sent.wire_bytes,
        seconds=round(watch.seconds, 3), rate=round(sent.bytes / watch.seconds), size=source.size,
        ratio=round(source.size / sent.bytes, 2) if sent.bytes else None,
        point=source.head.id if source.head else None,
        notes=[*source.notes, f"'rbd import-diff' makes the snapshot {end} of it" + (f", on {start}" if start else "")],
    )  # fmt: skip

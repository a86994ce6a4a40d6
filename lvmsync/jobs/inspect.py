"""Explain a stream file: what it is about, what it carries, and whether every byte of it is good."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from lvmsync.jobs.receive import read_stream
from lvmsync.stream.frames import Abort, Data, Header, Hole, Mark, Zero
from lvmsync.stream.session import Receiver


def inspect(receive_some: Callable[[memoryview], int], name: str) -> dict[str, Any]:
    """Read a whole stream and return what there is to say of it, for ``--json``.

    Raises:
        StreamError: it is damaged, cut short, or no stream.
    """
    session = Receiver()
    extents: Counter[str] = Counter()
    changed: Counter[str] = Counter()
    marks = 0
    end = 0
    aborted = None
    for frame in read_stream(receive_some, session):
        match frame:
            case Data() | Zero() | Hole():
                kind = type(frame).__name__.lower()
                extents[kind] += len(frame.table)
                changed[kind] += frame.changed_bytes
                end = max(end, int((frame.table[:, 0] + frame.table[:, 1]).max()))
            case Mark():
                marks += 1
            case Abort(reason):
                aborted = reason
            case Header():
                pass
    header = {key: value for key, value in asdict(session.header).items() if value is not None}
    return {
        "file": name,
        "format": session.version,
        "complete": None if session.version == 3 else aborted is None,
        "aborted": aborted,
        "header": header if session.version == 4 else {},
        "extents": session.extents,
        "changed_bytes": session.changed_bytes,
        "last_end": end,
        "extents_by_kind": dict(extents),
        "bytes_by_kind": dict(changed),
        "marks": marks,
        "digest": session.digest,
        "note": "PROTO[3] has no checksums and no end mark: whether it is whole cannot be known"
        if session.version == 3
        else None,
    }

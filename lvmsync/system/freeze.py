"""Freezing file systems for a moment, with a watchdog that thaws them whatever becomes of us."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from lvmsync.errors import UsageError
from lvmsync.system.holds import held
from lvmsync.system.mounts import list_mounts

LIMIT = 10.0
"""Seconds that a file system stays frozen at most."""


@contextmanager
def frozen(points: Sequence[str], *, limit: float = LIMIT) -> Iterator[None]:
    """Freeze the file systems that are mounted at these points, for the time of the block.

    Nothing in the block may write to them, which is found out the hard way: the writer waits until the limit.

    Args:
        points: where they are mounted; two of one file system count once.
        limit: seconds after which they are thawed, whatever happens.

    Raises:
        UsageError: nothing is mounted at one of them.
        DeviceError: one of them cannot be frozen, or all were thawed before the block ended.
    """
    mounts = list_mounts()
    chosen: dict[int, str] = {}
    for point in points:
        path = str(Path(point).resolve())
        at = [index for index, mount in enumerate(mounts) if mount.point == path]
        if not at:
            raise UsageError(f"nothing is mounted at {point}")
        mount = mounts[at[-1]]  # the one that is seen there
        first = next(index for index, other in enumerate(mounts) if other.number == mount.number)
        chosen.setdefault(first, path)
    # The newest mount first: an image file that is mounted lies on a file system that was there before.
    with held("frozen", [chosen[index] for index in sorted(chosen, reverse=True)], limit=limit):
        yield

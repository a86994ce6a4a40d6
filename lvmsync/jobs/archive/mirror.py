"""The mirror of an archive: the device that its snapbacks lead back from, held as long as it is read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lvmsync.chain.catalogue import Catalogue
from lvmsync.errors import ConflictError
from lvmsync.jobs.archive.restore import Mirror
from lvmsync.system import seen
from lvmsync.system.ledger import open_ledger
from lvmsync.targets.block import open_target


@contextmanager
def open_mirror(path: str, state: Path, catalogue: Catalogue) -> Iterator[Mirror]:
    """Claim a mirror, so that nothing changes it meanwhile, and yield it with the point that it is at.

    Args:
        path: of the device or file.
        state: the state folder of this machine, whose ledger knows the point.
        catalogue: of the archive.

    Raises:
        DeviceError: it is in use, mounted, or not there.
        ConflictError: it is in the middle of something, was written to, or is at a point that the archive has not.
    """
    with (
        open_target(path) as target,
        open_ledger(state, target.canonical, target.identity, target.size) as ledger,
    ):
        record, name = ledger.record, target.name
        if record.transaction:
            raise ConflictError(
                f"{name} is in the middle of a receive: run 'lvmsync recover {name}' first", device=name
            )
        if record.dirty or record.point is None:
            why = "a write to it failed" if record.dirty else "no sync of this machine has brought it to a point"
            raise ConflictError(
                f"{name}: what it holds is not known: {why}; so nothing leads back from it", device=name
            )
        if seen.was_written(record.seen, seen.look_at_target(target.fd)) == "yes":
            raise ConflictError(
                f"{name} was written to by something else since it was brought to {record.point.id}: bring it up to"
                " date with 'lvmsync repair' or 'compare:' first",
                device=name,
            )
        if catalogue.find(record.point.id) is None:
            raise ConflictError(
                f"{name} is at {record.point.id}, and the archive does not have that point: a snapback is missing"
                " there, or it is another device's archive",
                device=name,
            )
        yield Mirror(target, record.point.id)

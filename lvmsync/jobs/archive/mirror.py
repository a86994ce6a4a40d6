"""The mirror of an archive: the device that its snapbacks lead back from, held as long as it is read."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from lvmsync.chain.catalogue import Catalogue
from lvmsync.errors import ConflictError
from lvmsync.extents import ChangeMap
from lvmsync.jobs.archive.digest import digest_state
from lvmsync.jobs.archive.fit import find_name
from lvmsync.jobs.archive.restore import Mirror
from lvmsync.system import identity, past_views, seen
from lvmsync.system.device import Device, open_device
from lvmsync.system.ledger import Ledger, open_ledger
from lvmsync.targets.block import BlockTarget, open_target


@dataclass(frozen=True)
class ClaimedMirror:
    """A mirror that nobody else can have, and that no receive of ours can begin on.

    Attributes:
        mirror: as it is read.
        canonical: the name that it keeps over reboots.
        fd: a descriptor of it that claims nothing.
        let_go: gives the claim up, so that a mapped device can take it; receives are still refused.
    """

    mirror: Mirror
    canonical: str
    fd: int
    let_go: Callable[[], None]
    _look: dict[str, str] | None

    @property
    def was_written(self) -> bool:
        """Whether it is known to have been written to since it was claimed."""
        return seen.was_written(self._look, seen.look_at_target(self.fd)) == "yes"


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
    with claim_mirror(path, state, catalogue) as claimed:
        yield claimed.mirror


@contextmanager
def claim_mirror(path: str, state: Path, catalogue: Catalogue) -> Iterator[ClaimedMirror]:
    """Do as `open_mirror`, for one who gives the claim to a mapped device."""
    with ExitStack() as claim:
        device = claim.enter_context(_open_alone(path))
        canonical = identity.canonical_name(path, device.fd)
        fd = os.open(f"/proc/self/fd/{device.fd}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            with open_ledger(state, canonical, identity.identify(device.fd), device.size) as ledger:
                look = seen.look_at_target(fd)
                point = _require_known(ledger, look, path, catalogue, device)
                yield ClaimedMirror(Mirror(device, point), canonical, fd, claim.close, look)
        finally:
            os.close(fd)


def _open_alone(path: str) -> AbstractContextManager[BlockTarget | Device]:
    """Open a mirror for us alone; below past states that are mounted it is held already, and nobody can write to it."""
    return open_device(path) if past_views.find_above(path) else open_target(path)


def _require_known(
    ledger: Ledger, look: dict[str, str] | None, name: str, catalogue: Catalogue, device: BlockTarget | Device
) -> str:
    """Return the point that a mirror is at: what the ledger says, or else what all of its bytes say.

    Raises:
        ConflictError: it is not known, or not one of the archive's.
    """
    record = ledger.record
    if record.transaction:
        raise ConflictError(f"{name} is in the middle of a receive: run 'lvmsync recover {name}' first", device=name)
    if record.dirty or record.point is None:
        why = "a write to it failed" if record.dirty else "no sync of this machine has brought it to a point"
        raise ConflictError(f"{name}: what it holds is not known: {why}; so nothing leads back from it", device=name)
    if seen.was_written(record.seen, look) == "yes":
        raise ConflictError(
            f"{name} was written to by something else since it was brought to {record.point.id}: bring it up to"
            " date with 'lvmsync repair' or 'compare:' first",
            device=name,
        )
    point = find_name(catalogue, record) or (None if record.owed else _recognise(device, catalogue))
    if point is None:
        way = f": run 'lvmsync recover {name}', and it has" if record.owed else ""
        raise ConflictError(
            f"{name} is at {record.point.id}, and the archive does not have that point"
            + (way or ": a snapback is missing there, or it is another device's archive"),
            device=name,
        )
    return point


def _recognise(device: BlockTarget | Device, catalogue: Catalogue) -> str | None:
    """Return the point whose bytes a mirror holds, read whole; None: none of those whose digest is known.

    So a mirror that was repaired after somebody else wrote to it, and has another name for that, is one again.
    """
    known = {one.digest: one.id for one in catalogue.points if one.digest and one.size == device.size}
    return known.get(digest_state(device, device.size, ChangeMap.empty())) if known else None

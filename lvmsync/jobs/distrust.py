"""A target that was found to differ from what it should hold: that is remembered, until it is copied anew or mended."""

from __future__ import annotations

from pathlib import Path

from lvmsync.system.ledger import open_ledger
from lvmsync.targets.block import open_target


def distrust(path: str, state: Path) -> None:
    """Note of a target that what it holds is not known, so that no delta is taken for it.

    Args:
        path: of the target.
        state: the state folder.

    Raises:
        DeviceError, ConflictError: it cannot be claimed.
    """
    with (
        open_target(path) as target,
        open_ledger(state, target.canonical, target.identity, target.size) as ledger,
    ):
        ledger.write(dirty=True)

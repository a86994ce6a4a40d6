"""``sync`` of a volume: one pass, and after a broken line as many more as it takes to finish it."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from lvmsync.errors import LvmsyncError, PeerError, TransportError
from lvmsync.jobs.agent.client import Agent
from lvmsync.jobs.progress import Progress, Receipt, Report
from lvmsync.jobs.replica.choose import TargetBusy
from lvmsync.jobs.replica.copy import PassOptions, open_replica, run_pass
from lvmsync.system.lvm import LogicalVolume

RETRIES = 3
"""How often a run whose line has failed begins again by itself."""

WAIT = 2.0
"""Seconds before the first of these; each further one waits twice as long."""


def sync_volume(
    connect: Callable[[], Agent],
    volume: LogicalVolume,
    target: str,
    place: str,
    state: Path,
    options: PassOptions,
    report: Report,
    *,
    retries: int = RETRIES,
    wait: float = WAIT,
) -> Receipt:
    """Bring a target up to date with a volume; after a broken line, go on where it was.

    Args:
        connect: returns an agent on the target's machine, another one if the last one's session is over.
        volume: the source.
        target: VG/LV or path there.
        place: the target as its user named it.
        state: the state folder of this machine.
        options: how.
        report: takes the progress.
        retries: how often a failed line is tried again.
        wait: seconds before the first of these.

    Raises:
        LvmsyncError: the last failure, with how often it was tried.
    """
    tries = 0
    was_connected = False
    notes: list[str] = []
    while True:
        try:
            agent = connect()
            was_connected = True
            with open_replica(agent, volume, target, place, state) as replica:
                receipt = run_pass(replica, agent, options, report).receipt
            receipt.notes[:0] = notes
            return receipt
        except LvmsyncError as error:
            if not was_connected or not _may_pass(error, tries) or tries >= retries:
                if tries:
                    error.add_note(f"it was tried {tries + 1} times; run it again to go on where it was")
                raise
            notes.append(f"the line failed and was opened again: {error}")
        report(Progress(f"trying again ({tries + 1} of {retries})", 0, None))
        time.sleep(wait * 2**tries)
        tries += 1


def _may_pass(error: LvmsyncError, tries: int) -> bool:
    """Tell whether trying again may help: the line failed, or the far side has not noticed yet that it did."""
    if isinstance(error, TargetBusy):
        return tries > 0
    return error.transient or (isinstance(error, PeerError) and error.exit_code == TransportError.exit_code)

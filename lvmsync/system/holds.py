"""What is held still for a moment, file systems and devices, and the folder with a note of each such hold.

    RUN/lvm.lock     held by whoever runs an LVM command that changes something
        holds/ID     one line of JSON: what is frozen or suspended, by whom, until when

RUN is ``$LVMSYNC_STATE/run``, else ``/run/lvmsync`` for root, else ``run`` in the state folder. For root it is in
memory: what is noted does not outlive the boot either, and a note can be written while the disk is frozen.
"""

from __future__ import annotations

import os
from pathlib import Path

from lvmsync.system.ledger import state_folder


def run_folder() -> Path:
    """Return the folder RUN."""
    if os.geteuid() == 0 and not os.environ.get("LVMSYNC_STATE"):
        return Path("/run/lvmsync")
    return state_folder() / "run"

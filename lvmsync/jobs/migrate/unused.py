"""Whether a target is used after its start command has failed: it may have got as far as that before."""

from __future__ import annotations

import time
from collections.abc import Callable

from lvmsync.jobs.standing import Standing

_LOOKS = 4
_PAUSE = 0.5  # seconds; what failed may take a moment to let go, and udev looks at what was closed


def find_use(ask: Callable[[], Standing]) -> str | None:
    """Return why a target may be in use or have a newer state than its source; None if it has not.

    Args:
        ask: returns what is known of the target now.

    Raises:
        LvmsyncError: it cannot be asked.
    """
    for look in range(_LOOKS):
        if look:
            time.sleep(_PAUSE)
        standing = ask()
        if standing.in_use is None:
            break
    if standing.in_use:
        return standing.in_use
    return "it was written to" if standing.written == "yes" else None

"""The far side on this machine: lvmsync once more, as a child process of the same interpreter."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from lvmsync.transport import pipe


class Local(pipe.Command):
    """A child that runs this lvmsync with other words."""

    def __init__(
        self, words: Sequence[str], on_stderr: Callable[[str], None], *, stall_timeout: float | None = None
    ) -> None:
        # -P: what lies in the working folder must not be taken for lvmsync
        argv = [sys.executable, "-P", "-m", "lvmsync", *words]
        super().__init__(argv, on_stderr, name="lvmsync on this machine", stall_timeout=stall_timeout)

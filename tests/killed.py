"""SIGKILL at any step of a job that changes files."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from typing import Any

STEPS = ("open", "write", "fsync", "link", "unlink", "rename")
"""Calls to the kernel that change something."""


def killed_at(step: int, job: Callable[[], object], steps: Sequence[str] = STEPS) -> bool:
    """Run a job in a process that is killed right before its nth call that changes something; False: it was over."""
    pid = os.fork()
    if pid:
        _, status = os.waitpid(pid, 0)
        if os.WIFSIGNALED(status):
            assert os.WTERMSIG(status) == signal.SIGKILL
            return True
        assert status == 0
        return False
    try:
        left = [step]

        def counting(call: Callable[..., Any]) -> Callable[..., Any]:
            def counted(*args: Any, **others: Any) -> Any:
                if call is not real_open or args[1] & os.O_CREAT:
                    left[0] -= 1
                    if left[0] < 0:
                        os.kill(os.getpid(), signal.SIGKILL)
                return call(*args, **others)

            return counted

        real_open = os.open
        for name in steps:
            setattr(os, name, counting(getattr(os, name)))
        job()
        os._exit(0)
    except BaseException:  # noqa: BLE001  # what fails in the child must not go on as the test
        os._exit(1)

"""The user's own commands: their output, their failure in one line, and their end in time."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from lvmsync.errors import CommandError, UsageError
from lvmsync.system.hooks import run_hook


def test_a_hook_is_a_line_of_shell_with_what_it_needs_in_its_environment() -> None:
    assert run_hook('echo "$LVMSYNC_VOLUME" | tr a-z A-Z; echo and >&2', env={"LVMSYNC_VOLUME": "vg/a; b"}) == (
        "VG/A; B\nand\n"
    )


def test_a_hook_that_fails_is_an_error_with_its_last_words() -> None:
    with pytest.raises(CommandError, match=r"'echo one; echo two >&2; exit 3' failed with status 3: two$"):
        run_hook("echo one; echo two >&2; exit 3")
    with pytest.raises(CommandError, match=r"'false' failed with status 1$"):
        run_hook("false")
    with pytest.raises(CommandError, match=r"was ended by SIGKILL"):
        run_hook("kill -9 $$")
    with pytest.raises(UsageError, match="the command of a hook is empty"):
        run_hook("  ")


def test_a_hook_that_takes_too_long_is_ended_with_all_that_it_started(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    with pytest.raises(CommandError, match=r"did not end within 0.5 s, and was ended: begun$"):
        run_hook(f"echo begun; sleep 60 & echo $! >{pid}; wait", timeout=0.5)
    child, over = int(pid.read_text()), time.monotonic() + 10
    while Path(f"/proc/{child}").exists() and time.monotonic() < over:
        time.sleep(0.01)
    state = Path(f"/proc/{child}/stat")
    assert not state.exists() or " Z " in state.read_text()


def test_what_a_hook_leaves_in_the_background_lives_on(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    run_hook(f"sleep 60 & echo $! >{pid}")
    os.kill(int(pid.read_text()), 9)  # no error: it was there

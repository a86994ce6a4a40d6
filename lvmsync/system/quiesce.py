"""Freezing what only a command of the user can freeze (the file systems of a guest), thawed whatever becomes of us."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress

from lvmsync.errors import CommandError, DeviceError
from lvmsync.system import thaw
from lvmsync.system.command import search_path
from lvmsync.system.freeze import LIMIT
from lvmsync.system.hooks import run_hook
from lvmsync.system.signals import signals_deferred


@contextmanager
def quiesced(freeze_cmd: str, thaw_cmd: str, *, env: Mapping[str, str] = {}, limit: float = LIMIT) -> Iterator[None]:
    """Run a command that freezes, and at the end of the block one that thaws.

    A process of its own runs the second: when it is told, when the limit is over, or when we are gone. It does so even
    if the first one fails, which may have frozen a part.

    Args:
        freeze_cmd: as the user wrote it, for ``sh -c``.
        thaw_cmd: the same.
        env: added to the environment of both.
        limit: seconds after which it is thawed, whatever happens; they count from before the first command.

    Raises:
        CommandError: one of them failed.
        DeviceError: the limit was over before the block ended, so that what was done in it does not count.
    """
    with signals_deferred():
        try:
            process = subprocess.Popen(
                # -I and -S: nothing of the user's is imported, and it starts quicker.
                [sys.executable, "-I", "-S", thaw.__file__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
                env={**os.environ, "PATH": search_path(), **env},
                text=True,
            )
        except OSError as error:
            raise DeviceError(f"cannot start {sys.executable}: {error.strerror}") from error
    try:
        _say(process, json.dumps({"command": thaw_cmd, "limit": limit}))
        if _hear(process) != "ready":
            raise DeviceError("the process that is to thaw did not start")
    except BaseException:
        process.kill()
        process.communicate()
        raise
    _say(process, "hold")
    try:
        run_hook(freeze_cmd, env=env, timeout=limit)
        yield
    except BaseException as error:
        trouble = _thaw(process, thaw_cmd, limit)
        if trouble:
            error.add_note(str(trouble))
        raise
    trouble = _thaw(process, thaw_cmd, limit)
    if trouble:
        raise trouble


def _thaw(process: subprocess.Popen[str], command: str, limit: float) -> CommandError | DeviceError | None:
    """Let it thaw, and return what went wrong."""
    with signals_deferred():
        _say(process, "thaw")
        words = _hear(process)
        process.communicate()
    if not words:
        return CommandError(f"what was to run '{command}' was killed: run it by hand, or what was frozen stays so")
    told = json.loads(words)
    if told["status"]:
        return CommandError(
            f"'{command}' failed with status {told['status']}: run it by hand, or what was frozen stays so"
        )
    if told["how"] == "late":
        return DeviceError(
            f"what was frozen had to be thawed after {limit:g} s, before all was done: it does not count"
        )
    return None


def _say(process: subprocess.Popen[str], text: str) -> None:
    assert process.stdin is not None
    with suppress(OSError):  # it is gone; what it does not say tells
        process.stdin.write(text + "\n")
        process.stdin.flush()


def _hear(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()

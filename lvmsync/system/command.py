"""Running another program: its output, or one line that says why not."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from typing import BinaryIO

from lvmsync.errors import CommandError
from lvmsync.system.signals import signals_deferred

_ADMINISTRATION = {"/usr/local/bin": "/usr/local/sbin", "/usr/bin": "/usr/sbin", "/bin": "/sbin"}
"""Where the programs for administration are, by the folder of the other ones beside it."""

_SAYS_NOTHING = ("Command failed", "Run `lv", "Run `vg")


def run(argv: Sequence[str], *, timeout: float = 60) -> str:
    """Run a program without a shell and return its standard output.

    Args:
        argv: program and arguments; no shell sees them.
        timeout: seconds after which the program is killed.

    Raises:
        CommandError: it is not there, failed, or took too long.
    """
    try:
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env=_environment(),
            timeout=timeout,
            check=False,
        )
    except OSError as error:
        raise _cannot_run(argv, error) from error
    except subprocess.TimeoutExpired as error:
        raise CommandError(
            f"'{_called(argv)}' did not end within {timeout:g} s; does a device or a lock hang? Try it by hand"
        ) from error
    _require_success(argv, done.returncode, done.stderr)
    return done.stdout.decode(errors="replace")


def run_to_end(argv: Sequence[str], *, timeout: float, env: Mapping[str, str] = {}, text: str = "") -> str:
    """Run a program that must not be killed in the middle, and return its standard output.

    Signals that would end us, and the program with us, wait until it has ended.

    Args:
        argv: program and arguments; no shell sees them.
        timeout: seconds after which we go on without it; it is left to run.
        env: added to its environment.
        text: its standard input.

    Raises:
        CommandError: it is not there, failed, or takes too long.
    """
    # No pipes: a program that is left to run must not die of a reader that has gone. No files: the disk may be frozen.
    with (
        signals_deferred(),
        _memory_file("stdin") as given,
        _memory_file("stdout") as out,
        _memory_file("stderr") as err,
    ):
        given.write(text.encode())
        given.seek(0)
        try:
            process = subprocess.Popen(argv, stdin=given, stdout=out, stderr=err, env={**_environment(), **env})
        except OSError as error:
            raise _cannot_run(argv, error) from error
        try:
            status = process.wait(timeout)
        except subprocess.TimeoutExpired as error:
            raise CommandError(
                f"'{_called(argv)}' did not end within {timeout:g} s and still runs as process {process.pid}; does a"
                " device or a lock hang? It was not killed, since that may leave a volume suspended"
            ) from error
        out.seek(0)
        err.seek(0)
        _require_success(argv, status, err.read())
        return out.read().decode(errors="replace")


def _memory_file(name: str) -> BinaryIO:
    return os.fdopen(os.memfd_create(name), "w+b")


def search_path() -> str:
    """Return the folders that programs are looked for in: those of PATH, and then what cron leaves away.

    Of each usual folder the one for administration comes as well: LVM's commands are there, and cron's PATH is
    ``/usr/bin:/bin``.
    """
    folders = os.environ.get("PATH", os.defpath).split(os.pathsep)
    more = (_ADMINISTRATION.get(folder.rstrip("/")) for folder in folders)
    return os.pathsep.join(dict.fromkeys([*folders, *(folder for folder in more if folder)]))


def has_program(name: str) -> bool:
    """Tell whether a program is there to be run."""
    return shutil.which(name, path=search_path()) is not None


def _environment() -> dict[str, str]:
    return {**os.environ, "PATH": search_path(), "LC_ALL": "C", "LVM_SUPPRESS_FD_WARNINGS": "1"}


def _called(argv: Sequence[str]) -> str:
    """Return the program and, if it has one, its command: "dmsetup table"."""
    return " ".join(argv[:1] if argv[1:2] == [] or argv[1].startswith("-") else argv[:2])


def _cannot_run(argv: Sequence[str], error: OSError) -> CommandError:
    return CommandError(f"cannot run '{argv[0]}': {error.strerror}; is it installed, and in PATH?")


def _require_success(argv: Sequence[str], status: int, stderr: bytes) -> None:
    if not status:
        return
    lines = [line.strip() for line in stderr.decode(errors="replace").splitlines() if line.strip()]
    told = [line for line in lines if not line.startswith(_SAYS_NOTHING)] or lines or ["it gave no reason"]
    raise CommandError(f"'{_called(argv)}' failed with status {status}: {told[-1]}")

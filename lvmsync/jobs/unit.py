"""Unit files for systemd: written, enabled, removed; and how words are written in them."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from lvmsync.errors import DeviceError
from lvmsync.system.command import run
from lvmsync.system.ledger import remove_file, sync_folder

UNITS = Path("/etc/systemd/system")
SYSTEMD = Path("/run/systemd/system")
"""There while systemd runs the machine (sd_booted(3))."""


def is_known(unit: Path) -> bool:
    """Tell whether the systemd that runs the machine looks for a unit file there."""
    return unit.parent == UNITS and SYSTEMD.is_dir()


def write_unit(unit: Path, text: str, done: str, otherwise: str) -> bool:
    """Write a unit file, and enable it where systemd looks for it; return whether it does.

    Args:
        unit: path of the file.
        text: what is in it.
        done: what has been done before, for the error if it cannot be written.
        otherwise: what is to be done then.

    Raises:
        DeviceError: it cannot be written.
        CommandError: systemctl failed.
    """
    try:
        _write(unit, text)
    except OSError as error:
        raise DeviceError(
            f"{done}, but {unit} cannot be written: {error.strerror}. {otherwise}", device=str(unit)
        ) from error
    if not is_known(unit):
        return False
    run(["systemctl", "daemon-reload"])
    run(["systemctl", "enable", unit.name])
    return True


def write_timer(files: Mapping[Path, str], timer: Path) -> bool:
    """Write the files of a timer, and start it where systemd looks for them; return whether it does.

    Raises:
        DeviceError: one cannot be written.
        CommandError: systemctl failed.
    """
    for path, text in files.items():
        write_file(path, text)
    if not is_known(timer):
        return False
    run(["systemctl", "daemon-reload"])
    run(["systemctl", "enable", timer.name])
    run(["systemctl", "restart", timer.name])  # it may run already, by what it was before
    return True


def write_file(path: Path, text: str) -> None:
    """Replace a file that others read, at once.

    Raises:
        DeviceError: it cannot be written.
    """
    try:
        _write(path, text)
    except OSError as error:
        raise DeviceError(f"{path} cannot be written: {error.strerror}", device=str(path)) from error


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.new")  # neither systemd nor cron reads a name with a dot in front
    fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    with open(fd, "wb") as file:
        os.fchmod(fd, 0o644)
        file.write(text.encode(errors="surrogateescape"))
        file.flush()
        os.fsync(fd)
    new.rename(path)
    sync_folder(path.parent)


def remove_timer(files: Sequence[Path]) -> list[str]:
    """Stop a timer and remove its files, as far as they are there; return what is left to do."""
    timers = [path.name for path in files if path.suffix == ".timer" and is_known(path) and path.exists()]
    for name in timers:
        run(["systemctl", "disable", "--now", name])
    for path in files:
        remove_file(path)
    if any(map(is_known, files)):
        run(["systemctl", "daemon-reload"])
        return []
    names = [path.name for path in files if path.suffix == ".timer"]
    return [f"if it was started, run 'systemctl stop {name}' and 'systemctl daemon-reload'" for name in names]


def remove_unit(unit: Path) -> list[str]:
    """Disable and remove a unit file; return what is left to do."""
    known = is_known(unit)
    if known and unit.exists():
        run(["systemctl", "disable", unit.name])
    remove_file(unit)
    if known:
        run(["systemctl", "daemon-reload"])
        return []
    return [
        f"{unit} was removed; if it was enabled, run 'systemctl disable {unit.name}' and 'systemctl daemon-reload'."
    ]


def own_command() -> list[str]:
    """Return the words that start this lvmsync, whatever folder they are run in and whatever PATH is."""
    script = Path(sys.executable).with_name("lvmsync")
    return [str(script)] if os.access(script, os.X_OK) else [sys.executable, "-P", "-m", "lvmsync"]


def escape(text: str) -> str:
    """Return text as it is written where specifiers are read."""
    return text.replace("%", "%%")


def quote(word: str) -> str:
    """Return a word of a command line in quotes; not of the program, whose ``$`` is no variable."""
    text = quote_path(word).replace("$", "$$")
    # A line that is not UTF-8 is none to systemd; the name of a file need not be that.
    return re.sub("[\udc80-\udcff]", lambda match: f"\\x{ord(match[0]) - 0xDC00:02x}", text)


def quote_path(path: str) -> str:
    """Return a path in quotes."""
    return '"' + escape(path).replace("\\", "\\\\").replace('"', '\\"') + '"'


def command_line(words: Sequence[str]) -> str:
    """Return a command as ``ExecStart=`` has it."""
    return " ".join([quote_path(words[0]), *map(quote, words[1:])])


def path_unit(path: str, suffix: str) -> str:
    """Return the name that systemd gives to the unit of a path; see systemd-escape(1), ``--path``.

    Args:
        path: absolute; of a device, or of a mount point.
        suffix: ``device`` or ``mount``.
    """
    parts = []
    for at, letter in enumerate(path.strip("/")):
        if letter == "/":
            parts.append("-")
        elif re.fullmatch(r"[A-Za-z0-9:_.]", letter) and not (letter == "." and at == 0):
            parts.append(letter)
        else:
            parts += [f"\\x{byte:02x}" for byte in letter.encode()]
    return f"{''.join(parts) or '-'}.{suffix}"

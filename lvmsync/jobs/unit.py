"""Unit files for systemd: written, enabled, removed; and how words are written in them."""

from __future__ import annotations

import re
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
        unit.parent.mkdir(parents=True, exist_ok=True)
        unit.write_text(text)
        sync_folder(unit.parent)
    except OSError as error:
        raise DeviceError(
            f"{done}, but {unit} cannot be written: {error.strerror}. {otherwise}", device=str(unit)
        ) from error
    if not is_known(unit):
        return False
    run(["systemctl", "daemon-reload"])
    run(["systemctl", "enable", unit.name])
    return True


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


def escape(text: str) -> str:
    """Return text as it is written where specifiers are read."""
    return text.replace("%", "%%")


def quote(word: str) -> str:
    """Return a word of a command line, or a path, in quotes."""
    text = escape(word).replace("\\", "\\\\").replace('"', '\\"').replace("$", "$$")
    return f'"{text}"'


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

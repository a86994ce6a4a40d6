"""The systemd unit that makes an era device again at boot, before anything can write past it."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

from lvmsync.errors import DeviceError
from lvmsync.jobs.era_table import TableFile
from lvmsync.system.command import run
from lvmsync.system.ledger import remove_file, sync_folder

UNITS = Path("/etc/systemd/system")
SYSTEMD = Path("/run/systemd/system")
"""There while systemd runs the machine (sd_booted(3))."""


def unit_name(name: str) -> str:
    """Return the name of an era device's unit."""
    return f"lvmsync-era-{name}.service"


def install_unit(state: Path, table: TableFile) -> list[str]:
    """Write the unit file and enable it, where systemd runs; return what is left to do."""
    by_hand = f"{table.name} is gone after a reboot: run 'lvmsync era start {table.name}' before its origin is used."
    if table.unit is None:
        return [by_hand]
    unit = Path(table.unit)
    try:
        unit.parent.mkdir(parents=True, exist_ok=True)
        unit.write_text(_unit_text(state, table))
        sync_folder(unit.parent)
    except OSError as error:
        raise DeviceError(
            f"{table.name} was made, but {unit} cannot be written: {error.strerror}. {by_hand}", device=str(unit)
        ) from error
    if unit.parent != UNITS or not SYSTEMD.is_dir():
        enable = f"systemctl enable {shlex.quote(str(unit))}"
        return [f"{unit} was written, and systemd does not know of it yet: run '{enable}'. Without systemd, {by_hand}"]
    run(["systemctl", "daemon-reload"])
    run(["systemctl", "enable", unit.name])
    return []


def remove_unit(table: TableFile) -> list[str]:
    """Disable and remove the unit file; return what is left to do."""
    if table.unit is None:
        return []
    unit = Path(table.unit)
    is_known = unit.parent == UNITS and SYSTEMD.is_dir()
    if is_known and unit.exists():
        run(["systemctl", "disable", unit.name])
    remove_file(unit)
    if is_known:
        run(["systemctl", "daemon-reload"])
        return []
    return [
        f"{unit} was removed; if it was enabled, run 'systemctl disable {unit.name}' and 'systemctl daemon-reload'."
    ]


def _unit_text(state: Path, table: TableFile) -> str:
    """Return a unit that makes the device again at boot, before file systems are mounted."""
    needs = " ".join(_device_unit(part.path) for part in (table.metadata, table.origin))
    command = [sys.executable, "-m", "lvmsync", "era", "start", table.name, "--state", str(state)]
    return f"""[Unit]
Description=Track writes to {_escaped(table.origin.path)} in /dev/mapper/{table.name} (dm-era)
DefaultDependencies=no
Requires={needs}
After={needs} systemd-modules-load.service
RequiresMountsFor={_quoted(str(state))}
Before=local-fs.target shutdown.target
Conflicts=shutdown.target

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart={" ".join(_quoted(word) for word in command)}

[Install]
WantedBy=local-fs.target
"""


def _escaped(text: str) -> str:
    return text.replace("%", "%%")


def _quoted(word: str) -> str:
    text = _escaped(word).replace("\\", "\\\\").replace('"', '\\"').replace("$", "$$")
    return f'"{text}"'


def _device_unit(path: str) -> str:
    """Return the name that systemd gives to a device; see systemd-escape(1), ``--path``."""
    parts = []
    for at, letter in enumerate(path.strip("/")):
        if letter == "/":
            parts.append("-")
        elif re.fullmatch(r"[A-Za-z0-9:_.]", letter) and not (letter == "." and at == 0):
            parts.append(letter)
        else:
            parts += [f"\\x{byte:02x}" for byte in letter.encode()]
    return _escaped("".join(parts) + ".device")

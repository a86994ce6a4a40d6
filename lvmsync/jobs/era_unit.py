"""The systemd unit that makes an era device again at boot, before anything can write past it."""

from __future__ import annotations

import shlex
from pathlib import Path

from lvmsync.jobs import unit
from lvmsync.jobs.era_table import TableFile


def unit_name(name: str) -> str:
    """Return the name of an era device's unit."""
    return f"lvmsync-era-{name}.service"


def install_unit(state: Path, table: TableFile) -> list[str]:
    """Write the unit file and enable it, where systemd runs; return what is left to do."""
    by_hand = f"{table.name} is gone after a reboot: run 'lvmsync era start {table.name}' before its origin is used."
    if table.unit is None:
        return [by_hand]
    path = Path(table.unit)
    if unit.write_unit(path, _unit_text(state, table), f"{table.name} was made", by_hand):
        return []
    enable = f"systemctl enable {shlex.quote(str(path))}"
    return [f"{path} was written, and systemd does not know of it yet: run '{enable}'. Without systemd, {by_hand}"]


def remove_unit(table: TableFile) -> list[str]:
    """Disable and remove the unit file; return what is left to do."""
    return unit.remove_unit(Path(table.unit)) if table.unit else []


def _unit_text(state: Path, table: TableFile) -> str:
    """Return a unit that makes the device again at boot, before file systems are mounted."""
    parts = (table.metadata, table.origin)
    needs = " ".join(unit.escape(unit.path_unit(part.path, "device")) for part in parts)
    command = [*unit.own_command(), "era", "start", table.name, "--state", str(state)]
    return f"""[Unit]
Description=Track writes to {unit.escape(table.origin.path)} in /dev/mapper/{table.name} (dm-era)
DefaultDependencies=no
Requires={needs}
After={needs} systemd-modules-load.service
RequiresMountsFor={unit.quote_path(str(state))}
Before=local-fs.target shutdown.target
Conflicts=shutdown.target

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart={unit.command_line(command)}

[Install]
WantedBy=local-fs.target
"""

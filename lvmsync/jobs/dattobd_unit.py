"""The systemd unit that reloads a tracked device at boot, before its file system is mounted."""

from __future__ import annotations

import shlex
from pathlib import Path

from lvmsync.jobs import unit
from lvmsync.jobs.dattobd_record import Series, find_mount
from lvmsync.system.mounts import device_of_file


def install_unit(state: Path, series: Series, folder: Path) -> tuple[str | None, list[str]]:
    """Write the unit file of a device and enable it, where systemd runs.

    Returns:
        The path of the file, if there is one, and what is left to do.
    """
    device, point = series.block_device, series.mount_point
    by_hand = f"Before {device} is mounted after a reboot, run 'lvmsync dattobd reload {device}'."
    notes = []
    if "device number" in series.identity:
        notes.append(f"{device} may be called otherwise after a reboot; paths in /dev/disk/by-id keep.")
    if point == "/":
        return None, [
            *notes,
            f"{device} is the root file system: it is mounted by the initramfs, so only that can reload it before (see"
            " docs/dattobd.md); else the first cycle after a reboot begins anew and compares.",
        ]
    mount = find_mount(device)
    if mount and state.exists() and device_of_file(str(state)) == mount.number:
        return None, [
            *notes,
            f"The state folder {state} is on {device} itself, so nothing can be read from it before the mount: choose"
            " another with --state. Until then the first cycle after a reboot begins anew and compares.",
        ]
    path = folder / f"lvmsync-dattobd-{unit.path_unit(point, 'service')}"
    if unit.write_unit(path, _unit_text(state, series), f"{device} is tracked", by_hand):
        return str(path), notes
    enable = f"systemctl enable {shlex.quote(str(path))}"
    return str(path), [
        *notes,
        f"{path} was written, and systemd does not know of it yet: run '{enable}'. Without systemd: {by_hand}",
    ]


def remove_unit(path: str) -> list[str]:
    """Disable and remove a unit file; return what is left to do."""
    return unit.remove_unit(Path(path))


def _unit_text(state: Path, series: Series) -> str:
    device, mount = (
        unit.escape(unit.path_unit(path, kind))
        for path, kind in ((series.block_device, "device"), (series.mount_point, "mount"))
    )
    # modprobe takes either sign, and a dash would be read as a slash there.
    module = f"modprobe@{series.driver.replace('-', '_')}.service"
    command = [*unit.own_command(), "dattobd", "reload", series.block_device, "--state", str(state)]
    return f"""[Unit]
Description=Go on tracking writes to {unit.escape(series.block_device)} ({series.driver})
DefaultDependencies=no
Wants={module}
Requires={device}
After={device} {module} systemd-modules-load.service systemd-remount-fs.service
RequiresMountsFor={unit.quote_path(str(state))}
Before={mount} shutdown.target
Conflicts=shutdown.target

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart={unit.command_line(command)}

[Install]
WantedBy={mount}
"""

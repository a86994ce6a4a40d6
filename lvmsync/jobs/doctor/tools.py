"""Programs, kernel modules and packages: whether they are there, and new enough."""

from __future__ import annotations

import importlib.metadata
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from lvmsync.errors import CommandError
from lvmsync.jobs.doctor.findings import Finding
from lvmsync.system.command import has_program, run

OLDEST_LVM = (2, 2, 158)
"""The first LVM with reports in JSON."""

_MODULES = {"snapshot": "dm-snapshot", "thin-pool": "dm-thin-pool"}
_VERSION = re.compile(r"LVM version:\s*(\d+)\.(\d+)\.(\d+)")
_REQUIREMENT = re.compile(r"(?P<name>[A-Za-z0-9_.-]+)\s*(?P<limits>[^;]*)(?P<marker>;.*)?")


def check_programs() -> Iterator[Finding]:
    """Yield which programs are missing or too old."""
    for program, package in (("lvs", "lvm2"), ("dmsetup", "dmsetup")):
        if not has_program(program):
            yield Finding("tool", program, "it is not installed, or not in PATH", f"apt-get install {package}")
    if has_program("lvm"):
        try:
            found = _VERSION.search(run(["lvm", "version"]))
        except CommandError as error:
            yield Finding("tool", "lvm2", str(error), "run 'lvm version' by hand")
            return
        version = tuple(map(int, found.groups())) if found else None
        if version and version < OLDEST_LVM:
            words = ".".join(map(str, version))
            yield Finding("tool", "lvm2", f"version {words} has no reports in JSON", "apt-get install lvm2")


def check_modules(modules: Path | None = None) -> Iterator[Finding]:
    """Yield which targets of the device mapper the kernel neither has nor can load.

    Args:
        modules: folder of the running kernel's modules; None: where they are.
    """
    if not has_program("dmsetup"):
        return
    try:
        loaded = {line.split()[0] for line in run(["dmsetup", "targets"]).splitlines() if line.strip()}
    except CommandError as error:
        yield Finding("tool", "device mapper", str(error), "modprobe dm-mod")
        return
    folder = modules or Path("/lib/modules") / os.uname().release
    known = ""
    for name in ("modules.dep", "modules.builtin"):
        try:
            known += (folder / name).read_text(errors="replace")
        except OSError:
            continue
    for target, module in _MODULES.items():
        if target not in loaded and known and f"/{module}.ko" not in known:
            yield Finding(
                "tool", module, "the running kernel does not have it", "install the package of your kernel's modules"
            )


def check_packages(requirements: Iterable[str] | None = None) -> Iterator[Finding]:
    """Yield which Python packages are missing or too old.

    Args:
        requirements: as package metadata has them; None: those of the lvmsync that runs.
    """
    if requirements is None:
        try:
            requirements = importlib.metadata.requires("lvmsync") or ()
        except importlib.metadata.PackageNotFoundError:
            return  # run from its source folder
    for text in requirements:
        match = _REQUIREMENT.match(text)
        if match is None or match["marker"]:  # of an extra
            continue
        name = match["name"]
        oldest = re.search(r">=\s*([0-9.]+)", match["limits"])
        try:
            found = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            yield Finding("tool", name, "this Python package is missing", f"pip install '{text.strip()}'")
            continue
        if oldest and _numbers(found) < _numbers(oldest[1]):
            yield Finding("tool", name, f"this Python package is {found}", f"pip install '{text.strip()}'")


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])

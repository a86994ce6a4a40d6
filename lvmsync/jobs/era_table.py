"""The table files of era devices: what each is made of, so that it can be made again after a reboot.

STATE/era/NAME.json   one device; written before it is made
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from lvmsync.errors import DeviceError, FormatError, UsageError
from lvmsync.jobs.era_points import era_folder
from lvmsync.system.ledger import make_folders, replace_file

_VERSION = 1
_NAME = re.compile(r"[A-Za-z0-9_.][A-Za-z0-9_.-]{0,99}")


@dataclass(frozen=True)
class Part:
    """A device that an era device is made of.

    Attributes:
        path: that it keeps over reboots.
        identity: what makes it this device and no other.
        size: bytes, when the era device was made.
    """

    path: str
    identity: dict[str, str]
    size: int


@dataclass(frozen=True)
class TableFile:
    """What is kept of an era device that lvmsync made.

    Attributes:
        name: of the device.
        uuid: of the device; names its history.
        granularity: bytes of a block.
        metadata: where the eras are.
        origin: where the data is.
        era: the newest that was seen; 0: the device has not been made yet.
        unit: path of its unit file; None: it has none.
        created: UTC, ISO 8601.
    """

    name: str
    uuid: str
    granularity: int
    metadata: Part
    origin: Part
    era: int
    unit: str | None
    created: str


def require_name(name: str) -> None:
    """Raise UsageError unless ``name`` can be that of an era device, of a file, and of a unit."""
    if not _NAME.fullmatch(name):
        raise UsageError(f"'{name}' is no name for an era device: letters, digits and _.- only, as in data-era")


def table_path(state: Path, name: str) -> Path:
    """Return where the table file of an era device is."""
    return era_folder(state) / f"{name}.json"


def read_table(state: Path, name: str) -> TableFile:
    """Return what is kept of an era device.

    Raises:
        DeviceError: lvmsync made no device of that name.
        FormatError: its table file cannot be read.
    """
    require_name(name)
    path = table_path(state, name)
    try:
        values = json.loads(path.read_text())
        if values.pop("version") != _VERSION:
            raise ValueError("written by another version")
        values |= {key: Part(**values[key]) for key in ("metadata", "origin")}
        table = TableFile(**values)
        if not isinstance(table.era, int) or not isinstance(table.granularity, int) or table.name != name:
            raise ValueError("not what lvmsync writes")
    except FileNotFoundError as error:
        there = {found.stem for found in path.parent.glob("*.json")}
        raise DeviceError(
            f"lvmsync made no era device called {name} (there is no {path}); it made: {name_all(there)}"
        ) from error
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise FormatError(f"{path} cannot be read: {error}", device=str(path)) from error
    return table


def write_table(state: Path, table: TableFile) -> None:
    """Replace a table file, durably and at once."""
    path = table_path(state, table.name)
    try:
        make_folders(path.parent)
        replace_file(path, json.dumps({"version": _VERSION, **asdict(table)}, indent=1))
    except OSError as error:
        raise DeviceError(f"cannot write {path}: {error.strerror}", device=str(path)) from error


def note_era(state: Path, table: TableFile, era: int) -> None:
    """Take note of the newest era that was seen."""
    if era > table.era:
        write_table(state, replace(table, era=era))


def name_all(names: set[str]) -> str:
    """Return names for a message."""
    return ", ".join(sorted(names)) or "none"

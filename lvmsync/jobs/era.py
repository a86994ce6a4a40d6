"""Era devices: how large their metadata must be, making them, bringing them back after a reboot, their state.

    STATE/era/NAME.json   the table file: what the device is made of, written before it is made

LVM knows nothing of dm-era, and the kernel's table is gone after a reboot. Two things must never happen
unnoticed: a write past the era device (so it is made again before anything can use the origin), and a new
history in the place of the old one (the kernel starts one where the metadata's first block is zeros).
"""

from __future__ import annotations

import os
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from lvmsync.errors import ChangesLost, CommandError, ConflictError, DeviceError, FormatError, LvmsyncError, UsageError
from lvmsync.formats.era import MIN_BLOCK_SIZE, EraStatus, Plan, Superblock, parse_status, plan_metadata
from lvmsync.formats.pdata import BLOCK_SIZE, SECTOR
from lvmsync.jobs.era_points import era_folder, forget, list_remembered
from lvmsync.jobs.era_table import (
    Part,
    TableFile,
    name_all,
    note_era,
    read_table,
    require_name,
    table_path,
    write_table,
)
from lvmsync.jobs.era_unit import install_unit, remove_unit, unit_name
from lvmsync.names import parse_size, parse_volume
from lvmsync.sources.era import TRACKER, Live, find_live, fullness, life_of
from lvmsync.system import dm
from lvmsync.system.command import run
from lvmsync.system.device import Device, aligned_buffer, naming, open_device, opening_failed
from lvmsync.system.identity import canonical_name, identify
from lvmsync.system.ledger import remove_file
from lvmsync.system.reservation import find_held

UUID = "LVMSYNC-ERA-"
"""What the uuids of our era devices begin with; the rest is random, and so names one history."""

_MAX_GRANULARITY = ((1 << 32) - MIN_BLOCK_SIZE) * SECTOR


@dataclass(frozen=True)
class State:
    """One era device, as it is now.

    Attributes:
        name: of the device.
        path: to use it by.
        uuid: of the device.
        is_active: whether the kernel runs it.
        era: the current one; None while it is not active.
        used: metadata blocks in use.
        total: metadata blocks.
        size: bytes of the device.
        granularity: bytes of a block.
        held: whose the metadata snapshot is; None: there is none.
        targets: what is remembered: target, era and time of each.
        failed: why it does not work any more; None: it works.
        notes: what the user should know, a sentence each.
    """

    name: str
    path: str
    uuid: str
    is_active: bool
    era: int | None
    used: int | None
    total: int | None
    size: int
    granularity: int
    held: str | None
    targets: list[dict[str, str | int]]
    failed: str | None
    notes: list[str]


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint did.

    Attributes:
        name: of the device.
        era: the current one, now.
        before: the one before.
        advanced: whether it is another one.
    """

    name: str
    era: int
    before: int
    advanced: bool


def parse_granularity(text: str) -> int:
    """Read the size of an era device's blocks.

    Raises:
        UsageError: not a size that the kernel takes.
    """
    found = parse_size(text)
    if not found or found % (MIN_BLOCK_SIZE * SECTOR) or found > _MAX_GRANULARITY:
        raise UsageError(f"--granularity {text}: the kernel takes multiples of 4 KiB, as in 64K")
    return found


def plan(word: str, granularity: int) -> tuple[int, Plan]:
    """Return the size of a device, named by path or as a size, and how large its era metadata must be.

    Raises:
        UsageError: neither a device nor a size, or one that needs more metadata than the kernel can use.
    """
    if re.match(r"\d", word) and "/" not in word:
        size = parse_size(word)
    else:
        with open_device(parse_volume(word).path) as device:
            size = device.size
    found = plan_metadata(size, granularity)
    if not size or not found.is_possible or found.nr_blocks >= 1 << 32:
        raise UsageError(f"{size} bytes in blocks of {granularity}: not what dm-era can track; take larger blocks")
    return size, found


def create(
    state: Path, name: str, origin: str, metadata: str, granularity: int, *, force: bool, units: Path | None
) -> tuple[State, list[str]]:
    """Make an era device, and what brings it back after a reboot.

    Args:
        state: the state folder.
        name: of the new device.
        origin: VG/LV or path of the device below, which must not be in use.
        metadata: VG/LV or path of the device for the eras; its first block is overwritten.
        granularity: bytes of a block.
        force: also if the metadata device holds something, or has less room than may be needed.
        units: folder for the unit file; None: none is written.

    Returns:
        The device, and what is left to do, a sentence each.
    """
    require_name(name)
    path = table_path(state, name)
    if path.exists() or any(device.name == name for device in dm.list_devices()):
        raise ConflictError(
            f"there is a device called {name} already; see 'lvmsync era status {name}', or take another name"
        )
    with _open_alone(origin) as below, _open_alone(metadata) as store:
        if below.number == store.number:
            raise UsageError(f"{origin} and {metadata} are the same device")
        _require_room(below, store, granularity, force=force)
        if any(store.read_bytes(0, BLOCK_SIZE)) and not force:
            raise DeviceError(
                f"{metadata} holds something (its first block is not zeros); if it may be overwritten, give --force",
                device=metadata,
            )
        parts = [_part(word, device) for word, device in ((metadata, store), (origin, below))]
    unit = str(units / unit_name(name)) if units else None
    created = datetime.now(UTC).isoformat(timespec="seconds")
    table = TableFile(name, f"{UUID}{uuid.uuid4().hex}", granularity, parts[0], parts[1], 0, unit, created)
    write_table(state, table)
    try:
        _wipe(table.metadata)
        era = _activate(table)
    except BaseException:
        remove_file(path)
        raise
    table = replace(table, era=era)
    write_table(state, table)  # from here on it is brought back
    steps = install_unit(state, table)
    steps += [
        f"{part.path} may be called otherwise after a reboot; paths in /dev/disk/by-id keep."
        for part in parts
        if "device number" in part.identity
    ]
    return _state_of(state, _find(name), table), steps


def start(state: Path, name: str) -> tuple[State, list[str]]:
    """Make an era device again from its table file, as after a reboot; do nothing if it is there.

    Raises:
        ChangesLost: its metadata is gone, or older than it was.
        ConflictError: another device has its name.
        DeviceError: a device that it is made of is not there, or is another one.
    """
    table = read_table(state, name)
    steps: list[str] = []
    live = _find_named(name)
    if live is None:
        if not table.era:
            raise DeviceError(
                f"making {name} was cut short; run 'lvmsync era remove {name}', and then make it again", device=name
            )
        with _open_part(table.origin, name) as below, _open_part(table.metadata, name) as store:
            if below.size > table.origin.size:
                steps.append(
                    f"{table.origin.path} grew to {below.size} bytes; {name} still has {table.origin.size}. To track"
                    " the new part, remove the era device and make it again."
                )
            _require_history(store, table)
        note_era(state, table, _activate(table))
    elif live.device.uuid != table.uuid:
        raise ConflictError(f"another device is called {name}, with the uuid '{live.device.uuid}'", device=name)
    return _state_of(state, _find(name), table), steps


def path_of(name: str) -> str:
    """Return the path of an era device, by its name."""
    require_name(name)
    return str(dm.NODES / name)


def show(state: Path, name: str | None) -> list[State]:
    """Return the state of one era device, or of all: those that the kernel runs, and those with a table file."""
    tables = {path.stem: read_table(state, path.stem) for path in sorted(era_folder(state).glob("*.json"))}
    found = {line.device.name: line for line in dm.list_tables() if line.kind == "era"}
    names = [name] if name else sorted({*tables, *found})
    states = []
    for one in names:
        live = _find_named(one) if one in found else None
        table = tables.get(one)
        if live is None and table is None:
            raise DeviceError(f"there is no era device called {one}; there are: {name_all({*tables, *found})}")
        if live and table and live.device.uuid != table.uuid:
            table = None
        states.append(_state_of(state, live, table))
        if table and states[-1].era:
            note_era(state, table, states[-1].era or 0)
    return states


def checkpoint(state: Path, name: str) -> Checkpoint:
    """Begin a new era, and tell which one it is: the kernel need not begin one for each message."""
    live = _find(name)
    before = _read_status(live).era
    dm.send_message(live.device, "checkpoint")
    era = _read_status(live).era
    table = read_table(state, name) if table_path(state, name).exists() else None
    if table and table.uuid == live.device.uuid:
        note_era(state, table, era)
    return Checkpoint(name, era, before, era != before)


def remove(state: Path, name: str, *, wipe: bool, force: bool) -> list[str]:
    """Remove an era device that lvmsync made, and all that is kept of it; its origin stays as it is.

    Args:
        state: the state folder.
        name: of the device.
        wipe: overwrite the first block of its metadata as well.
        force: also if it has failed, or a metadata snapshot of it is taken.

    Returns:
        What is left to do, a sentence each.
    """
    table = read_table(state, name)
    live = _find_named(name)
    if live and live.device.uuid != table.uuid:
        raise ConflictError(f"another device is called {name}, with the uuid '{live.device.uuid}'", device=name)
    if live:
        _require_removable(live, force=force)
    steps = remove_unit(table)
    if live:
        run(["dmsetup", "remove", name])
    if wipe:
        with _open_part(table.metadata, name):
            pass
        _wipe(table.metadata)
    forget(state, table.uuid)
    remove_file(table_path(state, name))
    return steps


def _require_room(below: Device, store: Device, granularity: int, *, force: bool) -> None:
    _, needed = plan(str(below.size), granularity)
    blocks = store.size // BLOCK_SIZE
    if blocks >= needed.least or (force and blocks > needed.idle):
        return
    raise DeviceError(
        f"{store.name} has {blocks} blocks of 4 KiB, and era metadata for {below.name} may need {needed.least}"
        f" ({needed.advised} are advised): when it is full, writes fail and the kernel may crash; make it larger, or"
        " take a larger --granularity",
        device=store.name,
    )


def _require_history(store: Device, table: TableFile) -> None:
    """Raise unless the metadata goes on with the history that the table file knows."""
    block = bytes(store.read_bytes(0, BLOCK_SIZE))
    if not any(block):
        raise ChangesLost(
            f"{table.metadata.path}: the metadata of {table.name} is gone (its first block is zeros), and the kernel"
            f" would begin a new history; copies must be compared whole: 'lvmsync era remove {table.name}', make it"
            " again, and use compare:",
            device=table.metadata.path,
        )
    with naming(store):
        found = Superblock.parse(block)
        if found.granularity != table.granularity:
            raise FormatError(f"blocks of {found.granularity} bytes, not {table.granularity}: this is other metadata")
    if found.current_era < table.era:
        raise ChangesLost(
            f"{table.metadata.path}: the metadata of {table.name} is at era {found.current_era}, and was at"
            f" {table.era}: it was restored from an older copy, and does not know of all writes; 'lvmsync era remove"
            f" {table.name}', make it again, and use compare:",
            device=table.metadata.path,
        )


def _require_removable(live: Live, *, force: bool) -> None:
    device = live.device
    if not dm.wait_until_closed(device.number):
        raise DeviceError(f"{device.path} is open: unmount it, or stop what uses it", device=device.path)
    try:
        status = _read_status(live)
    except ChangesLost as error:
        if force:
            return
        raise DeviceError(
            f"{error}. Removing it now may crash the kernel (Linux v6.1 leaks buffers there): reboot without it first,"
            " or give --force",
            device=device.path,
        ) from error
    if status.held_root is not None and not force:
        raise ConflictError(
            f"{_whose(live)}; give it back first ('lvmsync cleanup'), or give --force", device=device.path
        )


def _activate(table: TableFile) -> int:
    """Let the kernel make the device, and return its era."""
    sectors = table.origin.size // SECTOR
    line = f"0 {sectors} era {table.metadata.path} {table.origin.path} {table.granularity // SECTOR}"
    run(["dmsetup", "create", table.name, "--uuid", table.uuid, "--table", line])
    try:
        return _read_status(_find(table.name)).era
    except LvmsyncError as error:
        try:
            run(["dmsetup", "remove", table.name])
        except CommandError as failure:
            error.add_note(f"and it could not be removed again: {failure}")
        raise


def _state_of(state: Path, live: Live | None, table: TableFile | None) -> State:
    """Return the state of a device that the kernel runs, or that has a table file, or both."""
    if live is None:
        assert table is not None
        notes = [
            f"{table.name} is not active: start it with 'lvmsync era start {table.name}' before its origin is used."
        ]
        return State(
            table.name, str(dm.NODES / table.name), table.uuid, False, None, None, None, table.origin.size,
            table.granularity, None, _targets(state, table.uuid), None, notes,
        )  # fmt: skip
    device = live.device
    failed, status, held = None, None, None
    notes = []
    try:
        status = _read_status(live)
        notes += fullness(_status_text(live), device.path)
        held = _whose(live) if status.held_root is not None else None
    except ChangesLost as error:
        failed = str(error)
    return State(
        device.name,
        device.path,
        device.uuid,
        True,
        status.era if status else None,
        status.used if status else None,
        status.total if status else None,
        live.line.length,
        live.table.granularity,
        held,
        _targets(state, life_of(live)),
        failed,
        notes,
    )


def _targets(state: Path, life: str) -> list[dict[str, str | int]]:
    return [{"target": one.target, "era": one.era, "time": one.time} for one in list_remembered(state, life)]


def _whose(live: Live) -> str:
    for held in find_held(TRACKER):
        if held.device.number == live.device.number:
            return f"{held}{', which runs' if held.is_running else ''}"
    return "its metadata snapshot was given back just now"


def _status_text(live: Live) -> str:
    lines = dm.read_status(live.device)
    if [line.kind for line in lines] != ["era"]:
        raise CommandError(f"{live.device.path}: it is no era device any more")
    return lines[0].text


def _read_status(live: Live) -> EraStatus:
    return parse_status(_status_text(live), live.device.path)


def _find_named(name: str) -> Live | None:
    device = next((one for one in dm.list_devices() if one.name == name), None)
    if device is None:
        return None
    live = find_live(device.number)
    if live is None or live.device.number != device.number:
        raise ConflictError(f"{device.path} is no era device", device=device.path)
    return live


def _find(name: str) -> Live:
    live = _find_named(name)
    if live is None:
        raise DeviceError(f"{name} is not active; start it with 'lvmsync era start {name}'", device=name)
    return live


@contextmanager
def _open_alone(word: str) -> Iterator[Device]:
    """Open a block device that nobody else uses."""
    path = parse_volume(word).path
    with open_device(path) as device:
        number = device.number
    if number is None:
        raise UsageError(f"{word} is a plain file; make a loop device of it first ('losetup -f --show')", device=word)
    if not dm.wait_until_closed(number):
        raise DeviceError(f"{word} is open: unmount it, or stop what uses it", device=word)
    with open_device(path, exclusive=True) as device:
        yield device


@contextmanager
def _open_part(part: Part, name: str) -> Iterator[Device]:
    """Open a device that an era device is made of, if it is still the same."""
    with open_device(part.path, exclusive=True) as device:
        found = identify(device.fd)
        if found != part.identity:
            raise DeviceError(
                f"{part.path} is not the device that {name} was made of: it is {found}, not {part.identity}; bring that"
                " one back under this path",
                device=part.path,
            )
        if device.size < part.size:
            raise DeviceError(f"{part.path} has {device.size} bytes, and had {part.size}", device=part.path)
        yield device


def _part(word: str, device: Device) -> Part:
    path = parse_volume(word).path
    # A link (of LVM, or in /dev/disk/by-id) was chosen to last; a kernel's own name may be another's tomorrow.
    kept = str(Path(path).absolute()) if Path(path).is_symlink() else canonical_name(path, device.fd)
    return Part(kept, identify(device.fd), device.size)


def _wipe(part: Part) -> None:
    """Overwrite the first block of a metadata device with zeros, durably."""
    try:
        fd = os.open(part.path, os.O_WRONLY | os.O_DIRECT | os.O_EXCL | os.O_CLOEXEC)
        try:
            os.pwritev(fd, [aligned_buffer(BLOCK_SIZE)], 0)
            os.fsync(fd)
        finally:
            os.close(fd)
    except OSError as error:
        raise opening_failed(part.path, error) from error

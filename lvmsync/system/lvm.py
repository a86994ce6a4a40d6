"""LVM, asked through lvs: its volumes, and whether one is a classic snapshot that can be used."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from lvmsync.errors import ChangesLost, CommandError, DeviceError, LvmsyncError, UsageError
from lvmsync.formats.snapshot import INSTEAD
from lvmsync.names import Volume
from lvmsync.system.command import run
from lvmsync.system.device import open_device
from lvmsync.system.dm import Mapped, find_device

_FIELDS = (
    "vg_name",
    "vg_uuid",
    "lv_name",
    "lv_uuid",
    "lv_attr",
    "lv_layout",
    "lv_role",
    "lv_size",
    "lv_time",
    "origin",
    "origin_uuid",
    "lv_merging",
    "lv_snapshot_invalid",
    "lv_merge_failed",
    "lv_kernel_major",
    "lv_kernel_minor",
    "pool_lv",
    "pool_lv_uuid",
    "thin_id",
    "lv_tags",
    "data_percent",
    "metadata_percent",
    "vg_free",
    "vg_extent_size",
)
_LVM_UUID = re.compile(r"LVM-([0-9A-Za-z]{32})([0-9A-Za-z]{32})(-[a-z]+[0-9]*)?")


@dataclass(frozen=True)
class Group:
    """A volume group: its name, and in bytes what no volume has taken and what space is given out in."""

    name: str
    free: int
    extent_size: int


@dataclass(frozen=True)
class LogicalVolume:
    """A logical volume, as LVM's metadata and the kernel have it.

    Attributes:
        group: name of its volume group.
        name: without the brackets that lvs puts around a hidden one.
        id: ids of group and volume without hyphens, 64 letters, as in its DM uuid.
        attr: lvs's letters.
        layout: words such as linear, thin, pool.
        role: words such as origin, thicksnapshot, thinsnapshot.
        size: bytes; of a classic snapshot those of its store.
        origin: name of the volume it is a snapshot of; empty if it is none.
        origin_id: like ``id``; empty if it is none.
        is_merging: whether LVM will roll back, or is rolling back, an origin with it (or this origin).
        trouble: what lvs says is wrong with a snapshot; empty if nothing.
        number: major and minor; None while it is not active.
        created: seconds since 1970; None where LVM does not know.
        pool: name of the thin pool that it is a volume of; empty if of none.
        pool_id: like ``id``; empty if of none.
        thin_id: its number in that pool; None if of none.
        tags: what was attached to it by name.
        data_percent: how full a store or pool is, how much of a thin volume is mapped; None: inactive, or another kind.
        metadata_percent: how full a pool's metadata are; None: inactive, or another kind.
        room: what its volume group had free when it was asked for; None: not known.
    """

    group: str
    name: str
    id: str
    attr: str
    layout: frozenset[str]
    role: frozenset[str]
    size: int
    origin: str
    origin_id: str
    is_merging: bool
    trouble: str
    number: tuple[int, int] | None
    created: int | None
    pool: str = ""
    pool_id: str = ""
    thin_id: int | None = None
    tags: frozenset[str] = frozenset()
    data_percent: float | None = None
    metadata_percent: float | None = None
    room: Group | None = field(default=None, compare=False)

    @property
    def full_name(self) -> str:
        """``VG/LV``."""
        return f"{self.group}/{self.name}"

    @property
    def is_classic_snapshot(self) -> bool:
        """Whether dm-snapshot keeps it (not dm-thin)."""
        return "thicksnapshot" in self.role

    @property
    def is_thin(self) -> bool:
        """Whether it is a volume of a thin pool, snapshot or not."""
        return self.thin_id is not None

    @property
    def time(self) -> str | None:
        """When it was made: UTC, ISO 8601."""
        return None if self.created is None else datetime.fromtimestamp(self.created, UTC).isoformat()


def parse_dm_uuid(uuid: str) -> tuple[str, str] | None:
    """Return id (as in `LogicalVolume`) and suffix ("", "-cow", "-real") of LVM's device; None for another's."""
    match = _LVM_UUID.fullmatch(uuid)
    return (match[1] + match[2], match[3] or "") if match else None


def name_of_device(device: Mapped) -> str | None:
    """Return ``VG/LV`` of a device that LVM has made, by the kernel's name for it; None of another's.

    Source: LVM2 v2.03.16, libdm/libdm-string.c, dm_build_dm_name(): hyphens are doubled, and one joins two parts; none
    begins with one, so of an odd number of them the last is the joint.
    """
    if not parse_dm_uuid(device.uuid):
        return None
    parts = re.sub(r"(?<!-)((?:--)*)-(?!-)", r"\1/", device.name).replace("--", "-").split("/")
    return "/".join(parts[:2]) if len(parts) in (2, 3) else None


def list_volumes(group: str | None = None) -> list[LogicalVolume]:
    """Return all volumes, hidden ones included, of one volume group or of all.

    Raises:
        CommandError: lvs is missing or failed, or there is no such group.
    """
    argv = ["lvs", "-a", "--reportformat", "json", "--units", "b", "--nosuffix", "--config", 'report/time_format="%s"']
    argv += ["-o", ",".join(_FIELDS), *([group] if group else [])]
    try:
        text = run(argv)
    except CommandError as error:
        step = f"is there a volume group '{group}'? See 'vgs'" if group else "does 'lvs' work by hand?"
        raise CommandError(f"{error}; {step}") from error
    return parse_report(text)


def read_group(name: str) -> Group:
    """Return what LVM knows of a volume group now.

    Raises:
        CommandError: vgs is missing or failed, or there is no such group.
    """
    try:
        return list_groups(name)[0]
    except CommandError as error:
        raise CommandError(f"{error}; is there a volume group '{name}'? See 'vgs'") from error
    except IndexError as error:
        raise CommandError(f"vgs knows no volume group '{name}'; see 'vgs'") from error


def list_groups(name: str | None = None) -> list[Group]:
    """Return what LVM knows of all volume groups now, or of one.

    Raises:
        CommandError: vgs is missing or failed, or there is no such group.
    """
    argv = ["vgs", "--reportformat", "json", "--units", "b", "--nosuffix", "-o", "vg_name,vg_free,vg_extent_size"]
    text = run([*argv, *([name] if name else [])])
    try:
        rows = [row for report in json.loads(text)["report"] for row in report["vg"]]
        return [Group(row["vg_name"], int(row["vg_free"]), int(row["vg_extent_size"])) for row in rows]
    except (ValueError, LookupError, TypeError) as error:
        raise CommandError(f"cannot read the report of vgs: {error!r}; is it LVM 2.02.158 or newer?") from error


def parse_report(text: str) -> list[LogicalVolume]:
    """Read what ``lvs --reportformat json --units b --nosuffix`` printed.

    Raises:
        CommandError: it is not that.
    """
    try:
        rows = [row for report in json.loads(text)["report"] for row in report["lv"]]
        return [_parse_row(row) for row in rows]
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise CommandError(f"cannot read the report of lvs: {error!r}; is it LVM 2.02.158 or newer?") from error


def _parse_row(row: dict[str, str]) -> LogicalVolume:
    major, minor = int(row.get("lv_kernel_major", -1)), int(row.get("lv_kernel_minor", -1))
    group_id = row.get("vg_uuid", "")
    created = row.get("lv_time", "")
    troubles = (row.get("lv_snapshot_invalid", ""), row.get("lv_merge_failed", ""))
    return LogicalVolume(
        group=row["vg_name"],
        name=row["lv_name"].strip("[]"),
        id=_join(group_id, row.get("lv_uuid", "")),
        attr=row["lv_attr"],
        layout=frozenset(row.get("lv_layout", "").split(",")),
        role=frozenset(row["lv_role"].split(",")),
        size=int(row["lv_size"].removesuffix("B")),
        origin=row["origin"].strip("[]"),
        origin_id=_join(group_id, row["origin_uuid"]) if row.get("origin_uuid") else "",
        is_merging=bool(row["lv_merging"]) or row["lv_attr"][:1] in ("O", "S"),
        trouble=", ".join(word for word in troubles if word not in ("", "unknown")),
        number=(major, minor) if major >= 0 else None,
        created=int(created) if created.isdecimal() else None,
        pool=row.get("pool_lv", "").strip("[]"),
        pool_id=_join(group_id, row["pool_lv_uuid"]) if row.get("pool_lv_uuid") else "",
        thin_id=int(row["thin_id"]) if row.get("thin_id") else None,
        tags=frozenset(tag for tag in row.get("lv_tags", "").split(",") if tag),
        data_percent=_percent(row.get("data_percent", "")),
        metadata_percent=_percent(row.get("metadata_percent", "")),
        room=Group(row["vg_name"], int(row["vg_free"]), int(row["vg_extent_size"])) if row.get("vg_free") else None,
    )


def _percent(text: str) -> float | None:
    return float(text) if text else None


def _join(group_id: str, volume_id: str) -> str:
    return (group_id + volume_id).replace("-", "")


def hyphenate(part: str) -> str:
    """Return 32 letters of an id (as in `LogicalVolume`) as LVM writes them: 6-4-4-4-4-4-6."""
    pieces, at = [], 0
    for length in (6, 4, 4, 4, 4, 4, 6):
        pieces.append(part[at : at + length])
        at += length
    return "-".join(pieces)


def find_volume(word: str, volumes: Sequence[LogicalVolume] | None = None) -> LogicalVolume:
    """Return the volume called ``VG/LV``.

    Args:
        word: its name.
        volumes: what LVM told of its group just now; None: LVM is asked.

    Raises:
        DeviceError: there is none.
        CommandError: there is no such group, or lvs failed.
    """
    group, _, name = word.partition("/")
    volumes = list_volumes(group) if volumes is None else [one for one in volumes if one.group == group]
    for volume in volumes:
        if volume.name == name:
            return volume
    raise DeviceError(f"there is no volume '{name}' in group '{group}'; it has: {_names(volumes)}", device=word)


def list_around(name: Volume) -> list[LogicalVolume] | None:
    """Return what LVM tells of the group of a ``VG/LV``, hidden volumes included; None for a name of another spelling.

    Raises:
        CommandError: no such group, or lvs failed.
    """
    return list_volumes(name.word.partition("/")[0]) if name.is_lvm_name else None


def find_named(name: Volume, volumes: Sequence[LogicalVolume] | None = None) -> LogicalVolume | None:
    """Return the volume that a name of whatever spelling means; None if LVM has nothing to do with it.

    Args:
        name: of the volume.
        volumes: what LVM told of all groups that matter just now; None: LVM is asked.

    Raises:
        UsageError: it names a hidden part of a volume.
        DeviceError: no such volume or device.
        CommandError: no such group, or lvs failed.
    """
    parts = name.word.split("/")
    is_link = name.word.startswith("/dev/") and len(parts) == 4 and parts[2] != "mapper"
    if name.is_lvm_name:
        return find_volume(name.word, volumes)
    if is_link and not Path(name.word).exists():  # not active, or hidden while it is merged
        return find_volume("/".join(parts[2:]))
    with open_device(name.path) as device:
        mapped = find_device(device.number)
    ids = parse_dm_uuid(mapped.uuid) if mapped else None
    if not mapped or not ids:
        return None
    found = find_volume_by_id(ids[0])
    if not found or ids[1]:
        raise UsageError(f"{name.word} is a part of a volume ({mapped.uuid}), not a snapshot; name the snapshot")
    return found


def find_volume_by_id(volume_id: str, volumes: Iterable[LogicalVolume] | None = None) -> LogicalVolume | None:
    """Return the volume with this id (as in `LogicalVolume`), in whatever group it is.

    Args:
        volume_id: its id.
        volumes: what LVM told just now of all groups that matter; None: LVM is asked.
    """
    told = list_volumes() if volumes is None else volumes
    return next((volume for volume in told if volume.id == volume_id), None)


def list_snapshots(origin: LogicalVolume) -> list[LogicalVolume]:
    """Return the classic snapshots of a volume."""
    volumes = list_volumes(origin.group)
    return [volume for volume in volumes if volume.origin == origin.name and volume.is_classic_snapshot]


def require_usable_snapshot(volume: LogicalVolume) -> None:
    """Raise unless a volume is a classic snapshot, active, valid, and not to be merged.

    Raises:
        UsageError: it is not a classic snapshot.
        DeviceError: it is not active.
        ChangesLost: it is invalid, or its merge has been asked for.
    """
    if not volume.is_classic_snapshot:
        raise _not_a_snapshot(volume)
    if volume.is_merging:
        # Until its origin is activated again only LVM's metadata tell of the merge.
        raise ChangesLost(
            f"{volume.full_name} is being merged into {volume.group}/{volume.origin}, or will be when that is "
            f"activated: its origin goes back to what it was; {INSTEAD}",
            device=volume.full_name,
        )
    if volume.number is None:
        raise DeviceError(
            f"{volume.full_name} is not active; run 'lvchange -ay {volume.group}/{volume.origin}'",
            device=volume.full_name,
        )
    if volume.trouble:
        raise ChangesLost(f"{volume.full_name}: LVM says '{volume.trouble}'; {INSTEAD}", device=volume.full_name)


def _not_a_snapshot(volume: LogicalVolume) -> LvmsyncError:
    if {"thin", "pool"} <= volume.layout:
        found, step = "a thin pool", "name a thin snapshot in it ('lvs' lists them)"
    elif "thin" in volume.layout:
        found, step = "a volume of a thin pool", "a classic snapshot is needed beside another one"
    else:
        found = "a plain volume, not a snapshot"
        snapshots = list_snapshots(volume)
        step = f"its snapshots: {_names(snapshots, full=True)}" if snapshots else "it has no classic snapshot"
    return UsageError(f"{volume.full_name} is {found}; {step}", device=volume.full_name)


def _names(volumes: Iterable[LogicalVolume], *, full: bool = False) -> str:
    names: Sequence[str] = sorted(one.full_name if full else one.name for one in volumes if "private" not in one.role)
    return ", ".join(names) or "no volumes"

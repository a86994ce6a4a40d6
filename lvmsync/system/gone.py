"""Whether a device that was known is no more for certain, and not only switched off, or not found just now."""

from __future__ import annotations

import json
from collections.abc import Mapping

from lvmsync.errors import CommandError, LvmsyncError
from lvmsync.system import lvm
from lvmsync.system.command import run


def is_gone(identity: Mapping[str, str]) -> bool:
    """Tell whether a volume of LVM was removed: its group is here and can be read, and no volume anywhere has its id.

    Of what is no volume of LVM that cannot be known: a disk may be plugged in again. One that was moved to another
    group (vgsplit, vgmerge) is the same volume, and keeps its own half of the id.

    Args:
        identity: as `identity.identify` told.
    """
    ids = lvm.parse_dm_uuid(identity.get("dm uuid", ""))
    if ids is None or ids[1] or len(identity) > 1:
        return False
    try:
        return ids[0][:32] in _list_readable() and all(one.id[32:] != ids[0][32:] for one in lvm.list_volumes())
    except LvmsyncError:
        return False


def _list_readable() -> set[str]:
    """Return the ids of all groups whose volumes LVM lists; it does not do so of one that is exported."""
    text = run(["vgs", "--reportformat", "json", "-o", "vg_uuid,vg_exported"])
    try:
        rows = [row for report in json.loads(text)["report"] for row in report["vg"]]
        return {row["vg_uuid"].replace("-", "") for row in rows if not row["vg_exported"]}
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise CommandError(f"cannot read the report of vgs: {error!r}") from error

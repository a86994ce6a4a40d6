"""Suspending mapped devices for a moment, with a watchdog that resumes them whatever becomes of us."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from lvmsync.errors import UsageError
from lvmsync.system import dm
from lvmsync.system.holds import held

LIMIT = 10.0
"""Seconds that a device stays suspended at most."""


@contextmanager
def suspended(numbers: Sequence[dm.Number], *, limit: float = LIMIT, lockfs: bool = True) -> Iterator[None]:
    """Suspend mapped devices in this order, for the time of the block; they are resumed in reverse.

    What was written before is on the devices below then; what is written or read in the block waits.

    Args:
        numbers: of the devices; a device that lies on another one of them comes first.
        limit: seconds after which they are resumed, whatever happens.
        lockfs: whether file systems on them are frozen, too, so that they are whole below; not where that was done.

    Raises:
        UsageError: one of them is no mapped device.
        DeviceError: one of them cannot be suspended, or all were resumed before the block ended.
    """
    for major, minor in numbers:
        if not dm.is_mapped((major, minor)):
            raise UsageError(f"device {major}:{minor} is not one of the device mapper's, and cannot be suspended")
    with held("suspended", [f"{major}:{minor}" for major, minor in numbers], limit=limit, lockfs=lockfs):
        yield


def list_suspended() -> list[dm.Mapped]:
    """Return the mapped devices that are suspended now, by whomever.

    Raises:
        CommandError: dmsetup failed.
    """
    return [device for device in dm.list_devices() if is_suspended(device.number)]


def is_suspended(number: dm.Number) -> bool:
    """Tell whether a mapped device is suspended."""
    try:
        return (dm.SYSFS_BLOCK / f"{number[0]}:{number[1]}" / "dm/suspended").read_text().strip() == "1"
    except OSError:
        return False

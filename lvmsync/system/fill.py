"""How full the store of a classic snapshot, or a thin pool, is.

A store that is full has lost its snapshot; a pool that is full gives errors to every volume in it. All numbers
come from dmsetup, which takes no lock of LVM's.
"""

from __future__ import annotations

from dataclasses import dataclass

from lvmsync.errors import CommandError, DeviceError
from lvmsync.formats.pdata import BLOCK_SIZE
from lvmsync.formats.snapshot import SECTOR, parse_status
from lvmsync.formats.thin import parse_pool_status, parse_pool_table, parse_thin_table
from lvmsync.system import dm, lvm


@dataclass(frozen=True)
class Fill:
    """How much of something is used, in bytes."""

    used: int
    total: int

    @property
    def free(self) -> int:
        """Bytes that are left."""
        return self.total - self.used

    @property
    def percent(self) -> float:
        """0 to 100; 100 of something that has no size."""
        return 100.0 * self.used / self.total if self.total else 100.0


@dataclass(frozen=True)
class PoolFill:
    """How full a thin pool is.

    Attributes:
        device: the pool's own, which has the ``thin-pool`` target.
        data: bytes of its data device, in whole chunks.
        metadata: bytes of its metadata device.
        chunk: bytes that it allocates at a time.
        mode: "rw", "ro" or "out_of_data_space".
    """

    device: dm.Mapped
    data: Fill
    metadata: Fill
    chunk: int
    mode: str

    @property
    def percent(self) -> float:
        """Of the data or of the metadata, whichever is fuller."""
        return max(self.data.percent, self.metadata.percent)


@dataclass(frozen=True)
class ThinPool:
    """A thin pool that the kernel runs; asking for its fill costs one call of dmsetup.

    Attributes:
        device: as in `PoolFill`.
        chunk: as in `PoolFill`.
        has_zeros: whether it zeroes a block before it gives it to a volume.
    """

    device: dm.Mapped
    chunk: int
    has_zeros: bool = True

    def read_fill(self) -> PoolFill:
        """Ask how full it is.

        Raises:
            ChangesLost: the pool has failed.
            CommandError: it is gone.
        """
        lines = dm.read_status(self.device)
        if [line.kind for line in lines] != ["thin-pool"]:
            raise CommandError(f"{self.device.path} is no thin pool any more: it was changed or removed meanwhile")
        status = parse_pool_status(lines[0].text, self.device.path)
        data = Fill(status.used_data_blocks * self.chunk, status.data_blocks * self.chunk)
        metadata = Fill(status.used_metadata_blocks * BLOCK_SIZE, status.metadata_blocks * BLOCK_SIZE)
        return PoolFill(self.device, data, metadata, self.chunk, status.mode)


def find_pool(number: dm.Number) -> ThinPool | None:
    """Return the thin pool that a device takes its space from, or is; None where there is none.

    Looks through what lies between (a crypt or linear device on a thin volume), by sysfs.

    Raises:
        CommandError: dmsetup failed.
    """
    if not dm.is_mapped(number):
        return None
    lines = {line.device.number: line for line in dm.list_tables()}
    seen, below = set(), [number]
    while below:
        one = below.pop()
        line = lines.get(one)
        if one in seen:
            continue
        seen.add(one)
        if line and line.kind == "thin":
            below.append(parse_thin_table(line.text, line.device.path)[0])
        elif line and line.kind == "thin-pool":
            chunk = parse_pool_table(line.text, line.device.path).block_sectors * SECTOR
            return ThinPool(line.device, chunk, "skip_block_zeroing" not in line.text.split())
        else:
            below += dm.list_below(one)
    return None


def pool_fill_of(number: dm.Number) -> PoolFill | None:
    """Return how full the pool below a device is; None where no pool is below it.

    Raises:
        ChangesLost: the pool has failed.
        CommandError: dmsetup failed.
    """
    pool = find_pool(number)
    return pool.read_fill() if pool else None


def store_fill(volume: lvm.LogicalVolume) -> Fill:
    """Return how full the store of an active classic snapshot is.

    Raises:
        DeviceError: it is not active.
        ChangesLost: it has overflowed, or is invalid.
        CommandError: it is no snapshot, or gone.
    """
    device = dm.find_device(volume.number)
    if device is None:
        raise DeviceError(f"{volume.full_name} is not active", device=volume.full_name)
    lines = dm.read_status(device)
    if [line.kind for line in lines] != ["snapshot"]:
        raise CommandError(f"{volume.full_name}: the kernel has no snapshot there: it was changed or removed meanwhile")
    usage = parse_status(lines[0].text, volume.full_name)
    return Fill(usage.allocated * SECTOR, usage.total * SECTOR)

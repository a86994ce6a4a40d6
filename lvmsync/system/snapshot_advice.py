"""How large the store of a classic snapshot should be, and how much it should keep at a time.

Source: Linux v6.1, drivers/md/dm-snap-persistent.c and dm-snap.c.
"""

from __future__ import annotations

from dataclasses import dataclass

from lvmsync.errors import DeviceError, UsageError
from lvmsync.formats.snapshot import ENTRY_SIZE
from lvmsync.system import lvm
from lvmsync.units import size_words

MIN_CHUNK, MAX_CHUNK = 4 << 10, 512 << 10

_SMALL = 512 << 20  # a store of this size may as well hold everything
_LEAST = 64 << 20
_SHARE = 0.15  # of the origin, where nothing is known of its writers
_MARGIN = 1.5  # over what is expected
_MAX_EXCEPTIONS = 8 << 20  # struct dm_exception is 32 bytes, so 256 MiB of the kernel's memory when it is full


@dataclass(frozen=True)
class SnapshotAdvice:
    """How large the store of a classic snapshot should be.

    Attributes:
        size: bytes.
        chunk: bytes.
        never_full: whether it holds everything, so that it cannot overflow.
        reason: one sentence for people.
    """

    size: int
    chunk: int
    never_full: bool
    reason: str


def advise_snapshot(
    origin: lvm.LogicalVolume,
    *,
    expected: int | None = None,
    size: int | None = None,
    chunk: int | None = None,
    group: lvm.Group | None = None,
) -> SnapshotAdvice:
    """Advise on the store of a classic snapshot of ``origin``, within what its volume group has free.

    Args:
        origin: a volume that is not thin.
        expected: bytes that will be written to the origin while the snapshot is there; None: not known.
        size: bytes of the store, where the user has chosen; None: advised.
        chunk: bytes, where the user has chosen; None: advised.
        group: what LVM told of its volume group just now; None: it is asked.

    Raises:
        UsageError: a chunk size that dm-snapshot does not take.
        DeviceError: the volume group has too little room.
        CommandError: vgs failed.
    """
    free = (group or lvm.read_group(origin.group)).free
    advice = advise(origin.size, free, expected=expected, size=size, chunk=chunk)
    if advice is None:
        needed = size or min(_least(origin.size, expected), whole_store(origin.size, chunk or MIN_CHUNK))
        raise DeviceError(
            f"the volume group '{origin.group}' has {size_words(free)} free, and a snapshot of {origin.full_name}"
            f" ({size_words(origin.size)}) needs {size_words(needed)} at least: add a disk ('vgextend'), or remove a"
            " volume",
            device=origin.full_name,
        )
    return advice


def advise(
    origin_size: int, free: int, *, expected: int | None = None, size: int | None = None, chunk: int | None = None
) -> SnapshotAdvice | None:
    """Do the same with numbers alone; None: ``free`` bytes are too few."""
    if chunk is not None and (chunk & (chunk - 1) or not MIN_CHUNK <= chunk <= MAX_CHUNK):
        raise UsageError(
            f"a chunk size of {chunk} is none that dm-snapshot takes; a power of two from 4 KiB to 512 KiB"
        )
    wanted = size or _wanted(origin_size, expected)
    chunk = chunk or advise_chunk(min(wanted, whole_store(origin_size, MIN_CHUNK)))
    whole = whole_store(origin_size, chunk)
    if size is not None:
        chosen, reason = min(size, whole), "as asked for"
    elif wanted >= 0.8 * whole:
        chosen, reason = whole, "it holds the whole volume and can never be full"
    elif expected is not None:
        chosen, reason = wanted, f"{_MARGIN:g} times the {size_words(expected)} that may be written meanwhile"
    else:
        chosen, reason = wanted, f"{_SHARE:.0%} of the volume"
    if chosen > free:
        if size is not None or free < min(_least(origin_size, expected), whole):
            return None
        chosen, reason = free, f"all that the volume group has free; {size_words(chosen)} would be better"
    is_whole = chosen >= whole
    if is_whole and size is not None:
        reason += ": it holds the whole volume and can never be full"
    return SnapshotAdvice(
        chosen, chunk, is_whole, f"store of {size_words(chosen)}, chunks of {size_words(chunk)}: {reason}"
    )


def advise_chunk(store_size: int) -> int:
    """Return the smallest chunk with which a full store of this size costs the kernel 256 MiB of memory at most.

    Small chunks make small deltas, and copy the least before a first write; that is what lvmsync wants.
    """
    chunk = MIN_CHUNK
    while chunk < MAX_CHUNK and store_size // chunk > _MAX_EXCEPTIONS:
        chunk *= 2
    return chunk


def whole_store(origin_size: int, chunk: int) -> int:
    """Return the bytes of a store that holds every chunk of its origin, and so can never be full."""
    chunks = -(-origin_size // chunk)
    # When an area is full the kernel zeroes the next one at once, so there is one more than needed.
    areas = chunks // (chunk // ENTRY_SIZE) + 1
    return (1 + areas + chunks) * chunk


def require_room(group: str, size: int, what: str) -> None:
    """Raise unless a volume group has ``size`` bytes free.

    Raises:
        DeviceError: it has not.
        CommandError: vgs failed, or there is no such group.
    """
    found = lvm.read_group(group)
    needed = round_up(size, found.extent_size)
    if needed > found.free:
        raise DeviceError(
            f"the volume group '{group}' has {size_words(found.free)} free, and {what} needs {size_words(needed)}:"
            " add a disk ('vgextend'), or remove a volume",
            device=group,
        )


def round_up(size: int, unit: int) -> int:
    """Return the next multiple of ``unit``."""
    return -(-size // unit) * unit


def _wanted(origin_size: int, expected: int | None) -> int:
    whole = whole_store(origin_size, MIN_CHUNK)
    if whole <= _SMALL:
        return whole
    return max(int(origin_size * _SHARE) if expected is None else int(expected * _MARGIN), _LEAST)


def _least(origin_size: int, expected: int | None) -> int:
    """Return with how little a snapshot is worth while."""
    return max(_LEAST, origin_size // 100 if expected is None else expected)

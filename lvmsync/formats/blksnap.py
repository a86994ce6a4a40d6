"""The map that blksnap keeps of a device's changed blocks, and whether it leads from a base to now.

Source: blksnap as shipped with Veeam Agent 6.3.1 and 7.0, and as proposed for Linux 6.15 (the three that
`blksnap_abi` tells apart); all three run, see fixtures/blksnap/FORMAT.md. A map has a byte for each block:
the number of the first snapshot taken after the block was last written, 0 if it never was. Number and map
count within one generation, which has a random id and ends with the module, the device's size, or detaching.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lvmsync.errors import ChangesLost, FormatError
from lvmsync.extents import ChangeMap, MapBuilder

MAX_NUMBER = 255
"""The number of the snapshot that begins a generation anew; as a base it is of no use."""

NO_GENERATION = "00000000-0000-0000-0000-000000000000"

INSTEAD = "compare the whole device ('compare:'), or send everything ('full:')"
"""What to do when the map does not tell what changed."""

BlockNumbers = npt.NDArray[np.uint8]
"""A map: for each block a snapshot's number."""

_PIECE = 1 << 20  # blocks looked at together


@dataclass(frozen=True)
class Tracking:
    """How far the tracking of one device is (``CBTINFO``, ``cbt_info``).

    Attributes:
        generation: id of the generation, as 8-4-4-4-12 hex digits.
        number: of the latest snapshot taken in it, 0 to 255; 0: none yet, 255: the one that began it anew.
        block_size: bytes of a block.
        block_count: blocks in the map; the last may lie partly behind the end.
        capacity: bytes of the device when the generation began.
    """

    generation: str
    number: int
    block_size: int
    block_count: int
    capacity: int


@dataclass(frozen=True)
class Decision:
    """What has to be sent to bring a base to now.

    Attributes:
        since: blocks whose byte is greater than this; None: everything.
        why: a sentence about it.
    """

    since: int | None
    why: str


def decide(base: Tracking | None, now: Tracking) -> Decision:
    """Choose what leads from a base to the snapshot that is held now.

    Its map is still to be checked (`check_map`) before it is believed.

    Args:
        base: of the snapshot whose image the base is; None: nothing is known of it.
        now: of the snapshot that is held, asked after it was taken.
    """
    if base is None:
        return Decision(None, "No base is known.")
    if now.generation != base.generation or now.generation == NO_GENERATION:
        return Decision(
            None,
            f"Tracking began anew since the base: generation {now.generation}, not {base.generation} (a reboot, the"
            " module loaded again, the device detached or resized, or 255 snapshots).",
        )
    for what in ("block_size", "block_count", "capacity"):
        was, is_now = getattr(base, what), getattr(now, what)
        if was != is_now:
            return Decision(
                None, f"The {what.replace('_', ' ')} is {is_now} now, and was {was} when the base was made."
            )
    if base.number >= MAX_NUMBER:  # the map would have to have a byte > 255
        return Decision(None, "The base is of snapshot 255, after which the numbers begin again.")
    if now.number <= base.number:
        return Decision(
            None,
            f"Snapshot {now.number} is not after snapshot {base.number}, the base: the numbers began again, or it is"
            " the same snapshot.",
        )
    return Decision(base.number, f"Snapshot {base.number} is the base, {now.number} is held, of the same generation.")


def check_map(numbers: BlockNumbers, tracking: Tracking) -> None:
    """Raise unless a map can be the one of ``tracking``.

    Raises:
        FormatError: it has another length.
        ChangesLost: a byte is above the latest snapshot's number.
    """
    if len(numbers) != tracking.block_count:
        raise FormatError(f"map: {len(numbers)} bytes, not {tracking.block_count}, a byte for each block")
    highest = int(numbers.max(initial=0))
    if highest > tracking.number:
        block = int(np.argmax(numbers))
        raise ChangesLost(
            f"map byte {block}: snapshot {highest}, but the latest is {tracking.number}: this map cannot be trusted;"
            f" {INSTEAD}",
            offset=block,
        )


def changes(numbers: BlockNumbers, since: int, block_size: int, size: int) -> ChangeMap:
    """Return which bytes were written after snapshot ``since`` was taken.

    Args:
        numbers: the map.
        since: number of the base's snapshot, 0 to 254; 0: all that was written in this generation.
        block_size: bytes of a block.
        size: bytes of the device.

    Raises:
        FormatError: the map is not as long as the device has blocks.
        ChangesLost: ``since`` is 255: such a map would show no change at all.
    """
    if since >= MAX_NUMBER:
        raise ChangesLost(f"no map tells what changed since snapshot {since}: the numbers begin again there; {INSTEAD}")
    blocks = -(-size // block_size)
    if len(numbers) != blocks:
        raise FormatError(
            f"map: {len(numbers)} bytes; a device of {size} bytes has {blocks} blocks of {block_size}, a byte each"
        )
    builder = MapBuilder()
    for begin in range(0, blocks, _PIECE):
        is_newer = np.zeros(min(_PIECE, blocks - begin) + 2, bool)  # with an old block on either side
        np.greater(numbers[begin : begin + _PIECE], np.uint8(since), out=is_newer[1:-1])
        edges = np.flatnonzero(is_newer[1:] != is_newer[:-1]).astype(np.uint64)
        edges += np.uint64(begin)
        edges *= np.uint64(block_size)
        builder.add(edges[::2], np.minimum(edges[1::2], np.uint64(size)))
    return builder.build()

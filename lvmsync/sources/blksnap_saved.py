"""What a saved map of blksnap tells: a file with a byte for each block, and what its user says of it.

The file does not say what device, generation and snapshot it is of; what is not said can only be taken as the
user's word.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import numpy as np

from lvmsync.errors import ChangesLost, FormatError, UsageError
from lvmsync.extents import MAX_SIZE, ChangeMap
from lvmsync.formats.blksnap import MAX_NUMBER, Tracking, changes, check_map
from lvmsync.formats.blksnap_abi import SECTOR
from lvmsync.history import Point
from lvmsync.interfaces import Readable
from lvmsync.names import BlockMap, parse_volume
from lvmsync.sources.head import Watch, open_quiet
from lvmsync.sources.source import Reading, Source, Unread
from lvmsync.system.device import Device, naming, open_device

INSTEAD = "'compare:' finds what differs, and 'full:' sends everything"
MAX_BLOCKS = 1 << 28
"""Blocks that a saved map may have: 16 TiB in the smallest that the module makes; it makes 2 Mi at the most."""


def require_order(since: int, number: int, name: str) -> None:
    """Raise ChangesLost unless the snapshot ``since`` came before ``number``, in one count."""
    if MAX_NUMBER in (since, number):
        raise ChangesLost(
            f"{name}: snapshot {MAX_NUMBER} is where the count begins anew, and the map with it: changes since {since}"
            f" up to {number} are not known; {INSTEAD}",
            device=name,
        )
    if since >= number:
        raise ChangesLost(
            f"{name}: since={since}, and the map is of snapshot {number}, which is not later: the count began anew, or"
            f" no snapshot was taken since; {INSTEAD}",
            device=name,
        )


def open_base(name: BlockMap, reading: Reading, stack: ExitStack) -> Readable | None:
    """Open where the base's data is read, if that is wanted."""
    if not reading.with_base:
        return None
    if not reading.base_source:
        raise UsageError(f"{name.word}: blksnap keeps no old data; name the base with --base-data")
    return stack.enter_context(open_device(parse_volume(reading.base_source).path))


@contextmanager
def open_saved(name: BlockMap, reading: Reading) -> Iterator[Source]:
    """Open the changes that a saved map tells."""
    if name.since is None or name.block_size is None:
        raise UsageError(
            f"{name.word}: {name.place.word} is a file, so it must be said what its bytes mean: write"
            f" blksnap:{name.place.word},since=N,block-size=B,number=C,generation=G"
        )
    since, block = name.since, name.block_size
    with ExitStack() as stack:
        data, watch = None, None
        if reading.data_source:
            data = stack.enter_context(open_quiet(parse_volume(reading.data_source), frozen=reading.frozen))
            watch = Watch(data)
        if data is None and reading.with_data:
            raise UsageError(
                f"{name.word}: a map holds no data; name a copy of the image of its snapshot with -r", device=name.word
            )
        with open_device(name.place.path) as file:
            if not 0 < file.size <= MAX_BLOCKS:
                raise FormatError(
                    f"{file.name} has {file.size} bytes, and a map has one for each block: 1 to {MAX_BLOCKS}",
                    device=file.name,
                )
            found = np.frombuffer(file.read_bytes(0, file.size), np.uint8)
            notes = []
            if name.generation is None:
                notes.append("That base and map are of one generation is your word; generation= says which it is.")
            size = _saved_size(name, block, len(found), data, notes)
            number = _saved_number(name, since, found, notes)
            with naming(file):
                check_map(found, Tracking("", number, block, len(found), size))
        changed = changes(found, since, block, size)
        if not changed and name.number is None:
            raise ChangesLost(
                f"{name.word}: no byte is above {since}: nothing was written, or the count began anew and all is lost;"
                " say which with number=C of the map's snapshot",
                device=name.word,
            )
        if data:
            notes.append(f"That {reading.data_source} holds the state of the map's snapshot is your word.")
        yield Source(
            kind="blksnap",
            name=name.word,
            size=size,
            granularity=block,
            base=_point(name, since),
            head=_point(name, name.number),
            changes=changed,
            holes=ChangeMap.empty(),
            data=data or Unread(name.word, size),
            confirm=watch.confirm if watch else lambda: None,
            notes=tuple(notes),
            base_data=open_base(name, reading, stack),
        )


def _point(name: BlockMap, number: int | None) -> Point | None:
    """Return the point that a snapshot of the map's generation is; None where not both are said."""
    if name.generation is None or number is None:
        return None
    return Point(f"blksnap:{name.generation}:{number}")


def _saved_size(name: BlockMap, block: int, count: int, data: Device | None, notes: list[str]) -> int:
    """Return how many bytes the device has, which must fit the number of blocks in the map."""
    if name.size is not None:
        size, whose = name.size, "size="
    elif data:
        size, whose = data.size, data.name
        if size % SECTOR:
            raise UsageError(f"{whose} has {size} bytes, no whole sectors of {SECTOR}: it is cut short, or no device's")
    else:
        if count * block >= MAX_SIZE:
            raise UsageError(f"{name.word}: {count} blocks of {block} bytes are no device's; block-size= is another")
        notes.append(f"The last block of {block} bytes may be shorter: give size= with the device's size.")
        return count * block
    if -(-size // block) != count:
        raise UsageError(
            f"{whose} has {size} bytes, and the map has {count} blocks of {block}, for {(count - 1) * block + 1} to"
            f" {count * block}: they do not belong together, or block-size= is another",
            device=name.word,
        )
    if data and data.size < size:
        raise UsageError(f"{data.name} has {data.size} bytes, less than the {size} of {name.word}", device=data.name)
    return size


def _saved_number(name: BlockMap, since: int, found: np.ndarray, notes: list[str]) -> int:
    """Return the number of the snapshot that a map was read in, or the least that it can have."""
    number = name.number
    if number is None:
        notes.append(
            f"Without number=C, the snapshot that the map was read in, it cannot be seen whether the count began anew"
            f" after snapshot {MAX_NUMBER}."
        )
        number = max(int(found.max()), since + 1)
        if since == MAX_NUMBER:
            number = since
    require_order(since, number, name.word)
    return number

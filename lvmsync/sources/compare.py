"""Changes found by reading: two devices are compared, byte by byte. It needs no tracker, and misses nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from lvmsync.errors import UsageError
from lvmsync.extents import ChangeMap
from lvmsync.names import Comparison, parse_volume
from lvmsync.sources.difference import BLOCK, Zeros, common_size, find_differences, join_maps
from lvmsync.sources.head import Watch, choose_size, make_point, open_head
from lvmsync.sources.source import Reading, Source
from lvmsync.system.device import Device, open_device
from lvmsync.system.holes import find_holes


@contextmanager
def open_comparison(name: Comparison, reading: Reading) -> Iterator[Source]:
    """Compare two devices and yield where they differ; see `open_source`.

    The old side is let go before the source is yielded, unless its data is wanted: it may be the target.
    """
    old_name = parse_volume(reading.base_source) if reading.base_source else name.old
    if old_name is None:
        raise UsageError(
            f"'{name.word}' names nothing to compare with: write {name.word},old=PATH, or use sync, where it is the"
            " target"
        )
    with ExitStack() as stack:
        new, watch = stack.enter_context(open_head(name.new, reading))
        size = choose_size(new, name.size)
        keep = ExitStack()
        with keep:
            old = keep.enter_context(open_device(old_name.path))
            old_watch = Watch(old)
            differing = _compare(new, old, size)
            old_watch.confirm()
            if reading.with_base:
                stack.enter_context(keep.pop_all())
        yield build_source(
            name,
            new,
            size,
            differing,
            watch.confirm,
            old_size=old.size,
            old_name=old_name.word,
            base_data=old if reading.with_base else None,
        )


def build_source(
    name: Comparison,
    new: Device,
    size: int,
    differing: ChangeMap,
    confirm: Callable[[], None],
    *,
    old_size: int,
    old_name: str,
    base_data: Device | None = None,
) -> Source:
    """Return what a comparison has found as a source.

    Args:
        name: as its user wrote it.
        new: the head's data.
        size: bytes of it that count.
        differing: where the two differ.
        confirm: as of `Source`.
        old_size: bytes of the old side.
        old_name: what messages call that.
        base_data: the old side, where its data is wanted.
    """
    notes = []
    if old_size > size:
        notes.append(f"{old_name} has {old_size} bytes; what is past {size} was not compared.")
    return Source(
        kind="compare",
        name=name.word,
        size=size,
        granularity=BLOCK,
        base=None,
        head=make_point(),
        changes=differing,
        holes=differing & find_holes(new, size),
        data=new,
        confirm=confirm,
        notes=tuple(notes),
        base_data=base_data,
    )


def _compare(new: Device, old: Device, size: int) -> ChangeMap:
    """Return where two sides differ; holes are not read: the kernel would fill its page cache with their zeros."""
    end = common_size(size, old.size)
    new_holes, old_holes = find_holes(new, end), find_holes(old, end)
    return join_maps(
        [
            find_differences(new, old, (new_holes | old_holes).complement(end)),
            find_differences(new, Zeros(end), old_holes - new_holes),
            find_differences(Zeros(end), old, new_holes - old_holes),
            ChangeMap.from_extents([(end, size - end)]),
        ]
    )

"""What every mechanism gives: one value that says what changed, and where to read it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lvmsync.errors import UsageError
from lvmsync.extents import ChangeMap
from lvmsync.history import Point
from lvmsync.interfaces import Readable
from lvmsync.stream.frames import Sample
from lvmsync.system.lvm import LogicalVolume


@dataclass(frozen=True)
class Reading:
    """How a source is to be opened: what is wanted of it, and where that is.

    Attributes:
        data_source: VG/LV or path where the head's data is read; None: where the mechanism says.
        frozen: the user's word that nobody writes to a live origin meanwhile.
        with_data: whether the head's data will be read; without, only the map is wanted.
        base_source: VG/LV or path where the base's data is read; None: where the mechanism says.
        with_base: whether the base's data will be read as well.
        volumes: what LVM told just now of the volumes of the source's group, as they are still; None: it is asked.
        is_later: the data source is known to be the newer one, whatever a clock said when it was made.
    """

    data_source: str | None = None
    frozen: bool = False
    with_data: bool = True
    base_source: str | None = None
    with_base: bool = False
    volumes: Sequence[LogicalVolume] | None = None
    is_later: bool = False


@dataclass(frozen=True)
class Source:
    """The changes of one device between two of its states.

    Attributes:
        kind: mechanism that tracked them: "snapshot", "thin", "era", "compare", "full".
        name: the source as its user named it.
        size: bytes of the device.
        granularity: bytes that the tracker tells apart (its chunk).
        base: the state the changes start from; None where nothing names it.
        head: the state they lead to; None where nothing names it.
        changes: which bytes may differ between them; clipped to ``size``.
        holes: those of ``changes`` that are unmapped now and read as zeros.
        data: where the head's bytes are read; it refuses to, if they were not wanted (`Reading.with_data`).
        confirm: asks the tracker again, once all data has been read; raises if what was read may
            not be the head (ChangesLost: the tracker failed; ConflictError: data changed meanwhile).
        notes: what its user should know, a sentence each.
        base_data: where the base's bytes are read; None where they were not wanted.
        origin: path of the device whose changes these are, where the data is read elsewhere; it can be no target.
        is_minimal: whether the map was held against the base, so that it leads from that very state only.
        is_full: whether it is the whole device, whatever the other side holds: a first copy.
        samples: what the base holds where something changed that is not in the map: a target has to hold it.
    """

    kind: str
    name: str
    size: int
    granularity: int
    base: Point | None
    head: Point | None
    changes: ChangeMap
    holes: ChangeMap
    data: Readable
    confirm: Callable[[], None]
    notes: tuple[str, ...] = ()
    base_data: Readable | None = None
    is_full: bool = False
    is_minimal: bool = False
    origin: str | None = None
    samples: tuple[Sample, ...] = ()


@dataclass(frozen=True)
class Unread:
    """Stands where a source's data would be read, if only its map was wanted (a `Readable`)."""

    name: str
    size: int

    def read(self, offsets: Sequence[int], lengths: Sequence[int], out: memoryview) -> None:
        """Refuse."""
        raise UsageError(f"{self.name}: where its data is was not said; name it with -r")

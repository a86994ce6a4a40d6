"""What dm-era saw written since an era: of a device in use, or of metadata that nobody uses now.

Of a device in use the order is: open the place where data is read, so that nobody writes to it; take the
metadata snapshot, which begins a new era; read the map; give the snapshot back; read the data. All writes
of the eras before the new one are then in map and data, and a write that comes meanwhile is of the new era.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from lvmsync.errors import ChangesLost, CommandError, ConflictError, DeviceError, FormatError, UsageError
from lvmsync.extents import ChangeMap
from lvmsync.formats.era import FULL, EraTable, Metadata, Superblock, parse_status, parse_table
from lvmsync.history import Point
from lvmsync.interfaces import Readable
from lvmsync.names import EraMetadata, Volume, parse_volume
from lvmsync.sources.head import Watch, open_quiet
from lvmsync.sources.metadata import MetadataReader
from lvmsync.sources.source import Reading, Source, Unread
from lvmsync.system import dm
from lvmsync.system.device import Device, naming, open_device
from lvmsync.system.identity import identify
from lvmsync.system.reservation import Tracker, read_held, reserve

TRACKER = Tracker(
    "era",
    "take_metadata_snap",
    "drop_metadata_snap",
    lambda text, name: parse_status(text, name).held_root,
)
"""How an era target deals with its metadata snapshot."""

INSTEAD = "'compare:' finds what differs, and since=0 sends everything"


@dataclass(frozen=True)
class Live:
    """An era device that the kernel runs.

    Attributes:
        line: of its table.
        table: what that says.
    """

    line: dm.Line
    table: EraTable

    @property
    def device(self) -> dm.Mapped:
        """The device itself, through which writes are seen."""
        return self.line.device


@dataclass(frozen=True)
class Seen:
    """What is there when the era to start from is chosen.

    Attributes:
        metadata: open for reading, and still until the choice is made.
        life: names the history that the eras count in, and no other; None of metadata that no device uses.
        size: bytes of the device.
        is_own: whether the data is read from the era device itself, so that no write is missed between the two.
    """

    metadata: Metadata
    life: str | None
    size: int
    is_own: bool

    @property
    def era(self) -> int:
        """The current era: writes from now on are of this one, or of a later one."""
        return self.metadata.superblock.current_era


@dataclass(frozen=True)
class Choice:
    """From where on changes are wanted.

    Attributes:
        since: the first era that counts; 0: everything.
        size: bytes of the device when the base was made: what lies behind counts as changed; None: as now.
        notes: what the user should know of the choice.
    """

    since: int
    size: int | None = None
    notes: tuple[str, ...] = ()


@contextmanager
def open_metadata(name: EraMetadata, reading: Reading) -> Iterator[Source]:
    """Open what was written since the era that ``name`` says; see `open_source`."""
    since = name.since
    if since is None:
        raise UsageError(
            f"{name.word}: since which era? Write {name.word},since=N with the era that your copy is of; 'lvmsync sync'"
            " remembers it for each target, and since=0 is everything"
        )
    with open_chosen(name, reading, lambda _: Choice(since)) as source:
        yield source


@contextmanager
def open_chosen(name: EraMetadata, reading: Reading, choose: Callable[[Seen], Choice]) -> Iterator[Source]:
    """Open what was written since the era that ``choose`` says, which is asked once the metadata can be read.

    Raises:
        ConflictError: that era has not been yet.
    """
    with ExitStack() as stack:
        with open_device(name.metadata.path) as named:  # closed again: it may be the device that no one may have open
            number = named.number
        live = find_live(number)
        if live and live.device.number == number:
            metadata = stack.enter_context(dm.open_number(live.table.metadata))
        else:  # metadata that is not in use is held, so that no one starts to use it while it is read
            metadata = stack.enter_context(open_device(name.metadata.path, exclusive=live is None))
        data, is_own = _open_data(name, live, reading, stack)
        watch = Watch(data) if data else None
        base_data = _open_base(name, reading, stack)
        with naming(metadata):
            found = _read(name, reading, _Opened(metadata, live, data, is_own), choose)
        notes = [*found.notes, *_data_notes(reading, live, is_own)]
        yield Source(
            kind="era",
            name=name.word,
            size=found.size,
            granularity=found.granularity,
            base=found.base,
            head=found.head,
            changes=found.changes,
            holes=ChangeMap.empty(),
            data=data or Unread(name.word, found.size),
            confirm=lambda: _confirm(live, watch),
            notes=tuple(notes),
            base_data=base_data,
            is_full=found.is_full,
        )


def find_live(number: dm.Number | None) -> Live | None:
    """Return the era target that has this device as its metadata, or is this device itself."""
    if number is None:
        return None
    for line in dm.list_tables():
        if line.kind == "era":
            table = parse_table(line.text, line.device.path)
            if number in (line.device.number, table.metadata):
                return Live(line, table)
    return None


def life_of(live: Live) -> str:
    """Return what names the history of an era device: its uuid, or else the identity of its metadata device."""
    if live.device.uuid:
        return live.device.uuid
    with dm.open_number(live.table.metadata) as metadata:
        return ", ".join(f"{key} {value}" for key, value in identify(metadata.fd).items())


def view(reader: MetadataReader, root: int) -> Metadata:
    """Return the metadata as the superblock in block ``root`` shows it: 0 is the live one.

    Raises:
        FormatError: there is no superblock, or it is damaged.
    """
    superblock = Superblock.parse(reader.read_block(root) if reader.nr_blocks else b"", root)
    return Metadata(reader, reader.nr_blocks, superblock, is_snapshot=root != 0)


@dataclass(frozen=True)
class _Opened:
    """The devices that a source is made of."""

    metadata: Device
    live: Live | None
    data: Device | None
    is_own: bool


@dataclass(frozen=True)
class _Map:
    """What the metadata says."""

    size: int
    granularity: int
    changes: ChangeMap
    is_full: bool
    base: Point | None
    head: Point | None
    notes: tuple[str, ...]


def _open_data(name: EraMetadata, live: Live | None, reading: Reading, stack: ExitStack) -> tuple[Device | None, bool]:
    """Open the place where data is read, if it is wanted or said; tell whether that is the era device itself."""
    frozen = reading.frozen or not reading.with_data
    if reading.data_source:
        data = stack.enter_context(open_device(parse_volume(reading.data_source).path))
        if not live or data.number != live.device.number:
            return data, False
    if not reading.with_data:
        return None, live is not None
    if live is None:
        raise UsageError(
            f"{name.word}: no device uses this metadata now, so where is the data? Name it with -r: what was below the"
            " era device, or a copy"
        )
    return stack.enter_context(open_quiet(Volume(live.device.path), frozen=frozen)), True


def _open_base(name: EraMetadata, reading: Reading, stack: ExitStack) -> Readable | None:
    if not reading.with_base:
        return None
    if not reading.base_source:
        raise UsageError(f"{name.word}: an era keeps no old data; name the base with --base-data")
    return stack.enter_context(open_device(parse_volume(reading.base_source).path))


def _data_notes(reading: Reading, live: Live | None, is_own: bool) -> list[str]:
    if is_own or not reading.data_source:
        return []
    state = f"what {live.device.path} holds now" if live else "what was written through the era device"
    return [f"That {reading.data_source} holds {state} is your word."]


def _confirm(live: Live | None, watch: Watch | None) -> None:
    if live:
        try:
            read_held(live.device, TRACKER)  # raises if it has failed
        except CommandError as error:
            raise ChangesLost(f"the era device was changed or removed meanwhile: {error}; {INSTEAD}") from error
        now = find_live(live.device.number)
        if now is None or (now.table, now.device.uuid) != (live.table, live.device.uuid):
            raise ChangesLost(f"the table of {live.device.path} was changed meanwhile; {INSTEAD}")
    if watch:
        watch.confirm()


def _read(name: EraMetadata, reading: Reading, opened: _Opened, choose: Callable[[Seen], Choice]) -> _Map:
    """Read the map from the metadata that ``snap`` means."""
    live, metadata = opened.live, opened.metadata
    with MetadataReader(metadata) as reader:
        if live is None:
            found = view(reader, 0)
            if name.snap == "held":
                root = found.superblock.metadata_snap
                if not root:
                    raise _nothing_held(metadata.name)
                found = view(reader, root)
            return _map(found, name, reading, opened, choose)
        if name.snap == "live":
            raise UsageError(
                f"{metadata.name} belongs to {live.device.path}, which is active: its live metadata changes while it is"
                " read; leave snap=live away"
            )
        if name.snap == "held":
            held, status = read_held(live.device, TRACKER)
            if held is None:
                raise _nothing_held(live.device.path)
            read = _map(view(reader, held), name, reading, opened, choose)
            if read_held(live.device, TRACKER)[0] != held:
                raise ConflictError(f"the metadata snapshot of {live.device.path} was given back while it was read")
            return replace(read, notes=(*read.notes, *fullness(status, live.device.path)))
        with reserve(live.device, TRACKER, name.word) as ours:
            read = _map(view(reader, ours.root), name, reading, opened, choose)
        return replace(read, notes=(*ours.notes, *read.notes, *fullness(ours.status, live.device.path)))


def _nothing_held(name: str) -> DeviceError:
    return DeviceError(f"{name}: no metadata snapshot is taken; leave snap=held away", device=name)


def fullness(status: str, name: str) -> list[str]:
    """Return a warning if a status says that the metadata is getting full."""
    found = parse_status(status, name)
    if found.share < FULL:
        return []
    return [
        f"The metadata of {name} is {100 * found.share:.0f} % full ({found.used} of {found.total} blocks): when it is"
        " full, writes fail and changes are lost; move to a larger metadata device, see 'lvmsync era size'."
    ]


def _map(
    metadata: Metadata, name: EraMetadata, reading: Reading, opened: _Opened, choose: Callable[[Seen], Choice]
) -> _Map:
    """Read what was written since the era that is chosen now."""
    superblock, live = metadata.superblock, opened.live
    if live and superblock.granularity != live.table.granularity:
        raise FormatError(
            f"blocks of {superblock.granularity} bytes, and the table of {live.device.path} says"
            f" {live.table.granularity}: this is not its metadata"
        )
    notes: list[str] = []
    size = _choose_size(name, superblock, opened, notes)
    if live is None and metadata.is_open:
        notes.append("The metadata was not shut down: the device is in use elsewhere, or the power went; all is there.")
    life = life_of(live) if live else None
    choice = choose(Seen(metadata, life, size, opened.is_own))
    since, era = choice.since, superblock.current_era
    if since > era:
        text = f"since={since} is past the current era {era}, so this is not the history that the era was noted from"
        if reading.with_data:
            raise ConflictError(f"{name.word}: {text}; {INSTEAD}", device=opened.metadata.name)
        notes.append(f"That {text}, and nothing is shown for it; {INSTEAD}.")
    changes = metadata.changes(since, size)
    if choice.size is not None and choice.size < size:
        changes |= ChangeMap.from_extents([(choice.size, size - choice.size)])
    base = Point(f"era:{life}:{since}") if life and since else None
    head = base
    if life and opened.is_own:
        time = datetime.now(UTC).isoformat(timespec="seconds")
        head = Point(f"era:{life}:{era}", base.id if base else None, time)
    return _Map(size, superblock.granularity, changes, not since, base, head, (*choice.notes, *notes))


def _choose_size(name: EraMetadata, superblock: Superblock, opened: _Opened, notes: list[str]) -> int:
    """Return how many bytes the device has, which must fit the number of blocks that the metadata knows."""
    live, data, block = opened.live, opened.data, superblock.granularity
    most = superblock.nr_blocks * block
    if live:
        size, whose = live.line.length, live.device.path
        if name.size not in (None, size):
            raise UsageError(f"size={name.size}: {whose} has {size} bytes; leave size= away", device=whose)
    elif name.size is not None:
        size, whose = name.size, "size="
    elif data:
        size, whose = data.size, data.name
    else:
        notes.append(
            f"The metadata does not hold the device's exact size: its last block of {block} bytes may be shorter; give"
            " size=."
        )
        return most
    if -(-size // block) != superblock.nr_blocks:
        raise UsageError(
            f"{whose} has {size} bytes, and the metadata is of a device of {max(0, most - block + 1)} to {most}: they"
            " do not belong together, or the device was resized and not used since; give size= with the device's size"
        )
    if data and data.size < size:
        raise UsageError(f"{data.name} has {data.size} bytes, less than the {size} of {name.word}")
    return size

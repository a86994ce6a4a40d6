"""How the words of the command line are read: SOURCE, TARGET, HOST and sizes; one grammar everywhere.

    vg/snap  /dev/vg/snap                     an LVM snapshot or thin volume, or a device by its path
    snapshot:COW,origin=PATH[,size=S]         a dm-snapshot COW store and its origin
    thin:METADATA,id=N[,base=M]               thin device N of a dm-thin pool, against thin device M
    era:METADATA[,since=N]                    what dm-era saw written since era N, inclusive
    dattobd:COWFILE                           what an elastio-snap or dattobd COW file tells
    blksnap:DEVICE[,since=N]                  what blksnap saw written since its snapshot N
    blksnap:MAPFILE,since=N,block-size=B      the same, from a saved map
    compare:NEW[,old=PATH]                    where two devices differ
    full:DEVICE                               everything
    rbd:POOL/IMAGE@SNAP[,base=SNAP]           a snapshot of an RBD image of Ceph (see `images`)
    [USER@]HOST:NAME                          a target on another machine

A word with exactly one slash and no leading ``/`` or ``./`` is VG/LV, always; a file needs ``./`` or ``/``.
A SOURCE is split at the first ``:``, then at each ``,`` before ``key=``; a literal comma is doubled.
Every kind takes ``size=S``, the device's size, where its metadata does not hold it; thin and era take
``snap=held`` (read the metadata snapshot that is reserved) and ``snap=live`` (read the live superblock).
dattobd takes ``uuid=U`` and ``seqid=N`` of the snapshot that the data is of, where no driver can be asked;
blksnap takes ``number=C`` of the snapshot that a saved map was read in, and ``generation=G`` of both.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from lvmsync.errors import UsageError
from lvmsync.images import RbdSnapshot, build_snapshot

KINDS = ("snapshot", "thin", "era", "dattobd", "blksnap", "compare", "full", "rbd")
"""Every word that is a kind of source, and so cannot be a bare host name."""

_KEYS = {  # of each kind
    "snapshot": ("origin", "size"),
    "thin": ("id", "base", "size", "snap"),
    "era": ("since", "size", "snap"),
    "dattobd": ("size", "uuid", "seqid"),
    "blksnap": ("since", "block-size", "number", "generation", "size"),
    "compare": ("old", "size"),
    "full": ("size",),
    "rbd": ("base",),
}

MAX_THIN_ID = (1 << 24) - 1
"""The largest number of a thin device (Linux v6.1, MAX_DEV_ID in drivers/md/dm-thin.c)."""
MAX_ERA = (1 << 32) - 1
"""The largest number of an era: it is a u32."""
MAX_SEQID = (1 << 64) - 1
"""The largest sequence number of a dattobd snapshot: it is a u64."""
MAX_SNAPSHOT_NUMBER = 255
"""The largest number of a blksnap snapshot: it is a byte."""

_LVM_NAME = re.compile(r"[A-Za-z0-9+_.][A-Za-z0-9+_.-]*")
_HOST = re.compile(
    r"(?:(?P<user>[^@\s:/]+)@)?(?:\[(?P<six>[0-9A-Fa-f:.%\w]+)\]|(?P<host>[^@\s:/\[\]]+)):(?P<name>.*)", re.DOTALL
)
_SIZE = re.compile(r"(?P<number>\d+)(?:(?P<unit>[KMGTPE])(?:iB)?|[Bb])?", re.IGNORECASE | re.ASCII)
_UNITS = " KMGTPE"
_UUID = re.compile(r"[0-9A-Fa-f]{32}")
_GENERATION = re.compile(r"[0-9A-Fa-f]{8}(?:-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}")
_SECTOR = 512
_MAPPED = re.compile(r"/dev/mapper/((?:[^-/]|--)+)-((?:[^-/]|--)+)")
_LINKED = re.compile(r"/dev/((?!mapper/|disk/)[^/]+/[^/]+)")


@dataclass(frozen=True)
class Host:
    """Where a far side is: an address, and who to be there."""

    user: str | None
    address: str

    def __str__(self) -> str:
        return f"{self.user}@{self.address}" if self.user else self.address


@dataclass(frozen=True)
class Volume:
    """A volume or file of this machine, as the user named it: ``vg/lv`` or a path."""

    word: str

    @property
    def path(self) -> str:
        """The path to open: of an LVM volume, the link that LVM makes."""
        return f"/dev/{self.word}" if self.is_lvm_name else self.word

    @property
    def is_lvm_name(self) -> bool:
        """Whether the word is VG/LV, not a path."""
        return not self.word.startswith(("/", "./", "../"))

    @property
    def lvm_name(self) -> str | None:
        """VG/LV, where the word is that or one of the paths that LVM makes of it; else None.

        Source: LVM2 v2.03.16, libdm/libdm-string.c, dm_build_dm_name(): hyphens are doubled, and one joins the parts.
        """
        if self.is_lvm_name:
            return self.word
        if match := _MAPPED.fullmatch(self.word):
            return "/".join(part.replace("--", "-") for part in match.groups())
        match = _LINKED.fullmatch(self.word)
        return match[1] if match else None


@dataclass(frozen=True)
class SnapshotStore:
    """``snapshot:COW,origin=PATH``: a dm-snapshot store and its origin, by path.

    Attributes:
        store: path of the COW store (device or file).
        origin: path of the origin; where changed data is read, unless told otherwise.
        size: the origin's size in bytes; None: taken from the origin.
    """

    store: Volume
    origin: Volume | None
    size: int | None

    @property
    def word(self) -> str:
        """How a command line names it."""
        return _join_keys("snapshot", self.store, origin=self.origin.word if self.origin else None, size=self.size)


@dataclass(frozen=True)
class ThinDevice:
    """``thin:METADATA,id=N[,base=M]``: a thin device of a pool, against an older one.

    Attributes:
        metadata: path of the pool's metadata (device or file).
        id: number of the thin device whose state is the head.
        base: number of the thin device whose state is the base; None: everything that is mapped.
        size: the device's size in bytes; None: taken from where its data is.
        snap: "held": read the metadata snapshot that is reserved; "live": the live superblock; None: as fits.
    """

    metadata: Volume
    id: int
    base: int | None = None
    size: int | None = None
    snap: str | None = None

    @property
    def word(self) -> str:
        """How a command line names it."""
        return _join_keys("thin", self.metadata, id=self.id, base=self.base, size=self.size, snap=self.snap)


@dataclass(frozen=True)
class EraMetadata:
    """``era:METADATA[,since=N]``: what was written to a dm-era device.

    Attributes:
        metadata: path of its metadata (device or file), or of the era device itself.
        since: the first era that counts; None: nothing said it yet.
        size: the device's size in bytes; None: taken from where its data is.
        snap: as of `ThinDevice`.
    """

    metadata: Volume
    since: int | None = None
    size: int | None = None
    snap: str | None = None

    @property
    def word(self) -> str:
        """How a command line names it."""
        return _join_keys("era", self.metadata, since=self.since, size=self.size, snap=self.snap)


@dataclass(frozen=True)
class CowFile:
    """``dattobd:COWFILE``: a COW file of elastio-snap or dattobd.

    Attributes:
        file: its path.
        size: the device's size in bytes; None: taken from where its data is.
        uuid: of the snapshot that the data is of, 32 hex digits; None: the driver is asked, where there is one.
        seqid: that snapshot's sequence number; None: as for ``uuid``.
    """

    file: Volume
    size: int | None = None
    uuid: str | None = None
    seqid: int | None = None

    @property
    def word(self) -> str:
        """How a command line names it."""
        return _join_keys("dattobd", self.file, size=self.size, uuid=self.uuid, seqid=self.seqid)


@dataclass(frozen=True)
class BlockMap:
    """``blksnap:DEVICE[,since=N]`` or ``blksnap:MAPFILE,since=N,block-size=B``: a map of changed blocks.

    Attributes:
        place: path of the tracked device, or of a file that holds its map, a byte a block.
        since: number of the snapshot that is the base; None: nothing said it yet.
        block_size: bytes of a block, of a saved map; None of a device.
        number: of the snapshot that a saved map was read in; None: not known.
        generation: id of the generation that a saved map is of, 8-4-4-4-12 hex digits; None: not known.
        size: the device's size in bytes, of a saved map; None: taken from where its data is.
    """

    place: Volume
    since: int | None = None
    block_size: int | None = None
    number: int | None = None
    generation: str | None = None
    size: int | None = None

    @property
    def word(self) -> str:
        """How a command line names it."""
        keys = {"since": self.since, "block-size": self.block_size, "number": self.number}
        return _join_keys("blksnap", self.place, **keys, generation=self.generation, size=self.size)


@dataclass(frozen=True)
class Comparison:
    """``compare:NEW[,old=PATH]``: where two devices differ.

    Attributes:
        new: whose data is the head.
        old: whose data is the base; None: the target of a sync.
        size: bytes of both that count; None: all of ``new``.
    """

    new: Volume
    old: Volume | None = None
    size: int | None = None

    @property
    def word(self) -> str:
        """How a command line names it."""
        return _join_keys("compare", self.new, old=self.old.word if self.old else None, size=self.size)


@dataclass(frozen=True)
class WholeDevice:
    """``full:DEVICE``: everything; ``size`` is the bytes of it that count, None for all."""

    device: Volume
    size: int | None = None

    @property
    def word(self) -> str:
        """How a command line names it."""
        return _join_keys("full", self.device, size=self.size)


SourceName = (
    Volume | SnapshotStore | ThinDevice | EraMetadata | CowFile | BlockMap | Comparison | WholeDevice | RbdSnapshot
)


def _join_keys(kind: str, path: Volume, **values: str | int | None) -> str:
    """Write a source as `parse_source` reads it."""
    parts = [f"{key}={str(value).replace(',', ',,')}" for key, value in values.items() if value is not None]
    return ",".join([f"{kind}:{path.word.replace(',', ',,')}", *parts])


@dataclass(frozen=True)
class TargetName:
    """Where changes go: ``name`` on ``host``, or on this machine where ``host`` is None."""

    host: Host | None
    name: str

    def __str__(self) -> str:
        return f"{self.host}:{self.name}" if self.host else self.name


def parse_size(text: str) -> int:
    """Return the bytes that ``text`` names: digits with K, M, G, T, P or E (powers of 1024), as in 64M or 1GiB.

    Raises:
        UsageError: it is not a size, or 2**63 bytes or more.
    """
    match = _SIZE.fullmatch(text)
    if not match:
        raise UsageError(f"not a size: '{text}'; write bytes, or a number with K, M, G, T, P or E, as in 64M or 1GiB")
    # Python refuses to read numbers of thousands of digits.
    number = int(match["number"]) if len(match["number"]) < 20 else 1 << 63
    size = number << 10 * _UNITS.index((match["unit"] or " ").upper())
    if size >= 1 << 63:
        raise UsageError(f"size '{text}' is out of range: a device has less than 8 EiB")
    return size


def parse_volume(word: str) -> Volume:
    """Read a word as a volume of this machine.

    Raises:
        UsageError: neither VG/LV nor a path, or not a name that LVM allows.
    """
    if not word:
        raise UsageError("an empty name: give VG/LV, or a path that starts with / or ./")
    if "\0" in word:
        raise UsageError("a name cannot hold a NUL byte")
    if word.startswith(("/", "./", "../")):
        return Volume(word)
    if word.count("/") != 1:
        raise UsageError(f"'{word}' is neither VG/LV nor a path: a file needs ./ or / in front, as in ./{word}")
    for part in word.split("/"):
        if not _LVM_NAME.fullmatch(part) or part in (".", ".."):
            raise UsageError(f"'{word}' is not VG/LV: '{part}' is not a name that LVM allows; a file needs ./ in front")
    return Volume(word)


def parse_source(word: str) -> SourceName:
    """Read a SOURCE.

    Raises:
        UsageError: an unknown kind or key, a missing or bad value, or a source on another machine.
    """
    kind, colon, rest = word.partition(":")
    if colon and kind in KINDS:
        path, values = _split_keys(rest, kind)
        if kind == "rbd":
            return build_snapshot(path, values.get("base"))
        return _build_source(kind, parse_volume(path), values, word)
    if not word.startswith(("/", "./", "../")) and _HOST.fullmatch(word):
        raise UsageError(f"'{word}' is a source on another machine: run lvmsync there")
    return parse_volume(word)


def _build_source(kind: str, path: Volume, values: dict[str, str], word: str) -> SourceName:
    """Return the source of a kind, with its keys read and checked."""
    size = parse_size(values["size"]) if "size" in values else None
    if size == 0:
        raise UsageError("size=0 is out of range: no device is so small")
    snap = values.get("snap")
    if snap not in (None, "held", "live"):
        raise UsageError(
            f"snap={snap} is out of range: held (the metadata snapshot that is reserved) or live (the live superblock)"
        )
    match kind:
        case "snapshot":
            if "origin" not in values:
                raise UsageError(f"'{word}' names no origin: write snapshot:COW,origin=PATH")
            return SnapshotStore(path, parse_volume(values["origin"]), size)
        case "thin":
            if "id" not in values:
                raise UsageError(f"'{word}' names no thin device: write thin:METADATA,id=N,base=M")
            device = _parse_number("id", values["id"], MAX_THIN_ID)
            base = _parse_number("base", values["base"], MAX_THIN_ID) if "base" in values else None
            return ThinDevice(path, device, base, size, snap)
        case "era":
            since = _parse_number("since", values["since"], MAX_ERA) if "since" in values else None
            return EraMetadata(path, since, size, snap)
        case "dattobd":
            if "uuid" in values and not _UUID.fullmatch(values["uuid"]):
                raise UsageError(f"uuid={values['uuid']} is out of range: 32 hex digits, as in the driver's list")
            seqid = _parse_number("seqid", values["seqid"], MAX_SEQID) if "seqid" in values else None
            return CowFile(path, size, values["uuid"].lower() if "uuid" in values else None, seqid)
        case "blksnap":
            return _build_map(path, values, size)
        case "compare":
            return Comparison(path, parse_volume(values["old"]) if "old" in values else None, size)
        case _:
            return WholeDevice(path, size)


def _build_map(path: Volume, values: dict[str, str], size: int | None) -> BlockMap:
    """Return the source of a blksnap map, with its keys read and checked."""
    since = _parse_number("since", values["since"], MAX_SNAPSHOT_NUMBER) if "since" in values else None
    number = _parse_number("number", values["number"], MAX_SNAPSHOT_NUMBER) if "number" in values else None
    block_size = parse_size(values["block-size"]) if "block-size" in values else None
    if block_size is not None and (block_size < _SECTOR or block_size & (block_size - 1)):
        raise UsageError(f"block-size={values['block-size']} is out of range: a power of 2, and {_SECTOR} at the least")
    generation = values.get("generation")
    if generation is not None and not _GENERATION.fullmatch(generation):
        raise UsageError(f"generation={generation} is out of range: an id, as 'lvmsync blksnap status' shows it")
    return BlockMap(path, since, block_size, number, generation.lower() if generation else None, size)


def _parse_number(key: str, text: str, most: int) -> int:
    """Read the value of a key that is a number.

    Raises:
        UsageError: it is not one, or out of range.
    """
    if not (text.isascii() and text.isdecimal() and len(text) <= 20 and int(text) <= most):
        raise UsageError(f"{key}={text} is out of range: a number from 0 to {most}")
    return int(text)


def _split_keys(text: str, kind: str) -> tuple[str, dict[str, str]]:
    """Split ``PATH,key=value,...``; doubled commas are literal, and so is one that no ``key=`` follows."""
    path, *pieces = re.split(r",(?=[A-Za-z-]+=)", text.replace(",,", "\0"))  # no name holds a NUL
    values: dict[str, str] = {}
    for piece in pieces:
        key, _, value = piece.partition("=")
        if key not in _KEYS[kind]:
            raise UsageError(f"unknown key '{key}' in a '{kind}:' source; known are: {', '.join(_KEYS[kind])}")
        if key in values:
            raise UsageError(f"key '{key}' is given twice in a '{kind}:' source")
        values[key] = value.replace("\0", ",")
    return path.replace("\0", ","), values


def parse_target(word: str) -> TargetName:
    """Read a TARGET: ``[USER@]HOST:NAME``, VG/LV, or a path.

    Raises:
        UsageError: none of these, or a kind of source where a host should be.
    """
    if word.startswith(("/", "./", "../")):
        return TargetName(None, parse_volume(word).word)
    match = _HOST.fullmatch(word)
    if not match:
        return TargetName(None, parse_volume(word).word)
    if match["user"] is None and match["host"] in KINDS:
        but = "; only 'sync' and 'archive restore' fill RBD images" if match["host"] == "rbd" else ""
        raise UsageError(
            f"'{word}' is a source, not a target; a host called '{match['host']}' is written USER@{word}{but}"
        )
    address = match["six"] or match["host"]
    if address.startswith("-") or (match["user"] or "").startswith("-"):
        raise UsageError(f"'{word}': a host or user cannot start with '-'")
    if not match["name"]:
        raise UsageError(f"'{word}' names a host but no volume: write {word}VG/LV or {word}/dev/...")
    return TargetName(Host(match["user"], address), match["name"])

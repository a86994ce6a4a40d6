"""Members of an archive: writing one with its index, and reading any part of one."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import xxhash

from lvmsync.chain.catalogue import FORWARD, FULL, REVERSE, ArchivedPoint, Member
from lvmsync.chain.index import Index, IndexBuilder
from lvmsync.errors import DeviceError, FormatError, StreamError
from lvmsync.interfaces import Blob, NewBlob, Store
from lvmsync.jobs.progress import Receipt, Report
from lvmsync.jobs.send import Sender, StreamOptions
from lvmsync.sources.source import Source
from lvmsync.stream import frames, v4
from lvmsync.stream.frames import Buffer, Header

_PIECE = 1 << 20  # bytes that are read at a time where all is read
_MOST_TABLE = 64  # bytes of a stream for one extent, besides its data

STREAM, INDEX = ".stream", ".index"
"""What the names of the objects end with."""


@dataclass(frozen=True)
class Written:
    """A member that is in the store, and not in a catalogue yet.

    Attributes:
        member: the member; which way it leads is known when its points are.
        header: of its stream.
    """

    member: Member
    header: Header

    @property
    def head(self) -> ArchivedPoint:
        """The point that it leads to, without a number."""
        header = self.header
        assert header.head is not None
        assert header.size is not None
        return ArchivedPoint(header.head.id, 0, header.size, header.head.time or header.time, header.name, header.host)


class MemberWriter:
    """Takes the bytes of a stream, and makes the index of them as they pass."""

    def __init__(self, blob: NewBlob) -> None:
        self._blob = blob
        self.builder = IndexBuilder()

    def send_all(self, buffers: Sequence[Buffer]) -> None:
        """Append every byte of ``buffers``.

        Raises:
            DeviceError: it cannot be written.
            StreamError: it is not what an archive takes.
        """
        for buffer in buffers:
            self.builder.feed(buffer)
        self._blob.write(buffers)


def write_source(
    store: Store, source: Source, options: StreamOptions, report: Report, **more: Any
) -> tuple[Written, Receipt]:
    """Write what a source changes as a member; see `write_member`.

    Args:
        store: of the archive.
        source: what changed.
        options: how the stream is written.
        report: takes the progress.
        more: as of `jobs.send.Sender`.

    Returns:
        The member, and the receipt of the stream.
    """
    receipt: list[Receipt] = []
    most = source.changes.total_bytes + _MOST_TABLE * len(source.changes) + _PIECE
    written = write_member(
        store, lambda writer: receipt.append(Sender(source, writer.send_all, options, report, **more).deliver()), most
    )
    return written, receipt[0]


def write_member(
    store: Store, fill: Callable[[MemberWriter], object], most: int | None = None, *, stem: str | None = None
) -> Written:
    """Write a stream and its index, each whole and durable, and return what a catalogue says of them.

    Args:
        store: of the archive.
        fill: sends the stream.
        most: bytes that this may have at the most, where it is known.
        stem: what the names of its objects begin with, so that a later run finds them; None: a random word.

    Raises:
        StreamError: it is no whole stream, or says not from where to where it leads.
        LvmsyncError: what ``fill`` raises; nothing is left.
    """
    stem = stem or uuid.uuid4().hex
    name, index_name = stem + STREAM, stem + INDEX
    with store.create(name, most) as blob:
        writer = MemberWriter(blob)
        fill(writer)
        index = writer.builder.finish()
        header = writer.builder.header
        assert header is not None
        require_points(header)
        stored = blob.stored
    # Behind the stream: an index without one was left by a removal that was cut off, and is nobody's work.
    data = index.dump()
    put_index(store, index_name, data)
    return Written(_describe(name, stored, header, writer.builder, index_name, data), header)


def put_index(store: Store, name: str, data: bytes) -> None:
    """Write the index of a member that no catalogue names yet, in the place of what may be left of one."""
    if not store.put_new(name, data) and read_index(store, name) != data:
        store.delete(name)
        store.put_new(name, data)


def read_whole(store: Store, name: str) -> tuple[Header, Index, Written]:
    """Read a stream that is in the store from its first byte to its last, and return what it is.

    Raises:
        StreamError: it is damaged, or no whole stream.
        DeviceError: it cannot be read.
    """
    builder = IndexBuilder()
    with store.open(name) as blob:
        at = 0
        while len(piece := blob.read_at(at, _PIECE)):
            blob.prefetch(at + len(piece), 4 * _PIECE)
            builder.feed(piece)
            at += len(piece)
    index = builder.finish()
    header = builder.header
    assert header is not None
    data = index.dump()
    index_name = name.removesuffix(STREAM) + INDEX
    return header, index, Written(_describe(name, at, header, builder, index_name, data), header)


def require_points(header: Header) -> None:
    """Refuse a stream that an archive could not put into its place.

    Raises:
        StreamError: it names no head, a delta names no base, or it is only a part of one.
    """
    if header.head is None or header.size is None:
        raise StreamError("the stream does not say which state it leads to, so it has no place in an archive")
    if header.intent != frames.FULL and header.base is None:
        raise StreamError("the stream does not say which state it starts from, so it has no place in an archive")
    if header.resume is not None:
        raise StreamError(
            "the stream goes on with an unfinished one: it is only a part, and has no place in an archive"
        )


def _describe(name: str, stored: int, header: Header, builder: IndexBuilder, index_name: str, index: bytes) -> Member:
    end = builder.end
    assert end is not None
    is_full = header.intent == frames.FULL
    way = FULL if is_full else REVERSE if header.intent == frames.SNAPBACK else FORWARD
    return Member(
        name=name,
        way=way,
        base=None if is_full or header.base is None else header.base.id,
        head=header.head.id if header.head else "",
        stored=stored,
        extents=end.extents,
        changed_bytes=end.changed_bytes,
        digest=end.digest.hex(),
        index=index_name,
        index_stored=len(index),
        index_digest=xxhash.xxh3_128_hexdigest(index),
    )


class OpenMember:
    """A member whose parts can be read.

    Attributes:
        member: which.
        index: where everything is in it.
        frame_ends: of each frame, up to which byte of the device it has something.
    """

    def __init__(self, member: Member, index: Index, store: Store, blob: Blob | None) -> None:
        """Take what is open of it.

        Args:
            blob: its object; None: that is opened for each frame, where there are more of them than may be open.
        """
        self.member = member
        self.index = index
        self.frame_ends = index.frame_ends()
        self._store = store
        self._blob = blob
        self._seed = index.seed

    def read_frame(self, frame: int) -> memoryview:
        """Return the data of a DATA frame, which was found to be what was written.

        Raises:
            StreamError: it is damaged, or the object is another one.
            DeviceError: it cannot be read.
        """
        head = self.index.head(frame)
        with nullcontext(self._blob) if self._blob else self._store.open(self.member.name) as blob:
            raw = blob.read_at(head.position, v4.HEAD_SIZE + head.stored)
        try:
            return v4.open_data(raw, self._seed, head)
        except StreamError as error:
            raise StreamError(f"{blob.name}: {error}", device=blob.name, offset=head.position) from error


def read_index(store: Store, name: str) -> bytes | None:
    """Return an index, as it lies there; None if there is none, or one whose seal is broken."""
    try:
        return store.read(name)
    except StreamError:
        return None


@contextmanager
def open_member(store: Store, member: Member, *, is_held: bool = True) -> Iterator[OpenMember]:
    """Open a member of a catalogue.

    Args:
        store: of the archive.
        member: which.
        is_held: its object stays open, so that it can be read though somebody prunes it meanwhile.

    Raises:
        DeviceError: one of its objects is missing.
        FormatError: its index is damaged, or another one's.
    """
    data = read_index(store, member.index)
    if data is None and member.name not in store.list_objects():
        raise DeviceError(
            f"{store.name}/{member.name} is gone: was it pruned just now? Run it again",
            device=store.name,
        )
    if data is None or xxhash.xxh3_128_hexdigest(data) != member.index_digest:
        found = "damaged, or another one's" if member.index in store.list_objects() else "missing"
        raise FormatError(
            f"{store.name}/{member.index}: the index of {member.name} is {found}: 'lvmsync archive verify {store.name}"
            " --repair' makes it anew from the member itself",
            device=store.name,
        )
    index = Index.parse(data, f"{store.name}/{member.index}")
    with store.open(member.name) as blob:
        if blob.size != member.stored:
            raise StreamError(
                f"{blob.name} has {blob.size} bytes, and {member.stored} were written: it is damaged, or another file",
                device=blob.name,
            )
        if is_held:
            yield OpenMember(member, index, store, blob)
            return
    yield OpenMember(member, index, store, None)

"""The index of a member: where its frames are, and which extents are in each, so that any part can be read by itself.

    8 bytes         "lvsindx1"
    u64             frames
    u64             extents
    frames          24 bytes each: u64 byte of the stream where it begins, u32 stored bytes of its body, u32 extents,
                    u64 checksum; frame 0, the header, and the END included, marks left out
    frames          1 byte each: 0 data, 1 zeros, 2 holes, 3 the header, 4 the END
    extents         16 bytes each: u64 offset, u64 length
    16 bytes        XXH3-128 of all before

Little-endian, and one zstd frame around it all. What it says of a frame is held to that frame's own checksum when it is
read, and the index itself to the digest that the catalogue has of it.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt
import xxhash
import zstandard

from lvmsync.chain import layers
from lvmsync.chain.layers import Table
from lvmsync.errors import FormatError, StreamError
from lvmsync.extents import Offsets
from lvmsync.stream.frames import Abort, Buffer, Data, End, Frame, Header, Hole, Zero
from lvmsync.stream.session import Receiver
from lvmsync.stream.v4 import FrameHead

_MAGIC = b"lvsindx1"
_COUNTS = struct.Struct("<8sQQ")
_FRAMES = np.dtype([("position", "<u8"), ("stored", "<u4"), ("count", "<u4"), ("checksum", "<u8")])
_MOST = 1 << 34  # bytes of an index without compression: a billion extents
_LEVEL = 3
_HEADER, _END = 3, 4  # behind the kinds of `layers`
_KIND_OF: dict[type, int] = {Data: layers.DATA, Zero: layers.ZERO, Hole: layers.HOLE}


@dataclass(frozen=True, eq=False)
class Index:
    """Where everything is in a stream.

    Attributes:
        frames: its frames, an array of records: position, stored, count, checksum.
        types: of each: a kind of `layers`, or that it is the header or the END.
        extents: offset and length of each extent, shape (n, 2).
    """

    frames: npt.NDArray[np.void]
    types: npt.NDArray[np.uint8]
    extents: Offsets

    def head(self, frame: int) -> FrameHead:
        """Return where a frame is, by its number."""
        return FrameHead(*map(int, self.frames[frame]))

    @property
    def seed(self) -> int:
        """Seed of the checksums of all frames but the first."""
        return int(self.frames["checksum"][0])

    def frame_ends(self) -> Offsets:
        """Return of each frame where its last extent ends; 0 of one without extents."""
        counts = self.frames["count"].astype(np.int64)
        ends = np.zeros(len(counts), np.uint64)
        has_some = counts > 0
        ends[has_some] = self.extents.sum(axis=1, dtype=np.uint64)[np.cumsum(counts)[has_some] - 1]
        return ends

    def table(self) -> Table:
        """Return all extents with where their bytes are."""
        counts = self.frames["count"].astype(np.int64)
        frames = np.repeat(np.arange(len(counts)), counts)
        kinds = self.types[frames]
        offsets, lengths = self.extents[:, 0].copy(), self.extents[:, 1]
        sizes = np.where(kinds == layers.DATA, lengths, 0).astype(np.int64)
        before = np.cumsum(sizes) - sizes
        first = np.cumsum(counts) - counts  # of each frame, among all extents
        starts = before[np.minimum(first, max(len(before) - 1, 0))] if len(before) else np.zeros(len(counts), np.int64)
        return Table(offsets, offsets + lengths, kinds, frames, before - starts[frames])

    def dump(self) -> bytes:
        """Return its bytes."""
        body = b"".join(
            [
                _COUNTS.pack(_MAGIC, len(self.frames), len(self.extents)),
                self.frames.tobytes(),
                self.types.tobytes(),
                np.ascontiguousarray(self.extents, "<u8").tobytes(),
            ]
        )
        packer = zstandard.ZstdCompressor(level=_LEVEL)
        return packer.compress(body + xxhash.xxh3_128_digest(body))

    @classmethod
    def parse(cls, data: Buffer, name: str) -> Self:
        """Read what `dump` gave.

        Args:
            data: the bytes.
            name: where they come from, for messages.

        Raises:
            FormatError: they are no index, or a damaged one.
        """
        try:
            if zstandard.frame_content_size(bytes(data[:18])) > _MOST:
                raise FormatError(f"{name}: an index of more than {_MOST} bytes is none")
            body = memoryview(zstandard.ZstdDecompressor().decompress(data))
        except zstandard.ZstdError as error:
            raise FormatError(f"{name}: not an index, or a damaged one: {error}") from error
        if len(body) < _COUNTS.size + 16 or xxhash.xxh3_128_digest(body[:-16]) != body[-16:]:
            raise FormatError(f"{name}: the index is damaged")
        magic, frames, extents = _COUNTS.unpack(body[: _COUNTS.size])
        rest = body[_COUNTS.size : -16]
        if magic != _MAGIC or frames * (_FRAMES.itemsize + 1) + extents * 16 != len(rest) or frames < 2:
            raise FormatError(f"{name}: not an index that this lvmsync knows")
        at, types_at = frames * _FRAMES.itemsize, frames * (_FRAMES.itemsize + 1)
        found = cls(
            np.frombuffer(rest[:at], _FRAMES),
            np.frombuffer(rest[at:types_at], np.uint8),
            np.frombuffer(rest[types_at:], "<u8").reshape(-1, 2),
        )
        if int(found.frames["count"].sum()) != extents or not set(found.types.tolist()) <= set(range(_END + 1)):
            raise FormatError(f"{name}: the index contradicts itself")
        return found


class IndexBuilder:
    """Makes the index of a stream from its bytes, as they are written or read, and checks them.

    Attributes:
        header: of the stream, as soon as it has come.
        end: its END; None as long as that has not come.
    """

    def __init__(self) -> None:
        self._session = Receiver()
        self._frames: list[tuple[int, int, int, int]] = []
        self._types = bytearray()
        self._tables: list[Offsets] = []
        self._reason = ""
        self.header: Header | None = None
        self.end: End | None = None

    def feed(self, data: Buffer) -> None:
        """Take the next bytes.

        Raises:
            StreamError: they are damaged, no stream, or one that has no frames.
        """
        view = memoryview(data).cast("B")
        while len(view):
            room = self._session.get_buffer()
            count = min(len(room), len(view))
            room[:count] = view[:count]
            view = view[count:]
            self._session.received(count)
            if self._session.version == 3:
                raise StreamError("a PROTO[3] stream has no end mark and no checksums: an archive does not take it")
            for frame in self._session.frames():
                self._add(frame)

    def finish(self) -> Index:
        """Return the index of the whole stream.

        Raises:
            StreamError: it has no END, or its sender gave up.
        """
        list(self._session.receive_eof())
        if self.end is None:
            raise StreamError(f"the stream has no END: its sender gave up: {self._reason}")
        tables = self._tables or [np.empty((0, 2), np.uint64)]
        return Index(
            np.array(self._frames, _FRAMES), np.frombuffer(bytes(self._types), np.uint8), np.concatenate(tables)
        )

    def _add(self, frame: Frame) -> None:
        head = self._session.last
        assert head is not None
        match frame:
            case Header():
                self.header, kind = frame, _HEADER
            case End():
                self.end, kind = frame, _END
            case Data() | Zero() | Hole():
                kind = _KIND_OF[type(frame)]
                self._tables.append(np.array(frame.table, "<u8"))
            case Abort(reason):
                self._reason = reason
                return
            case _:  # a mark
                return
        self._frames.append((head.position, head.stored, head.extents, head.checksum))
        self._types.append(kind)

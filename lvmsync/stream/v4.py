"""PROTO[4]: checksummed frames of many extents, with a header, marks and an end. docs/stream-v4.md is the contract.

A line ``lvmsync PROTO[4]``, then frames: 32 bytes of frame header, and a body. All integers are little-endian.

    0  u8   type        HEADER 1, DATA 2, ZERO 3, HOLE 4, MARK 5, END 6, ABORT 7
    1  u8   codec       of the body: 0 as it is, 1 zstd
    2  u16  zero
    4  u32  count       extents in the body's table
    8  u64  sequence    of the frame: 0, 1, 2, ...
    16 u32  stored      bytes of the body in the stream
    20 u32  unpacked    bytes of the body without compression
    24 u64  checksum    XXH3 (64 bit) of bytes 0-23 and the stored body; its seed is 0 for frame 0,
                        and the checksum of frame 0 for all others, so that no frame fits another stream

A table is ``count`` pairs of u64: offset, length. DATA is a table and the bytes of its extents.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from typing import NamedTuple, NoReturn

import numpy as np
import xxhash
import zstandard

from lvmsync.errors import StreamError
from lvmsync.stream.frames import (
    Abort,
    Buffer,
    Changes,
    Data,
    End,
    Frame,
    Header,
    Hole,
    Mark,
    Zero,
)
from lvmsync.stream.header import dump_header, parse_header, tame

MAGIC = b"lvmsync PROTO[4]\n"
MAX_BODY = 4 << 20
"""Longest body in bytes, packed or not; a receiver refuses a longer one before it takes memory for it."""
MAX_EXTENTS = 1 << 16
"""Most extents in one frame."""

_FRAME = struct.Struct("<BBHIQIIQ")
HEAD_SIZE = _FRAME.size
"""Bytes of the header of a frame."""
_CHECKED = 24  # bytes of the frame header that the checksum covers
_CHECKSUM = struct.Struct("<Q")
_MARK = struct.Struct("<QQ")
_END = struct.Struct("<QQ16s")
_HEADER, _DATA, _ZERO, _HOLE, _MARK_TYPE, _END_TYPE, _ABORT = range(1, 8)
_NAMES = {1: "HEADER", 2: "DATA", 3: "ZERO", 4: "HOLE", 5: "MARK", 6: "END", 7: "ABORT"}
_RAW, _ZSTD = 0, 1
_TRY_EVERY = 16  # after a frame that does not shrink, how many go as they are before the next try


class FrameHead(NamedTuple):
    """Where a frame of a stream is, and what its header says of it."""

    position: int  # byte of the stream where it begins
    stored: int  # bytes of its body
    extents: int  # in its table
    checksum: int


class Compressor:
    """Decides frame by frame whether zstd is worth it; data that does not shrink goes as it is. One a thread."""

    def __init__(self, level: int) -> None:
        """Take the zstd level, 1-19."""
        self._zstd = zstandard.ZstdCompressor(level=level)
        self._skip = 0

    def pack(self, frame: Changes) -> bytes | None:
        """Return the body of ``frame`` compressed, or None where it should go as it is."""
        if self._skip:
            self._skip -= 1
            return None
        body = _body(frame)
        size = sum(len(part) for part in body)
        packer = self._zstd.compressobj(size=size)
        packed = b"".join([packer.compress(part) for part in body] + [packer.flush()])
        if len(packed) > size - size // 8:
            self._skip = _TRY_EVERY
            return None
        return packed


class Encoder:
    """Frames to bytes: numbers them, checksums them, and sums the checksums up for the END."""

    version = 4

    def __init__(self) -> None:
        self._sequence = 0
        self._seed = 0
        self._digest = xxhash.xxh3_128()

    def encode(self, frame: Frame, packed: bytes | None = None) -> list[Buffer]:
        """Return the buffers of ``frame``, in order; a payload is passed on, not copied.

        Args:
            frame: an End is given the digest over all frames before it.
            packed: the body as `Compressor.pack` made it, perhaps in another thread; goes in its place.
        """
        match frame:
            case Header():
                return [MAGIC, *self._frame(_HEADER, 0, [dump_header(frame)])]
            case Data(table):
                return self._frame(_DATA, len(table), _body(frame), packed)
            case Zero(table):
                return self._frame(_ZERO, len(table), _body(frame), packed)
            case Hole(table):
                return self._frame(_HOLE, len(table), _body(frame), packed)
            case Mark(extents, changed_bytes):
                return self._frame(_MARK_TYPE, 0, [_MARK.pack(extents, changed_bytes)])
            case End(extents, changed_bytes):
                return self._frame(_END_TYPE, 0, [_END.pack(extents, changed_bytes, self._digest.digest())])
        # A name in the reason need not be text.
        return self._frame(_ABORT, 0, [frame.reason.encode(errors="backslashreplace")[:4096]])

    @property
    def digest(self) -> str:
        """Hex digest over the checksums of all frames so far."""
        return self._digest.hexdigest()

    def _frame(self, kind: int, count: int, body: list[Buffer], packed: bytes | None = None) -> list[Buffer]:
        size = sum(len(part) for part in body)
        codec = _RAW
        if packed is not None:
            codec, body = _ZSTD, [packed]
        stored = sum(len(part) for part in body)
        head = _FRAME.pack(kind, codec, 0, count, self._sequence, stored, size, 0)[:_CHECKED]
        checksum = _checksum(self._seed, head, body)
        if self._sequence == 0:
            self._seed = checksum
        self._sequence += 1
        sealed = _CHECKSUM.pack(checksum)
        if kind != _END_TYPE:
            self._digest.update(sealed)
        return [head + sealed, *body]


class Decoder:
    """Bytes to frames. No byte of a frame is believed before its checksum has been found right.

    Attributes:
        last: where the frame is that was found last; None before the first.
    """

    version = 4

    def __init__(self) -> None:
        self._head = memoryview(bytearray(_FRAME.size))
        self._body: memoryview | None = None  # of the frame whose header is there
        self._filled = 0  # bytes of the piece that is being received: frame header, or body
        self._position = len(MAGIC)  # of the frame, in the stream
        self._sequence = 0
        self._seed = 0
        self._digest = xxhash.xxh3_128()
        self._ended = False
        self._ready: list[Frame] = []
        self.last: FrameHead | None = None

    @property
    def position(self) -> int:
        """Byte of the stream where the next frame starts: everything before it is whole frames."""
        return self._position

    @property
    def digest(self) -> str:
        """Hex digest over the checksums of all frames so far."""
        return self._digest.hexdigest()

    def get_buffer(self) -> memoryview:
        """Return where the next bytes are to be put."""
        return (self._head if self._body is None else self._body)[self._filled :]

    def received(self, count: int) -> None:
        """Take ``count`` bytes that were put into the buffer.

        Raises:
            StreamError: a frame is damaged, out of order, or not possible.
        """
        self._filled += count
        if self._ended and count:
            self._fail("more bytes after the end of the stream: two streams in one?")
        if self._body is None:
            if self._filled < _FRAME.size:
                return
            self._body, self._filled = self._open_body(), 0
        if self._filled == len(self._body):
            self._ready.append(self._close_frame(self._body))
            self._position += _FRAME.size + len(self._body)
            self._body, self._filled = None, 0

    def frames(self) -> Iterator[Frame]:
        """Yield every frame that is there."""
        while self._ready:
            yield self._ready.pop(0)

    def receive_eof(self) -> Iterator[Frame]:
        """Yield what is left at the end of the input: nothing, in this format.

        Raises:
            StreamError: the stream has no END.
        """
        yield from self.frames()
        if not self._ended:
            where = (
                f"inside a frame, {self._filled} bytes behind byte"
                if self._filled or self._body is not None
                else "at byte"
            )
            self._fail(f"stream is cut: it ends {where} {self._position} and has no END; send it again", located=True)

    def _fail(self, what: str, *, located: bool = False) -> NoReturn:
        message = what if located else f"stream byte {self._position}, frame {self._sequence}: {what}"
        raise StreamError(message, offset=self._position)

    def _open_body(self) -> memoryview:
        """Check what can be checked without the body, and take memory for it."""
        kind, codec, zero, count, sequence, stored, unpacked, _ = _FRAME.unpack(self._head)
        if kind not in _NAMES or codec not in (_RAW, _ZSTD) or zero:
            self._fail(f"unknown frame (type {kind}, codec {codec}): damaged, or from a newer lvmsync")
        if sequence != self._sequence:
            self._fail(f"frame {sequence} where {self._sequence} should be: frames are lost, repeated or out of order")
        if stored > MAX_BODY or unpacked > MAX_BODY or count > MAX_EXTENTS:
            self._fail(f"a frame of {stored} bytes and {count} extents is over the limit; the stream is damaged")
        return np.empty(stored, np.uint8).data

    def _close_frame(self, body: memoryview) -> Frame:
        kind, codec, _, count, sequence, stored, unpacked, checksum = _FRAME.unpack(self._head)
        if _checksum(self._seed, self._head[:_CHECKED], [body]) != checksum:
            self._fail(f"checksum of a {_NAMES[kind]} frame does not match: the stream is damaged")
        if codec == _ZSTD:
            body = self._unpack(body, unpacked)
        if len(body) != unpacked:
            self._fail(f"body of {len(body)} bytes where {unpacked} were announced")
        frame = self._parse(kind, count, body)
        self.last = FrameHead(self._position, stored, count, checksum)
        if sequence == 0:
            self._seed = checksum
        if kind in (_END_TYPE, _ABORT):
            self._ended = True
        if kind != _END_TYPE:
            self._digest.update(_CHECKSUM.pack(checksum))
        self._sequence += 1
        return frame

    def _unpack(self, body: memoryview, size: int) -> memoryview:
        try:
            if zstandard.frame_content_size(body) == size:
                return memoryview(zstandard.ZstdDecompressor().decompress(body, allow_extra_data=False))
        except zstandard.ZstdError as error:
            raise StreamError(
                f"stream byte {self._position}, frame {self._sequence}: cannot be decompressed: {error}",
                offset=self._position,
            ) from error
        self._fail("compressed body does not have the announced size")

    def _parse(self, kind: int, count: int, body: memoryview) -> Frame:
        if count and kind not in (_DATA, _ZERO, _HOLE):
            self._fail(f"a {_NAMES[kind]} frame has no extents, and this one says {count}")
        if kind == _HEADER:
            return self._load_header(bytes(body))
        if kind == _ABORT:
            return Abort(tame(bytes(body).decode(errors="replace")))
        if kind == _MARK_TYPE and len(body) == _MARK.size:
            return Mark(*_MARK.unpack(body))
        if kind == _END_TYPE and len(body) == _END.size:
            end = End(*_END.unpack(body))
            if end.digest != self._digest.digest():
                self._fail("the END's digest is not that of the frames before it")
            return end
        if kind in (_DATA, _ZERO, _HOLE) and len(body) >= count * 16:
            return self._parse_changes(kind, count, body)
        self._fail(f"a {_NAMES[kind]} frame of {len(body)} bytes is not possible")

    def _parse_changes(self, kind: int, count: int, body: memoryview) -> Changes:
        table = np.frombuffer(body, "<u8", count * 2).reshape(count, 2)
        payload = body[count * 16 :]
        if kind == _DATA and int(table[:, 1].max(initial=0)) <= MAX_BODY and int(table[:, 1].sum()) == len(payload):
            return Data(table, payload)
        if kind == _ZERO and not payload:
            return Zero(table)
        if kind == _HOLE and not payload:
            return Hole(table)
        self._fail(f"the table of a {_NAMES[kind]} frame does not fit its {len(payload)} bytes of data")

    def _load_header(self, body: bytes) -> Header:
        try:
            values = json.loads(body)
            if isinstance(values, dict):
                return parse_header(values)
        except (ValueError, TypeError, RecursionError) as error:
            raise StreamError(f"stream header is not readable: {error}", offset=self._position) from error
        raise StreamError("stream header is not a JSON object", offset=self._position)


class Skimmer:
    """Follows a stream by the headers of its frames alone, up to a place where it is read or written on.

    Nothing is proved but the order of the frames: that what lies before the place is whole is known otherwise.
    """

    def __init__(self) -> None:
        self._sequence = 0
        self._seed = 0
        self._digest = xxhash.xxh3_128()
        self._frame: tuple[int, int, int] = (0, 0, 0)  # that is looked at: type, stored bytes, checksum
        self._position = len(MAGIC)

    @property
    def position(self) -> int:
        """Byte of the stream where the next frame starts."""
        return self._position

    def look(self, head: bytes) -> tuple[int, int]:
        """Take the header of the next frame, and return how many extents are in its table and how many bytes behind it.

        The table begins behind the header. A frame without one has no extents.

        Raises:
            StreamError: it is not the next frame, or is compressed.
        """
        if len(head) != HEAD_SIZE:
            raise StreamError(f"stream is cut at byte {self._position}", offset=self._position)
        kind, codec, _, count, sequence, stored, _, checksum = _FRAME.unpack(head)
        if kind not in _NAMES or codec != _RAW or sequence != self._sequence or stored < count * 16:
            raise StreamError(
                f"stream byte {self._position}: not the header of frame {self._sequence}", offset=self._position
            )
        self._frame = kind, stored, checksum
        return count, stored - count * 16

    def skip(self) -> None:
        """Go behind the frame that was looked at."""
        kind, stored, checksum = self._frame
        if self._sequence == 0:
            self._seed = checksum
        if kind != _END_TYPE:
            self._digest.update(_CHECKSUM.pack(checksum))
        self._sequence += 1
        self._position += HEAD_SIZE + stored

    def encoder(self) -> Encoder:
        """Return an encoder that makes the next frame in the place of the one that is there."""
        encoder = Encoder()
        encoder._sequence, encoder._seed, encoder._digest = self._sequence, self._seed, self._digest.copy()
        return encoder

    def decoder(self) -> Decoder:
        """Return a decoder that reads on from here."""
        decoder = Decoder()
        decoder._sequence, decoder._seed, decoder._digest = self._sequence, self._seed, self._digest.copy()
        decoder._position = self._position
        return decoder


def open_data(frame: memoryview, seed: int, known: FrameHead) -> memoryview:
    """Return the data of one DATA frame that was read by itself, as it is once its checksum was found right.

    Args:
        frame: its header and body.
        seed: the checksum of frame 0.
        known: what an index says of it.

    Raises:
        StreamError: it is not that frame, or is damaged.
    """
    if len(frame) == _FRAME.size + known.stored:
        kind, codec, _, count, _, stored, unpacked, checksum = _FRAME.unpack(frame[: _FRAME.size])
        body = frame[_FRAME.size :]
        is_known = (kind, count, stored, checksum) == (_DATA, known.extents, known.stored, known.checksum)
        if is_known and unpacked <= MAX_BODY and _checksum(seed, frame[:_CHECKED], [body]) == checksum:
            try:
                if codec == _ZSTD:
                    body = memoryview(zstandard.ZstdDecompressor().decompress(body, max_output_size=unpacked))
            except zstandard.ZstdError as error:
                raise StreamError(f"stream byte {known.position}: cannot be decompressed: {error}") from error
            if len(body) == unpacked:
                return body[count * 16 :]
    raise StreamError(
        f"stream byte {known.position}: the frame there is not the one that was written, or is damaged",
        offset=known.position,
    )


def _checksum(seed: int, head: Buffer, body: list[Buffer]) -> int:
    hasher = xxhash.xxh3_64(head, seed)
    for part in body:
        hasher.update(part)
    return hasher.intdigest()


def _body(frame: Changes) -> list[Buffer]:
    table = np.ascontiguousarray(frame.table, "<u8").tobytes()
    return [table, frame.payload] if isinstance(frame, Data) else [table]

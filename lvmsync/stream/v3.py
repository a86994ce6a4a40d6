"""PROTO[3], the format of the original lvmsync.

A line ``lvmsync PROTO[3]``, then records until the end of the file: u64 offset, u32 length (both
big-endian), data. There is no size, checksum or end mark: a stream cut between two records looks whole.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

import numpy as np

from lvmsync.errors import StreamError
from lvmsync.extents import MAX_SIZE, as_table
from lvmsync.stream.frames import Abort, Buffer, Data, End, Frame, Header, Hole, Zero

MAGIC = b"lvmsync PROTO[3]\n"
MAX_RECORD = 1 << 20
"""Longest record that is written; longer ones are read."""

_RECORD = struct.Struct(">QI")
_ROOM = (1 << 20) + (64 << 10)  # bytes read at a time: a record of 1 MiB and the headers of many small ones


class Decoder:
    """Bytes to frames. Many short records that arrive together become one `Data`."""

    version = 3

    def __init__(self) -> None:
        self._buffer = _new_buffer()
        self._filled = 0
        self._offset = 0  # where the rest of a record that is cut by the buffer goes
        self._remaining = 0  # bytes of it that are still to come
        self._position = len(MAGIC)  # of the first byte of the buffer, in the stream
        self._started = False
        self._extents = 0
        self._changed_bytes = 0

    def get_buffer(self) -> memoryview:
        """Return where the next bytes are to be put."""
        return self._buffer[self._filled :]

    def received(self, count: int) -> None:
        """Take ``count`` bytes that were put into the buffer."""
        self._filled += count

    def frames(self) -> Iterator[Frame]:
        """Yield every frame that is there."""
        if not self._started:
            self._started = True
            yield Header()
        # A buffer goes out with its frame, so it must be worth its memory: wait until it is half full.
        if self._filled >= _ROOM // 2:
            yield from self._take()

    def _take(self) -> Iterator[Frame]:
        data = self._take_records()
        if data is not None:
            self._extents += len(data.table)
            self._changed_bytes += len(data.payload)
            yield data

    def receive_eof(self) -> Iterator[Frame]:
        """Yield the End that the end of the input stands for.

        Raises:
            StreamError: the input ends inside a record.
        """
        yield from self.frames()
        yield from self._take()
        if self._filled or self._remaining:
            raise StreamError(
                f"stream is cut: it ends inside a record at byte {self._position}; send it again",
                offset=self._position,
            )
        yield End(self._extents, self._changed_bytes)

    def _take_records(self) -> Data | None:
        """Take all records, and the pieces of records, that the buffer holds; close the gaps of their headers."""
        buffer, filled = self._buffer, self._filled
        offsets: list[int] = []
        lengths: list[int] = []
        at = end = 0  # read position, and end of the compacted payload
        while True:
            if not self._remaining:
                if filled - at < _RECORD.size:
                    break
                self._offset, self._remaining = _RECORD.unpack_from(buffer, at)
                if not self._remaining or self._offset + self._remaining > MAX_SIZE:
                    raise StreamError(
                        f"stream byte {self._position + at}: a record of {self._remaining} bytes at offset"
                        f" {self._offset} is not possible; the stream is damaged",
                        offset=self._position + at,
                    )
                at += _RECORD.size
                whole = self._remaining
            else:
                whole = 0
            length = min(self._remaining, filled - at)
            # A short record waits until it is there in one piece, so that it stays one extent.
            if whole and length < whole <= MAX_RECORD:
                self._remaining = 0
                at -= _RECORD.size
                break
            if length == 0:
                break
            buffer[end : end + length] = buffer[at : at + length]
            offsets.append(self._offset)
            lengths.append(length)
            at, end = at + length, end + length
            self._offset += length
            self._remaining -= length
        if at == 0:
            return None
        rest = _new_buffer()
        rest[: filled - at] = buffer[at:filled]
        self._buffer, self._filled, self._position = rest, filled - at, self._position + at
        return Data(as_table(offsets, lengths), buffer[:end]) if end else None


class Encoder:
    """Frames to bytes. What the format cannot say is written as zeros, or left out."""

    version = 3

    def encode(self, frame: Frame) -> list[Buffer]:
        """Return the buffers of ``frame``, in order; a payload is passed on, not copied.

        Raises:
            StreamError: an Abort: the format has no way to say it.
        """
        match frame:
            case Header():
                return [MAGIC]
            case Data(table, payload):
                return self._records(table.tolist(), payload)
            case Zero(table) | Hole(table):
                pieces = [
                    [at, min(MAX_RECORD, offset + length - at)]
                    for offset, length in table.tolist()
                    for at in range(offset, offset + length, MAX_RECORD)
                ]
                return [part for offset, length in pieces for part in (_RECORD.pack(offset, length), _ZEROS[:length])]
            case Abort(reason):
                raise StreamError(f"aborted: {reason}")
        return []  # Mark and End

    def _records(self, table: list[list[int]], payload: memoryview) -> list[Buffer]:
        buffers: list[Buffer] = []
        at = 0
        for offset, length in table:
            for done in range(0, length, MAX_RECORD):
                piece = min(MAX_RECORD, length - done)
                buffers += (_RECORD.pack(offset + done, piece), payload[at : at + piece])
                at += piece
        return buffers


_ZEROS = memoryview(bytes(MAX_RECORD))


def _new_buffer() -> memoryview:
    return np.empty(_ROOM, np.uint8).data

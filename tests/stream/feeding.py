"""Bytes into a Receiver, in pieces of any size, and frames into bytes."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeGuard

import xxhash

from lvmsync.errors import StreamError
from lvmsync.stream import v3, v4
from lvmsync.stream.frames import Changes, Data, Frame, Hole, Zero
from lvmsync.stream.session import Receiver
from tests.strategies import describe


def feed(data: bytes, sizes: Iterable[int] = (), receiver: Receiver | None = None) -> Iterator[Frame]:
    """Yield the frames of ``data``, given to a receiver in pieces of ``sizes``, and then in as large ones as it takes.

    Raises:
        StreamError: what the receiver says; every frame before that was yielded.
    """
    receiver = receiver or Receiver()
    yield from give(receiver, data, sizes)
    yield from receiver.receive_eof()


def give(receiver: Receiver, data: bytes, sizes: Iterable[int] = ()) -> Iterator[Frame]:
    """Yield the frames of ``data`` as `feed` does; the input goes on behind it."""
    at = 0
    wanted = itertools.chain(sizes, itertools.repeat(max(len(data), 1)))
    while at < len(data):
        buffer = receiver.get_buffer()
        assert len(buffer), "an empty buffer would look like the end of the input"
        piece = data[at : at + min(len(buffer), next(wanted))]
        buffer[: len(piece)] = piece
        receiver.received(len(piece))
        at += len(piece)
        yield from receiver.frames()


def byte_by_byte(data: bytes) -> Iterator[Frame]:
    return feed(data, itertools.repeat(1, len(data)))


def admitted(
    data: bytes, sizes: Iterable[int] = (), receiver: Receiver | None = None
) -> tuple[list[tuple[object, ...]], StreamError | None]:
    """Return every frame that a receiver yields, described, and the error that it stopped with."""
    found: list[tuple[object, ...]] = []
    try:
        for frame in feed(data, sizes, receiver):
            found.append(describe(frame))
    except StreamError as error:
        return found, error
    return found, None


def encode(frames: Sequence[Frame], version: int = 4, level: int = 0) -> list[bytes]:
    """Return the bytes of each frame; the first begins with the line of the format."""
    if version == 3:
        old = v3.Encoder()
        return [b"".join(old.encode(frame)) for frame in frames]
    encoder = v4.Encoder()
    packer = v4.Compressor(level) if level else None
    return [
        b"".join(encoder.encode(frame, packer.pack(frame) if packer and is_changes(frame) else None))
        for frame in frames
    ]


def is_changes(frame: Frame) -> TypeGuard[Changes]:
    return isinstance(frame, Data | Zero | Hole)


class Forge:
    """Frames of PROTO[4] by the letter of its description: with right checksums, whatever else is wrong."""

    def __init__(self) -> None:
        self.sequence = 0
        self.seed = 0

    def frame(
        self,
        kind: int,
        body: bytes,
        *,
        codec: int = 0,
        zero: int = 0,
        count: int = 0,
        unpacked: int | None = None,
        sequence: int | None = None,
    ) -> bytes:
        sequence = self.sequence if sequence is None else sequence
        size = len(body) if unpacked is None else unpacked
        head = struct.pack("<BBHIQII", kind, codec, zero, count, sequence, len(body), size)
        checksum = xxhash.xxh3_64_intdigest(head + body, self.seed)
        if self.sequence == 0:
            self.seed = checksum
        self.sequence += 1
        return head + struct.pack("<Q", checksum) + body

    def header(self, text: bytes = b'{"size": 65536}') -> bytes:
        """Return the beginning of a stream: the line, and the header."""
        return b"lvmsync PROTO[4]\n" + self.frame(1, text)

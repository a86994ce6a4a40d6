"""An archive that is encrypted: another store, each object of which is sealed (`chain.sealed`).

Names are the same, sizes are those of the data. The keys (`chain.keys`) lie beside the objects, in the clear, and are
none of them. What was written is read, or it is an error: no byte is given out before its chunk was found to be right.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from lvmsync.chain.keys import number_of
from lvmsync.chain.sealed import (
    CHUNK,
    HEAD,
    SALT,
    Seal,
    chunk_place,
    count_chunks,
    impossible_size,
    open_whole,
    plain_size,
    seal_whole,
    sealed_size,
)
from lvmsync.errors import StreamError
from lvmsync.interfaces import Blob, NewBlob, Store
from lvmsync.stream.frames import Buffer


class SealedBlob:
    """A sealed object that is open for reading. Any thread may read.

    Attributes:
        name: what messages call it.
        size: bytes of its data. What follows from it is certain when the last of them was read, not before.
    """

    def __init__(self, blob: Blob, key: bytes, name: str) -> None:
        self.name = blob.name
        self._blob = blob
        with _named(blob.name):
            size = plain_size(blob.size)
            if size is None:
                raise impossible_size(blob.size)
        self.size = size
        self._open_seal: Callable[[memoryview], Seal] = lambda head: Seal.of(key, name, head)
        self._seal: Seal | None = None
        self._count = count_chunks(size)
        self._last: tuple[int, bytes] = (-1, b"")  # the chunk that was read last: the next range goes on in it, mostly
        if not size:
            self._read(0, 0)

    def read_at(self, offset: int, length: int) -> memoryview:
        """Return bytes from a place; fewer only at the end of the object.

        Raises:
            StreamError: they are not those that were written.
            DeviceError: it cannot be read.
            TransportError: the store is out of reach.
        """
        end = min(offset + length, self.size)
        if offset >= end:
            return memoryview(b"")
        first = offset // CHUNK
        chunks = self._read(first, (end - 1) // CHUNK)
        begin, stop = offset - first * CHUNK, end - first * CHUNK - (len(chunks) - 1) * CHUNK
        if len(chunks) == 1:
            return memoryview(chunks[0][begin:stop])  # a copy: who keeps a small part keeps no whole chunk
        return memoryview(b"".join((memoryview(chunks[0])[begin:], *chunks[1:-1], memoryview(chunks[-1])[:stop])))

    def prefetch(self, offset: int, length: int) -> None:
        """Say what will be read soon."""
        first, behind = offset // CHUNK, count_chunks(offset + length)
        self._blob.prefetch(chunk_place(first), chunk_place(behind) - chunk_place(first))

    def _read(self, first: int, last: int) -> list[bytes]:
        """Return the data of some chunks."""
        number, data = self._last
        chunks = [data] if number == first else []
        at = first + len(chunks)
        if at <= last:
            # The head comes along with the first chunk: far away, each request takes time.
            start = chunk_place(at) if at or self._seal else 0
            sealed = self._blob.read_at(start, min(chunk_place(last + 1), self._blob.size) - start)
            with _named(self.name):
                seal = self._seal or self._open_seal(self._blob.read_at(0, HEAD) if start else sealed[:HEAD])
                self._seal = seal
                chunks += [
                    seal.open(
                        one,
                        sealed[chunk_place(one) - start : chunk_place(one + 1) - start],
                        is_last=one == self._count - 1,
                    )
                    for one in range(at, last + 1)
                ]
            self._last = last, chunks[-1]
        return chunks


class NewSealed:
    """A sealed object that is being written.

    Attributes:
        stored: bytes of data so far.
    """

    def __init__(self, blob: NewBlob, seal: Seal) -> None:
        self._blob = blob
        self._seal = seal
        self._number = 0
        self._pending = bytearray()  # one chunk at the most: whether it is the last is known when more comes
        self.stored = 0

    def write(self, buffers: Sequence[Buffer]) -> None:
        """Append every byte of ``buffers``.

        Raises:
            DeviceError: there is no room, or it cannot be written.
            TransportError: the store is out of reach.
        """
        for buffer in buffers:
            view = memoryview(buffer).cast("B")
            self.stored += len(view)
            while len(view):
                if len(self._pending) == CHUNK:
                    self._close(self._pending)
                    self._pending.clear()
                if not self._pending and len(view) > CHUNK:
                    self._close(view[:CHUNK])
                    view = view[CHUNK:]
                    continue
                room = CHUNK - len(self._pending)
                self._pending += view[:room]
                view = view[room:]

    def finish(self) -> None:
        """Write what is left: the last chunk."""
        self._close(self._pending, is_last=True)

    def _close(self, data: Buffer, *, is_last: bool = False) -> None:
        # One by one: memory of many chunks would go back to the kernel each time, which takes longer than to encrypt.
        chunk = self._seal.close(self._number, data, is_last=is_last)
        self._blob.write([chunk] if self._number else [self._seal.head, chunk])
        self._number += 1


class SealedStore:
    """Objects that are sealed in another store.

    Attributes:
        name: what messages call it.
    """

    def __init__(self, store: Store, key: bytes) -> None:
        """Take a store, and the key that its objects are sealed with (32 bytes)."""
        self.name = store.name
        self._store = store
        self._key = key

    def make(self) -> None:
        """Make the place for it, if there is none."""
        self._store.make()

    def list_objects(self) -> dict[str, int]:
        """Return the names of all objects, with the bytes of their data; 0 where that cannot be: see `open`."""
        return {
            name: plain_size(stored) or 0
            for name, stored in self._store.list_objects().items()
            if number_of(name) is None
        }

    @contextmanager
    def open(self, name: str) -> Iterator[SealedBlob]:
        """Open an object for reading, until the ``with`` ends.

        Raises:
            StreamError: it is no sealed object, or damaged.
        """
        with self._store.open(name) as blob:
            yield SealedBlob(blob, self._key, name)

    def read(self, name: str) -> bytes | None:
        """Return a small object whole; None if it is not there.

        Raises:
            StreamError: it is not what was written.
        """
        data = self._store.read(name)
        if data is None:
            return None
        with _named(f"{self.name}/{name}"):
            return open_whole(self._key, name, data)

    @contextmanager
    def create(self, name: str, most: int | None = None) -> Iterator[NewSealed]:
        """Yield what an object is written to; it is there, whole and durable, when the ``with`` ends well."""
        with self._store.create(name, None if most is None else sealed_size(most)) as blob:
            new = NewSealed(blob, self._new_seal(name))
            yield new
            new.finish()

    def put_new(self, name: str, data: bytes) -> bool:
        """Write a small object, whole and durable; False if there is one of that name already."""
        return self._store.put_new(name, seal_whole(self._new_seal(name), data))

    def delete(self, *names: str) -> None:
        """Remove objects, durably and in this order; they may be gone already."""
        self._store.delete(*names)

    def room(self) -> int | None:
        """Return the bytes that there is room for; None where nobody can tell."""
        return self._store.room()

    def list_unfinished(self) -> list[str]:
        """Return the names of what dead writers have left, and of keys that were replaced by later ones."""
        keys = sorted(name for name in self._store.list_objects() if number_of(name) is not None)
        return [*self._store.list_unfinished(), *keys[:-1]]

    def _new_seal(self, name: str) -> Seal:
        return Seal(self._key, name, os.urandom(SALT))


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Let an error say which object it is about."""
    try:
        yield
    except StreamError as error:
        raise StreamError(f"{name}: {error}", device=name, offset=error.offset) from error

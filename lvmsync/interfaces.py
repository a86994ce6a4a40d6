"""The seams of the program: what can be read, what can be written, how bytes travel, where archives lie.

Each has several implementations; nothing else in lvmsync is a Protocol.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from lvmsync.stream.frames import Buffer, Changes


class Readable(Protocol):
    """Something with a size that gives its bytes by position."""

    @property
    def name(self) -> str:
        """What messages call it: a path, mostly."""

    @property
    def size(self) -> int:
        """Size in bytes."""

    def read(self, offsets: Sequence[int], lengths: Sequence[int], out: memoryview) -> None:
        """Fill ``out`` with the given ranges, one behind the other.

        Args:
            offsets: byte positions, one per range.
            lengths: bytes of each range; their sum is ``len(out)``.
            out: filled whole, or an error is raised; never left short.

        Raises:
            DeviceError: a range ends past the device, or the device fails.
        """


class Target(Readable, Protocol):
    """A Readable that changes are applied to."""

    def data_ranges(self, offset: int, end: int) -> Iterator[tuple[int, int, bool]]:
        """Yield ``(offset, end, has_data)`` pieces that cover a range; without data it is known to read as zeros."""

    def write(self, batch: Sequence[Changes]) -> None:
        """Apply frames of data, zeros and holes, in order; durable only after ``sync``."""

    def sync(self) -> None:
        """Make everything written so far durable. A failure is final: never call it again to hope."""


class Transport(Protocol):
    """A two-way byte pipe to the other side; blocking calls.

    Attributes:
        stall_timeout: seconds that a blocked call sees no byte move, in either direction, before it fails with a
            TransportError; None: it waits for ever. May be changed between calls.
    """

    stall_timeout: float | None

    def send_all(self, buffers: Sequence[bytes | bytearray | memoryview]) -> None:
        """Send every byte of ``buffers``, in order.

        Raises:
            TransportError: the line is gone.
        """

    def receive_some(self, buffer: memoryview) -> int:
        """Receive at least one byte into ``buffer`` and return how many; 0 at the end.

        Raises:
            TransportError: the line is gone.
        """

    def send_eof(self) -> None:
        """Say that nothing more will be sent; receiving goes on."""

    def aclose(self) -> int:
        """Close the line, wait for the far side, and return its exit status (0 where there is none)."""


class Blob(Protocol):
    """An object of a store that is open for reading. Any thread may read."""

    @property
    def name(self) -> str:
        """What messages call it."""

    @property
    def size(self) -> int:
        """Size in bytes."""

    def read_at(self, offset: int, length: int) -> memoryview:
        """Return bytes from a place; fewer only at the end of the object.

        Raises:
            DeviceError: it cannot be read.
            TransportError: the store is out of reach.
        """

    def prefetch(self, offset: int, length: int) -> None:
        """Say what will be read soon; what cannot be had shows when it is read."""


class NewBlob(Protocol):
    """An object of a store that is being written."""

    @property
    def stored(self) -> int:
        """Bytes so far."""

    def write(self, buffers: Sequence[Buffer]) -> None:
        """Append every byte of ``buffers``, which may be reused afterwards.

        Raises:
            DeviceError: there is no room, or it cannot be written.
            TransportError: the store is out of reach.
        """


class Store(Protocol):
    """Objects with names, which are written once and never changed: where an archive lies.

    Every call raises a DeviceError where the store refuses, and a TransportError where it is out of reach.
    """

    @property
    def name(self) -> str:
        """What messages call it, and the command line."""

    def make(self) -> None:
        """Make the place for it, if there is none."""

    def list_objects(self) -> dict[str, int]:
        """Return the names of all objects, with their bytes."""

    def open(self, name: str) -> AbstractContextManager[Blob]:
        """Open an object for reading, until the ``with`` ends."""

    def read(self, name: str) -> bytes | None:
        """Return a small object whole; None if it is not there."""

    def create(self, name: str, most: int | None = None) -> AbstractContextManager[NewBlob]:
        """Yield what an object is written to; it is there, whole and durable, when the ``with`` ends well.

        Args:
            name: of the object.
            most: bytes that it will have at the most, where that is known.

        Raises:
            ConflictError: there is one of that name already, where the store can tell: a name of this kind is one that
                nobody else chooses.
        """

    def put_new(self, name: str, data: bytes) -> bool:
        """Write a small object, whole and durable; False if there is one of that name already: one writer wins."""

    def delete(self, *names: str) -> None:
        """Remove objects, durably and in this order; they may be gone already."""

    def room(self) -> int | None:
        """Return the bytes that there is room for; None where nobody can tell."""

    def list_unfinished(self) -> list[str]:
        """Return the names of what dead writers have left; ``delete`` removes it."""

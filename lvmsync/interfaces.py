"""The three seams of the program: what can be read, what can be written, how bytes travel.

Each has several implementations; nothing else in lvmsync is a Protocol.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from lvmsync.stream.frames import Changes


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

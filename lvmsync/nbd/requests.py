"""What clients ask for once they have chosen an export, and which of it an export can do."""

from __future__ import annotations

from dataclasses import dataclass

from lvmsync.nbd import wire

_FLAGS = {
    wire.CMD_READ: wire.CMD_FLAG_DF,
    wire.CMD_WRITE: 0,
    wire.CMD_DISC: 0,
    wire.CMD_FLUSH: 0,
    wire.CMD_TRIM: 0,
    wire.CMD_CACHE: 0,
    wire.CMD_WRITE_ZEROES: wire.CMD_FLAG_NO_HOLE,
    wire.CMD_BLOCK_STATUS: wire.CMD_FLAG_REQ_ONE,
}
"""The flags of each command, besides FUA, which all may have."""

_NOTHING = memoryview(b"")
_WRITES = (wire.CMD_WRITE, wire.CMD_TRIM, wire.CMD_WRITE_ZEROES)


@dataclass(frozen=True)
class Export:
    """What a client may choose.

    Attributes:
        name: by which it is chosen; the one without a name is the default.
        size: bytes.
        description: for people.
        is_writable: it takes writes.
    """

    name: str
    size: int
    description: str = ""
    is_writable: bool = False

    def transmission_flags(self, *, is_structured: bool) -> int:
        """Return what a client is told of it."""
        flags = wire.HAS_FLAGS | wire.SEND_FLUSH | wire.SEND_FUA | wire.CAN_MULTI_CONN
        if is_structured:
            flags |= wire.SEND_DF
        return flags | (wire.SEND_TRIM | wire.SEND_WRITE_ZEROES if self.is_writable else wire.READ_ONLY)


@dataclass(frozen=True)
class Terms:
    """What client and server have agreed upon.

    Attributes:
        is_structured: replies may have several parts.
        has_allocation: the client may ask where there are holes.
    """

    is_structured: bool = False
    has_allocation: bool = False


@dataclass(frozen=True)
class Request:
    """A command of a client.

    Attributes:
        command: ``wire.CMD_...``.
        flags: ``wire.CMD_FLAG_...``.
        cookie: the client knows the reply by it.
        offset: first byte that it is about.
        length: bytes that it is about.
        payload: what is to be written; empty where nothing is.
    """

    command: int
    flags: int
    cookie: int
    offset: int
    length: int
    payload: memoryview = _NOTHING

    @property
    def end(self) -> int:
        """The first byte behind it."""
        return self.offset + self.length


@dataclass(frozen=True)
class Refusal:
    """A request that is not carried out.

    Attributes:
        error: ``wire.E...``.
        message: for people.
    """

    error: int
    message: str


def check(request: Request, export: Export, terms: Terms) -> Refusal | None:
    """Return why a request cannot be carried out; None if it can."""
    command = request.command
    if command not in _FLAGS:
        return Refusal(wire.EINVAL, f"there is no command {command}")
    known = _FLAGS[command] | wire.CMD_FLAG_FUA
    if not terms.is_structured:
        known &= ~wire.CMD_FLAG_DF
    if request.flags & ~known:
        return Refusal(wire.EINVAL, f"command {command} has no flags {request.flags & ~known:#x}")
    if command in _WRITES and not export.is_writable:
        return Refusal(wire.EPERM, "the export is read-only")
    if command == wire.CMD_FLUSH:
        return Refusal(wire.EINVAL, "a flush has no range") if request.offset or request.length else None
    if command == wire.CMD_BLOCK_STATUS and not terms.has_allocation:
        return Refusal(wire.EINVAL, "no metadata context was chosen for this export")
    if command in (wire.CMD_READ, wire.CMD_WRITE) and request.length > wire.MAX_PAYLOAD:
        error = wire.EOVERFLOW if request.flags & wire.CMD_FLAG_DF else wire.EINVAL
        return Refusal(error, f"a request has {wire.MAX_PAYLOAD} bytes at the most, not {request.length}")
    if request.end > export.size:
        is_room = command in (wire.CMD_WRITE, wire.CMD_WRITE_ZEROES)
        return Refusal(wire.ENOSPC if is_room else wire.EINVAL, f"the export has {export.size} bytes")
    if command == wire.CMD_BLOCK_STATUS and not request.length:
        return Refusal(wire.EINVAL, "of no bytes nothing can be told")
    return None

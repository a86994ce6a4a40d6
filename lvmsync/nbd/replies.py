"""Replies to requests, as buffers to be sent one behind the other; data are never copied."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from lvmsync.nbd import wire
from lvmsync.nbd.requests import Request, Terms

Buffer = bytes | bytearray | memoryview

Part = tuple[int, int, Sequence[Buffer] | None]
"""A range of what is read: first byte, bytes, and what is in it; None: zeros."""


def done(request: Request) -> list[Buffer]:
    """Say that a request without data in its reply was carried out; structured or not, that is a simple reply."""
    return [wire.SIMPLE_REPLY.pack(wire.SIMPLE_REPLY_MAGIC, 0, request.cookie)]


def failed(request: Request, terms: Terms, error: int, message: str = "") -> list[Buffer]:
    """Say that a request was not carried out."""
    if not terms.is_structured:
        return [wire.SIMPLE_REPLY.pack(wire.SIMPLE_REPLY_MAGIC, error, request.cookie)]
    text = message.encode(errors="replace")[: wire.MAX_STRING].decode(errors="ignore").encode()
    body = wire.CHUNK_ERROR.pack(error, len(text)) + text
    return [_chunk(request, wire.REPLY_ERROR, len(body), is_last=True) + body]


def data(request: Request, terms: Terms, parts: Iterable[Part]) -> list[Buffer]:
    """Give what was read.

    Args:
        request: what for.
        terms: of the connection.
        parts: all of its range, in order, with zeros only where `may_have_holes` allows them; empty of an empty range.
    """
    if not terms.is_structured:
        reply: list[Buffer] = [wire.SIMPLE_REPLY.pack(wire.SIMPLE_REPLY_MAGIC, 0, request.cookie)]
        for _, _, buffers in parts:
            assert buffers is not None
            reply += buffers
        return reply
    if not request.length:
        return [_chunk(request, wire.REPLY_NONE, 0, is_last=True)]
    reply = []
    for offset, length, buffers in parts:
        is_last = offset + length == request.end
        if buffers is None:
            head = _chunk(request, wire.REPLY_OFFSET_HOLE, wire.CHUNK_HOLE.size, is_last=is_last)
            reply.append(head + wire.CHUNK_HOLE.pack(offset, length))
        else:
            head = _chunk(request, wire.REPLY_OFFSET_DATA, wire.CHUNK_DATA.size + length, is_last=is_last)
            reply.append(head + wire.CHUNK_DATA.pack(offset))
            reply += buffers
    return reply


def may_have_holes(request: Request, terms: Terms) -> bool:
    """Tell whether the reply to a read may leave zeros out."""
    return terms.is_structured and not request.flags & wire.CMD_FLAG_DF


def block_status(request: Request, descriptors: Buffer) -> list[Buffer]:
    """Give where there are holes.

    Args:
        request: what for.
        descriptors: of successive ranges from the request's offset on: u32 length, u32 flags each; not empty.
    """
    head = _chunk(request, wire.REPLY_BLOCK_STATUS, wire.U32.size + len(descriptors), is_last=True)
    return [head + wire.U32.pack(wire.ALLOCATION_ID), descriptors]


def _chunk(request: Request, kind: int, length: int, *, is_last: bool) -> bytes:
    flags = wire.REPLY_FLAG_DONE if is_last else 0
    return wire.CHUNK.pack(wire.STRUCTURED_REPLY_MAGIC, flags, kind, request.cookie, length)

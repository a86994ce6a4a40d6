"""The options that a client sends before it has chosen an export, and the answers to them."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass

from lvmsync.nbd import wire
from lvmsync.nbd.requests import Export, Terms

_PREFERRED = 4096  # bytes of a request that costs no more than need be
_ZEROES = bytes(124)  # behind the reply to OPT_EXPORT_NAME, for clients that want them


@dataclass(frozen=True)
class Answer:
    """What an option comes to.

    Attributes:
        sent: bytes that are to be sent.
        chosen: the export that the client wants to have now.
        agreed: what is to be sent when it gets it.
        is_end: nothing comes behind this.
        reason: what the client did wrong, where that is the end.
    """

    sent: bytes = b""
    chosen: Export | None = None
    agreed: bytes = b""
    is_end: bool = False
    reason: str | None = None


class Invalid(Exception):
    """An option is not as it should be; the client is told so."""


class Fields:
    """The data of an option, field by field."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def take(self, layout: struct.Struct) -> int:
        """Return the next number.

        Raises:
            Invalid: it is not there.
        """
        return int(layout.unpack(self._bytes(layout.size))[0])

    def take_text(self) -> str:
        """Return the next text, its length before it.

        Raises:
            Invalid: it is not there, or is no text.
        """
        return as_text(self._bytes(self.take(wire.U32)))

    def require_end(self) -> None:
        """Refuse more fields.

        Raises:
            Invalid: there are.
        """
        if self._at != len(self._data):
            raise Invalid(f"the option has {len(self._data) - self._at} bytes too many")

    def _bytes(self, length: int) -> bytes:
        if self._at + length > len(self._data):
            raise Invalid(f"the option ends at byte {len(self._data)}, and {length} were to come at {self._at}")
        self._at += length
        return self._data[self._at - length : self._at]


def as_text(data: bytes) -> str:
    """Return a name.

    Raises:
        Invalid: it is too long, or no text.
    """
    if len(data) > wire.MAX_STRING:
        raise Invalid(f"a name has {wire.MAX_STRING} bytes at the most, not {len(data)}")
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise Invalid("a name is not UTF-8") from error
    if "\0" in text:
        raise Invalid("a name has a NUL")
    return text


class Talk:
    """What was agreed upon so far."""

    def __init__(self, exports: Mapping[str, Export]) -> None:
        self._exports = exports
        self._has_zeroes = True
        self._is_structured = False
        self._allocation_of: str | None = None  # the export for which base:allocation is chosen

    def take_flags(self, flags: int) -> bool:
        """Take the client's flags; False if there is one that nobody knows."""
        self._has_zeroes = not flags & wire.FLAG_NO_ZEROES
        return not flags & ~(wire.FLAG_FIXED_NEWSTYLE | wire.FLAG_NO_ZEROES)

    def terms_for(self, name: str) -> Terms:
        """Return what holds for an export, if that is chosen now."""
        return Terms(self._is_structured, self._allocation_of == name)

    def answer(self, option: int, data: bytes | None) -> Answer:
        """Return what an option comes to.

        Args:
            option: which.
            data: of it; None: there were too many, and they are gone.
        """
        if option == wire.OPT_EXPORT_NAME:
            return self._take_name(data)
        if option == wire.OPT_SET_META_CONTEXT:
            self._allocation_of = None  # also when this one fails
        steps = {
            wire.OPT_ABORT: self._abort,
            wire.OPT_LIST: self._list,
            wire.OPT_INFO: self._inform,
            wire.OPT_GO: self._inform,
            wire.OPT_STRUCTURED_REPLY: self._structure,
            wire.OPT_LIST_META_CONTEXT: self._contexts,
            wire.OPT_SET_META_CONTEXT: self._contexts,
        }
        step = steps.get(option)
        if step is None:
            return Answer(refusal(option, wire.REP_ERR_UNSUP, f"option {option} is not known"))
        if data is None:
            return Answer(refusal(option, wire.REP_ERR_TOO_BIG, f"an option has {wire.MAX_OPTION} bytes at the most"))
        try:
            return step(option, Fields(data))
        except Invalid as error:
            return Answer(refusal(option, wire.REP_ERR_INVALID, str(error)))

    def _take_name(self, data: bytes | None) -> Answer:
        """Choose an export, in the old way that knows no errors."""
        try:
            name = as_text(data) if data is not None else None
        except Invalid:
            name = None
        export = self._exports.get(name) if name is not None else None
        if export is None:
            return Answer(is_end=True, reason="the client wants an export that is not there, and cannot be told")
        agreed = wire.EXPORT_NAME_REPLY.pack(export.size, self._flags(export))
        return Answer(chosen=export, agreed=agreed + (_ZEROES if self._has_zeroes else b""))

    def _abort(self, option: int, _: Fields) -> Answer:
        return Answer(reply(option, wire.REP_ACK), is_end=True)

    def _list(self, option: int, fields: Fields) -> Answer:
        fields.require_end()
        found = []
        for export in self._exports.values():
            name = export.name.encode()
            found.append(reply(option, wire.REP_SERVER, wire.U32.pack(len(name)) + name + export.description.encode()))
        return Answer(b"".join(found) + reply(option, wire.REP_ACK))

    def _inform(self, option: int, fields: Fields) -> Answer:
        """Tell of an export, and choose it with OPT_GO."""
        name = fields.take_text()
        wanted = {fields.take(wire.U16) for _ in range(fields.take(wire.U16))}
        fields.require_end()
        export = self._exports.get(name)
        if export is None:
            return Answer(refusal(option, wire.REP_ERR_UNKNOWN, f"there is no export '{name}'"))
        told = [wire.INFO_EXPORT_REPLY.pack(wire.INFO_EXPORT, export.size, self._flags(export))]
        if wire.INFO_NAME in wanted:
            told.append(wire.U16.pack(wire.INFO_NAME) + name.encode())
        if wire.INFO_DESCRIPTION in wanted and export.description:
            told.append(wire.U16.pack(wire.INFO_DESCRIPTION) + export.description.encode())
        if wire.INFO_BLOCK_SIZE in wanted:
            told.append(wire.INFO_BLOCK_SIZE_REPLY.pack(wire.INFO_BLOCK_SIZE, 1, _PREFERRED, wire.MAX_PAYLOAD))
        whole = b"".join(reply(option, wire.REP_INFO, one) for one in told) + reply(option, wire.REP_ACK)
        return Answer(chosen=export, agreed=whole) if option == wire.OPT_GO else Answer(whole)

    def _structure(self, option: int, fields: Fields) -> Answer:
        fields.require_end()
        self._is_structured = True
        return Answer(reply(option, wire.REP_ACK))

    def _contexts(self, option: int, fields: Fields) -> Answer:
        """List metadata contexts, or choose some of them: there is one."""
        if not self._is_structured:
            raise Invalid("metadata contexts take structured replies")
        name = fields.take_text()
        queries = [fields.take_text() for _ in range(fields.take(wire.U32))]
        fields.require_end()
        if name not in self._exports:
            return Answer(refusal(option, wire.REP_ERR_UNKNOWN, f"there is no export '{name}'"))
        is_chosen = wire.ALLOCATION in queries
        number = wire.ALLOCATION_ID
        if option == wire.OPT_SET_META_CONTEXT:
            self._allocation_of = name if is_chosen else None
        else:
            is_chosen = is_chosen or not queries or "base:" in queries
            number = 0
        found = reply(option, wire.REP_META_CONTEXT, wire.U32.pack(number) + wire.ALLOCATION.encode())
        return Answer((found if is_chosen else b"") + reply(option, wire.REP_ACK))

    def _flags(self, export: Export) -> int:
        return export.transmission_flags(is_structured=self._is_structured)


def reply(option: int, kind: int, data: bytes = b"") -> bytes:
    """Return one reply to an option."""
    return wire.OPTION_REPLY.pack(wire.OPTION_REPLY_MAGIC, option, kind, len(data)) + data


def refusal(option: int, kind: int, message: str) -> bytes:
    """Return the reply that an option is not done, and why."""
    return reply(option, kind, message.encode(errors="replace")[: wire.MAX_STRING].decode(errors="ignore").encode())

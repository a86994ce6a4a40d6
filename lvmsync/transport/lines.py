"""What a peer says on its stderr, made harmless."""

from __future__ import annotations

import re
from collections.abc import Callable

_LINE_MAX = 4096  # bytes; a longer line of stderr is shown in pieces

_ESCAPE = re.compile(  # ECMA-48: control sequences, control strings (titles, clipboards), short escapes
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"
    r"|(?:\x1b[]PX^_]|[\x90\x98\x9d-\x9f])[^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)?"
    r"|\x1b[ -/]*[0-~]?"
)
# Control characters, and those that turn the direction of the text around
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")


class Lines:
    """Bytes of a peer's stderr, given on line by line with nothing in them that drives a terminal."""

    def __init__(self, on_line: Callable[[str], None]) -> None:
        self._on_line = on_line
        self._rest = b""

    def feed(self, data: bytes) -> None:
        """Take bytes as they come, and give on the lines that are whole."""
        *lines, self._rest = re.split(rb"[\r\n]+", self._rest + data)
        while len(self._rest) > _LINE_MAX:
            lines.append(self._rest[:_LINE_MAX])
            self._rest = self._rest[_LINE_MAX:]
        for line in lines:
            self._give(line)

    def end(self) -> None:
        """Give on what came after the last line break."""
        self._give(self._rest)
        self._rest = b""

    def _give(self, line: bytes) -> None:
        text = line.decode("utf-8", "replace").replace("\t", " ")
        if text := _CONTROL.sub("", _ESCAPE.sub("", text)).rstrip():
            self._on_line(text)

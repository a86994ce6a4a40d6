"""What a check finds."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """Something that is wrong, or will be soon.

    Attributes:
        kind: "leftover", "full", "broken", "unfinished", "tool", "state", "clock", "archive" or "line".
        what: the volume, device, file or host that it is about.
        problem: what is wrong, a sentence without its full stop.
        remedy: the command that mends it, or what to do where no command can.
        is_fatal: whether no job should begin before it is mended.
    """

    kind: str
    what: str
    problem: str
    remedy: str
    is_fatal: bool = False

    def __str__(self) -> str:
        return f"{self.what}: {self.problem}; {self.remedy}"

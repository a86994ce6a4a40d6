"""Amounts for people, and of people: bytes, and spans of time."""

from __future__ import annotations

import re

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")
_SPANS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_SPAN = re.compile(r"([0-9]{1,6})([smhdw])")


def size_words(count: float) -> str:
    """Return a number of bytes for people: ``512 B``, ``1.5 GiB``."""
    unit = _UNITS[0]
    for unit in _UNITS:
        if abs(count) < 1024:
            break
        if unit != _UNITS[-1]:
            count /= 1024
    return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"


def parse_span(text: str) -> int | None:
    """Return the seconds of a span of time, as in 90m, 36h, 14d or 8w; None where it is none."""
    match = _SPAN.fullmatch(text)
    return int(match[1]) * _SPANS[match[2]] if match else None


def span_words(seconds: float) -> str:
    """Return a span of time for people, in the unit that leaves few digits: ``40 s``, ``3 h``, ``12 d``."""
    for unit, least in (("d", 2 * 86400), ("h", 2 * 3600), ("min", 120)):
        if seconds >= least:
            return f"{seconds // (least // 2):.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"

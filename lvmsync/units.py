"""Amounts for people."""

from __future__ import annotations

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")


def size_words(count: float) -> str:
    """Return a number of bytes for people: ``512 B``, ``1.5 GiB``."""
    unit = _UNITS[0]
    for unit in _UNITS:
        if abs(count) < 1024:
            break
        if unit != _UNITS[-1]:
            count /= 1024
    return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"

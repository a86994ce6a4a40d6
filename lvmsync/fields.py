"""Values out of JSON for the fields of a dataclass: each of the type that it is to have, or refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

_KINDS: dict[str, tuple[type, ...]] = {
    "str": (str,), "int": (int,), "bool": (bool,), "float": (float, int), "None": (type(None),),
}  # fmt: skip


def read_fields(kind: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a dataclass's fields, as far as they are there; numbers from 0 to 2^63 - 1.

    A tuple is a list still, and another dataclass an object.

    Raises:
        ValueError: one is not of its type.
    """
    found = {}
    for field in fields(kind):
        if field.name not in values:
            continue
        value = found[field.name] = values[field.name]
        names = str(field.type).split(" | ")
        if type(value) not in [one for name in names for one in _kinds(name)]:
            raise ValueError(f"'{field.name}' is not possible")
        if type(value) is int and not 0 <= value < 1 << 63:
            raise ValueError(f"'{field.name}' is not possible: {value}")
        if isinstance(value, str):
            _require_text(field.name, value)
        if isinstance(value, dict) and "dict[str, str]" in names:
            for text in (text for pair in value.items() for text in pair):
                _require_text(field.name, text)
    return found


def _kinds(name: str) -> tuple[type, ...]:
    return (list,) if name.startswith("tuple[") else _KINDS.get(name, (dict,))


def _require_text(name: str, value: object) -> None:
    if not isinstance(value, str):
        raise ValueError(f"'{name}' is not text")
    value.encode(errors="surrogateescape")  # names of files need not be UTF-8, but no other halves of characters can be

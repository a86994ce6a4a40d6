"""The header of a PROTO[4] stream: what it is about, as JSON. docs/stream-v4.md is the contract."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from typing import Any

from lvmsync.history import Point
from lvmsync.stream.frames import DELTA, FULL, MAX_SAMPLE, MAX_SAMPLES, SNAPBACK, Header, Sample


def dump_header(header: Header) -> bytes:
    """Return a header as JSON, without what it does not say."""
    values = {
        key: value
        for key, value in dataclasses.asdict(header).items()
        if value is not None and value is not False and value != ()
    }
    return json.dumps(values).encode()


_INTEGERS = ("size", "extents", "changed_bytes", "data_bytes", "resume")
_STRINGS = ("map_digest", "source", "name", "host", "time", "version", "stream", "transaction", "group")
_DIGEST = re.compile("[0-9a-f]{32}")
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f]")
MAX_NAME = 1024
"""Letters of a point's id, at the most."""
MAX_NAMES = 16
"""Other ids of one state, at the most."""


def _parse_names(values: Any) -> tuple[str, ...]:
    if not isinstance(values, list) or len(values) > MAX_NAMES:
        raise ValueError(f"'names' is no list of {MAX_NAMES} words at the most")
    if not all(isinstance(one, str) and 0 < len(one) <= MAX_NAME for one in values):
        raise ValueError("'names' has what is no id of a point")
    return tuple(map(tame, values))


def parse_header(values: Mapping[str, Any]) -> Header:
    """Build a Header from JSON; unknown keys are ignored, known ones must be of their type and range.

    Raises:
        ValueError: one is not.
    """
    known: dict[str, Any] = {}
    for key in _INTEGERS:
        value = values.get(key)
        if value is not None and (type(value) is not int or not 0 <= value < 1 << 63):
            raise ValueError(f"'{key}' is not a byte or extent count")
        known[key] = value
    for key in (*_STRINGS, "intent"):
        value = values.get(key)
        if value is not None and not isinstance(value, str):
            raise ValueError(f"'{key}' is not text")
        if value is not None:
            known[key] = tame(value)
    if known.get("intent", DELTA) not in (DELTA, FULL, SNAPBACK):
        raise ValueError(f"'intent' is not {DELTA}, {FULL} or {SNAPBACK}")
    if not isinstance(values.get("minimal", False), bool):
        raise ValueError("'minimal' is not true or false")
    known["minimal"] = values.get("minimal", False)
    for key in ("base", "head"):
        value = values.get(key)
        if value is not None:
            known[key] = _parse_point(key, value)
    if known["size"] is None:
        raise ValueError("'size' is missing")
    known["names"] = _parse_names(values.get("names", []))
    known["samples"] = _parse_samples(values.get("samples", []), known["size"])
    if (known["resume"] is None) != ("transaction" not in known):
        raise ValueError("'resume' and 'transaction' do not come without each other")
    return Header(**known)


def _parse_samples(values: object, size: int) -> tuple[Sample, ...]:
    if not isinstance(values, list) or len(values) > MAX_SAMPLES:
        raise ValueError(f"'samples' is not a list of at most {MAX_SAMPLES}")
    for value in values:
        is_sample = (
            isinstance(value, list)
            and len(value) == 3
            and type(value[0]) is type(value[1]) is int
            and 1 <= value[1] <= MAX_SAMPLE
            and 0 <= value[0] <= size - value[1]
            and isinstance(value[2], str)
            and _DIGEST.fullmatch(value[2])
        )
        if not is_sample:
            raise ValueError("'samples' has one that is no offset, length and digest of bytes of the device")
    return tuple(Sample(*value) for value in values)


def tame(text: str) -> str:
    """Return text of another machine with nothing in it that drives a terminal or breaks a line."""
    return _CONTROL.sub("?", text)


def _parse_point(key: str, value: object) -> Point:
    if not isinstance(value, dict):
        raise ValueError(f"'{key}' is not an object")
    texts: dict[str, Any] = {name: value.get(name) for name in ("id", "parent", "time")}
    if texts["id"] is None or not all(text is None or isinstance(text, str) for text in texts.values()):
        raise ValueError(f"'{key}' is not a point: id, parent and time are text, and id cannot be left out")
    if any(text is not None and (len(text) > MAX_NAME or tame(text) != text) for text in texts.values()):
        raise ValueError(f"'{key}' has control characters in it, or a text of more than {MAX_NAME} letters")
    return Point(**texts)

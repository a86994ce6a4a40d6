"""The catalogue of an archive: its points, and the members by which each is reached; values, and their JSON.

Points have numbers in the order in which they came, and no clock has a say in that. A member is a stream that leads
from one point to another, or to one from nothing (a full copy). A catalogue is never changed: each change makes the
next one, which knows by whom and from which it was made.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any, Self

from lvmsync.errors import FormatError, UsageError
from lvmsync.fields import read_fields

FORMAT = 1
"""Version of the catalogue's form."""

FULL, FORWARD, REVERSE = "full", "forward", "reverse"
"""Ways of a member: from nothing to a point, to a newer point, or back to an older one."""

LINEAGE = 256
"""Ancestors that a catalogue names."""

_NAME = re.compile(r"[0-9a-z][0-9a-z.-]{0,99}")
_DIGEST = re.compile(r"[0-9a-f]{32}")
_TIME = re.compile(r"(\d{4}-\d\d-\d\d)(?:[T ](\d\d:\d\d)(:\d\d(?:\.\d{1,6})?)?(Z|[+-]\d\d:\d\d)?)?", re.ASCII)
_LEAST_WORD = 4  # characters of an id that are enough to name a point, where they name one only


@dataclass(frozen=True)
class ArchivedPoint:
    """One state of a device that an archive knows.

    Attributes:
        id: names this state and no other, as of `history.Point`.
        number: its place in the order in which the points came, from 1.
        size: bytes of the device.
        time: when it was seen, UTC, ISO 8601; for people, never for order.
        name: the source, as its user named it.
        host: name of its machine.
        label: what its user calls it.
        digest: XXH3-128 (hex) of all its bytes; None until somebody has read them all.
    """

    id: str
    number: int
    size: int
    time: str | None = None
    name: str | None = None
    host: str | None = None
    label: str | None = None
    digest: str | None = None


@dataclass(frozen=True)
class Member:
    """A stream in the archive, which is never changed.

    Attributes:
        name: of the object that holds it.
        way: ``FULL``, ``FORWARD`` or ``REVERSE``.
        base: id of the point that it leads from; None of a full copy.
        head: id of the point that it leads to.
        stored: bytes of the object.
        extents: in its tables.
        changed_bytes: bytes of the device that it changes.
        digest: of the stream, as its END has it.
        index: name of the object that says where everything is in it.
        index_stored: bytes of that.
        index_digest: XXH3-128 (hex) of that.
    """

    name: str
    way: str
    base: str | None
    head: str
    stored: int
    extents: int
    changed_bytes: int
    digest: str
    index: str
    index_stored: int
    index_digest: str

    @property
    def objects(self) -> tuple[str, str]:
        """Names of all that it consists of."""
        return self.name, self.index


@dataclass(frozen=True)
class Catalogue:
    """One state of an archive.

    Attributes:
        archive: id of the archive.
        number: of this catalogue; each change makes the next.
        commit: a random word, so that two that were made at once are told apart.
        lineage: commits that led to this one, newest first, `LINEAGE` at the most.
        points: in the order of their numbers.
        members: in the order in which they came.
        doomed: names of objects that nothing needs any more, which may be there still.
        next_number: of the next point; those that were removed keep theirs.
        mirror: id of the point that the mirror is at, a device outside of the archive whose snapbacks are in it; None:
            there is no such device.
        device: what names that device, where its receiver has told; None: it is not known.
    """

    archive: str
    number: int
    commit: str
    lineage: tuple[str, ...] = ()
    points: tuple[ArchivedPoint, ...] = ()
    members: tuple[Member, ...] = ()
    doomed: tuple[str, ...] = ()
    next_number: int = 1
    mirror: str | None = None
    device: str | None = None

    @property
    def mirrors(self) -> tuple[str, ...]:
        """Ids of the points that are held outside of the archive."""
        return () if self.mirror is None else (self.mirror,)

    def find(self, point_id: str) -> ArchivedPoint | None:
        """Return the point of this id, or None."""
        return next((one for one in self.points if one.id == point_id), None)

    def successor(self, commit: str, **changes: Any) -> Self:
        """Return the catalogue that comes behind this one, with some fields changed."""
        lineage = (self.commit, *self.lineage)[:LINEAGE]
        return replace(self, number=self.number + 1, commit=commit, lineage=lineage, **changes)

    def with_points(self, *points: ArchivedPoint) -> Self:
        """Return it with more points, numbered in this order; those that it has already stay as they are."""
        new, number = [], self.next_number
        for point in points:
            if self.find(point.id) is None:
                new.append(replace(point, number=number))
                number += 1
        return replace(self, points=(*self.points, *new), next_number=number)

    def has(self, commit: str) -> bool:
        """Tell whether a commit is this one, or led to it."""
        return commit == self.commit or commit in self.lineage

    def dump(self) -> bytes:
        """Return it as JSON, a line."""
        return json.dumps({"format": FORMAT, **asdict(self)}, separators=(",", ":")).encode() + b"\n"

    @classmethod
    def parse(cls, data: bytes, name: str) -> Self:
        """Read what `dump` gave; what is unknown is ignored.

        Args:
            data: the bytes.
            name: where they come from, for messages.

        Raises:
            FormatError: they are no catalogue, one of a later form, or one that contradicts itself.
        """
        try:
            values = json.loads(data)
            if not isinstance(values, dict) or type(values.get("format")) is not int:
                raise ValueError("it has no 'format'")
            if values["format"] > FORMAT:
                raise FormatError(
                    f"{name}: a catalogue of format {values['format']}; this lvmsync knows {FORMAT}: use a newer one"
                )
            return cls._read(values)
        except (ValueError, TypeError, RecursionError) as error:
            raise FormatError(f"{name}: not a catalogue, or a damaged one: {error}") from error

    @classmethod
    def _read(cls, values: Mapping[str, Any]) -> Self:
        found = read_fields(cls, values)
        found["points"] = tuple(ArchivedPoint(**read_fields(ArchivedPoint, one)) for one in found.get("points", ()))
        found["members"] = tuple(Member(**read_fields(Member, one)) for one in found.get("members", ()))
        for key in ("lineage", "doomed"):
            words = found[key] = tuple(found.get(key, ()))
            if not all(isinstance(word, str) for word in words):
                raise ValueError(f"'{key}' is no list of words")
        catalogue = cls(**found)
        _require_sound(catalogue)
        return catalogue


def _require_sound(catalogue: Catalogue) -> None:
    """Refuse a catalogue that contradicts itself.

    Raises:
        ValueError: it does.
    """
    ids = [point.id for point in catalogue.points]
    numbers = [point.number for point in catalogue.points]
    if len(set(ids)) < len(ids):
        raise ValueError("two points have one id")
    if numbers != sorted(set(numbers)) or (numbers and not 1 <= numbers[0] <= numbers[-1] < catalogue.next_number):
        raise ValueError("its points are not in the order of their numbers")
    if not catalogue.archive or not catalogue.commit:
        raise ValueError("'archive' or 'commit' is empty")
    order = dict(zip(ids, numbers, strict=True))
    objects = [name for member in catalogue.members for name in member.objects]
    if len(set(objects)) < len(objects):
        raise ValueError("two members are one object")
    for name in (*objects, *catalogue.doomed):
        if not _NAME.fullmatch(name):
            raise ValueError(f"{name!r} is no name of an object")
    if set(objects) & set(catalogue.doomed):
        raise ValueError("a member is doomed")
    if catalogue.mirror is not None and catalogue.mirror not in order:
        raise ValueError("the mirror is at a point that is not there")
    for member in catalogue.members:
        if not _DIGEST.fullmatch(member.digest) or not _DIGEST.fullmatch(member.index_digest):
            raise ValueError(f"a digest of {member.name} is none")
        if (member.base is None) != (member.way == FULL) or member.way not in (FULL, FORWARD, REVERSE):
            raise ValueError(f"the way of {member.name} is not possible")
        if member.head not in order or (member.base is not None and member.base not in order):
            raise ValueError(f"{member.name} leads from or to a point that is not there")
        if member.base is not None and (order[member.base] < order[member.head]) != (member.way == FORWARD):
            raise ValueError(f"{member.name} leads against its way")


def find_point(catalogue: Catalogue, word: str) -> ArchivedPoint:
    """Return the point that a word names.

    That is its number (``12``), its label, its id, or the beginning of that; ``latest`` is the newest. A time (UTC,
    ISO 8601: ``2026-11-30``, ``2026-11-30T12:00``, ``...Z`` or with an offset) is the last point, in the order of their
    numbers, that was seen then or before.

    Raises:
        UsageError: there is none, or there are several.
    """
    points = catalogue.points
    if not points:
        raise UsageError("the archive has no points yet: 'lvmsync archive take' makes the first")
    if word == "latest":
        return points[-1]
    if re.fullmatch(r"#?[0-9]{1,18}", word):
        found = [one for one in points if one.number == int(word.removeprefix("#"))]
    else:
        found = [one for one in points if one.id == word] or [one for one in points if one.label == word]
        if not found and len(word) >= _LEAST_WORD:
            found = [one for one in points if _short_id(one.id).startswith(word) or one.id.startswith(word)]
    if len(found) == 1:
        return found[0]
    if found:
        raise UsageError(f"'{word}' names several points: {_names(found)}; name one by its number")
    when = parse_time(word)
    if when is None:
        raise UsageError(f"there is no point '{word}'; the archive has {_names(points)}")
    before = [one for one in points if one.time is not None and (parse_time(one.time) or "~") <= when]
    if not before:
        raise UsageError(f"no point was seen at {word} or before; the archive has {_names(points)}")
    return before[-1]


def _short_id(point_id: str) -> str:
    return point_id.rpartition(":")[2]


def _names(points: Iterable[ArchivedPoint]) -> str:
    words = [f"#{one.number}{f' ({one.time})' if one.time else ''}" for one in points]
    return ", ".join(words if len(words) < 7 else [*words[:3], "...", *words[-2:]])


def parse_time(word: str) -> str | None:
    """Return a time (ISO 8601, UTC where it says nothing else) as text that sorts; None where it is none.

    A date, or a time without seconds, is its last moment.
    """
    match = _TIME.fullmatch(word)
    if match is None:
        return None
    day, clock, seconds, zone = match.groups()
    clock, seconds = (clock or "23:59", seconds or ":59.999999")
    try:
        when = datetime.fromisoformat(f"{day}T{clock}{seconds}{zone or '+00:00'}")
        return when.astimezone(UTC).isoformat(timespec="microseconds")
    except (ValueError, OverflowError):  # no such day, or one that is none in UTC
        return None

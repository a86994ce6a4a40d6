"""Lines of a system crontab, and how often something is done: words that cron and systemd both have a form for.

Source: crontab(5) and do_command.c of vixie-cron 3.0pl1 and of cronie 1.6. The command reaches ``/bin/sh`` up to the
first ``%`` that has no backslash in front; the backslash goes. Of two backslashes the one takes one away, and the other
does not, so none is ever written in front of another, nor of ``%`` for another reason. systemd.time(7), "Calendar
Events".
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from lvmsync.errors import UsageError

MOST_COMMAND = 998
"""Bytes of a command; MAX_COMMAND is 1000, and cron cuts a longer one off without a word."""

_DAY = 86400
_NAMED = {
    "hourly": ("0 * * * *", 3600),
    "daily": ("0 0 * * *", _DAY),
    "weekly": ("0 0 * * 1", 7 * _DAY),
    "monthly": ("0 0 1 * *", 31 * _DAY),
    "yearly": ("0 0 1 1 *", 366 * _DAY),
}
"""Names that systemd has, with what cron calls the same; seconds are the longest between two."""

_SAME = {"60m": "hourly", "1h": "hourly", "24h": "daily", "1d": "daily", "7d": "weekly", "1w": "weekly"}
_COUNTED = re.compile(r"([0-9]{1,4})([smhdw])")
_FIELDS = re.compile(r"[0-9*,/-]+(?: +[0-9A-Za-z*,/-]+){4}")
_PLAIN = re.compile(r"[A-Za-z0-9_@+=:,./-]+")


_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_DAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
_PARTS: dict[str, tuple[int, int, tuple[str, ...]]] = {
    "minute": (0, 59, ()),
    "hour": (0, 23, ()),
    "day": (1, 31, ()),
    "month": (1, 12, _MONTHS),
    "day of the week": (0, 7, _DAYS),
}
"""Fields, with their least and most, and names that some have."""
_TIME = re.compile(r"(?:(\*)|([0-9]{1,2}|[A-Za-z]{3})(?:-([0-9]{1,2}|[A-Za-z]{3}))?)(?:/([0-9]{1,2}))?")


@dataclass(frozen=True)
class Every:
    """How often something is done.

    Attributes:
        word: as the user wrote it.
        calendar: the same for systemd; None: it has no form there.
        fields: the five fields of a crontab; None: they cannot say it.
        seconds: the longest between two times, as far as the word tells.
    """

    word: str
    calendar: str | None
    fields: str | None
    seconds: int | None


def parse_every(word: str) -> Every:
    """Read how often: ``15m``, ``6h``, ``daily``, an OnCalendar expression, or the five fields of a crontab.

    Raises:
        UsageError: minutes that do not divide an hour, hours that do not divide a day, or no word at all.
    """
    if not word.strip() or not word.isprintable():
        raise UsageError(f"--every {word!r}: write 15m, 6h, daily, or when: 'Mon..Fri 02:00' (systemd.time(7))")
    name = _SAME.get(word, word)
    if name in _NAMED:
        fields, seconds = _NAMED[name]
        return Every(word, name, fields, seconds)
    if counted := _COUNTED.fullmatch(word):
        count, unit = int(counted[1]), counted[2]
        if unit == "m" and count and 60 % count == 0:
            return Every(word, f"*:0/{count}", "* * * * *" if count == 1 else f"*/{count} * * * *", count * 60)
        if unit == "h" and count and 24 % count == 0:
            return Every(word, f"0/{count}:00", f"0 */{count} * * *", count * 3600)
        raise UsageError(
            f"--every {word}: minutes that divide an hour, or hours that divide a day (15m, 6h), or hourly, daily,"
            " weekly, monthly; anything else as systemd.time(7) writes it: 'Mon..Fri 02:00'"
        )
    if _FIELDS.fullmatch(word):
        for name, field, (least, most, names) in zip(_PARTS, word.split(), _PARTS.values(), strict=True):
            if not all(_is_time(part, least, most, names) for part in field.split(",")):
                raise UsageError(f"--every '{word}': '{field}' is no {name} of a crontab: see crontab(5)")
        return Every(word, None, word, None)
    return Every(word, word, None, None)


def _is_time(part: str, least: int, most: int, names: Sequence[str]) -> bool:
    """Tell whether one part of a field is what cron takes, and ever comes."""
    match = _TIME.fullmatch(part)
    if match is None or match[4] == "0" * len(match[4] or "x"):
        return False
    ends = [_number(one, least, names) for one in (match[2], match[3]) if one is not None]
    return all(one is not None and least <= one <= most for one in ends) and ends == sorted(
        ends, key=lambda one: one or 0
    )


def _number(word: str, least: int, names: Sequence[str]) -> int | None:
    if word.isdecimal():
        return int(word)
    return names.index(word.lower()) + least if word.lower() in names else None


def quote(word: str) -> str:
    """Return a word of a command as the line of a crontab has it, for the shell that gets it from there.

    Raises:
        UsageError: it has a character that ends a line.
    """
    require_one_line(word)
    if _PLAIN.fullmatch(word):
        return word
    quoted = word.replace("'", "'\"'\"'").replace("\\", "'\"$(printf '\\134')\"'")
    return "'" + quoted.replace("%", "\\%") + "'"


def require_one_line(word: str) -> None:
    """Refuse a word that does not fit in a line of a file.

    Raises:
        UsageError: it does not.
    """
    if re.search(r"[\x00-\x1f\x7f]", word):
        raise UsageError(f"{word!r} has a control character, which a unit or a crontab cannot hold")


def write_line(fields: str, user: str, command: Sequence[str], environment: str) -> str:
    """Return the line that runs a command.

    Args:
        fields: when.
        user: as whom.
        command: its words.
        environment: path of a file with variables for it, as a shell reads them; it need not be there.

    Raises:
        UsageError: it is longer than cron reads, or has a character that ends a line.
    """
    file = quote(environment)
    words = " ".join(map(quote, command))
    text = f"set -a; test ! -r {file} || . {file}; exec {words}"
    if len(text.encode(errors="surrogateescape")) > MOST_COMMAND:
        raise UsageError(
            f"the command has more than {MOST_COMMAND} bytes, and cron would cut it off: take systemd's timer, or put"
            " the command into a script"
        )
    return f"{fields} {user} {text}"

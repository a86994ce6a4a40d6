"""What may be in a request: every value is checked before anything is done with it."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from typing import Any

from lvmsync.errors import UsageError
from lvmsync.jobs.agent.protocol import is_group, show
from lvmsync.transport import SHORTEST_STALL, STALL_TIMEOUT

Request = Mapping[str, Any]

_MOST_TARGETS = 256  # of a group
_LONGEST_STALL = 3600.0  # seconds; a line that is gone must not hold a target for ever
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f]")


def take(request: Request, **checks: Callable[[Any], bool]) -> dict[str, Any]:
    """Return the values of a request, those that are not given as None; what it must not have is refused."""
    for key, value in request.items():
        if key in ("verb", "stall"):
            continue
        if key not in checks:
            raise UsageError(f"request '{request['verb']}' has no '{show(key)}': is one of the two an older lvmsync?")
        if value is not None and not checks[key](value):
            raise UsageError(f"request '{request['verb']}': what '{key}' says makes no sense")
    for key in ("target", "source", "size", "seed", "count", "options"):
        if key in checks and request.get(key) is None:
            raise UsageError(f"request '{request['verb']}' lacks '{key}'")
    return {key: request.get(key) for key in checks}


def bound_stall(seconds: object) -> float:
    """Return how long to wait for a byte of the other side, which may ask for more or less than the usual."""
    if seconds is None:
        return _LONGEST_STALL
    if not isinstance(seconds, int | float):
        return STALL_TIMEOUT
    return float(min(max(seconds, SHORTEST_STALL), _LONGEST_STALL))  # before it is made a float: it may be a huge one


def is_word(value: object) -> bool:
    """Tell whether it can be a name or path."""
    if not isinstance(value, str) or not 0 < len(value) <= 4096 or _CONTROL.search(value):
        return False
    try:
        return bool(os.fsencode(value))
    except UnicodeEncodeError:  # half a letter
        return False


def is_words(value: object) -> bool:
    """Tell whether it is a list of names or paths, of a group at the most."""
    return isinstance(value, list) and 0 < len(value) <= _MOST_TARGETS and all(map(is_word, value))


def is_percent(value: object) -> bool:
    """Tell whether it is a number above 0, and 100 at the most."""
    return isinstance(value, int | float) and type(value) is not bool and 0 < value <= 100


def is_flag(value: object) -> bool:
    """Tell whether it is true or false."""
    return isinstance(value, bool)


def is_object(value: object) -> bool:
    """Tell whether it is a JSON object."""
    return isinstance(value, dict)


def is_size(value: object) -> bool:
    """Tell whether it is a number of bytes."""
    return type(value) is int and 0 <= value < 1 << 63


def is_count(value: object) -> bool:
    """Tell whether it is a small number of things."""
    return type(value) is int and 0 < value < 256


def is_seed(value: object) -> bool:
    """Tell whether it is a number of 64 bits."""
    return type(value) is int and 0 <= value < 1 << 64


def is_level(value: object) -> bool:
    """Tell whether it is a level of compression."""
    return type(value) is int and 0 <= value <= 19


RECEIVE_OPTIONS: dict[str, Callable[[Any], bool]] = {
    "snapback": is_word,
    "archive": is_word,
    "group": is_group,
    "pool_limit": is_percent,
    "window": is_size,
    **dict.fromkeys(
        (
            "no_undo", "create", "atomic", "allow_smaller", "ignore_base", "require_base", "dry_run", "resumable",
            "restart", "prepare",
        ),
        is_flag,
    ),
}  # fmt: skip
"""Options of a receive, as they may stand in a request."""

PUSH_OPTIONS: dict[str, Callable[[Any], bool]] = {
    "level": is_level,
    "thin_pool": is_word,
    "store": is_size,
    "chunk": is_size,
    "create": is_flag,
    "full": is_flag,
    "minimal": is_flag,
    "dry_run": is_flag,
    "place": is_word,
    "no_undo": is_flag,
    "snapback": is_word,
    "archive": is_word,
    "pool_limit": is_percent,
    "passes": is_flag,
}
"""What the side that pulls may say of how its copy is made: never a command.

"place" is what names its target in our records, the same for every run; "no_undo", "snapback", "archive" and
"pool_limit" are for its own receive. "passes": more of them follow, so snapshots stay active until the line ends, and
what the copy itself does not wait for is put off until the next request.
"""

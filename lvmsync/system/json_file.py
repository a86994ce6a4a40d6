"""Our records: small files of JSON that are there whole, or not at all."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from lvmsync.errors import FormatError

_T = TypeVar("_T")
_WAY = "move it away to go on without it"


def read_json(path: Path, parse: Callable[[Any], _T], *, name: str = "", way: str = _WAY) -> _T | None:
    """Return what a file holds; None where there is none.

    Args:
        path: of the file.
        parse: makes it of the values; raises TypeError, ValueError, KeyError or AttributeError where they are wrong.
        name: what messages call it, in front of its path.
        way: what to do if it cannot be read.

    Raises:
        FormatError: it cannot be read, or is something else.
    """
    what = f"{name} {path}".lstrip()
    try:
        values = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise FormatError(f"{what} cannot be read ({error}); {way}") from error
    try:
        return parse(values)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise FormatError(f"{what} is not understood ({error}); {way}") from error

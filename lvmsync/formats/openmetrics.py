"""Metrics as text: OpenMetrics 1.0, written so that a reader of Prometheus' older text format takes it as well.

Source: OpenMetrics 1.0 (RFC draft), "Text format"; Prometheus, "Exposition formats" 0.0.4, which the textfile collector
of node_exporter reads. Only what both have is used: gauges, no timestamps, help without quotes; ``# UNIT`` and
``# EOF`` are comments to the older one.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

_NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
_LABEL = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")


@dataclass(frozen=True)
class Gauge:
    """A value that may go up and down.

    Attributes:
        name: of the metric; it ends with its unit.
        help: what it is, a line without quotes and backslashes.
        value: it has now.
        unit: "seconds", "bytes"; empty: it has none.
    """

    name: str
    help: str
    value: float
    unit: str = ""


def render(gauges: Sequence[Gauge], labels: Mapping[str, str]) -> str:
    """Return the text of some gauges, each with the same labels.

    Raises:
        ValueError: a name is none, a unit is not in its name, or help would have to be escaped.
    """
    words = ",".join(f'{_checked(_LABEL, name)}="{escape(value)}"' for name, value in labels.items())
    lines = []
    for one in gauges:
        name = _checked(_NAME, one.name)
        if one.unit and not name.endswith(f"_{one.unit}"):
            raise ValueError(f"{name} does not end with its unit, {one.unit}")
        if set(one.help) & set('\n"\\'):
            raise ValueError(f"the help of {name} would have to be escaped")
        lines.append(f"# TYPE {name} gauge")
        if one.unit:
            lines.append(f"# UNIT {name} {one.unit}")
        lines += [f"# HELP {name} {one.help}", f"{name}{{{words}}} {_number(one.value)}"]
    return "".join(f"{line}\n" for line in [*lines, "# EOF"])


def escape(value: str) -> str:
    """Return the value of a label as it is written; what is no text in UTF-8 becomes U+FFFD."""
    text = value.encode(errors="surrogateescape").decode(errors="replace")
    return text.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


def _number(value: float) -> str:
    if math.isfinite(value):
        return str(value)
    return "NaN" if math.isnan(value) else "+Inf" if value > 0 else "-Inf"


def _checked(pattern: re.Pattern[str], name: str) -> str:
    if not pattern.fullmatch(name):
        raise ValueError(f"{name!r} is no name of a metric or a label")
    return name

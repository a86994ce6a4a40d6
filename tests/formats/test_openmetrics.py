"""Metrics as text, read back by a parser that others have written, of both forms."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import parser as prometheus
from prometheus_client.openmetrics import parser as openmetrics

from lvmsync.formats.openmetrics import Gauge, render

read_openmetrics: Any = openmetrics.text_string_to_metric_families
read_prometheus: Any = prometheus.text_string_to_metric_families

GAUGES = (
    Gauge("lvmsync_lag_seconds", "Seconds since then.", 3600.5, "seconds"),
    Gauge("lvmsync_stored_bytes", "Bytes.", 1 << 50, "bytes"),
    Gauge("lvmsync_points", "How many there are.", 7),
)


@given(
    st.dictionaries(st.sampled_from(["archive", "source", "_x1"]), st.text(st.characters(exclude_categories=["Cs"])))
)
def test_both_parsers_read_what_was_written_whatever_the_labels_hold(labels: dict[str, str]) -> None:
    text = render(GAUGES, labels)
    for read in (read_openmetrics, read_prometheus):
        found = list(read(text))
        assert [one.name for one in found] == [one.name for one in GAUGES]
        assert [one.type for one in found] == ["gauge"] * 3
        assert [one.documentation for one in found] == [one.help for one in GAUGES]
        assert [[(one.labels, one.value) for one in family.samples] for family in found] == [
            [(labels, one.value)] for one in GAUGES
        ]
    assert [one.unit for one in read_openmetrics(text)] == ["seconds", "bytes", ""]


def test_without_labels_and_without_metrics_it_is_text_in_that_form_still() -> None:
    assert render([], {"archive": "x"}) == "# EOF\n"
    (found,) = read_openmetrics(render(GAUGES[2:], {}))
    assert found.samples[0].labels == {}


@pytest.mark.parametrize("value", [0, -1, 1 << 62, 0.1, 1e300, math.inf, -math.inf, math.nan])
def test_any_number_is_read_back(value: float) -> None:
    for read in (read_openmetrics, read_prometheus):
        (found,) = read(render([Gauge("x", "X.", value)], {}))
        assert found.samples[0].value == value or (math.isnan(value) and math.isnan(found.samples[0].value))


def test_a_name_of_a_file_that_is_not_utf_8_is_text_all_the_same() -> None:
    text = render(GAUGES[:1], {"source": b"/dev/\xff\xc3\xa4".decode(errors="surrogateescape")})
    (found,) = read_openmetrics(text.encode().decode())
    assert found.samples[0].labels == {"source": "/dev/\ufffdä"}


@pytest.mark.parametrize(
    ("gauges", "labels", "words"),
    [
        ([Gauge("a-b", "X.", 1)], {}, "no name"),
        ([Gauge("", "X.", 1)], {}, "no name"),
        (GAUGES, {"a:b": "x"}, "no name"),
        ([Gauge("lag", "X.", 1, "seconds")], {}, "does not end with its unit"),
        ([Gauge("lag", 'a "b"', 1)], {}, "escaped"),
        ([Gauge("lag", "a\\b", 1)], {}, "escaped"),
        ([Gauge("lag", "a\nb", 1)], {}, "escaped"),
    ],
)
def test_what_no_reader_would_take_is_refused(gauges: Sequence[Gauge], labels: dict[str, str], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        render(gauges, labels)

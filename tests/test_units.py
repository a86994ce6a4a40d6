from __future__ import annotations

import pytest

from lvmsync.units import parse_span, size_words, span_words


@pytest.mark.parametrize(
    ("count", "words"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1536, "1.5 KiB"),
        (1 << 20, "1.0 MiB"),
        (20 << 40, "20.0 TiB"),
        (1 << 60, "1.0 EiB"),
        (1 << 70, "1024.0 EiB"),
        (-2048, "-2.0 KiB"),
    ],
)
def test_a_size_has_the_unit_that_leaves_few_digits(count: float, words: str) -> None:
    assert size_words(count) == words


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("0s", 0), ("45s", 45), ("90m", 5400), ("36h", 129600), ("14d", 14 * 86400), ("8w", 56 * 86400)]
    + [(text, None) for text in ("", "5", "h", "1.5h", "-1h", "1 h", "1h\n", "1234567s", "²h", "1y")],
)
def test_a_span_is_a_number_and_its_unit(text: str, seconds: int | None) -> None:
    assert parse_span(text) == seconds


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (-5, "0 s"),
        (0, "0 s"),
        (119.4, "119 s"),
        (120, "2 min"),
        (7199, "119 min"),
        (7200, "2 h"),
        (172799, "47 h"),
        (172800, "2 d"),
        (86400 * 400, "400 d"),
    ],
)
def test_a_span_is_told_in_few_digits(seconds: float, words: str) -> None:
    assert span_words(seconds) == words

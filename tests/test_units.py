from __future__ import annotations

import pytest

from lvmsync.units import size_words


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

"""Requests that no client of ours makes: each is answered in one line, and none ends in an error of the program."""

from __future__ import annotations

import pytest

from lvmsync.jobs.agent import requests
from lvmsync.transport import SHORTEST_STALL


@pytest.mark.parametrize(
    ("asked", "granted"),
    [(10**400, 3600.0), (-(10**400), SHORTEST_STALL), (float("inf"), 3600.0), (None, 3600.0), (60, 60.0)],
    ids=["huge", "huge and negative", "infinite", "none", "usual"],
)
def test_the_patience_that_is_asked_for_is_bounded(asked: object, granted: float) -> None:
    assert requests.bound_stall(asked) == granted


@pytest.mark.parametrize("word", ["", "/\ud800", "x\n\x1b[31m.img", "/srv/\x9b", "a\0b", "x" * 5000, 5, None], ids=repr)
def test_a_word_that_is_no_name_is_refused(word: object) -> None:
    assert not requests.is_word(word)


@pytest.mark.parametrize("word", ["vg/lv", "/srv/\u00fc \udcff.img"])
def test_every_name_of_a_file_is_a_word(word: str) -> None:
    assert requests.is_word(word)

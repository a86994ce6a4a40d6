"""A seeded sample of `scripts/damage`, and that its judge can tell right from wrong."""

from __future__ import annotations

import random

import pytest

from lvmsync.errors import FormatError
from lvmsync.extents import ChangeMap
from tests import damage, damage_trackers
from tests.damage import FORMATS, Damaged, Question
from tests.damage_trackers import TRACKERS
from tests.metadata_store import BLOCK, Reader

COUNT, SEED = 2000, 1


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_damaged_metadata_gives_an_error_of_ours_or_a_right_answer(name: str) -> None:
    tally = damage.storm(FORMATS[name], COUNT, SEED)
    assert not tally.wrong, "\n".join(tally.wrong[:5])
    assert sum(tally.counts.values()) == COUNT
    # All kinds of outcome are there, or the damage is not what it should be.
    assert {"refused: FormatError", "answered: as if sound", "answered: as the image says"} <= set(tally.counts)
    assert tally.counts["refused: FormatError"] > COUNT // 4


@pytest.mark.parametrize("name", sorted(TRACKERS))
def test_damaged_files_of_trackers_are_refused_exactly_when_they_are_damaged(name: str) -> None:
    tally = damage_trackers.storm(TRACKERS[name], COUNT, SEED)
    assert not tally.wrong, "\n".join(tally.wrong[:5])
    assert sum(tally.counts.values()) == COUNT
    assert min(tally.counts["answered"], COUNT - tally.counts["answered"]) > COUNT // 5


def verdict_on(answer: object, image: bytes | None = None) -> tuple[str, str]:
    """Judge a reader that gives (or raises) this answer; the image has a mapping less unless one is given."""
    kind = FORMATS["thin"]
    sample = next(one for one in damage.prepare(kind) if one.question[0] == "mapped" and not one.question[1])

    def ask(reader: Reader, _: Question) -> object:
        for number in sample.numbers:
            reader.read_block(number)
        if isinstance(answer, BaseException):
            raise answer
        return answer if answer is not None else sample.answer

    wrong = damage.Format("x", kind.xors, kind.samples, ask, kind.check)
    if image is None:
        cut = bytearray(sample.image)
        number = max(sample.numbers)
        cut[number * BLOCK + 100] ^= 1
        image = bytes(cut)
    return damage.judge(wrong, sample, image, random.Random(0))


def test_the_judge_takes_our_errors_and_the_sound_answer() -> None:
    assert verdict_on(FormatError("damaged"))[0].startswith("refused")
    assert verdict_on(None) == ("answered: as if sound", "")


def test_the_judge_finds_a_shorter_answer_another_error_and_one_that_takes_too_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    verdict, why = verdict_on([ChangeMap.empty()])
    assert verdict == "wrong"
    assert "it is damaged" in why
    verdict, why = verdict_on(IndexError("out of bounds"))
    assert verdict == "wrong"
    assert "IndexError" in why
    monkeypatch.setattr(damage, "SECONDS", 0.01)

    def spin(*_: object) -> None:
        while True:
            pass

    kind = FORMATS["thin"]
    sample = damage.prepare(kind)[0]
    slow = damage.Format("x", kind.xors, kind.samples, spin, kind.check)
    verdict, why = damage.judge(slow, sample, sample.image, random.Random(0))
    assert verdict == "wrong"
    assert "TimeoutError" in why


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_the_strict_reader_refuses_what_is_cut_or_flipped(name: str) -> None:
    kind = FORMATS[name]
    for sample in damage.prepare(kind):
        for number in sample.numbers:
            flipped = bytearray(sample.image)
            flipped[number * BLOCK + 33] ^= 1
            with pytest.raises(Damaged):
                kind.check(bytes(flipped), sample.question)
        with pytest.raises(Damaged):
            kind.check(sample.image[: max(sample.numbers) * BLOCK], sample.question)

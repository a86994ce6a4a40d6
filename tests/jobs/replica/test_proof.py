"""Results that look too good are not believed without a look at the data."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from lvmsync.errors import VerifyError
from lvmsync.extents import ChangeMap
from lvmsync.jobs.progress import ignore
from lvmsync.jobs.replica.proof import guard_zeros, prove_unchanged
from lvmsync.sources.source import Source
from tests.fakes import Memory, make_source

SIZE = 1 << 20
ONES = b"\1" * SIZE
BEFORE = {"boot": "b", "diskseq": "1", "sectors written": "10", "sectors discarded": "0"}
AFTER = {**BEFORE, "sectors written": "18"}


def source_of(head: bytes, base: bytes, *changes: tuple[int, int], holes: ChangeMap | None = None) -> Source:
    made = make_source(head, changes)
    return replace(made, base_data=Memory(base), holes=holes or ChangeMap.empty())


def test_an_empty_map_of_a_volume_that_nobody_wrote_to_is_believed_unread() -> None:
    source = source_of(b"\2" * SIZE, ONES)  # it would be seen
    assert prove_unchanged(source, BEFORE, BEFORE, ignore) is source


@pytest.mark.parametrize(("before", "words"), [(BEFORE, "was written to"), (None, "may have been written to")])
def test_an_empty_map_of_a_volume_that_may_have_been_written_to_is_proved(
    before: dict[str, str] | None, words: str
) -> None:
    source = prove_unchanged(source_of(ONES, ONES), before, AFTER, ignore)
    assert any(words in note and "nothing differs" in note for note in source.notes)

    with pytest.raises(VerifyError, match="at 4096 differ"):
        prove_unchanged(source_of(ONES[:4096] + b"\2" + ONES[4097:], ONES), before, AFTER, ignore)


def test_a_map_that_has_changes_needs_no_proof() -> None:
    source = source_of(ONES, b"\2" * SIZE, (0, 4096))
    assert prove_unchanged(source, BEFORE, AFTER, ignore) is source


def confirm(source: Source, volume: bytes, since: ChangeMap | None = None) -> None:
    guard_zeros(source, lambda: Memory(volume), lambda: since or ChangeMap.empty()).confirm()


def test_zeros_that_the_volume_does_not_hold_are_refused() -> None:
    source = source_of(bytes(SIZE), ONES, (4096, 8192))
    with pytest.raises(VerifyError, match=r"8192 changed bytes were read as zeros.*8192 bytes at 4096"):
        confirm(source, ONES)


def test_zeros_are_believed_where_the_volume_holds_them_though_it_was_written_to_elsewhere_since() -> None:
    source = source_of(bytes(SIZE), ONES, (4096, 8192))
    confirm(source, bytes(SIZE))
    confirm(source, bytes(8192) + ONES[8192:], ChangeMap.from_extents([(8192, 65536)]))
    with pytest.raises(VerifyError, match="4096 bytes at 8192"):
        confirm(source, ONES, ChangeMap.from_extents([(0, 8192)]))


def test_zeros_that_nothing_can_prove_any_more_are_not_believed() -> None:
    source = source_of(bytes(SIZE), ONES, (4096, 8192))
    with pytest.raises(VerifyError, match=r"first 8192 bytes at 4096.*nothing proves it.*Run it again"):
        confirm(source, ONES, ChangeMap.from_extents([(0, 65536)]))


def test_zeros_over_zeros_holes_and_anything_else_are_believed() -> None:
    confirm(source_of(bytes(SIZE), bytes(SIZE), (4096, 8192)), ONES)
    confirm(source_of(bytes(SIZE), ONES, (4096, 8192), holes=ChangeMap.from_extents([(4096, 8192)])), ONES)
    confirm(source_of(bytes(8192) + ONES[8192:], ONES, (4096, 8192)), ONES)
    confirm(source_of(bytes(SIZE), ONES), ONES)


def test_one_byte_that_is_no_zero_is_found_wherever_it_is() -> None:
    head = bytes(777_777) + b"\1" + bytes(SIZE - 777_778)
    confirm(source_of(head, ONES, (0, SIZE)), ONES)


def test_what_the_source_says_itself_comes_first() -> None:
    def fail() -> None:
        raise VerifyError("first")

    source = replace(source_of(bytes(SIZE), ONES, (4096, 8192)), confirm=fail)
    with pytest.raises(VerifyError, match="first"):
        confirm(source, ONES)


def test_the_volume_is_let_go_of(tmp_path: Path) -> None:
    class Closing(Memory):
        closed = False

        def close(self) -> None:
            self.closed = True

    volume = Closing(ONES)
    with pytest.raises(VerifyError):
        guard_zeros(source_of(bytes(SIZE), ONES, (0, 4096)), lambda: volume, ChangeMap.empty).confirm()
    assert volume.closed

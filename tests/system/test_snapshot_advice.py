"""The size of a snapshot's store: enough, never more than there is, and said why."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lvmsync.errors import CommandError, DeviceError, UsageError
from lvmsync.system import snapshot_advice as advice
from tests.fake_programs import FakeProgram
from tests.system.test_lvm import ORIGIN, volume

K, M, G, T = 1 << 10, 1 << 20, 1 << 30, 1 << 40


def advise(*numbers: int, **options: int) -> advice.SnapshotAdvice:
    found = advice.advise(*numbers, **options)
    assert found is not None
    return found


def test_a_small_volume_gets_a_store_that_can_never_be_full() -> None:
    found = advise(100 * M, 10 * G)
    assert found.never_full
    assert found.size == advice.whole_store(100 * M, 4 * K) > 100 * M
    assert "can never be full" in found.reason


def test_a_large_volume_gets_a_share_of_its_size() -> None:
    found = advise(100 * G, 50 * G)
    assert (found.size, found.chunk, found.never_full) == (15 * G, 4 * K, False)
    assert found.reason == "store of 15.0 GiB, chunks of 4.0 KiB: 15% of the volume"


def test_what_is_expected_counts_more_than_the_share() -> None:
    assert advise(100 * G, 50 * G, expected=2 * G).size == 3 * G
    assert advise(100 * G, 50 * G, expected=0).size == 64 * M
    assert advise(100 * G, 500 * G, expected=90 * G).never_full


def test_a_group_with_less_gives_what_it_has_and_says_so() -> None:
    found = advise(100 * G, 5 * G)
    assert found.size == 5 * G
    assert "all that the volume group has free; 15.0 GiB would be better" in found.reason
    assert advice.advise(100 * G, G - 1) is None
    assert advice.advise(100 * G, 2 * G, expected=3 * G) is None


def test_a_size_that_was_asked_for_is_kept_or_refused() -> None:
    assert advise(100 * G, 5 * G, size=5 * G).size == 5 * G
    assert advice.advise(100 * G, 5 * G, size=5 * G + 1) is None
    whole = advise(G, 5 * G, size=3 * G)
    assert whole.size == advice.whole_store(G, 4 * K)
    assert whole.never_full
    assert whole.reason.endswith("as asked for: it holds the whole volume and can never be full")


@pytest.mark.parametrize("chunk", [0, 2 * K, 5 * K, M])
def test_a_chunk_that_the_kernel_does_not_take_is_refused(chunk: int) -> None:
    with pytest.raises(UsageError, match="a power of two from 4 KiB to 512 KiB"):
        advice.advise(G, G, chunk=chunk)


def test_chunks_are_small_until_their_table_would_fill_the_memory() -> None:
    assert advice.advise_chunk(32 * G) == 4 * K
    assert advice.advise_chunk(64 * G) == 8 * K
    assert advice.advise_chunk(10 * T) == 512 * K
    assert advice.advise_chunk(1000 * T) == 512 * K


@given(
    st.integers(1, 64 * T),
    st.integers(0, 64 * T),
    st.none() | st.integers(0, 64 * T),
    st.none() | st.integers(M, 64 * T),
    st.sampled_from([None, 4 * K, 64 * K, 512 * K]),
)
def test_advice_is_within_what_is_free_and_no_larger_than_of_use(
    origin: int, free: int, expected: int | None, size: int | None, chunk: int | None
) -> None:
    found = advice.advise(origin, free, expected=expected, size=size, chunk=chunk)
    if found is None:
        return
    assert 0 < found.size <= min(free, advice.whole_store(origin, found.chunk))
    assert found.chunk == chunk or chunk is None
    assert found.never_full == (found.size == advice.whole_store(origin, found.chunk))
    assert size is None or found.size >= min(size, origin)


def test_a_group_without_room_is_one_line_with_the_numbers_and_the_next_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    vgs = FakeProgram(tmp_path, "vgs")
    row = {"vg_name": "vg", "vg_free": str(8 * M), "vg_extent_size": str(4 * M)}
    vgs.answer(json.dumps({"report": [{"vg": [row]}]}), "--reportformat")
    origin = volume(**ORIGIN, lv_size=str(100 * G))
    with pytest.raises(DeviceError) as caught:
        advice.advise_snapshot(origin)
    assert str(caught.value) == (
        "the volume group 'vg' has 8.0 MiB free, and a snapshot of vg/data (100.0 GiB) needs 1.0 GiB at least:"
        " add a disk ('vgextend'), or remove a volume"
    )
    advice.require_room("vg", 8 * M, "the volume 'new'")
    with pytest.raises(DeviceError, match=r"has 8.0 MiB free, and the volume 'new' needs 12.0 MiB: add a disk"):
        advice.require_room("vg", 8 * M + 1, "the volume 'new'")
    vgs.answer("{}", "--reportformat")
    with pytest.raises(CommandError, match="cannot read the report of vgs"):
        advice.advise_snapshot(origin)
    vgs.fail('  Volume group "vg" not found\n', "--reportformat")
    with pytest.raises(CommandError, match="not found; is there a volume group 'vg'"):
        advice.advise_snapshot(origin)

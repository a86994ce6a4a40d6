"""The keys of an archive: each secret opens its slot and no other, and nothing that was changed is believed."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from typing import Any

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from lvmsync.chain.keys import COST, KEY_FILE, PASSPHRASE, KeyRing, Secret, Slot, number_of
from lvmsync.errors import DeviceError, FormatError

KEY = bytes(range(32))
CHEAP = 1 << 10
FILE, WORD = Secret(KEY_FILE, b"k" * 32), Secret(PASSPHRASE, "Ünlösbar".encode())


def slot(number: int, secret: Secret, label: str | None = None) -> Slot:
    salt = random.Random(number).randbytes(32)
    return Slot.wrap(number, secret, KEY, salt=salt, label=label, made="2026-03-01T00:00:00+00:00", cost=CHEAP)


RING = KeyRing(7, (slot(1, FILE, "cron"), slot(3, WORD)), 4)


def test_each_secret_opens_its_slot_and_no_other() -> None:
    assert RING.open(FILE) == (KEY, RING.slots[0])
    assert RING.open(WORD) == (KEY, RING.slots[1])
    for wrong in (Secret(KEY_FILE, b"k" * 33), Secret(PASSPHRASE, b"x"), Secret(PASSPHRASE, b"k" * 32)):
        assert RING.open(wrong) is None
    assert "k" * 32 not in repr(FILE)


def test_a_ring_is_read_as_it_was_written_and_holds_no_key() -> None:
    data = RING.dump()
    assert KeyRing.parse(data, "x") == RING
    assert KEY.hex().encode() not in data
    assert number_of(RING.name) == 7
    assert RING.name == "keys-000000000007.json"
    assert [number_of(name) for name in ("keys-7.json", "catalogue-000000000007.json")] == [None, None]


def test_slots_come_and_go_and_numbers_are_not_used_again() -> None:
    more = RING.with_slot(slot(RING.next_slot, Secret(KEY_FILE, b"new" * 20)))
    assert ([one.number for one in more.slots], more.number, more.next_slot) == ([1, 3, 4], 8, 5)
    less = more.without(4)
    assert ([one.number for one in less.slots], less.number, less.next_slot) == ([1, 3], 9, 5)
    assert KeyRing.parse(less.dump(), "x") == less
    assert not less.is_full
    while not less.is_full:
        less = less.with_slot(replace(RING.slots[0], number=less.next_slot))
    assert len(KeyRing.parse(less.dump(), "x").slots) == 32


@given(st.integers(0, len(RING.dump()) - 2), st.integers(1, 255))
def test_a_byte_that_is_not_what_it_was_is_found(at: int, flip: int) -> None:
    data = bytearray(RING.dump())
    data[at] ^= flip
    with pytest.raises(FormatError, match="not the keys of an archive, or damaged ones"):
        KeyRing.parse(bytes(data), "where")


@pytest.mark.parametrize("field", ["kind", "label", "made", "number", "wrapped", "salt"])
def test_what_a_slot_says_of_itself_is_not_to_be_changed(field: str) -> None:
    """By somebody who can make checksums, that is."""
    old = RING.slots[0]
    new: Any = {
        "kind": old.kind, "label": "mine", "made": "x", "number": 2, "wrapped": "0" * 96, "salt": "0" * 64,
    }[field]  # fmt: skip
    changed = replace(old, **{field: new})
    assert (changed.unwrap(FILE) is None) == (changed != old)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"format": 2}, "keys of format 2; this lvmsync knows 1: use a newer one"),
        ({"format": "1"}, "it has no 'format'"),
        ({"slots": []}, "slots are not possible"),
        ({"slots": [1]}, "damaged"),
        ({"next_slot": 3}, "slots are not possible"),
        ({"number": -1}, "'number' is not possible"),
        ({"one": {"number": 3}}, "slots are not possible"),
        ({"one": {"kind": "fingerprint"}}, "of no kind that is known"),
        ({"one": {"kind": PASSPHRASE}}, "of no kind that is known"),
        ({"one": {"salt": "00"}}, "slot 1 has no salt or key"),
        ({"one": {"wrapped": "X" * 96}}, "slot 1 has no salt or key"),
        ({"two": {"cost": 1 << 30}}, "the cost of slot 3 is 1073741824, and 524288 is the most"),
        ({"two": {"cost": (1 << 17) + 1}}, "the cost of slot 3"),
        ({"two": {"cost": 2}}, "the cost of slot 3"),
        ({"two": {"cost": 0}}, "the cost of slot 3"),
        ({"two": {"cost": None}}, "of no kind that is known"),
    ],
)
def test_a_ring_that_cannot_be_is_refused_before_anything_is_done_with_it(changes: dict[str, Any], words: str) -> None:
    values = json.loads(RING.dump())
    del values["digest"]
    values["slots"][0] |= changes.pop("one", {})
    values["slots"][1] |= changes.pop("two", {})
    values |= changes
    values["digest"] = xxhash.xxh3_128_hexdigest(json.dumps(values, sort_keys=True).encode())
    with pytest.raises(FormatError, match=words):
        KeyRing.parse(json.dumps(values).encode(), "where")


@pytest.mark.parametrize("data", [b"", b"[]", b"null", b"\xff", b"[" * 100_000, b" " * (65 << 10), RING.dump()[:-9]])
def test_what_are_no_keys_is_refused(data: bytes) -> None:
    with pytest.raises(FormatError, match="where: not the keys of an archive"):
        KeyRing.parse(data, "where")


def test_memory_that_is_not_there_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def scrypt(*_: Any, **__: Any) -> bytes:
        raise ValueError("[digital envelope routines] malloc failure")  # as under ulimit -v

    monkeypatch.setattr("hashlib.scrypt", scrypt)
    with pytest.raises(DeviceError, match="a passphrase takes 1 MiB of memory, and there is less"):
        RING.open(WORD)


def test_a_passphrase_costs_what_is_recommended() -> None:
    """128 MiB: OWASP's least for scrypt."""
    made = Slot.wrap(1, WORD, KEY, salt=bytes(32), label=None, made="x")
    assert made.cost == COST == 1 << 17
    assert made.unwrap(WORD) == KEY

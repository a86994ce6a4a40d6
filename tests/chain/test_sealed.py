"""The form of sealed objects: what was written comes back, and anything else is refused."""

from __future__ import annotations

import hashlib
import hmac
import random

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given
from hypothesis import strategies as st

from lvmsync.chain.sealed import (
    CHUNK,
    HEAD,
    SALT,
    TAG,
    Seal,
    chunk_place,
    count_chunks,
    open_whole,
    plain_size,
    seal_whole,
    sealed_size,
)
from lvmsync.errors import StreamError

KEY, OTHER = bytes(range(32)), bytes(32)
SIZES = (0, 1, 15, 16, 17, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 3 * CHUNK + 77)


def sealed(data: bytes, name: str = "one.stream", key: bytes = KEY) -> bytes:
    return seal_whole(Seal(key, name, random.Random(1).randbytes(SALT)), data)


@pytest.mark.parametrize("size", SIZES)
def test_what_was_sealed_is_opened_and_sizes_tell_each_other(size: int) -> None:
    data = random.Random(size).randbytes(size)
    found = sealed(data)
    assert open_whole(KEY, "one.stream", found) == data
    assert len(found) == sealed_size(size) == HEAD + size + TAG * count_chunks(size)
    assert plain_size(len(found)) == size


def test_the_form_is_what_is_written_down() -> None:
    """Taken apart by hand, with HMAC alone in the place of HKDF: RFC 5869."""
    data = random.Random(3).randbytes(CHUNK + 5)
    found = sealed(data, "x.stream")
    assert found[:8] == b"lvsseal1"
    prk = hmac.digest(found[8:40], KEY, hashlib.sha256)
    cipher = AESGCM(hmac.digest(prk, b"lvmsync sealed object 1\0x.stream\1", hashlib.sha256))
    first, second = found[40 : 40 + CHUNK + 16], found[40 + CHUNK + 16 :]
    assert cipher.decrypt(bytes(12), first, None) == data[:CHUNK]
    assert cipher.decrypt(bytes(10) + b"\1\1", second, None) == data[CHUNK:]


def test_every_size_is_that_of_one_sealed_object_or_of_none() -> None:
    sizes = {
        sealed_size(size): size
        for size in (*range(200), *range(CHUNK - 50, CHUNK + 50), *range(2 * CHUNK, 2 * CHUNK + 9))
    }
    for stored in (*range(HEAD + 150), *range(sealed_size(CHUNK) - 40, sealed_size(CHUNK) + 40)):
        assert plain_size(stored) == sizes.get(stored)


@given(st.data(), st.sampled_from(SIZES[1:]))
def test_a_byte_that_is_not_what_it_was_is_found(data: st.DataObject, size: int) -> None:
    found = bytearray(sealed(bytes(size)))
    found[data.draw(st.integers(0, len(found) - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises(StreamError, match=r"not what was written there|not a sealed object"):
        open_whole(KEY, "one.stream", bytes(found))


@pytest.mark.parametrize("size", [0, 1, 40])
def test_every_byte_of_a_small_object_counts(size: int) -> None:
    found = sealed(bytes(size))
    for at in range(len(found)):
        with pytest.raises(StreamError):
            open_whole(KEY, "one.stream", found[:at] + bytes([found[at] ^ 1]) + found[at + 1 :])


@given(st.data(), st.sampled_from(SIZES))
def test_an_object_that_is_cut_or_longer_is_found(data: st.DataObject, size: int) -> None:
    found = sealed(bytes(size))
    with pytest.raises(StreamError, match=r"not what was written there|size of no sealed object|not a sealed object"):
        open_whole(KEY, "one.stream", found[: data.draw(st.integers(0, len(found) - 1))])
    with pytest.raises(StreamError):
        open_whole(KEY, "one.stream", found + data.draw(st.binary(min_size=1, max_size=40)))


def test_a_cut_between_chunks_and_chunks_in_another_order_are_found() -> None:
    data = random.Random(5).randbytes(3 * CHUNK)
    found = sealed(data)
    head, *chunks = (found[start:end] for start, end in zip([0, *places(3)], [*places(3), len(found)], strict=True))
    assert b"".join((head, *chunks)) == found
    for order in ((0, 1), (1, 0, 2), (0, 0, 2), (0, 2, 1), (0, 1, 2, 2), (2,), (0, 2), (1, 2)):
        with pytest.raises(StreamError, match=r"byte \d+ and what follows is not what was written there"):
            open_whole(KEY, "one.stream", b"".join((head, *(chunks[number] for number in order))))
    other = seal_whole(Seal(KEY, "one.stream", bytes(SALT)), data)  # the same data, name and key
    with pytest.raises(StreamError):
        open_whole(KEY, "one.stream", found[: places(3)[1]] + other[places(3)[1] :])


def places(count: int) -> list[int]:
    return [chunk_place(number) for number in range(count)]


def test_an_object_is_none_under_another_name_or_in_another_archive() -> None:
    found = sealed(b"data")
    for key, name in ((KEY, "two.stream"), (OTHER, "one.stream"), (KEY, ""), (KEY, "one.streamx")):
        with pytest.raises(StreamError, match="damaged, cut short, or another one"):
            open_whole(key, name, found)


def test_the_same_data_is_never_the_same_twice() -> None:
    one, other = (seal_whole(Seal(KEY, "x", salt), bytes(CHUNK)) for salt in (bytes(SALT), b"\1" * SALT))
    assert one[HEAD:] != other[HEAD:]
    assert one[HEAD : HEAD + 1000] != one[HEAD + 1000 : HEAD + 2000]

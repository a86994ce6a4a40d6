"""A sealed object: what lies in the store of an encrypted archive, in the place of the object itself.

8 bytes ``lvsseal1`` and 32 random bytes. Then the data, in chunks of 64 KiB of which the last may be shorter; each is
encrypted with AES-256-GCM, and its tag of 16 bytes comes behind it. An empty object has one chunk, an empty one.

The key of an object is HKDF-SHA256 of the archive's key, with the random bytes as salt and ``lvmsync sealed object 1``,
a zero byte and the name of the object as info: so an object is none under another name. The nonce of a chunk is its
number (11 bytes, big-endian), and a byte that is 1 for the last chunk and 0 for others: so none can be moved, left out
or cut off. (STREAM: Hoang, Reyhanitabar, Rogaway, Vizar, "Online Authenticated-Encryption and its Nonce-Reuse
Misuse-Resistance", 2015.)
"""

from __future__ import annotations

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from lvmsync.errors import StreamError
from lvmsync.stream.frames import Buffer

CHUNK = 64 << 10
"""Bytes of data in a chunk. Larger ones are not faster, and more of them would have to be read for a small range."""

TAG = 16
"""Bytes by which a sealed chunk is longer."""

SALT = 32
"""Random bytes of an object."""

_MAGIC = b"lvsseal1"
HEAD = len(_MAGIC) + SALT
"""Bytes before the first chunk."""

_CONTEXT = b"lvmsync sealed object 1\0"


def plain_size(stored: int) -> int | None:
    """Return how many bytes of data an object of so many bytes has; None if no sealed object has that size."""
    body = stored - HEAD
    chunks, rest = divmod(body, CHUNK + TAG)
    if body < TAG or (rest and rest < TAG) or (rest == TAG and chunks):
        return None
    return body - TAG * (chunks + bool(rest))


def sealed_size(size: int) -> int:
    """Return how many bytes an object has that holds so many bytes of data."""
    return HEAD + size + TAG * count_chunks(size)


def chunk_place(number: int) -> int:
    """Return at which byte of the object a chunk begins."""
    return HEAD + number * (CHUNK + TAG)


def count_chunks(size: int) -> int:
    """Return how many chunks so many bytes of data are."""
    return max(1, -(-size // CHUNK))


class Seal:
    """Encrypts and decrypts the chunks of one object. Any thread may use it."""

    def __init__(self, key: bytes, name: str, salt: bytes) -> None:
        """Take the archive's key, and derive the object's.

        Args:
            key: of the archive, 32 bytes.
            name: of the object.
            salt: its random bytes, used for no other object.
        """
        self._salt = salt
        derived = HKDF(SHA256(), 32, salt, _CONTEXT + name.encode()).derive(key)
        self._cipher = AESGCM(derived)

    @classmethod
    def of(cls, key: bytes, name: str, head: Buffer) -> Seal:
        """Return the one that an object was sealed with.

        Args:
            key: of the archive.
            name: of the object.
            head: its first `HEAD` bytes.

        Raises:
            StreamError: it is no sealed object.
        """
        data = bytes(head)
        if len(data) < HEAD or not data.startswith(_MAGIC):
            raise StreamError("not a sealed object: it was put there by something else, or is damaged", offset=0)
        return cls(key, name, data[len(_MAGIC) : HEAD])

    @property
    def head(self) -> bytes:
        """What an object begins with."""
        return _MAGIC + self._salt

    def close(self, number: int, data: Buffer, *, is_last: bool) -> bytes:
        """Return a chunk, encrypted. No number is used twice."""
        return self._cipher.encrypt(_nonce(number, is_last=is_last), data, None)

    def open(self, number: int, sealed: Buffer, *, is_last: bool) -> bytes:
        """Return the data of a chunk.

        Raises:
            StreamError: it is not the one that was written there.
        """
        try:
            return self._cipher.decrypt(_nonce(number, is_last=is_last), sealed, None)
        except InvalidTag:
            raise StreamError(
                f"byte {chunk_place(number)} and what follows is not what was written there: the object is damaged,"
                " cut short, or another one",
                offset=chunk_place(number),
            ) from None


def _nonce(number: int, *, is_last: bool) -> bytes:
    return number.to_bytes(11, "big") + (b"\1" if is_last else b"\0")


def seal_whole(seal: Seal, data: bytes) -> bytes:
    """Return an object, sealed."""
    view = memoryview(data)
    count = count_chunks(len(view))
    chunks = (
        seal.close(number, view[number * CHUNK : (number + 1) * CHUNK], is_last=number == count - 1)
        for number in range(count)
    )
    return b"".join((seal.head, *chunks))


def open_whole(key: bytes, name: str, data: Buffer) -> bytes:
    """Return the data of a sealed object.

    Raises:
        StreamError: it is not what was written under that name.
    """
    view = memoryview(data)
    seal = Seal.of(key, name, view[:HEAD])
    size = plain_size(len(view))
    if size is None:
        raise impossible_size(len(view))
    count = count_chunks(size)
    return b"".join(
        seal.open(number, view[chunk_place(number) : chunk_place(number + 1)], is_last=number == count - 1)
        for number in range(count)
    )


def impossible_size(stored: int) -> StreamError:
    """Return the error of an object whose size no sealed one has."""
    return StreamError(f"{stored} bytes is the size of no sealed object: it is cut short, or damaged")

"""The keys of an encrypted archive: one random key, wrapped once for each secret that opens it (a slot).

They lie in an object of their own, a JSON object that anybody may see. A slot says how a secret becomes the key that
wraps the archive's: a key file by HKDF-SHA256, a passphrase by scrypt (r = 8, p = 1). The archive's key is encrypted
with AES-256-GCM by that, with a nonce of zeros, since no salt is used twice; what else the slot says is authenticated.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Self

import xxhash

from lvmsync.errors import DeviceError, FormatError
from lvmsync.fields import read_fields

FORMAT = 1
KEY = 32
"""Bytes of the archive's key, and of a salt."""

KEY_FILE, PASSPHRASE = "key file", "passphrase"
"""Kinds of secrets."""

COST = 1 << 17
"""N of scrypt: 128 MiB of memory, and some 0.3 s."""

_LEAST_COST, _MOST_COST = 1 << 10, 1 << 19  # a hostile archive takes 512 MiB at the most, and a few seconds a slot
_BLOCK = 8  # r of scrypt
_MOST_SLOTS = 32
_MOST_BYTES = 64 << 10
_CONTEXT = b"lvmsync key file 1"
_NONCE = bytes(12)
_SALT, _WRAPPED = re.compile("[0-9a-f]{64}"), re.compile("[0-9a-f]{96}")
_NAME = re.compile(r"keys-([0-9]{12})\.json")


@dataclass(frozen=True)
class Secret:
    """What a user opens an archive with.

    Attributes:
        kind: `KEY_FILE` or `PASSPHRASE`.
        value: the file's bytes, or the passphrase's.
    """

    kind: str
    value: bytes = field(repr=False)


@dataclass(frozen=True)
class Slot:
    """The archive's key, as one secret wraps it.

    Attributes:
        number: which; never used again.
        kind: of the secret.
        label: what the user calls it.
        made: when (ISO 8601, UTC).
        salt: 32 random bytes (hex).
        cost: N of scrypt; None of a key file.
        wrapped: the archive's key, encrypted (hex).
    """

    number: int
    kind: str
    label: str | None
    made: str
    salt: str
    cost: int | None
    wrapped: str = ""

    @classmethod
    def wrap(
        cls, number: int, secret: Secret, key: bytes, *, salt: bytes, label: str | None, made: str, cost: int = COST
    ) -> Self:
        """Return a slot that a secret opens.

        Args:
            number: of the slot.
            secret: opens it.
            key: of the archive.
            salt: 32 random bytes, used for nothing else.
            label: what the user calls it.
            made: when.
            cost: N of scrypt, for a passphrase.
        """
        slot = cls(number, secret.kind, label, made, salt.hex(), cost if secret.kind == PASSPHRASE else None)
        wrapped = _cipher(slot._derive(secret)).encrypt(_NONCE, key, slot._words())
        return replace(slot, wrapped=wrapped.hex())

    def unwrap(self, secret: Secret) -> bytes | None:
        """Return the archive's key; None if this is not the secret. Takes its time, and memory, for a passphrase."""
        from cryptography.exceptions import InvalidTag

        if secret.kind != self.kind:
            return None
        try:
            return bytes(_cipher(self._derive(secret)).decrypt(_NONCE, bytes.fromhex(self.wrapped), self._words()))
        except InvalidTag:
            return None

    def _derive(self, secret: Secret) -> bytes:
        salt = bytes.fromhex(self.salt)
        if self.cost is None:
            from cryptography.hazmat.primitives.hashes import SHA256
            from cryptography.hazmat.primitives.kdf.hkdf import HKDF

            return bytes(HKDF(SHA256(), KEY, salt, _CONTEXT).derive(secret.value))
        memory = 128 * _BLOCK * (self.cost + 64)
        try:
            return hashlib.scrypt(secret.value, salt=salt, n=self.cost, r=_BLOCK, p=1, maxmem=memory, dklen=KEY)
        except ValueError as error:  # OpenSSL's malloc failure; what else could be wrong was looked at
            raise DeviceError(f"a passphrase takes {memory >> 20} MiB of memory, and there is less: {error}") from error

    def _words(self) -> bytes:
        """What of a slot is in the clear, and is not to be changed."""
        return json.dumps([self.number, self.kind, self.label, self.made, self.salt, self.cost]).encode()


@dataclass(frozen=True)
class KeyRing:
    """All slots of an archive, at one time.

    Attributes:
        number: of the object that it lies in; each change makes the next.
        slots: in the order of their numbers; there is always one.
        next_slot: number of the next.
    """

    number: int
    slots: tuple[Slot, ...]
    next_slot: int

    @property
    def name(self) -> str:
        """Name of the object."""
        return f"keys-{self.number:012}.json"

    def open(self, secret: Secret) -> tuple[bytes, Slot] | None:
        """Return the archive's key, and the slot that a secret opens; None if it opens none."""
        return next(((key, slot) for slot in self.slots if (key := slot.unwrap(secret))), None)

    def with_slot(self, slot: Slot) -> Self:
        """Return the ring that comes behind this one, with one more slot: of the number `next_slot`."""
        return replace(self, number=self.number + 1, slots=(*self.slots, slot), next_slot=self.next_slot + 1)

    def without(self, number: int) -> Self:
        """Return the ring that comes behind this one, without one of its slots."""
        return replace(self, number=self.number + 1, slots=tuple(one for one in self.slots if one.number != number))

    @property
    def is_full(self) -> bool:
        """Whether no more slots go in."""
        return len(self.slots) >= _MOST_SLOTS

    def dump(self) -> bytes:
        """Return it as JSON, a line."""
        values = {"format": FORMAT, **asdict(self)}
        return json.dumps({**values, "digest": _digest(values)}).encode() + b"\n"

    @classmethod
    def parse(cls, data: bytes, name: str) -> Self:
        """Read what `dump` gave.

        Args:
            data: the bytes.
            name: where they come from, for messages.

        Raises:
            FormatError: they are damaged, or of a later form.
        """
        try:
            values = json.loads(data) if len(data) <= _MOST_BYTES else None
            if not isinstance(values, dict) or type(values.get("format")) is not int:
                raise ValueError("it has no 'format'")
            digest = values.pop("digest", None)
            if digest != _digest(values):
                raise ValueError("its digest is another one")
            if values["format"] > FORMAT:
                raise FormatError(
                    f"{name}: keys of format {values['format']}; this lvmsync knows {FORMAT}: use a newer one"
                )
            return cls._read(values)
        except (ValueError, TypeError, RecursionError) as error:
            raise FormatError(
                f"{name}: not the keys of an archive, or damaged ones: {error}; put back a copy of it, if there is one"
            ) from error

    @classmethod
    def _read(cls, values: Mapping[str, Any]) -> Self:
        found = read_fields(cls, values)
        found["slots"] = tuple(Slot(**read_fields(Slot, one)) for one in found.get("slots", ()))
        ring = cls(**found)
        numbers = [slot.number for slot in ring.slots]
        if not 0 < len(numbers) <= _MOST_SLOTS or numbers != sorted(set(numbers)) or numbers[-1] >= ring.next_slot:
            raise ValueError("its slots are not possible")
        for slot in ring.slots:
            is_costly = slot.kind == PASSPHRASE
            if slot.kind not in (KEY_FILE, PASSPHRASE) or is_costly == (slot.cost is None):
                raise ValueError(f"slot {slot.number} is of no kind that is known")
            if not _SALT.fullmatch(slot.salt) or not _WRAPPED.fullmatch(slot.wrapped):
                raise ValueError(f"slot {slot.number} has no salt or key")
            if slot.cost is not None and (not _LEAST_COST <= slot.cost <= _MOST_COST or slot.cost & (slot.cost - 1)):
                raise ValueError(f"the cost of slot {slot.number} is {slot.cost}, and {_MOST_COST} is the most")
        return ring


def number_of(name: str) -> int | None:
    """Return which keys object of an archive this is; None if it is another object."""
    match = _NAME.fullmatch(name)
    return int(match[1]) if match else None


def _digest(values: Mapping[str, Any]) -> str:
    return xxhash.xxh3_128_hexdigest(json.dumps(values, sort_keys=True).encode())


def _cipher(key: bytes) -> Any:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM  # not at the top: most archives are not encrypted

    return AESGCM(key)

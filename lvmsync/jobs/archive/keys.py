"""The keys of an archive in its store: made with it, opened, added and removed.

They are kept as catalogues are (`shelf`): each change is a new object, named by its number, which is made only if it is
not there, and the one with the highest number holds. Those before it are removed, since they may have slots that it
has not: what was cut off before that leaves them to the next change, and to ``archive verify --repair``.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import UTC, datetime

from lvmsync.chain.keys import COST, KEY, KeyRing, Secret, Slot, number_of
from lvmsync.errors import ConflictError, DeviceError, UsageError
from lvmsync.interfaces import Store
from lvmsync.jobs.archive.shelf import Shelf, require_place

_TRIES = 100
_MOST_LABEL = 200

Edit = Callable[[KeyRing], KeyRing]
"""Makes the next ring of the one that holds; the same one if what it is for has been done."""


def load_keys(store: Store) -> KeyRing | None:
    """Return the keys of an archive; None if it is not encrypted.

    Args:
        store: where the archive lies, as it lies there.

    Raises:
        FormatError: they are damaged.
    """
    for _ in range(_TRIES):
        names = sorted(name for name in store.list_objects() if number_of(name) is not None)
        if not names:
            return None
        data = store.read(names[-1])
        if data is None:
            continue  # there are later ones
        where = f"{store.name}/{names[-1]}"
        ring = KeyRing.parse(data, where)
        if ring.name != names[-1]:
            raise DeviceError(f"{where}: it says that it is {ring.name}: it was renamed by somebody", device=store.name)
        return ring
    raise ConflictError(f"the keys of {store.name} are changed by others all the time; try again", device=store.name)


def open_sealed(store: Store, ring: KeyRing, secret: Secret) -> Store:
    """Return what is in the store of an encrypted archive, as it was before it was sealed.

    Raises:
        UsageError: this is not the secret.
    """
    from lvmsync.stores.sealed import SealedStore

    return SealedStore(store, _open(store, ring, secret))


def init_sealed(store: Store, get_secret: Callable[[], Secret], *, label: str | None = None, cost: int = COST) -> Shelf:
    """Make an empty archive that is encrypted.

    Args:
        store: where it is to lie.
        get_secret: returns what will open it; not called where there is no place for an archive.
        label: what the user calls that.
        cost: N of scrypt, for a passphrase.

    Raises:
        ConflictError: there is an archive already, or something else.
        UsageError: a run that was cut off has left keys of another secret.
    """
    from lvmsync.stores.sealed import SealedStore

    _require_label(label)
    there = require_place(store, lambda name: number_of(name) is not None)
    secret = get_secret()
    if there:  # what another run has left: there is no archive yet, and its keys are as good as new ones
        ring = load_keys(store)
        assert ring is not None
        found = ring.open(secret)
        if found is None:
            raise UsageError(
                f"{store.name}/{ring.name} was left by an 'archive init' that was cut off, and what was given does not"
                " open it: give what was given then, or remove it by hand"
            )
        return Shelf.init(SealedStore(store, found[0]))
    key = os.urandom(KEY)
    slot = Slot.wrap(1, secret, key, salt=os.urandom(KEY), label=label, made=_now(), cost=cost)
    ring = KeyRing(1, (slot,), 2)
    if not store.put_new(ring.name, ring.dump()):
        raise ConflictError(f"somebody else made an archive at {store.name} just now", device=store.name)
    return Shelf.init(SealedStore(store, key))


def add_key(store: Store, secret: Secret, new: Secret, *, label: str | None = None, cost: int = COST) -> Slot:
    """Let one more secret open an archive, and return its slot.

    Args:
        store: where the archive lies, as it lies there.
        secret: opens it now.
        new: will open it, too.
        label: what the user calls that.
        cost: N of scrypt, for a passphrase.

    Raises:
        UsageError: the secret opens nothing, the new one does already, or there are too many.
    """
    _require_label(label)
    salt, made = os.urandom(KEY), _now()

    def edit(ring: KeyRing) -> KeyRing:
        if any(slot.salt == salt.hex() for slot in ring.slots):
            return ring
        key = _open(store, ring, secret)
        if known := ring.open(new):
            raise UsageError(f"what is to be added opens {store.name} already: it is key {known[1].number}")
        if ring.is_full:
            raise UsageError(f"{store.name} has {len(ring.slots)} keys, which is the most: remove one first")
        return ring.with_slot(Slot.wrap(ring.next_slot, new, key, salt=salt, label=label, made=made, cost=cost))

    ring = _change(store, edit)
    return next(slot for slot in ring.slots if slot.salt == salt.hex())


def remove_key(store: Store, secret: Secret, number: int) -> Slot:
    """Let a secret open an archive no more, and return what its slot was.

    Args:
        store: where the archive lies, as it lies there.
        secret: opens it now, and afterwards: so it is certain that somebody can.
        number: of the slot.

    Raises:
        UsageError: there is no such slot, it is the last one, or the one that the secret opens.
    """
    removed: list[Slot] = []

    def edit(ring: KeyRing) -> KeyRing:
        found = next((slot for slot in ring.slots if slot.number == number), None)
        if found is None and removed:
            return ring
        if found is None:
            has = ", ".join(str(slot.number) for slot in ring.slots)
            raise UsageError(f"{store.name} has no key {number}; it has {has}")
        if len(ring.slots) == 1:
            raise UsageError(f"key {number} is the last of {store.name}: without it nobody could read the archive")
        if ring.without(number).open(secret) is None:
            _open(store, ring, secret)
            raise UsageError(
                f"what was given opens only key {number}, which is to go: give the secret of one that stays, so that it"
                " is certain that it opens the archive"
            )
        removed.append(found)
        return ring.without(number)

    _change(store, edit)
    return removed[-1]


def require_keys(store: Store) -> KeyRing:
    """Return the keys of an archive.

    Raises:
        UsageError: it is not encrypted.
        DeviceError: there is none.
    """
    ring = load_keys(store)
    if ring is None:
        Shelf.open(store)
        raise UsageError(
            f"{store.name} is not encrypted: it has no keys; only 'archive init --encrypt' makes one that is"
        )
    return ring


def _open(store: Store, ring: KeyRing, secret: Secret) -> bytes:
    found = ring.open(secret)
    if found is None:
        kinds = sorted({slot.kind for slot in ring.slots})
        raise UsageError(
            f"that {secret.kind} does not open {store.name}; its keys are:"
            f" {', '.join(f'{sum(slot.kind == kind for slot in ring.slots)} by {kind}' for kind in kinds)}"
        )
    return found[0]


def _change(store: Store, edit: Edit) -> KeyRing:
    """Make the next keys object hold, and remove those before it.

    Whoever was far behind could make one of a number that was removed meanwhile, which does not hold: so all is looked
    at once more, until it is as it is to be.
    """
    for _ in range(_TRIES):
        ring = require_keys(store)
        new = edit(ring)
        if new is not ring:
            KeyRing.parse(new.dump(), new.name)  # nothing is written that could not be read again
            store.put_new(new.name, new.dump())  # from here on it holds
            continue
        older = [name for name in store.list_objects() if (number_of(name) or ring.number) < ring.number]
        store.delete(*sorted(older))
        return ring
    raise ConflictError(f"the keys of {store.name} are changed by others all the time; try again", device=store.name)


def _require_label(label: str | None) -> None:
    if label is not None and (not label.strip() or len(label) > _MOST_LABEL or not label.isprintable()):
        raise UsageError(f"--label '{label}': a word of up to {_MOST_LABEL} characters")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")

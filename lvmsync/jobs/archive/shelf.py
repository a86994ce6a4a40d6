"""An archive in its store: the catalogue that holds, and the one step that makes the next one hold.

Each catalogue is an object of its own, named by its number, and the one with the highest number holds. To change the
archive is to make the one with the next number, which fails where somebody else has made it: then the change is tried
again on top of that. Members are written before the catalogue that names them, and removed after the one that does not.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Iterable

from lvmsync.chain.catalogue import Catalogue
from lvmsync.errors import ConflictError, DeviceError, FormatError, StreamError
from lvmsync.interfaces import Store

_CATALOGUE = re.compile(r"catalogue-([0-9]{12})\.json")
_KEPT = 8  # catalogues: for those who look at one just now, and for people after an accident
_TRIES = 100

Edit = Callable[[Catalogue], Catalogue]
"""Makes the next catalogue (a `Catalogue.successor`) of the one that holds; may be called again on another one."""


class Shelf:
    """An archive, and what was read of it last.

    Attributes:
        store: where it lies.
        catalogue: the one that held when it was read.
    """

    def __init__(self, store: Store, catalogue: Catalogue) -> None:
        self.store = store
        self.catalogue = catalogue

    @classmethod
    def init(cls, store: Store) -> Shelf:
        """Make an empty archive.

        Raises:
            ConflictError: there is one already, or something else.
            DeviceError: it cannot be made.
        """
        require_place(store)
        first = Catalogue(uuid.uuid4().hex, 1, uuid.uuid4().hex)
        if not store.put_new(_name(1), first.dump()):
            raise ConflictError(f"somebody else made an archive at {store.name} just now", device=store.name)
        return cls(store, first)

    @classmethod
    def open(cls, store: Store) -> Shelf:
        """Read an archive.

        Raises:
            DeviceError: there is none.
            FormatError: its catalogue is damaged.
        """
        return cls(store, _load(store))

    def change(self, edit: Edit) -> Catalogue:
        """Make the next catalogue, and return it: when this returns, it holds or what came after it knows of it.

        Args:
            edit: makes it; what it raises comes out of this.

        Raises:
            ConflictError: others change the archive all the time.
            DeviceError: it cannot be written.
        """
        for _ in range(_TRIES):
            self.catalogue = _load(self.store)
            new = edit(self.catalogue)
            if new is self.catalogue:
                return new
            name = _name(new.number)
            Catalogue.parse(new.dump(), name)  # nothing is written that could not be read again
            if not self.store.put_new(name, new.dump()):
                continue
            # One that was far behind could have made a catalogue of a number that was removed meanwhile.
            now = _load(self.store)
            if now.has(new.commit):
                self.catalogue = now
                self._tidy()
                return now
            self.store.delete(name)
        raise ConflictError(f"{self.store.name} is changed by others all the time; try again", device=self.store.name)

    def remove_doomed(self) -> list[str]:
        """Remove objects that nothing needs any more, and return notes of what could not be removed."""
        doomed = self.catalogue.doomed
        if not doomed:
            return []
        try:
            self.store.delete(*doomed)
        except DeviceError as error:
            return [f"{error}; the next 'lvmsync archive prune' tries again"]
        self.change(lambda now: forget_doomed(now, doomed))
        return []

    def _tidy(self) -> None:
        old = _numbers(self.store.list_objects())[:-_KEPT]
        if old:
            self.store.delete(*map(_name, old))


def require_place(store: Store, is_expected: Callable[[str], bool] = lambda _: False) -> list[str]:
    """Make the place for an archive, or refuse one where there is something; return the objects that may be there.

    Raises:
        ConflictError: there is an archive already, or something else.
        DeviceError: it cannot be made.
    """
    store.make()
    there = store.list_objects()
    if any(map(_CATALOGUE.fullmatch, there)):
        raise ConflictError(f"there is an archive at {store.name} already", device=store.name)
    others = [name for name in there if not is_expected(name)]
    if others:
        raise ConflictError(
            f"{store.name} is not empty ({min(others)}): an archive has a place of its own", device=store.name
        )
    return list(there)


def forget_doomed(catalogue: Catalogue, gone: Iterable[str]) -> Catalogue:
    """Return the next catalogue, in which some objects are no longer named as doomed."""
    left = tuple(name for name in catalogue.doomed if name not in set(gone))
    return catalogue if left == catalogue.doomed else catalogue.successor(new_commit(), doomed=left)


def new_commit() -> str:
    """Return a word for a catalogue that no other one has."""
    return uuid.uuid4().hex


def is_catalogue(name: str) -> bool:
    """Tell whether an object is a catalogue."""
    return _CATALOGUE.fullmatch(name) is not None


def _load(store: Store) -> Catalogue:
    """Return the catalogue that holds."""
    for _ in range(_TRIES):
        numbers = _numbers(store.list_objects())
        if not numbers:
            raise DeviceError(
                f"there is no archive at {store.name}: 'lvmsync archive init {store.name}' makes one", device=store.name
            )
        name = _name(numbers[-1])
        try:
            data = store.read(name)
        except StreamError as error:  # it is sealed, and not what was sealed
            raise FormatError(f"the newest catalogue is damaged: {error}", device=store.name) from error
        if data is None:
            continue  # removed meanwhile, so there are later ones
        found = _parse(data, store, numbers)
        if found.number != numbers[-1]:
            raise FormatError(f"{store.name}/{name}: it says that it is catalogue {found.number}", device=store.name)
        return found
    raise ConflictError(f"{store.name} is changed by others all the time; try again", device=store.name)


def _parse(data: bytes, store: Store, numbers: list[int]) -> Catalogue:
    """Read the newest of some catalogues.

    Raises:
        FormatError: it is damaged; it says which is the one before, that is there for this.
    """
    name = f"{store.name}/{_name(numbers[-1])}"
    try:
        return Catalogue.parse(data, name)
    except FormatError as error:
        if len(numbers) > 1:
            error.add_note(
                f"the one before is {_name(numbers[-2])}: move the damaged one away, and 'lvmsync archive verify"
                f" {store.name} --repair' adds again what only that one knew"
            )
        raise


def _numbers(names: Iterable[str]) -> list[int]:
    return sorted(int(match[1]) for match in map(_CATALOGUE.fullmatch, names) if match)


def _name(number: int) -> str:
    return f"catalogue-{number:012}.json"

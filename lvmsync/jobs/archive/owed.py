"""Giving an archive what a receive has overwritten, once that is committed; docs/crash-safety.md has every step.

The ledger says what is owed from the very commit on. So whatever cuts this off, the next receive with that archive, or
``recover``, does it; and what was rolled back is never owed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from lvmsync.chain.catalogue import ArchivedPoint
from lvmsync.errors import DeviceError, UsageError
from lvmsync.jobs.archive.fit import device_words
from lvmsync.jobs.archive.keys import load_keys, open_sealed
from lvmsync.jobs.archive.members import STREAM, MemberWriter, put_index, read_whole, write_member
from lvmsync.jobs.archive.secret import KEY_FILE, find_secret_around
from lvmsync.jobs.archive.shelf import Shelf
from lvmsync.jobs.archive.take import add_mirror, adopt, remove
from lvmsync.jobs.progress import Progress, Report
from lvmsync.places import FolderPlace, parse_place
from lvmsync.stores import open_store
from lvmsync.system.ledger import Ledger
from lvmsync.system.record import Owed

_PIECE = 1 << 20


def full_word(word: str) -> str:
    """Return the word of an archive such that it means the same from any folder.

    Raises:
        UsageError: it is no such word.
    """
    place = parse_place(word)
    return str(Path(place.path).resolve()) if isinstance(place, FolderPlace) else str(place)


@contextmanager
def open_shelf(word: str) -> Iterator[Shelf]:
    """Open an archive.

    Raises:
        LvmsyncError: there is none, or it cannot be read, or is out of reach.
    """
    with open_store(parse_place(word)) as store:
        ring = load_keys(store)
        if ring is None:
            yield Shelf.open(store)
            return
        secret = find_secret_around()
        if secret is None:
            raise UsageError(
                f"{store.name} is encrypted, and {KEY_FILE} is not set where the target is: set it there, or keep what"
                " is overwritten with --snapback, and 'lvmsync archive import' it"
            )
        yield Shelf.open(open_sealed(store, ring, secret))


def require_room(shelf: Shelf, need: int) -> None:
    """Refuse an archive that has no room for so many bytes, as far as that can be told.

    Raises:
        DeviceError: it has not.
    """
    room = shelf.store.room()
    if room is not None and need > room:
        raise DeviceError(
            f"{shelf.store.name} has {room} bytes free, and up to {need} are needed; nothing was written. Make room"
            " there ('lvmsync archive prune')",
            device=shelf.store.name,
        )


def pay(
    ledger: Ledger,
    report: Report,
    archive: str | None = None,
    shelf: Shelf | None = None,
    *,
    tells: bool = True,
) -> list[str]:
    """Give archives what they are owed of a target, oldest first, and return what the user should know.

    Args:
        ledger: of the target, locked.
        report: takes the progress.
        archive: only this one; None: all of them.
        shelf: this one, open.
        tells: what was done is told as well.

    Raises:
        LvmsyncError: it failed, and is owed still; a note says what to do.
    """
    said: list[str] = []
    for owed in ledger.record.owed:
        if archive is not None and owed.archive != archive:
            said.append(
                f"{owed.archive} has not been given yet what led to {owed.point.id}: 'lvmsync recover"
                f" {ledger.record.target}' does it"
            )
            continue
        try:
            with nullcontext(shelf) if shelf else open_shelf(owed.archive) as opened:
                notes, done = _give(opened, ledger, owed, report)
        except BaseException as error:
            error.add_note(_what_is_left(ledger, owed))
            raise
        said += [*notes, *([done] if tells else [])]
        ledger.write(owed=tuple(one for one in ledger.record.owed if one != owed))
        ledger.sweep()
    return said


def _what_is_left(ledger: Ledger, owed: Owed) -> str:
    target = ledger.record.target
    way = f"run the same sync again, or 'lvmsync recover {target}', once the archive can be written"
    if owed.before is None:
        return f"{target} is wholly new and durable, and only {owed.archive} does not know of it yet: {way}"
    return (
        f"{target} is wholly new and durable, and only {owed.archive} does not have what was overwritten yet; that is"
        f" kept in {ledger.path(owed.id, 'undo')}: {way} ('lvmsync archive import {owed.archive} FILE' takes a copy of"
        " it, too)"
    )


def _give(shelf: Shelf, ledger: Ledger, owed: Owed, report: Report) -> tuple[list[str], str]:
    """Give an archive one thing that it is owed; doing it again does no harm.

    Returns:
        What the user should know, a sentence each, and what was done.
    """
    device = device_words(ledger.record.identity)
    if owed.before is None:
        point = ArchivedPoint(
            owed.point.id, 0, owed.size, owed.point.time, ledger.record.target, os.uname().nodename
        )  # fmt: skip
        add_mirror(shelf, point, device)
        return [], f"{shelf.store.name} has the state that the target is at as point {_number(shelf, owed.point.id)}"
    path = ledger.path(owed.id, "undo")
    name = f"{owed.id}{STREAM}"
    notes: list[str] = []
    if not any(one.name == name for one in shelf.catalogue.members):
        if not path.exists():
            gone = (
                f"{path} is gone, which {shelf.store.name} was to have: it leads from {owed.point.id} back to"
                f" {owed.before.id}; if you have it, 'lvmsync archive import' takes it"
            )
            return [gone], "nothing was added"
        report(Progress("archiving", 0, None))
        if name in shelf.store.list_objects():  # it gets its name when it is whole; only the catalogue was missing
            _, index, written = read_whole(shelf.store, name)
            put_index(shelf.store, written.member.index, index.dump())
        else:
            written = write_member(shelf.store, _copying(path, report), path.stat().st_size, stem=owed.id)
        notes += adopt(shelf, written, is_kept=True, mirror=device)
        if not any(one.name == name for one in shelf.catalogue.members):  # it was imported by hand
            remove(shelf, written)
    numbers = _number(shelf, owed.point.id), _number(shelf, owed.before.id)
    return notes, f"{shelf.store.name} has what was overwritten: it leads from point {' back to '.join(numbers)}"


def _copying(path: Path, report: Report) -> Callable[[MemberWriter], None]:
    """Return what copies a file into a new member."""

    def copy(writer: MemberWriter) -> None:
        buffer = memoryview(bytearray(_PIECE))
        done, size = 0, path.stat().st_size
        with path.open("rb", buffering=0) as file:
            while count := file.readinto(buffer):
                writer.send_all([buffer[:count]])
                done += count
                report(Progress("archiving", done, size))

    return copy


def _number(shelf: Shelf, point_id: str) -> str:
    point = shelf.catalogue.find(point_id)
    return f"#{point.number}" if point else point_id

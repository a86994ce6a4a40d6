"""What every store has to do, whatever it lies on; a class that gives the store inherits these tests."""

from __future__ import annotations

import random
import threading
from functools import partial
from pathlib import Path

import pytest

from lvmsync.chain.catalogue import ArchivedPoint, Catalogue
from lvmsync.errors import ConflictError, DeviceError
from lvmsync.interfaces import Store
from lvmsync.jobs.archive.shelf import Shelf, new_commit
from tests.archive_history import Both, Forward, History, Reverse, require_points_while_it_is_pruned

MIB = 1 << 20


class StoreContract:
    """Tests of a store; ``store`` is a fixture of who inherits them, and is empty."""

    can_refuse_members = True
    """Whether an object that is written in pieces is refused where there is one of its name."""

    def test_what_was_written_is_read_and_listed(self, store: Store) -> None:
        store.make()
        assert store.list_objects() == {}
        room = store.room()
        assert room is None or 0 < room < 1 << 60
        with store.create("one") as blob:
            blob.write([b"abc", memoryview(b"defg")])
            assert store.list_objects() == {}  # it is not there before it is whole
            assert blob.stored == 7
        with store.create("none", 0):
            pass
        assert store.list_objects() == {"one": 7, "none": 0}
        assert (store.read("one"), store.read("none"), store.read("two")) == (b"abcdefg", b"", None)
        with store.open("one") as found:
            assert (found.size, found.name) == (7, f"{store.name}/one")
            parts = [bytes(found.read_at(*place)) for place in ((2, 3), (5, 99), (99, 1), (7, 1), (0, 0))]
            assert parts == [b"cde", b"fg", b"", b"", b""]
            found.prefetch(0, 7)
        with store.open("none") as found:
            assert (found.size, bytes(found.read_at(0, 5))) == (0, b"")
        with pytest.raises(DeviceError, match="two is not there: was it removed by hand"), store.open("two"):
            pass
        store.delete("one", "two", "none")
        store.delete("one")
        assert store.list_objects() == {}

    def test_a_large_object_is_read_from_any_place_by_any_thread(self, store: Store) -> None:
        store.make()
        chance = random.Random(5)
        data = chance.randbytes(21 * MIB + 12345)
        reused = bytearray(MIB)
        with store.create("large", 4 * MIB) as blob:
            for at in range(0, len(data), MIB):
                piece = data[at : at + MIB]
                reused[: len(piece)] = piece
                blob.write([memoryview(reused)[: len(piece) // 2], memoryview(reused)[len(piece) // 2 : len(piece)]])
                reused[:] = bytes(MIB)
        wrong: list[tuple[int, int]] = []

        def read(seed: int) -> None:
            chance, at = random.Random(seed), 0
            for _ in range(60):
                if chance.random() < 0.2:
                    at = chance.randrange(len(data))
                length = chance.choice((1, 4096, 100_000, MIB, 3 * MIB))
                if bytes(found.read_at(at, length)) != data[at : at + length]:
                    wrong.append((at, length))
                at += length + chance.choice((0, 0, 0, 5000))

        with store.open("large") as found:
            assert found.size == len(data)
            threads = [threading.Thread(target=read, args=(seed,)) for seed in range(3)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert wrong == []
        assert store.read("large") == data

    def test_a_writer_that_fails_leaves_nothing(self, store: Store) -> None:
        store.make()

        def fail(size: int) -> None:
            with store.create("one") as blob:
                blob.write([bytes(size)])
                raise KeyError

        for size in (5, 20 * MIB):
            with pytest.raises(KeyError):
                fail(size)
            assert (store.list_objects(), store.list_unfinished()) == ({}, [])

    def test_of_two_writers_of_a_name_the_first_wins(self, store: Store) -> None:
        require_one_winner(store, can_refuse_members=self.can_refuse_members)

    def test_two_who_change_an_archive_at_once_lose_nothing(self, store: Store) -> None:
        Shelf.init(store)
        points = 6

        def work(name: str) -> None:
            shelf = Shelf.open(store)
            for number in range(points):
                new = ArchivedPoint(f"{name}{number}", 0, 512)
                shelf.change(partial(_with, new))

        threads = [threading.Thread(target=work, args=(name,)) for name in "abc"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        found = [one.id for one in Shelf.open(store).catalogue.points]
        assert sorted(found) == sorted(f"{name}{number}" for name in "abc" for number in range(points))

    @pytest.mark.parametrize("kind", [Forward, Reverse, Both])
    def test_a_history_is_the_same_bytes_whatever_is_combined_and_pruned(
        self, store: Store, tmp_path: Path, kind: type[Forward] | type[Reverse] | type[Both]
    ) -> None:
        archive = kind(tmp_path, History.make(7, 20, may_resize=kind is Forward), store=store)
        require_points_while_it_is_pruned(archive, 7)


def _with(new: ArchivedPoint, now: Catalogue) -> Catalogue:
    if now.find(new.id):
        return now
    more = now.with_points(new)
    return now.successor(new_commit(), points=more.points, next_number=more.next_number)


def require_one_winner(store: Store, *, can_refuse_members: bool = True) -> None:
    """Of several who write one name at once one wins, and its bytes are there."""
    store.make()
    gate, won = threading.Barrier(4), []

    def work(number: int) -> None:
        gate.wait()
        if store.put_new("name", bytes([number]) * 1000):
            won.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert store.read("name") == bytes(won) * 1000
    if can_refuse_members:
        with pytest.raises(ConflictError, match="is there already"), store.create("name") as blob:
            blob.write([b"x"])
    assert store.list_objects() == {"name": 1000}
    assert store.list_unfinished() == []

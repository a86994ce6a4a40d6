"""A store whose objects are sealed: what is in it is what was written, or it is told; and nobody sees what that is."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lvmsync.chain.sealed import CHUNK, HEAD, TAG, chunk_place, sealed_size
from lvmsync.errors import StreamError
from lvmsync.interfaces import Blob, NewBlob
from lvmsync.names import Host
from lvmsync.places import SshPlace
from lvmsync.stores import open_store
from lvmsync.stores.folder import FolderStore
from lvmsync.stores.sealed import SealedBlob, SealedStore
from tests.archive_history import Forward, History, require_points_while_it_is_pruned
from tests.sshd import run_sshd
from tests.stores.contract import StoreContract

KEY = bytes(range(32))
SIZE = 5 * CHUNK + 1234
DATA = random.Random(1).randbytes(SIZE)


@pytest.fixture
def store(tmp_path: Path) -> SealedStore:
    found = SealedStore(FolderStore(tmp_path / "store"), KEY)
    found.make()
    return found


class Counted:
    """An object in memory, which counts what is read of it."""

    def __init__(self, data: bytes) -> None:
        self.name, self.size = "object", len(data)
        self._data = data
        self.read: list[tuple[int, int]] = []
        self.wanted: list[tuple[int, int]] = []

    def read_at(self, offset: int, length: int) -> memoryview:
        self.read.append((offset, length))
        return memoryview(self._data)[offset : offset + length]

    def prefetch(self, offset: int, length: int) -> None:
        self.wanted.append((offset, length))


class InMemory(FolderStore):
    """Keeps what is written last, and counts how much at a time."""

    def __init__(self) -> None:
        super().__init__(Path("/nonexistent"))
        self.data = b""
        self.most = 0
        self.told: int | None = None

    @contextmanager
    def create(self, name: str, most: int | None = None) -> Iterator[NewBlob]:  # type: ignore[override]
        self.told, self.data, pieces = most, b"", list[bytes]()
        store = self

        class New:
            stored = 0

            def write(self, buffers: Sequence[bytes | bytearray | memoryview]) -> None:
                store.most = max(store.most, sum(map(len, buffers)))
                pieces.extend(bytes(one) for one in buffers)

        yield New()
        self.data = b"".join(pieces)


def sealed(data: bytes) -> bytes:
    memory = InMemory()
    with SealedStore(memory, KEY).create("one") as blob:
        blob.write([data])
    return memory.data


class TestSealed(StoreContract):
    """A store whose objects are sealed does what every store has to do."""


def test_a_history_that_is_sealed_over_there_is_the_same_bytes(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    place = SshPlace(Host(None, "127.0.0.1"), None, str(tmp_path / "far" / "archive"))
    with run_sshd(tmp_path / "far") as sshd, open_store(place, ssh_config=str(sshd.config)) as store:
        archive = Forward(tmp_path, History.make(8, 12), store=SealedStore(store, KEY))
        require_points_while_it_is_pruned(archive, 8)
    for path in (tmp_path / "far" / "archive").iterdir():
        assert path.read_bytes().startswith(b"lvsseal1")
        assert path.stat().st_mode & 0o777 == 0o600


@given(st.lists(st.tuples(st.integers(0, SIZE + 9), st.integers(0, 3 * CHUNK)), min_size=1, max_size=6))
def test_any_range_is_what_was_written_there_whatever_was_read_before(ranges: list[tuple[int, int]]) -> None:
    blob = SealedBlob(Counted(SEALED), KEY, "one")
    for offset, length in ranges:
        assert blob.read_at(offset, length) == DATA[offset : offset + length]


SEALED = sealed(DATA)


@given(st.lists(st.integers(0, 2 * CHUNK), max_size=8), st.booleans())
def test_what_is_written_in_any_pieces_is_one_object(sizes: list[int], is_one_call: bool) -> None:
    pieces = [random.Random(number).randbytes(size) for number, size in enumerate(sizes)]
    memory = InMemory()
    with SealedStore(memory, KEY).create("one", sum(sizes)) as blob:
        if is_one_call:
            blob.write(pieces)
        for piece in () if is_one_call else pieces:
            changing = bytearray(piece)
            blob.write([changing])
            changing[:] = bytes(len(changing))  # it may be used again
        assert blob.stored == sum(sizes)
    assert memory.told == sealed_size(sum(sizes)) == len(memory.data)
    found = SealedBlob(Counted(memory.data), KEY, "one")
    assert found.size == sum(sizes)
    assert bytes(found.read_at(0, found.size)) == b"".join(pieces)


def test_only_chunks_of_the_range_are_read_and_none_twice_by_who_reads_on() -> None:
    blob = SealedBlob(under := Counted(SEALED), KEY, "one")
    assert under.read == []
    for at in range(0, SIZE, 1000):
        blob.read_at(at, 1000)
    # The head comes with the first chunk, and each byte is read once.
    assert [offset for offset, _ in under.read] == [0, *(chunk_place(number) for number in range(1, 6))]
    assert sum(length for _, length in under.read) == len(SEALED)
    blob = SealedBlob(under := Counted(SEALED), KEY, "one")
    assert blob.read_at(2 * CHUNK + 5, 10) == DATA[2 * CHUNK + 5 : 2 * CHUNK + 15]
    assert under.read == [(chunk_place(2), CHUNK + TAG), (0, HEAD)]
    blob.prefetch(CHUNK + 5, CHUNK)
    assert under.wanted == [(chunk_place(1), 2 * (CHUNK + TAG))]


def test_what_is_kept_of_a_chunk_does_not_keep_the_chunk() -> None:
    assert SealedBlob(Counted(SEALED), KEY, "one").read_at(10, 20).obj == DATA[10:30]


def test_any_thread_may_read() -> None:
    blob = SealedBlob(Counted(SEALED), KEY, "one")
    wrong: list[int] = []

    def work(seed: int) -> None:
        chance = random.Random(seed)
        for _ in range(200):
            at, length = chance.randrange(SIZE), chance.randrange(3 * CHUNK)
            if blob.read_at(at, length) != DATA[at : at + length]:
                wrong.append(at)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_large_object_is_written_and_read_in_small_pieces() -> None:
    memory = InMemory()
    with SealedStore(memory, KEY).create("one") as blob:
        blob.write([memoryview(bytes(40 << 20))])
    assert memory.most <= HEAD + CHUNK + TAG
    assert memory.told is None


@pytest.mark.parametrize("size", [0, 10, CHUNK, 2 * CHUNK, SIZE])
def test_whatever_is_changed_is_refused_by_who_reads_it_whole(size: int) -> None:
    data = sealed(DATA[:size])
    chance = random.Random(size)
    spoiled = [
        data[:cut] for cut in (0, 5, HEAD, HEAD + TAG, len(data) - 1, len(data) - CHUNK - TAG) if 0 <= cut < len(data)
    ]
    spoiled += [data + bytes(count) for count in (1, 16, 17, CHUNK + TAG)]
    for _ in range(20):
        at = chance.randrange(len(data))
        spoiled.append(data[:at] + bytes([data[at] ^ 1 << chance.randrange(8)]) + data[at + 1 :])
    for bad in spoiled:
        with pytest.raises(StreamError, match="object: ") as caught:
            read_whole(SealedBlob(Counted(bad), KEY, "one"))
        assert caught.value.device == "object"
    for key, name in ((KEY, "two"), (bytes(32), "one")):
        with pytest.raises(StreamError, match="or another one"):
            read_whole(SealedBlob(Counted(data), key, name))


def read_whole(blob: Blob) -> bytes:
    found = b""
    while piece := bytes(blob.read_at(len(found), 100_000)):
        found += piece
    return found


def test_nothing_of_what_is_written_lies_there_and_the_same_is_never_the_same(store: SealedStore) -> None:
    pattern = b"a pattern that is known"
    for name in ("one", "two"):
        with store.create(name) as blob:
            blob.write([pattern * 9999])
        store.put_new(f"small {name}", pattern)
    files = [path.read_bytes() for path in Path(store.name).iterdir()]
    assert len(set(files)) == 4
    assert not any(pattern in data for data in files)
    assert len({data[HEAD : HEAD + 9] for data in files}) == 4
    seen = set()
    for _ in range(3):  # under the same name, too: no key is used twice
        store.put_new("again", pattern)
        seen.add((Path(store.name) / "again").read_bytes()[HEAD:])
        store.delete("again")
        with store.create("again") as blob:
            blob.write([pattern])
        seen.add((Path(store.name) / "again").read_bytes()[HEAD:])
        store.delete("again")
    assert len(seen) == 6


def test_what_others_have_put_there_is_listed_and_told(store: SealedStore) -> None:
    folder = Path(store.name)
    store.put_new("ours", b"x" * 99)
    (folder / "theirs").write_bytes(b"plain text " * 9)
    (folder / "short").write_bytes(b"plain")
    (folder / "keys-000000000001.json").write_bytes(b"old")
    (folder / "keys-000000000002.json").write_bytes(b"new")
    (folder / ".new-dead").write_bytes(b"half")
    listed = store.list_objects()
    assert sorted(listed) == ["ours", "short", "theirs"]
    assert (listed["ours"], listed["short"]) == (99, 0)
    for name in ("theirs", "short"):
        with pytest.raises(StreamError, match=f"{folder}/{name}: (not a sealed object|5 bytes is the size of no)"):
            store.read(name)
        with pytest.raises(StreamError, match=f"{folder}/{name}"), store.open(name) as blob:
            blob.read_at(0, 1)
    assert store.list_unfinished() == [".new-dead", "keys-000000000001.json"]

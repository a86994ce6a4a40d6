"""Snapshots of real RBD images as sources: every one of them restored from an archive, byte for byte."""

from __future__ import annotations

import random
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import pytest

from lvmsync.cli.classic import run
from lvmsync.errors import ConflictError, DeviceError, UsageError
from lvmsync.extents import ChangeMap
from lvmsync.images import RbdSnapshot, parse_image
from lvmsync.jobs.archive.restore import open_point
from lvmsync.jobs.archive.shelf import Shelf
from lvmsync.names import parse_source
from lvmsync.sources import Reading, Source, open_source
from lvmsync.sources.rbd import OrderedBytes
from lvmsync.stores.folder import FolderStore
from lvmsync.system.rbd_pipe import DiffPipe, open_export
from tests.ceph.conftest import Ceph
from tests.ceph.images import MIB, export, fresh, lvmsync, write


def read(source: Source) -> bytes:
    """Return all of a full source."""
    assert source.is_full
    out = bytearray(source.size)
    for extent in source.changes - source.holes:
        source.data.read([extent.offset], [extent.length], memoryview(out)[extent.offset : extent.end])
    source.confirm()
    return bytes(out)


def at(image: str, snap: str, base: str | None = None) -> RbdSnapshot:
    return RbdSnapshot(parse_image(image), snap, base)


def test_every_snapshot_of_a_random_history_is_restored(ceph: Ceph, tmp_path: Path) -> None:
    chance, archive = random.Random(11), tmp_path / "archive"
    lvmsync(f"archive init {archive} -q")
    size = 9 * MIB
    with fresh(ceph, size) as image:
        states = []
        for number in range(20):
            if number in (7, 12, 13):  # grown; shrunk, and grown again over what was there
                size += {7: 4 * MIB + 512, 12: -7 * MIB, 13: 6 * MIB}[number]
                ceph.rbd("resize", "--no-progress", "--allow-shrink", "--size", f"{size}B", image)
            pieces: list[tuple[int, bytes | int]] = []
            for _ in range(chance.randrange(20)):
                length = chance.choice([1, 512, 4096, 65536, 3 * MIB])
                offset = chance.randrange(0, size - length, 1 if chance.random() < 0.3 else 512)
                kind = chance.random()
                raw = bytes(length) if kind < 0.4 else chance.randbytes(length)
                pieces.append((offset, length if kind < 0.3 else raw))
            write(ceph, image, *pieces)
            ceph.rbd("snap", "create", "--no-progress", f"{image}@s{number}")
            states.append(export(ceph, f"{image}@s{number}"))
            base = f",base=s{number - 1}" if number else ""
            lvmsync(f"archive take {archive} rbd:{image}@s{number}{base} --label p{number} -q")
    shelf = Shelf.open(FolderStore(archive))
    for point, state in zip(shelf.catalogue.points, states, strict=True):
        with open_point(shelf, point) as (past, _):
            found = bytearray(past.size)
            past.read([0], [past.size], memoryview(found))
            assert found == state, point.label


def test_a_delta_over_several_snapshots_is_sent_to_a_copy(ceph: Ceph, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    with fresh(ceph, 9 * MIB) as image:
        write(ceph, image, (0, b"a" * MIB), (5 * MIB, b"b" * 4096))
        ceph.rbd("snap", "create", f"{image}@one")
        lvmsync(f"sync rbd:{image}@one {copy} --create --state {tmp_path}/state -q")
        assert copy.read_bytes() == export(ceph, f"{image}@one")
        for number in range(3):
            write(ceph, image, (number * 4096, b"%d" % number * 512), (5 * MIB, 4096))
            ceph.rbd("snap", "create", f"{image}@more{number}")
        lvmsync(f"sync rbd:{image}@more2,base=more1 {copy} --state {tmp_path}/state -q", 8)  # not what the copy is at
        lvmsync(f"sync rbd:{image}@more2,base=one {copy} --state {tmp_path}/state -q")
        assert copy.read_bytes() == export(ceph, f"{image}@more2")


def test_a_clone_has_what_its_parent_has(ceph: Ceph) -> None:
    with fresh(ceph, 9 * MIB) as image, fresh(ceph) as clone:
        write(ceph, image, (0, b"a" * MIB), (5 * MIB, b"b" * 4096))
        ceph.rbd("snap", "create", f"{image}@one")
        ceph.rbd("snap", "protect", f"{image}@one")
        ceph.rbd("clone", f"{image}@one", clone)
        try:
            write(ceph, clone, (4096, b"c" * 4096))
            ceph.rbd("snap", "create", f"{clone}@one")
            with open_source(at(clone, "one")) as source:
                assert read(source) == export(ceph, f"{clone}@one")
        finally:
            ceph.rbd("snap", "purge", clone)
            ceph.rbd("rm", clone)
            ceph.rbd("snap", "unprotect", f"{image}@one")


def test_reads_out_of_order_and_side_by_side_find_the_same_bytes(ceph: Ceph) -> None:
    chance = random.Random(3)
    with fresh(ceph, 80 * MIB) as image:
        write(ceph, image, *((offset * MIB, chance.randbytes(MIB)) for offset in range(0, 80, 2)))
        ceph.rbd("snap", "create", f"{image}@one")
        state = export(ceph, f"{image}@one")
        with open_source(at(image, "one")) as source:

            def look(offset: int) -> bool:
                out = bytearray(700_000)
                source.data.read([offset, offset + 400_000], [400_000, 300_000], memoryview(out))
                return out == state[offset : offset + 700_000]

            assert all(look(offset) for offset in (70 * MIB, 3, 50 * MIB, 78 * MIB, 5 * MIB))
            with ThreadPoolExecutor(4) as pool:
                assert all(pool.map(look, range(0, 79 * MIB, 300_000)))
            with pytest.raises(DeviceError, match="were to be read at"):
                source.data.read([source.size], [1], memoryview(bytearray(1)))


def test_a_snapshot_of_the_same_name_is_another_one(ceph: Ceph) -> None:
    with fresh(ceph, MIB) as image:
        ceph.rbd("snap", "create", f"{image}@one")
        with open_source(at(image, "one")) as source:
            source.confirm()
            ceph.rbd("snap", "rm", f"{image}@one")
            with pytest.raises(DeviceError, match="has no snapshot 'one'"):
                source.confirm()
            ceph.rbd("snap", "create", f"{image}@one")
            with pytest.raises(ConflictError, match="was replaced"):
                source.confirm()
        with open_source(at(image, "one")) as again:
            assert again.head
            assert source.head
            assert again.head.id != source.head.id


def test_what_is_not_there_or_not_allowed_is_told_in_a_line(
    ceph: Ceph, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refused(source: str, status: int) -> str:
        assert run(["send", source, "-o", str(tmp_path / "out")]) == status
        said = capsys.readouterr().err
        assert len(said.splitlines()) == 1, said
        return said

    with fresh(ceph, MIB) as image:
        ceph.rbd("snap", "create", f"{image}@one")
        ceph.rbd("snap", "create", f"{image}@two")
        name = uuid.uuid4().hex
        assert f"there is no image rbd:rbd/{name}" in refused(f"rbd:rbd/{name}@one", 3)
        assert "error opening pool 'pool'" in refused(f"rbd:pool/{name}@one", 3)
        assert "has no snapshot 'three' (the newest: one, two)" in refused(f"rbd:{image}@three", 3)
        assert "'two' is not older than 'one'" in refused(f"rbd:{image}@one,base=two", 2)
        assert "names no snapshot" in refused(f"rbd:{image}", 2)
        monkeypatch.setenv("CEPH_ARGS", "--id nobody")
        assert "may not do that, or there is no key" in refused(f"rbd:{image}@one", 3)
        monkeypatch.delenv("CEPH_ARGS")
        monkeypatch.setenv("PATH", str(tmp_path))
        assert "cannot run 'rbd'" in refused(f"rbd:{image}@one", 3)
        monkeypatch.undo()
    assert not (tmp_path / "out").exists()


def test_a_map_that_does_not_fit_the_bytes_is_noticed(ceph: Ceph) -> None:
    with fresh(ceph, 9 * MIB) as image:
        write(ceph, image, (0, b"a" * 4096))
        ceph.rbd("snap", "create", f"{image}@one")
        write(ceph, image, (5 * MIB, b"b" * 4096))
        ceph.rbd("snap", "create", f"{image}@two")
        with open_source(at(image, "one")) as small, open_source(at(image, "two")) as large:
            for source, other in ((small, "two"), (large, "one")):
                # The bytes of another snapshot than the one that the map is of
                data = source.changes - source.holes
                swapped = OrderedBytes("swapped", source.size, data, _start(at(image, other)))
                with pytest.raises(DeviceError, match="tell of other data"):
                    read(replace(source, data=swapped, confirm=swapped.finish))
                swapped.close()
        with open_source(parse_source(f"rbd:{image}@two,base=one"), Reading(with_data=False)) as source:
            assert not ChangeMap.from_extents([(5 * MIB, 4096)]) - source.changes
            with pytest.raises(UsageError, match="was not said"):
                source.data.read([0], [1], memoryview(bytearray(1)))


def _start(name: RbdSnapshot) -> Callable[[], AbstractContextManager[DiffPipe]]:
    return lambda: open_export(name.image, name.snap, name.base)

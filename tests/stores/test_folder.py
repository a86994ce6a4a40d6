"""Objects in a folder: whole or not there, written once, and never in the way of another writer."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from lvmsync.errors import DeviceError
from lvmsync.stores.folder import FolderStore
from tests.stores.contract import StoreContract, require_one_winner


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    found = FolderStore(tmp_path / "store")
    found.make()
    return found


class TestFolder(StoreContract):
    """A folder does what every store has to do."""


def test_only_its_owner_may_look_into_it(store: FolderStore) -> None:
    store.put_new("one", b"x")
    assert (Path(store.name).stat().st_mode & 0o777) == 0o700
    assert ((Path(store.name) / "one").stat().st_mode & 0o777) == 0o600


def test_of_two_writers_of_a_name_the_first_wins_also_where_there_are_no_hard_links(
    store: FolderStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def link(*_: Any, **__: Any) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", link)
    require_one_winner(store)


def test_what_a_dead_writer_left_is_told_from_what_is_being_written(store: FolderStore) -> None:
    (Path(store.name) / ".new-dead").write_bytes(b"half")
    with store.create("one") as blob:
        blob.write([b"x"])
        assert store.list_unfinished() == [".new-dead"]
    (Path(store.name) / ".new-link").symlink_to("/dev/null")
    assert store.list_unfinished() == [".new-dead"]


def test_what_cannot_be_read_or_made_is_told(store: FolderStore, tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="is not there: was it removed by hand"):
        store.open("none")
    folder = Path(store.name)
    (folder / "folder").mkdir()
    assert store.list_objects() == {}
    with pytest.raises(DeviceError, match="cannot read"):
        store.read("folder")
    with pytest.raises(DeviceError, match="cannot remove"):
        store.delete("folder")
    with pytest.raises(DeviceError, match="cannot make"), FolderStore(tmp_path / "none").create("x"):
        pass
    with store.open("folder") as blob, pytest.raises(DeviceError, match="cannot read"):
        blob.read_at(0, 1)

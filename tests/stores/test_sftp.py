"""A folder of another machine: a real sshd, and what it can refuse."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from lvmsync.errors import ConflictError, DeviceError, TransportError
from lvmsync.names import Host
from lvmsync.places import SshPlace
from lvmsync.stores import open_store
from lvmsync.stores.sftp import SftpStore
from lvmsync.transport.asyncssh_files import Files
from tests.sshd import Sshd, children, run_sshd
from tests.stores.contract import StoreContract


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    with run_sshd(tmp_path_factory.mktemp("sshd")) as found:
        yield found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "archive"


@pytest.fixture
def store(sshd: Sshd, folder: Path) -> Iterator[SftpStore]:
    place = SshPlace(Host(None, "127.0.0.1"), None, str(folder))
    with open_store(place, ssh_config=str(sshd.config)) as found:
        assert isinstance(found, SftpStore)
        yield found


class TestSftp(StoreContract):
    """A folder of another machine does what every store has to do."""


def test_only_its_owner_may_look_into_it(store: SftpStore, folder: Path) -> None:
    store.make()
    store.make()  # it is there already
    store.put_new("one", b"x")
    assert folder.stat().st_mode & 0o777 == 0o700
    assert (folder / "one").stat().st_mode & 0o777 == 0o600


def test_without_hard_links_over_there_a_name_is_still_made_only_once(
    store: SftpStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def link(*_: object) -> None:
        raise OSError(95, "not supported")

    monkeypatch.setattr(Files, "link", link)
    store.make()
    assert store.put_new("one", b"x")
    assert not store.put_new("one", b"y")
    with pytest.raises(ConflictError, match="one is there already"), store.create("one"):
        pass
    assert (store.read("one"), store.list_objects()) == (b"x", {"one": 1})


def test_a_server_that_cannot_make_a_file_durable_is_refused(store: SftpStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.make()
    monkeypatch.setattr(store._files._sftp._handler, "_supports_fsync", False)
    with pytest.raises(DeviceError, match=r"cannot make a file durable \(fsync@openssh.com\)"):
        store.put_new("one", b"x")
    assert (store.list_objects(), list(store._list())) == ({}, [])


def test_what_a_dead_writer_left_is_told_after_a_day(store: SftpStore, folder: Path) -> None:
    store.make()
    assert store.list_unfinished() == []
    for name, age in ((".new-dead", 100_000), (".new-alive", 10)):
        path = folder / name
        path.write_bytes(b"half")
        when = path.stat().st_mtime - age
        os.utime(path, (when, when))
    assert store.list_unfinished() == [".new-dead"]
    assert sorted(path.name for path in folder.iterdir()) == [".new-alive", ".new-dead"]
    store.delete(".new-dead")
    assert store.list_unfinished() == []


def test_what_cannot_be_read_or_made_is_told(store: SftpStore, folder: Path) -> None:
    with pytest.raises(DeviceError, match=r"there is no archive at ssh://127\.0\.0\.1"):
        store.list_objects()
    folder.parent.mkdir()
    folder.write_bytes(b"")
    with pytest.raises(DeviceError, match=r"cannot make ssh://127\.0\.0\.1/.*/archive: "):
        store.make()
    folder.unlink()
    store.make()
    (folder / "folder").mkdir()
    assert store.list_objects() == {}
    with pytest.raises(DeviceError, match=r"cannot remove .*/folder: "):
        store.delete("folder")
    with pytest.raises(DeviceError, match=r"cannot read .*/folder: "):
        store.read("folder")
    with store.open("folder") as blob, pytest.raises(DeviceError, match=r"cannot read|ends at byte 0"):
        blob.read_at(0, 1)
    with store.create("one") as blob:
        blob.write([bytes(10)])
    with store.open("one") as found:
        (folder / "one").write_bytes(b"abc")
        with pytest.raises(DeviceError, match="one ends at byte 3, and has 10: was it changed"):
            found.read_at(0, 10)
    shutil.rmtree(folder)
    with pytest.raises(DeviceError, match="cannot make"), store.create("x"):
        pass


@pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts")
def test_a_full_disk_over_there_is_told(store: SftpStore, folder: Path) -> None:
    def fill() -> None:
        with store.create("big") as blob:
            for _ in range(9):
                blob.write([bytes(1 << 20)])

    folder.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "small", str(folder)], check=True)
    try:
        with pytest.raises(DeviceError, match="No space left on device; make room"):
            fill()
        assert list(folder.iterdir()) == []
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_line_that_is_cut_is_told(store: SftpStore, sshd: Sshd) -> None:
    store.make()

    def cut() -> None:
        with store.create("big") as blob:
            blob.write([bytes(5 << 20)])
            sshd.cut()
            for _ in range(200):
                blob.write([bytes(1 << 20)])

    with pytest.raises(TransportError, match=r"127\.0\.0\.1: connection lost"):
        cut()
    with pytest.raises(TransportError, match=r"127\.0\.0\.1: connection lost"):
        store.list_objects()


def test_a_server_that_says_nothing_more_is_given_up(
    store: SftpStore, sshd: Sshd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lvmsync.transport.asyncssh_files.STALL_TIMEOUT", 0.3)
    store.make()
    stopped = children(sshd.process.pid)
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    try:
        with pytest.raises(TransportError, match=r"127.0.0.1: no answer for 0.3 s: the line is dead"):
            store.list_objects()
    finally:
        for pid in stopped:
            os.kill(pid, signal.SIGCONT)


def test_a_host_that_is_away_and_one_without_sftp_are_told(sshd: Sshd, tmp_path: Path) -> None:
    place = SshPlace(Host(None, "127.0.0.1"), 1, "/x")
    with pytest.raises(TransportError, match="connection refused"), open_store(place, ssh_config=str(sshd.config)):
        pass
    with run_sshd(tmp_path, sftp=False) as other:
        place = SshPlace(Host(None, "127.0.0.1"), None, "/x")
        with pytest.raises(TransportError, match=r"there is no SFTP \(.*: has its sshd"):
            open_store(place, ssh_config=str(other.config)).__enter__()

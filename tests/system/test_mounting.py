"""How file systems are mounted: read-only ones past their journal, and with the words that each kind needs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lvmsync.errors import CommandError
from lvmsync.system import mounting
from tests.fake_programs import FakeProgram


class Programs:
    def __init__(self, folder: Path) -> None:
        self.mount, self.umount, self.blkid = (FakeProgram(folder, name) for name in ("mount", "umount", "blkid"))

    def is_a(self, kind: str) -> None:
        self.blkid.answer(f"{kind}\n", "-p")


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Programs:
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    return Programs(tmp_path / "bin")


@pytest.mark.parametrize(
    ("kind", "read_only", "words"), [("ext4", True, "ro"), ("ext4", False, "rw"), ("xfs", True, "ro,nouuid")]
)
def test_a_clean_file_system_is_mounted(kind: str, words: str, programs: Programs, *, read_only: bool) -> None:
    programs.is_a(kind)
    programs.mount.answer("", "-t", kind)
    assert mounting.mount("/dev/x", "/mnt", read_only=read_only) is None
    assert programs.mount.calls() == [f"-t {kind} -o {words} /dev/x /mnt"]


@pytest.mark.parametrize(
    ("kind", "words"), [("ext4", "ro,noload"), ("ext3", "ro,noload"), ("xfs", "ro,nouuid,norecovery")]
)
def test_a_journal_that_cannot_be_replayed_is_left_out(kind: str, words: str, programs: Programs) -> None:
    programs.is_a(kind)
    programs.mount.answer("", "-t", kind, "-o", words)
    note = mounting.mount("/dev/x", "/mnt", read_only=True)
    assert note
    assert "--writable" in note
    assert programs.mount.calls()[-1] == f"-t {kind} -o {words} /dev/x /mnt"


@pytest.mark.parametrize(("kind", "read_only"), [("ext4", False), ("btrfs", True)])
def test_what_mount_says_is_told(kind: str, programs: Programs, *, read_only: bool) -> None:
    programs.is_a(kind)
    programs.mount.fail("mount: bad superblock", "-t", kind)
    with pytest.raises(CommandError, match="bad superblock"):
        mounting.mount("/dev/x", "/mnt", read_only=read_only)
    assert len(programs.mount.calls()) == 1


def test_a_device_without_a_file_system_is_told(programs: Programs) -> None:
    programs.blkid.fail("", "-p")
    programs.mount.fail("mount: wrong fs type", "-o")
    with pytest.raises(CommandError, match="kpartx"):
        mounting.mount("/dev/x", "/mnt", read_only=True)


def test_unmounting(programs: Programs) -> None:
    programs.umount.answer("", "/mnt")
    mounting.unmount("/mnt")
    assert programs.umount.calls() == ["/mnt"]

"""A target is taken only if nobody else has it, and it can be written."""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from lvmsync.errors import DeviceError
from lvmsync.jobs.progress import ignore
from lvmsync.jobs.receive import ReceiveOptions, receive
from lvmsync.stream.frames import Frame, Header
from lvmsync.targets.block import open_target
from tests import fakes
from tests.fakes import change, data, hole, reader, zero
from tests.losetup import attach

SIZE = 1 << 20
OLD = random.Random(3).randbytes(SIZE)
FRAMES: list[Frame] = [
    data((1000, b"new" * 1000), (8192, b"x" * 512)),
    zero((20000, 30000)),
    hole((65536, 65536), (200001, 99999)),
]
STREAM = fakes.encode(FRAMES, Header(size=SIZE))
has_loop = os.geteuid() == 0 and Path("/dev/loop-control").exists()
needs_loop = pytest.mark.skipif(not has_loop, reason="needs root and loop devices")


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "target.img"
    path.write_bytes(OLD)
    return path


@contextlib.contextmanager
def attached(image: Path, *words: str) -> Iterator[Path]:
    """Attach an image to a loop device."""
    loop = attach(image, *words)
    try:
        yield loop
    finally:
        subprocess.run(["losetup", "-d", str(loop)], check=True)


def receive_into(target: Path, folder: Path, **options: bool) -> None:
    chosen = ReceiveOptions(str(target), folder / "state")
    receive(reader(STREAM), replace(chosen, **options), ignore)  # type: ignore[arg-type]


def refused(target: Path, folder: Path, match: str) -> None:
    for options in ({}, {"atomic": True}, {"undo": False}, {"dry_run": True}):
        with pytest.raises(DeviceError, match=match) as caught:
            receive_into(target, folder, **options)
        assert caught.value.exit_code == 3
    assert not (folder / "state").exists()


def test_a_file_that_is_free_is_taken(image: Path, tmp_path: Path) -> None:
    receive_into(image, tmp_path)
    assert image.read_bytes() == change(OLD, FRAMES)


def test_a_file_that_another_has_locked_is_refused(image: Path, tmp_path: Path) -> None:
    with image.open("rb") as other:
        fcntl.flock(other, fcntl.LOCK_SH)
        refused(image, tmp_path, "locked by another program")
    assert image.read_bytes() == OLD


@pytest.mark.parametrize("mode", ["rb", "r+b"])
def test_a_file_that_is_open_elsewhere_is_refused(image: Path, tmp_path: Path, mode: str) -> None:
    """Reading counts, too: it would read a mixture of old and new."""
    with image.open(mode):
        refused(image, tmp_path, "is open in another program")
    receive_into(image, tmp_path)


def test_who_has_the_file_open_is_told(image: Path, tmp_path: Path) -> None:
    with subprocess.Popen(["sleep", "600"], stdin=image.open("rb")) as other:
        try:
            refused(image, tmp_path, f"process {other.pid}")
        finally:
            other.kill()


@needs_loop
def test_a_file_behind_a_loop_device_is_refused(image: Path, tmp_path: Path) -> None:
    with attached(image) as loop:
        refused(image, tmp_path, str(loop))
    assert image.read_bytes() == OLD
    receive_into(image, tmp_path)


@needs_loop
def test_a_loop_device_is_taken_and_holds_the_same(image: Path, tmp_path: Path) -> None:
    with attached(image) as loop:
        receive_into(loop, tmp_path)
        with pytest.raises(DeviceError, match="loop device"):
            receive_into(image, tmp_path)
    assert image.read_bytes() == change(OLD, FRAMES)


@needs_loop
def test_a_loop_device_goes_back_with_its_snapback(image: Path, tmp_path: Path) -> None:
    with attached(image) as loop:
        state, kept = tmp_path / "state", tmp_path / "kept"
        receive(reader(STREAM), ReceiveOptions(str(loop), state, kept), ignore)
        receive(reader(kept.read_bytes()), ReceiveOptions(str(loop), state), ignore)
    assert image.read_bytes() == OLD


@needs_loop
def test_a_device_is_for_one_receiver_at_a_time(image: Path, tmp_path: Path) -> None:
    with attached(image) as loop, open_target(str(loop)):
        refused(loop, tmp_path, "mounted, or held")


@needs_loop
def test_a_mounted_device_is_refused(tmp_path: Path) -> None:
    image, folder = tmp_path / "fs.img", tmp_path / "mnt"
    with image.open("wb") as file:
        file.truncate(8 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-F", image], check=True)
    folder.mkdir()
    with attached(image) as loop:
        subprocess.run(["mount", "-o", "ro", loop, folder], check=True)
        try:
            refused(loop, tmp_path, "mounted, or held")
        finally:
            subprocess.run(["umount", folder], check=True)


@needs_loop
def test_a_read_only_device_is_refused(image: Path, tmp_path: Path) -> None:
    with attached(image, "-r") as loop:
        refused(loop, tmp_path, "read-only|permission denied")
    assert image.read_bytes() == OLD


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to mount")
def test_a_file_on_a_read_only_file_system_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "mnt"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "lvmsync-test", folder], check=True)
    try:
        (folder / "target.img").write_bytes(OLD)
        subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
        refused(folder / "target.img", tmp_path, "it is read-only")
    finally:
        subprocess.run(["umount", folder], check=True)


def test_a_folder_is_refused(tmp_path: Path) -> None:
    refused(tmp_path, tmp_path, "is a directory")


def test_a_fifo_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    refused(tmp_path / "fifo", tmp_path, "neither a block device nor a plain file")


def test_a_character_device_is_refused(tmp_path: Path) -> None:
    refused(Path("/dev/null"), tmp_path, "neither a block device nor a plain file")
    refused(Path("/dev/zero"), tmp_path, "neither a block device nor a plain file")


def test_a_target_that_is_not_there_is_refused(tmp_path: Path) -> None:
    refused(tmp_path / "nothing", tmp_path, "no such device or file")


def test_a_link_leads_to_its_file(image: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(image.name)
    receive_into(link, tmp_path)
    assert image.read_bytes() == change(OLD, FRAMES)
    assert link.is_symlink()
    (record,) = (tmp_path / "state").rglob("record.json")
    assert str(image) in record.read_text()  # one target, one entry, whatever it was called


def test_a_link_is_not_made_into_a_file(image: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "nothing")
    with pytest.raises(DeviceError, match="there already"):
        receive_into(link, tmp_path, create=True)
    assert not (tmp_path / "nothing").exists()

"""Loop devices that go by themselves, and who uses a device."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lvmsync.errors import DeviceError
from lvmsync.system import ioctl, loop
from lvmsync.system.users import find_users

pytestmark = pytest.mark.skipif(os.geteuid() != 0 or not loop.CONTROL.exists(), reason="needs root and loop devices")


def devices_of(path: Path) -> list[str]:
    return [
        one.parts[3]
        for one in Path("/sys/block").glob("loop*/loop/backing_file")
        if one.read_text().rstrip("\n") == str(path)
    ]


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image"
    path.write_bytes(bytes(range(256)) * 40 + b"rest")
    return path


@pytest.mark.parametrize("read_only", [True, False])
def test_a_loop_device_shows_a_file_until_nobody_has_it_open(image: Path, *, read_only: bool) -> None:
    with loop.attached(str(image), read_only=read_only) as number:
        (name,) = devices_of(image)
        fd = os.open(f"/dev/{name}", os.O_RDONLY)
        state = os.fstat(fd)
        assert (os.major(state.st_rdev), os.minor(state.st_rdev)) == number
        assert ioctl.get_size(fd) == 256 * 40
        assert ioctl.is_read_only(fd) == read_only
        assert os.pread(fd, 512, 0) == image.read_bytes()[:512]
    assert devices_of(image) == [name]  # we have it open still
    os.close(fd)
    assert devices_of(image) == []


def test_one_whose_maker_is_killed_is_gone(image: Path) -> None:
    code = f"""
import os, signal
from lvmsync.system import loop
with loop.attached({str(image)!r}, read_only=True):
    os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
    assert devices_of(image) == []


def test_what_cannot_be_one_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, image: Path) -> None:
    with pytest.raises(DeviceError, match="cannot open"), loop.attached(str(tmp_path / "missing"), read_only=True):
        pass
    monkeypatch.setattr(loop, "CONTROL", tmp_path / "none")
    with pytest.raises(DeviceError, match="cannot make a loop device"), loop.attached(str(image), read_only=True):
        pass


def test_a_process_that_has_a_device_open_is_named(image: Path) -> None:
    with loop.attached(str(image), read_only=True) as number:
        (name,) = devices_of(image)
        with open(f"/dev/{name}", "rb") as device, subprocess.Popen(["sleep", "60"], stdin=device) as other:
            try:
                assert f"process {other.pid} (sleep)" in find_users(number)
            finally:
                other.kill()
    assert not [one for one in find_users(number) if "sleep" in one]

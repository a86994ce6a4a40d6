"""``changes --format bmap``, read by the real bmaptool."""

from __future__ import annotations

import random
import subprocess
from pathlib import Path

import pytest

from lvmsync.cli.classic import run
from tests.losetup import attach

BLOCK = 4096


def bmaptool(image: Path, copy: Path, bmap: Path) -> subprocess.CompletedProcess[str]:
    words = ["bmaptool", "-q", "copy", "--bmap", str(bmap), str(image), str(copy)]
    return subprocess.run(words, capture_output=True, text=True)


def write_bmap(source: str, bmap: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["changes", source, "--format", "bmap"]) == 0
    bmap.write_text(capsys.readouterr().out)


def test_bmaptool_copies_what_changed_and_holds_it_against_the_checksums(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Onto a device: a file is made anew by bmaptool, so that it has only what changed."""
    chance = random.Random(1)
    old, new, bmap = tmp_path / "old", tmp_path / "new", tmp_path / "bmap"
    data = bytearray(chance.randbytes(300 * BLOCK))
    old.write_bytes(data)
    for place in (0, 5 * BLOCK + 9, 6 * BLOCK, 200 * BLOCK + 4095, 299 * BLOCK + 3):
        data[place] ^= 1
    new.write_bytes(data)
    write_bmap(f"compare:{new},old={old}", bmap, capsys)
    device = attach(old)
    try:
        done = bmaptool(new, device, bmap)
        assert done.returncode == 0, done.stderr
        subprocess.run(["blockdev", "--flushbufs", device], check=True)
        assert old.read_bytes() == data
        data[6 * BLOCK] ^= 1  # of a block that changed: it is not what the map was made of
        new.write_bytes(data)
        done = bmaptool(new, device, bmap)
        assert done.returncode != 0
        assert "checksum" in done.stderr
    finally:
        subprocess.run(["losetup", "-d", device], check=True)


def test_a_whole_file_is_copied_to_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image, copy, bmap = tmp_path / "image", tmp_path / "copy", tmp_path / "bmap"
    image.write_bytes(random.Random(2).randbytes(10 * BLOCK + 700))
    write_bmap(f"full:{image}", bmap, capsys)
    done = bmaptool(image, copy, bmap)
    assert done.returncode == 0, done.stderr
    assert copy.read_bytes() == image.read_bytes()


def test_formats_that_are_none_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, told in (
        (["--format", "raw"], "write borg-map or bmap"),
        (["--format", "bmap", "--json"], "leave --json and --svg away"),
    ):
        assert run(["changes", f"full:{tmp_path}/none", *words]) == 2
        assert told in capsys.readouterr().err
    assert run(["changes", "rbd:pool/image@snap", "--format", "bmap"]) == 2
    assert "is no device or file here" in capsys.readouterr().err

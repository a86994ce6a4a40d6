"""Devices and files, opened for reading."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lvmsync.system.device import open_device


def read(path: Path, offsets: list[int], lengths: list[int]) -> bytes | None:
    """Return what `read_cached` gives; None where it does not."""
    out = memoryview(bytearray(sum(lengths)))
    with open_device(str(path)) as device:
        return bytes(out) if device.read_cached(offsets, lengths, out) else None


def test_what_is_in_the_page_cache_is_read_at_once(tmp_path: Path) -> None:
    image = tmp_path / "image"
    data = os.urandom(64 << 10)
    image.write_bytes(data)
    assert read(image, [40960, 0], [8192, 4096]) in (data[40960:49152] + data[:4096], None)  # None: as on tmpfs
    assert read(image, [60 << 10], [8 << 10]) is None  # it ends within


def test_nothing_is_read_at_once_where_the_kernel_cannot_tell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = tmp_path / "image"
    image.write_bytes(bytes(8192))

    def refuse(*_: object) -> int:
        raise BlockingIOError

    monkeypatch.setattr(os, "preadv", refuse)
    assert read(image, [0], [4096]) is None

"""The simulated blksnap answers as the real modules did: their recordings are played to it."""

from __future__ import annotations

import ctypes
import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.blksnap_kernel import NODES, Disk, Kernel
from tests.fixture_files import FIXTURES

CASES = [
    f"{generation}-{name}"
    for generation in ("v1", "v7", "up")
    for name in ("errors", "twosnaps", "twodev", "rollover", "cycle", "extra")
]
SIZE = 41996288
UNKNOWN = ("UNKNOWN", "BDEVFILTER_CTL/UNKNOWN", "BLKFILTER_CTL/UNKNOWN", "MOD")
"""Requests that the simulated module has not, or takes for a bug of the caller."""


class Played(Kernel):
    """A module whose devices are those of a recording."""

    def _target(self, fd: Any) -> Any:
        return fd

    def _disk_at(self, path: str) -> Disk:
        return next(disk for disk in self.disks.values() if disk.node == path)

    def _require_place(self, path: str) -> None:
        pass


def unpack(value: dict[str, Any] | None) -> bytearray:
    """Return recorded bytes, with the trailing zeros that were left out."""
    return bytearray(bytes.fromhex(value["hex"]).ljust(value["len"], b"\0")) if value else bytearray()


def place(data: bytearray, pointers: list[dict[str, Any]], ids: dict[bytes, bytes], keep: list[Any]) -> bytearray:
    """Return a struct with its pointers, to copies of what they pointed at, and with the ids of this run."""
    for recorded, own in ids.items():
        data = bytearray(bytes(data).replace(recorded, own))
    for pointer in pointers:
        target = place(unpack(pointer.get("in")), pointer.get("pointers", []), ids, keep)
        buffer = ctypes.create_string_buffer(bytes(target), max(pointer["len"], 1))
        keep.append(buffer)
        at = pointer["offset"]
        data[at : at + 8] = ctypes.addressof(buffer).to_bytes(8, "little")
    return data


@pytest.mark.parametrize("case", CASES)
def test_the_simulated_module_answers_as_the_real_one(case: str, tmp_path: Path) -> None:
    generation = case.partition("-")[0]
    kernel = Played(generation, tmp_path)
    for minor, name in (0, "a"), (16, "b"):
        (tmp_path / name).write_bytes(b"")
        os.truncate(tmp_path / name, SIZE)
        kernel.disks[254, minor] = Disk(f"/dev/vd{name}", tmp_path / name, (254, minor))
    ids: dict[bytes, bytes] = {}
    numbers = []
    checked = 0
    for event in json.loads((FIXTURES / "blksnap" / case / "ioctls.json").read_text()):
        if event["event"] != "ioctl" or event["name"] in UNKNOWN or "WAIT_EVENT" in event["name"]:
            continue
        keep: list[Any] = []
        argument = place(unpack(event["in"]), event.get("pointers", []), ids, keep)
        target = event["target"]
        if target == "control":
            target = NODES[generation]
        elif target.startswith("device:"):
            target = kernel._disk_at(target.removeprefix("device:")).number
        try:
            result, code = kernel.call(target, int(event["request"], 16), argument), 0
        except OSError as error:
            result, code = -1, error.errno or 0
        assert (result, code) == (event["ret"], event["errno"]), event
        checked += 1
        if code:
            continue
        if event["name"] == "SNAPSHOT_CREATE":
            if case.endswith("rollover") and len(ids) == 3:  # the next ones were not recorded
                for _ in range(249):
                    kernel.disks[254, 0].tracker.take(SIZE, is_stale=generation != "v1")  # type: ignore[union-attr]
            ids[bytes(unpack(event["out"])[16:32])] = bytes(argument[16:32])
        at = {"CBTINFO": 32, "TRACKER_COLLECT": 44}.get(event["name"].rpartition("/")[2])
        (answer,) = [one for one in event.get("pointers", []) if one["dir"] != "in"] or [None]
        if at and answer:
            numbers.append(keep[-1].raw[at])
            assert numbers[-1] == unpack(answer["out"])[at], event
    assert checked > 5
    if case.endswith("rollover"):
        assert numbers == [1, 2, 3, 253, 254, 255, 1, 2, 3]

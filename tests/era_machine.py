"""A machine with an era device on it, made of loop devices and of a dmsetup that plays the kernel's part.

The era device is a loop device with the origin's image, its metadata one with an image that holds a metadata
snapshot; the status tells of that from ``take_metadata_snap`` to ``drop_metadata_snap``. So all of lvmsync runs,
O_DIRECT and O_EXCL included; only dm-era does not.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lvmsync.system import dm
from tests.fixture_files import Case, find_case
from tests.losetup import attach

G4K = find_case("era", "g4k")
UUID = "LVMSYNC-ERA-0123456789abcdef0123456789abcdef"

_DMSETUP = """#!/bin/sh
cd {here} || exit 9
echo "$*" >>calls
for word in "$@"; do [ -e "fail.$word" ] && {{ cat "fail.$word" >&2; exit 5; }}; done
case "$1" in
    info) cat info ;;
    table) cat table ;;
    status) if [ -e held ]; then cat status.held; else cat status; fi ;;
    message)
        case "$4" in
            take_metadata_snap) [ -e held ] && {{ echo "message failed: Invalid argument" >&2; exit 1; }}; touch held ;;
            drop_metadata_snap) rm held ;;
            checkpoint) if [ -e status.next ]; then mv status.next status; fi ;;
        esac ;;
    create) mv info.new info; mv table.new table; ln -s "$(cat node.new)" mapper/"$2" ;;
    remove) : >info; : >table; rm mapper/"$2" ;;
esac
"""


class EraMachine:
    """The machine.

    Attributes:
        folder: of all its files; its ``state`` is the state folder.
        loops: origin and metadata.
    """

    def __init__(self, folder: Path, case: Case, *, uuid: str = UUID) -> None:
        self.folder = folder
        self.case = case
        self.uuid = uuid
        self.name = "er"
        (folder / "mapper").mkdir()
        program = folder / "dmsetup"
        program.write_text(_DMSETUP.format(here=folder))
        program.chmod(0o755)
        self.loops: list[Path] = []
        self.origin = self.add_loop(case.image("origin-at-snap.img", folder))
        self.metadata = self.add_loop(case.image("meta-snap.img", folder))
        self.set_status_of("meta-snap.img")
        self.set_up()

    def add_loop(self, image: Path) -> Path:
        loop = attach(image)
        self.loops.append(loop)
        return loop

    def describe(self) -> tuple[str, str]:
        """Return what info and table say of the era device."""
        origin, metadata = (loop.stat().st_rdev for loop in (self.origin, self.metadata))
        numbers = [f"{os.major(one)}:{os.minor(one)}" for one in (metadata, origin)]
        sectors = self.case.facts["origin_size"] // 512
        granularity = self.case.facts["granularity_sectors"]
        info = f"{self.name}|{self.uuid}|{os.major(origin)}|{os.minor(origin)}|{self.open_count}\n"
        # Below is another device in truth; here there is none, and nobody looks.
        return info, f"{self.name}: 0 {sectors} era {numbers[0]} 7:99 {granularity}\n"

    open_count = 0

    def set_up(self) -> None:
        """Let the era device be there."""
        info, table = self.describe()
        (self.folder / "info").write_text(info)
        (self.folder / "table").write_text(table)
        node = self.folder / "mapper" / self.name
        if not node.is_symlink():
            node.symlink_to(self.origin)

    def take_down(self) -> None:
        """Let no era device be there, until ``dmsetup create``."""
        info, table = self.describe()
        for name, text in (("info", info), ("table", table), ("node", str(self.origin))):
            (self.folder / f"{name}.new").write_text(text)
        for name in ("info", "table"):
            (self.folder / name).write_text("")
        (self.folder / "mapper" / self.name).unlink(missing_ok=True)

    def show(self, image: str) -> None:
        """Let the metadata be another recorded image, with a metadata snapshot of it to be taken."""
        source = self.case.image(image, self.folder)
        data = source.read_bytes()
        fd = os.open(self.metadata, os.O_WRONLY | os.O_DSYNC)
        try:
            os.pwrite(fd, data, 0)
        finally:
            os.close(fd)
        self.set_status_of(image)

    def set_status_of(self, image: str) -> None:
        """Let the status be the one that goes with a recorded image."""
        live = self.case.facts["images"][image]["views"]["live"]["superblock"]
        self.set_status(live["current_era"], live["metadata_snap"])

    def set_status(self, era: int, root: int, used: int = 14, total: int = 6144) -> None:
        line = f"0 {self.case.facts['origin_size'] // 512} era 8 {used}/{total}"
        (self.folder / "status").write_text(f"{line} {era - 1} -\n")
        (self.folder / "status.held").write_text(f"{line} {era} {root}\n")
        (self.folder / "status.next").write_text(f"{line} {era} -\n")

    def set_raw_status(self, text: str) -> None:
        for name in ("status", "status.held"):
            (self.folder / name).write_text(f"0 32768 era {text}\n")

    def fail(self, word: str) -> None:
        """Let every call with this word fail."""
        (self.folder / f"fail.{word}").write_text("device-mapper: it does not want to\n")

    def calls(self, word: str) -> list[str]:
        path = self.folder / "calls"
        return [line for line in path.read_text().splitlines() if word in line] if path.exists() else []

    @property
    def node(self) -> str:
        return str(self.folder / "mapper" / self.name)

    @property
    def is_held(self) -> bool:
        return (self.folder / "held").exists()

    def hold(self) -> None:
        """Let another program take the metadata snapshot."""
        (self.folder / "held").touch()

    def stop(self) -> None:
        for loop in self.loops:
            subprocess.run(["losetup", "-d", str(loop)], check=False)


@contextmanager
def running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, uuid: str = UUID) -> Iterator[EraMachine]:
    """Yield the machine, for lvmsync in this process."""
    if os.getuid() or not shutil.which("losetup") or not Path("/dev/loop-control").exists():
        pytest.skip("needs root and loop devices")
    folder = tmp_path / "machine"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder), prepend=":")
    monkeypatch.setenv("LVMSYNC_STATE", str(folder / "state"))
    monkeypatch.setattr(dm, "NODES", folder / "mapper")
    monkeypatch.setattr(dm, "CLOSE_WAIT", 0.001)
    (folder / "misc").write_text("236 device-mapper\n")
    monkeypatch.setattr(dm, "MISC_DEVICES", folder / "misc")
    try:
        machine = EraMachine(folder, G4K, uuid=uuid)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs root and loop devices")
    try:
        yield machine
    finally:
        machine.stop()

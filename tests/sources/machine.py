"""A machine with a snapshot on it, made of loop devices and of dmsetup and lvs that print what was recorded.

The device numbers of the recording (254:N) become those of loop devices: of the origin, of the store, of
a later snapshot. So all of lvmsync runs, O_DIRECT and O_EXCL included; only the kernel's snapshot does not.
"""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

from lvmsync.system import dm
from tests.fake_programs import FakeProgram
from tests.fixture_files import Case
from tests.losetup import attach
from tests.system.test_dm import columns_to_fields, one_status

GROUP_TIME = "1795254316"


def number_of(device: Path) -> str:
    state = device.stat()
    return f"{state.st_rdev >> 8}:{state.st_rdev & 255}"


class Machine:
    """One recorded case, as a running machine."""

    def __init__(self, folder: Path, case: Case) -> None:
        self.nodes = folder / "mapper"
        self.nodes.mkdir()
        self.case = case
        self.loops: list[Path] = []
        self.dmsetup = FakeProgram(folder, "dmsetup")
        self.lvs = FakeProgram(folder, "lvs")
        self.numbers: dict[str, str] = {}  # recorded -> ours
        self.info = columns_to_fields(case.text("dmsetup-info.txt"))
        self.devices = {line.split("|")[0]: ":".join(line.split("|")[2:4]) for line in self.info.splitlines()}

    def put(self, name: str, image: Path) -> Path:
        """Let the recorded device ``name`` be a loop device with this image."""
        loop = attach(image)
        self.loops.append(loop)
        (self.nodes / name).symlink_to(loop)
        self.numbers[self.devices[name]] = number_of(loop)
        return loop

    def start(self) -> None:
        """Let dmsetup and lvs answer."""
        self.dmsetup.answer(self._renumber(self.info, "|"), "info")
        self.dmsetup.answer(self._renumber(self.case.text("dmsetup-table.txt")), "table")
        for name in self.devices:
            self.set_status(name, one_status(self.case.text("dmsetup-status.txt"), name))
        report = json.loads(self.case.text("lvs-full.json"))
        for row in report["report"][0]["lv"]:
            number = f"{row.get('lv_kernel_major')}:{row.get('lv_kernel_minor')}"
            row["lv_kernel_major"], row["lv_kernel_minor"] = self._renumber(number).split(":")
            uuid = next(line.split("|")[1] for line in self.info.splitlines() if "LVM-" in line)
            row["vg_uuid"], row["lv_time"] = uuid[4:36], GROUP_TIME
        self.report = report
        self.answer_lvs()

    def answer_lvs(self) -> None:
        self.lvs.answer(json.dumps(self.report), "-a")

    def set_status(self, name: str, text: str) -> None:
        major, minor = self._renumber(self.devices[name]).split(":")
        self.dmsetup.answer(text, "status", "-j", major, "-m", minor)

    def set_open_count(self, name: str, count: int) -> None:
        """Say that a device is open so many times."""
        self.info = re.sub(rf"(?m)^({re.escape(name)}\|.*\|)\d+$", rf"\g<1>{count}", self.info)
        self.dmsetup.answer(self._renumber(self.info, "|"), "info")

    def set_table(self, old: str, new: str) -> None:
        """Replace words of the recorded tables."""
        text = self.case.text("dmsetup-table.txt")
        assert old in text
        self.dmsetup.answer(self._renumber(text.replace(old, new)), "table")

    def stop(self) -> None:
        for loop in self.loops:
            subprocess.run(["losetup", "-d", str(loop)], check=False)

    def _renumber(self, text: str, separator: str = ":") -> str:
        for old, new in self.numbers.items():
            text = re.sub(rf"\b{old.replace(':', re.escape(separator))}\b", new.replace(":", separator), text)
        return text

    def node(self, name: str) -> str:
        return str(self.nodes / name)

    def lose_dm(self) -> None:
        dm.MISC_DEVICES.write_text("")

"""``doctor``, the installed command."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from lvmsync.system.ledger import open_ledger
from tests.cli.site import BIN, run_far_side
from tests.fake_programs import FakeProgram
from tests.sshd import Sshd


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    with run_far_side(tmp_path_factory) as sshd:
        yield sshd


def run(folder: Path, *words: str, config: Path | None = None) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "LVMSYNC_STATE": str(folder / "state"), "PATH": f"{fake_tools(folder)}:{os.environ['PATH']}"}
    rsh = ["-e", f"ssh -F {config}"] if config else []
    argv = [str(BIN / "lvmsync"), "doctor", *rsh, *words]
    return subprocess.run(argv, env=env, capture_output=True, text=True, check=False, cwd=folder)


def fake_tools(folder: Path) -> Path:
    """Return a folder with an LVM that has one group and nothing in it."""
    tools = folder / "tools"
    if not tools.exists():
        tools.mkdir()
        FakeProgram(tools, "lvs").answer('{"report": [{"lv": []}]}', "-a")
        FakeProgram(tools, "vgs").answer(
            '{"report": [{"vg": [{"vg_name": "vg0", "vg_free": "1048576", "vg_extent_size": "4194304"}]}]}',
            "--reportformat",
        )
        FakeProgram(tools, "lvm").answer("  LVM version:     2.03.16(2) (2022-05-18)\n", "version")
        dmsetup = FakeProgram(tools, "dmsetup")
        dmsetup.answer("snapshot v1.16.0\nthin-pool v1.22.0\n", "targets")
        dmsetup.answer("No devices found\n", "info")
        dmsetup.answer("No devices found\n", "table")
    return tools


def findings(done: subprocess.CompletedProcess[str]) -> list[dict[str, str]]:
    found = json.loads(done.stdout)["findings"]
    # Where the tests run, the state folder may be on tmpfs.
    return [one for one in found if one["kind"] != "state"]


def test_a_machine_where_nothing_is_wrong(tmp_path: Path) -> None:
    done = run(tmp_path, "--json")
    assert findings(done) == [], done.stderr
    assert done.returncode in (0, 3)
    assert not (tmp_path / "state").exists()  # nothing was written


def test_a_finding_has_the_command_that_mends_it_and_status_3(tmp_path: Path) -> None:
    with open_ledger(tmp_path / "state", "/dev/vg0/copy", {"inode": "5"}, 10) as ledger:
        ledger.write(dirty=True)
    done = run(tmp_path)
    assert done.returncode == 3
    assert "/dev/vg0/copy: a write to it failed" in done.stdout
    assert "lvmsync repair SOURCE /dev/vg0/copy" in done.stdout


def test_volume_groups_can_be_chosen_and_must_be_there(tmp_path: Path) -> None:
    assert findings(run(tmp_path, "vg0", "--json")) == []
    done = run(tmp_path, "none")
    assert done.returncode == 2
    assert "there is no volume group 'none'" in done.stderr


def test_what_lvm_cannot_do_is_a_finding_and_not_the_end(tmp_path: Path) -> None:
    (fake_tools(tmp_path) / "lvs.answers" / "fail.-a").write_text("  Cannot lock\n")
    found = findings(run(tmp_path, "--json"))
    assert [(one["what"], "Cannot lock" in one["problem"]) for one in found] == [("LVM", True)]


def test_another_machine_is_asked(tmp_path: Path, sshd: Sshd) -> None:
    assert findings(run(tmp_path, "127.0.0.1:", "--json", config=sshd.config)) == []
    (found,) = findings(run(tmp_path, "127.0.0.1:", "--json", "--remote-command", "/none", config=sshd.config))
    assert found["kind"] == "line"
    assert "not found there" in found["problem"]

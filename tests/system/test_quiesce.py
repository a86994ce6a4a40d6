"""Commands that freeze and thaw: the second is run whatever becomes of us."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lvmsync.errors import CommandError, DeviceError
from lvmsync.system.quiesce import quiesced
from tests.lab.in_guest import until


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "log"


def say(log: Path, word: str) -> str:
    return f"echo {word} $LVMSYNC_GROUP >>{log}"


def test_it_freezes_and_thaws_with_what_they_need_to_know(log: Path) -> None:
    with quiesced(say(log, "freeze"), say(log, "thaw"), env={"LVMSYNC_GROUP": "db"}):
        assert log.read_text() == "freeze db\n"
    assert log.read_text() == "freeze db\nthaw db\n"


def test_it_thaws_when_the_block_fails(log: Path) -> None:
    with pytest.raises(ZeroDivisionError), quiesced(say(log, "freeze"), say(log, "thaw")):
        _ = 1 // 0
    assert log.read_text() == "freeze\nthaw\n"


def test_it_thaws_when_freezing_has_failed_which_may_have_frozen_a_part(log: Path) -> None:
    with pytest.raises(CommandError, match="failed with status 3"), quiesced("exit 3", say(log, "thaw")):
        raise AssertionError
    assert log.read_text() == "thaw\n"


def test_a_thaw_that_fails_is_said(log: Path) -> None:
    with pytest.raises(CommandError, match="'exit 4' failed with status 4: run it by hand"), quiesced("true", "exit 4"):
        pass


def test_at_the_limit_it_thaws_and_what_was_done_does_not_count(log: Path) -> None:
    with (
        pytest.raises(DeviceError, match=r"had to be thawed after 0.5 s, before all was done"),
        quiesced("true", say(log, "thaw"), limit=0.5),
    ):
        until(log.exists, "it thaws")


def test_it_thaws_when_we_are_killed(log: Path) -> None:
    code = (
        "import os, signal\nfrom lvmsync.system.quiesce import quiesced\n"
        f"with quiesced({say(log, 'freeze')!r}, {say(log, 'thaw')!r}):\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    killed = subprocess.run([sys.executable, "-c", code], check=False, env={**os.environ, "LVMSYNC_GROUP": ""})
    assert killed.returncode == -signal.SIGKILL
    until(lambda: log.read_text().split() == ["freeze", "thaw"], "it thaws")

"""`lvmsync blksnap`, and its sources on the command line: the words, the exit codes, the copies, here and far away.

The command line runs in this process, where the simulated module can be reached; receivers are programs of their own.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from lvmsync.cli.classic import run
from tests.blksnap_machine import GENERATIONS, SIZE, Machine, machine

LVMSYNC = Path(sys.executable).with_name("lvmsync")


@dataclass
class Shell:
    """A command line on a machine."""

    machine: Machine
    captured: pytest.CaptureFixture[str]

    def call(self, *words: str) -> tuple[int, str, str]:
        """Return exit status, standard output and standard error."""
        self.captured.readouterr()
        status = run(words)
        out = self.captured.readouterr()
        assert "Traceback" not in out.err
        return status, out.out, out.err

    def do(self, *words: str) -> str:
        status, out, err = self.call(*words)
        assert status == 0, err
        return out

    def error(self, *words: str) -> tuple[int, str]:
        status, _, err = self.call(*words)
        (line,) = [line for line in err.splitlines() if line.startswith("lvmsync: ")]
        return status, line

    def sync(self, *words: str) -> str:
        here = self.machine
        return self.do(
            "blksnap", "sync", here.disk.node, *words, "--storage", here.room.word, "--limit", "8M", "--quiet"
        )


@pytest.fixture(params=GENERATIONS)
def shell(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Iterator[Shell]:
    with machine(tmp_path, monkeypatch, request.param) as here:
        monkeypatch.setenv("LVMSYNC_STATE", str(here.state))
        yield Shell(here, capsys)


def test_a_daily_cycle_on_the_command_line(shell: Shell) -> None:
    here = shell.machine
    target = str(here.target())
    shell.do("blksnap", "attach", here.disk.node)
    shell.sync(target)
    assert here.is_equal()
    for _ in range(2):
        here.scribble()
        receipt = json.loads(shell.sync(target, "--json"))
        assert receipt["bytes"] < SIZE / 2
        assert (receipt["confirmed"], receipt["durable"]) == (True, True)
        assert receipt["point"].startswith("blksnap:")
        assert here.is_equal()
    here.kernel.boot()
    here.scribble()
    receipt = json.loads(shell.sync(target, "--json"))
    assert any("the target is compared with all of it" in note for note in receipt["notes"])
    assert here.is_equal()
    shown = shell.do("blksnap", "status")
    assert f"{target} is at snapshot 1 (" in shown
    status = json.loads(shell.do("blksnap", "status", "--json"))
    assert status["abi"] == here.kernel.generation
    assert status["devices"][0]["targets"][0]["current"]
    shell.do("blksnap", "detach", here.disk.node)
    assert "no device is tracked" in shell.do("blksnap", "status")


def test_two_devices_and_a_target_that_is_made(shell: Shell) -> None:
    here = shell.machine
    copies = [here.folder / "new-one", here.folder / "new-two"]
    words = [word for disk, copy in zip(here.disks, copies, strict=True) for word in (disk.node, str(copy))]
    shell.do("blksnap", "sync", *words, "--create", "--storage", here.room.word, "--limit", "8M")
    assert [copy.read_bytes() for copy in copies] == [disk.content for disk in here.disks]


def test_a_copy_that_is_made_again_is_not_compared_with(shell: Shell) -> None:
    here = shell.machine
    target = here.target()
    shell.sync(str(target))
    for is_reloaded in False, True:
        if is_reloaded:
            here.kernel.reload()
        target.unlink()
        shell.sync(str(target), "--create")
        assert target.read_bytes() == here.disk.content


def test_a_far_copy_is_sent_to_and_compared_with(shell: Shell) -> None:
    here = shell.machine
    rsh = here.folder / "rsh"
    rsh.write_text(f'#!/bin/sh\nshift\nexport LVMSYNC_STATE={here.folder / "far"}\nexec sh -c "$*"\n')
    rsh.chmod(0o755)
    way = [f"host:{here.target()}", "-e", str(rsh), "--remote-command", str(LVMSYNC)]
    shell.sync(*way)
    here.scribble()
    assert json.loads(shell.sync(*way, "--json"))["bytes"] < SIZE / 2
    assert here.is_equal()
    here.kernel.reload()
    here.kernel.write_unseen(here.disk, 1 << 20, b"unseen")
    receipt = json.loads(shell.sync(*way, "--json"))
    assert receipt["bytes"] < SIZE / 2
    assert any("compared" in note for note in receipt["notes"])
    assert here.is_equal()


def test_a_snapshot_that_is_held_is_a_source_of_the_ordinary_verbs(shell: Shell) -> None:
    here = shell.machine
    node, target = here.disk.node, str(here.target())
    shell.sync(target)
    here.scribble()
    taken = json.loads(shell.do("blksnap", "take", node, "--storage", here.room.word, "--limit", "8M", "--json"))
    before = here.disk.content
    here.scribble()
    assert json.loads(shell.do("changes", f"blksnap:{node},since=1", "--json"))["size"] == here.disk.size
    receipt = json.loads(shell.do("sync", f"blksnap:{node}", target, "--json", "--quiet"))
    assert receipt["bytes"] < SIZE / 2
    assert here.target().read_bytes() == before
    shell.do("blksnap", "release", taken["id"])
    assert here.kernel.held() == []
    shell.sync(target)
    assert here.is_equal()
    assert here.kernel.calls.count("SNAPSHOT_TAKE") == 3


def test_what_was_written_to_an_image_is_sent_again_from_the_device(shell: Shell) -> None:
    here = shell.machine
    shell.sync(str(here.target()))
    shell.do("blksnap", "take", here.disk.node, "--storage", here.room.word, "--limit", "8M", "-q")
    here.kernel.write_image(here.disk, 1 << 20, b"journal replayed" * 64)
    shell.do("sync", f"blksnap:{here.disk.node}", str(here.target()), "--quiet")
    assert here.target().read_bytes()[1 << 20 :].startswith(b"journal")
    shell.do("blksnap", "release")
    assert json.loads(shell.sync(str(here.target()), "--json"))["bytes"] == 65536
    assert here.is_equal()


def test_another_generation_is_refused_by_the_ordinary_sync(shell: Shell) -> None:
    here = shell.machine
    node, target = here.disk.node, str(here.target())
    shell.sync(target)
    here.kernel.reload()
    shell.do("blksnap", "take", node, "--storage", here.room.word, "--limit", "8M", "-q")
    status, line = shell.error("sync", f"blksnap:{node}", target)
    assert status == 5
    assert "Tracking began anew" in line
    assert "'lvmsync blksnap sync' compares all of it" in line


def test_a_first_ordinary_sync_sends_everything_and_remembers(shell: Shell) -> None:
    here = shell.machine
    shell.do("blksnap", "take", here.disk.node, "--storage", here.room.word, "--limit", "8M")
    shell.do("sync", f"blksnap:{here.disk.node}", str(here.target()))
    assert here.is_equal()
    shell.do("blksnap", "release")
    here.scribble()
    assert json.loads(shell.sync(str(here.target()), "--json"))["bytes"] < SIZE / 2
    assert here.is_equal()


def test_receipts_are_printed_although_another_device_failed(shell: Shell) -> None:
    here = shell.machine
    words = [here.disks[0].node, str(here.target()), here.disks[1].node, str(here.folder / "none" / "x")]
    status, out, _ = shell.call(
        "blksnap", "sync", *words, "--storage", here.room.word, "--limit", "8M", "--json", "--progress", "none"
    )
    assert status == 3
    assert json.loads(out)["confirmed"]
    assert here.is_equal()


def test_a_spare_device_is_overwritten_on_that_word_only(shell: Shell) -> None:
    here = shell.machine
    spare = here.spare("used.img", 16 << 20)
    with (here.folder / "used.img").open("r+b") as file:
        file.write(b"something")
    words = ["blksnap", "sync", here.disk.node, str(here.target()), "--storage", spare]
    status, line = shell.error(*words, "--force")
    assert status == 3
    assert "--overwrite-storage" in line
    shell.do(*words, "--overwrite-storage")
    assert here.is_equal()


def test_a_dry_run_changes_nothing_but_the_count(shell: Shell) -> None:
    here = shell.machine
    shell.sync(str(here.target()))
    here.scribble()
    before = here.target().read_bytes()
    shell.sync(str(here.target()), "--dry-run")
    assert here.target().read_bytes() == before
    shell.sync(str(here.target()))
    assert here.is_equal()


def test_a_range_is_marked(shell: Shell) -> None:
    here = shell.machine
    shell.sync(str(here.target()))
    here.kernel.write_unseen(here.disk, 1 << 20, b"unseen")
    shell.do("blksnap", "mark", here.disk.node, "1M", "6")
    shell.sync(str(here.target()))
    assert here.is_equal()


def test_an_overflow_is_exit_code_5(shell: Shell) -> None:
    here = shell.machine
    here.kernel.is_readable_when_full = True

    def fill(name: str) -> None:
        if name in ("SNAPSHOT_COLLECT_IMAGES", "SNAPSHOTINFO"):
            here.kernel.write(here.disk, 0, b"x" * (2 << 20))

    here.kernel.after = fill
    words = ["blksnap", "sync", here.disk.node, str(here.target()), "--storage", here.room.word, "--limit", "1M"]
    status, line = shell.error(*words)
    assert status == 5
    assert "did not last" in line or "was lost" in line
    assert here.kernel.held() == []


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["blksnap", "sync", "/dev/zero", "--storage", "/tmp"], 2, "has no target"),
        (["blksnap", "sync", "/dev/zero", "./x", "--storage", "/tmp"], 3, "is no block device"),
        (["blksnap", "sync", "/dev/none", "./x", "--storage", "/tmp"], 3, "no such device or file"),
        (["blksnap", "sync", "a/b", "./x"], 2, "Missing option"),
        (["blksnap", "sync", "a/b", "./x", "c/d", "./y", "--storage", "/tmp", "-b", "s"], 2, "--snapback is a file"),
        (["blksnap", "take", "--storage", "/tmp"], 2, "Missing argument"),
        (["blksnap", "take", "/dev/zero", "--storage", "/tmp", "--limit", "x"], 2, "not a size"),
        (["blksnap", "release", "all"], 2, "no id of a snapshot"),
        (["blksnap", "mark", "/dev/zero", "1", "x"], 2, "not a size"),
        (["blksnap", "nothing"], 2, "No such command"),
        (["--storage", "blksnap", "blksnap", "sync", "/dev/zero", "./x"], 3, "is no block device"),
    ],
)
def test_what_cannot_be_done_is_one_line(shell: Shell, words: list[str], status: int, message: str) -> None:
    code, line = shell.error(*words)
    assert (code, message in line) == (status, True), line


def test_without_words_it_shows_help(shell: Shell) -> None:
    for words in ["blksnap"], ["blksnap", "sync", "--help"]:
        assert "Usage: lvmsync blksnap" in shell.do(*words)

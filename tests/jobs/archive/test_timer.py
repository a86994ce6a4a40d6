"""What starts runs: read by systemd itself and run by a shell, replaced, removed; whatever the names hold."""

from __future__ import annotations

import os
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lvmsync.errors import CommandError, DeviceError, UsageError
from lvmsync.formats.crontab import parse_every
from lvmsync.jobs import unit
from lvmsync.jobs.archive import timer
from lvmsync.jobs.archive.status import Task, read_task, task_folder
from lvmsync.jobs.archive.timer import Wanted, find_seconds, install, plan, remove, write_files
from tests.fake_programs import FakeProgram
from tests.formats.test_crontab import HOSTILE, pass_through
from tests.systemd_reader import Units


@pytest.fixture
def wanted(tmp_path: Path) -> Wanted:
    task = Task(str(tmp_path / "archive"), "vg/lv")
    command = ["archive", "run", task.archive, task.source, "--keep-daily=7"]
    return Wanted(task, command, parse_every("6h"), 300, tmp_path / "state", folder=tmp_path / "units")


def written(wanted: Wanted) -> list[Path]:
    change, _ = install(wanted, wanted.every.seconds)
    return list(change.files)


def test_systemd_reads_the_units_without_a_complaint(wanted: Wanted) -> None:
    files = written(wanted)
    assert [path.suffix for path in files] == [".service", ".timer"]
    units = Units(files)
    assert (units.status, units.complaints) == (0, "")
    (command,) = units.commands()
    assert command == [*unit.own_command(), *wanted.command, f"--state={wanted.state}"]
    assert os.access(command[0], os.X_OK)
    assert command[0].startswith("/")
    text = files[1].read_text()
    assert "OnCalendar=0/6:00\nRandomizedDelaySec=300\nPersistent=true\n" in text
    assert files[0].stat().st_mode & 0o777 == 0o644
    assert list(files[0].parent.glob(".*")) == []


@pytest.mark.parametrize("word", HOSTILE)
def test_systemd_gives_each_word_as_it_is(wanted: Wanted, word: str) -> None:
    archive = f"{wanted.task.archive}/{word}"
    hostile = replace(
        wanted,
        task=Task(archive, f"full:/{word}"),
        command=["archive", "run", archive, word, word + word],
        state=wanted.state / f"x{word}",
    )
    units = Units(written(hostile))
    assert (units.status, units.complaints) == (0, "")
    (command,) = units.commands()
    assert command == [*unit.own_command(), *hostile.command, f"--state={hostile.state}"]
    if word.isascii():
        mounts = {one.split(" (")[0].rstrip("/") for one in units.values("RequiresMountsFor")}
        assert {str(hostile.state), archive.rstrip("/")} <= mounts


@pytest.mark.parametrize("is_cronie", [False, True])
@pytest.mark.parametrize("word", HOSTILE)
def test_cron_gives_each_word_as_it_is(
    wanted: Wanted, word: str, is_cronie: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unit, "own_command", lambda: ["printf", "%s\\0"])
    hostile = replace(
        wanted, task=Task("/a", f"full:/{word}"), command=["archive", "run", "/a", word, word + word], is_cron=True
    )
    (path,) = written(hostile)
    *head, line = path.read_bytes().decode(errors="surrogateescape").splitlines()
    assert [one for one in head if not one.startswith("#")] == ["SHELL=/bin/sh", f"PATH={timer._PATH}"]
    assert line.startswith("0 */6 * * * root ")
    shell = pass_through(line.removeprefix("0 */6 * * * root "), is_cronie=is_cronie)
    done = subprocess.run(["/bin/sh", "-c", os.fsencode(shell)], capture_output=True, check=True, env={}, cwd="/")
    assert [os.fsdecode(one) for one in done.stdout.split(b"\0")[:-1]] == [
        *hostile.command, f"--state={wanted.state}", "--quiet", "--jitter=300s",
    ]  # fmt: skip


def test_a_crontab_has_a_name_that_cron_reads_and_ends_with_a_line(wanted: Wanted) -> None:
    (path,) = written(replace(wanted, is_cron=True, jitter=0))
    assert set(path.name) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-")
    assert path.read_text().endswith("--quiet\n")
    assert path.stat().st_mode & 0o777 == 0o644


def test_one_for_another_machine_waits_for_the_network(wanted: Wanted) -> None:
    far = replace(wanted, task=Task("s3://bucket/x", "vg/lv"), is_remote=True)
    service, _ = written(far)
    units = Units([service])
    assert (units.status, units.complaints) == (0, "")
    text = service.read_text()
    assert "Wants=network-online.target\n" in text
    assert f'RequiresMountsFor="{wanted.state}"\n' in text
    assert "EnvironmentFile=-/etc/default/lvmsync-archive\n" in text
    assert "network-online" not in write_files(wanted)[wanted.folder / f"{wanted.name}.service"]  # type: ignore[operator]


def test_a_second_one_takes_the_place_of_the_first_and_says_what_changed(wanted: Wanted) -> None:
    change, notes = install(wanted, 6 * 3600)
    assert [line.rpartition(" ")[2] for line in change.lines] == ["new", "new"]
    assert "systemctl enable --now" in notes[0]
    assert install(wanted, 6 * 3600)[0].lines == []
    other = replace(wanted, every=parse_every("daily"), command=[*wanted.command, "--keep-last=3"])
    planned = plan(other)
    before = {path: path.read_text() for path in change.files}
    assert {path: path.read_text() for path in change.files} == before
    change, _ = install(other, 86400)
    assert change == planned
    assert "  - OnCalendar=0/6:00" in change.lines
    assert "  + OnCalendar=daily" in change.lines
    state = read_task(task_folder(wanted.state, wanted.task))
    assert state
    assert state.timer
    assert (state.timer.every, state.timer.seconds, state.timer.jitter) == ("daily", 86400, 300)
    assert state.timer.files == tuple(map(str, change.files))

    change, notes = install(replace(wanted, is_cron=True), 6 * 3600)
    assert [path.suffix for path in change.gone] == [".service", ".timer"]
    assert [path.name for path in (wanted.folder or Path()).iterdir()] == [wanted.name]
    change, notes = remove(wanted)
    assert change.lines == [f"{wanted.folder}/{wanted.name} goes"]
    assert list((wanted.folder or Path()).iterdir()) == []
    assert read_task(task_folder(wanted.state, wanted.task)) is None
    assert remove(wanted)[0].lines == []


def test_another_user_gets_what_his_runs_write_to(wanted: Wanted, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[tuple[Path, str]] = []
    monkeypatch.setattr("shutil.chown", lambda path, user: given.append((path, user)))
    theirs = replace(wanted, user="backup")
    service, _ = written(theirs)
    assert "User=backup\n" in service.read_text()
    folder = task_folder(wanted.state, wanted.task)
    assert set(given) == {(path, "backup") for path in (wanted.state, folder.parent, folder, folder / "timer.json")}
    given.clear()
    (crontab,) = written(replace(theirs, is_cron=True))
    assert "0 */6 * * * backup set -a" in crontab.read_text()
    assert given == [(folder / "timer.json", "backup")]

    def fails(path: Path, user: str) -> None:
        raise LookupError("no such user: 'backup'")

    monkeypatch.setattr("shutil.chown", fails)
    with pytest.raises(DeviceError, match=r"cannot give .* to backup: .*no such user"):
        install(theirs, None)
    remove(theirs)
    written(wanted)
    assert "User=root\n" in service.read_text()


def test_files_are_found_and_removed_though_nothing_is_remembered_of_them(wanted: Wanted) -> None:
    install(wanted, None)
    (task_folder(wanted.state, wanted.task) / "timer.json").unlink()
    assert len(remove(wanted)[0].lines) == 2
    assert list((wanted.folder or Path()).iterdir()) == []


def test_where_systemd_runs_it_is_told(wanted: Wanted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    systemctl = FakeProgram(tmp_path, "systemctl")
    for words in ("daemon-reload", "enable", "disable", "restart"):
        systemctl.answer("", words)
    monkeypatch.setattr(unit, "UNITS", tmp_path / "units")
    monkeypatch.setattr(unit, "SYSTEMD", tmp_path)
    here = replace(wanted, folder=None)
    assert install(here, None)[1] == []
    name = f"{wanted.name}.timer"
    assert systemctl.calls() == ["daemon-reload", f"enable {name}", f"restart {name}"]
    assert remove(here)[1] == []
    assert systemctl.calls()[3:] == [f"disable --now {name}", "daemon-reload"]
    assert list((tmp_path / "units").iterdir()) == []
    systemctl.fail("no such unit", "restart")
    with pytest.raises(CommandError, match="no such unit"):
        install(here, None)
    assert len(remove(here)[0].gone) == 2  # what was written is known


@pytest.mark.parametrize(
    ("word", "seconds"),
    [("6h", 6 * 3600), ("Mon..Fri 02:00", 3 * 86400), ("*-*-1 12:00 UTC", 31 * 86400), ("15 2 * * 1", None)],
)
def test_the_longest_time_between_two_is_known(word: str, seconds: int | None) -> None:
    assert find_seconds(parse_every(word)) == seconds


@pytest.mark.parametrize(("word", "words"), [("whenever", "does not understand"), ("2020-01-01", "never again")])
def test_a_time_that_is_none_is_refused(word: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        find_seconds(parse_every(word))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"every": parse_every("15 2 * * 1")}, "give --cron"),
        ({"every": parse_every("Mon..Fri 02:00"), "is_cron": True}, "no form in a crontab"),
        ({"command": ["a\nb"]}, "control character"),
        ({"command": ["x" * 999], "is_cron": True}, "cut it off"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(
    wanted: Wanted, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        install(replace(wanted, **changes), None)
    assert not (wanted.folder or Path()).exists()
    assert not wanted.state.exists()


def test_the_command_is_this_lvmsync(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    done = subprocess.run([*unit.own_command(), "--version"], capture_output=True, check=True, cwd=tmp_path, env={})
    assert done.stdout.startswith(b"lvmsync ")
    python = tmp_path / "python3"
    python.symlink_to("/usr/bin/python3")
    monkeypatch.setattr("sys.executable", str(python))
    assert unit.own_command() == [str(python), "-P", "-m", "lvmsync"]

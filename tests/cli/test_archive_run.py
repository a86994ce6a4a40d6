"""``lvmsync archive run`` and ``install-timer``, by the command line, as a timer starts them."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lvmsync.cli.classic import run
from lvmsync.jobs.archive import run as jobs
from lvmsync.jobs.archive.status import Task, lock_task
from lvmsync.names import parse_source
from lvmsync.places import parse_place
from tests.formats.test_crontab import pass_through
from tests.systemd_reader import Units

LVMSYNC = str(Path(sys.executable).with_name("lvmsync"))


class Site:
    """A device that is a file, its archive, and a state folder."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self.state = folder, folder / "state"
        self.disk, self.archive = folder / "disk", folder / "archive"
        self.source = f"full:{self.disk}"
        self.metrics = folder / "lvmsync.prom"
        self._capsys = capsys
        self.disk.write_bytes(os.urandom(1 << 20))

    def run(self, *words: str | Path, status: int = 0) -> str:
        found = run(["archive", *map(str, words)])
        said = self._capsys.readouterr()
        assert found == status, said.err
        return said.out + said.err

    def listed(self) -> Any:
        return json.loads(self.run("list", self.archive, "--json"))["runs"]

    def doctor(self) -> list[Any]:
        run(["doctor", "--json"])
        found = json.loads(self._capsys.readouterr().out)["findings"]
        return [one for one in found if one["kind"] in ("archive", "broken")]


@pytest.fixture
def site(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Site:
    monkeypatch.setenv("LVMSYNC_STATE", str(tmp_path / "state"))
    site = Site(tmp_path, capsys)
    site.run("init", site.archive, "-q")
    return site


def test_a_run_takes_and_prunes_and_the_list_says_how_it_went(site: Site) -> None:
    assert site.listed() == []
    said = site.run("run", site.archive, site.source, "--metrics", site.metrics)
    assert "point #1" in said
    assert re.search(
        rf"last run of {re.escape(site.source)}: ok \d+ s ago \(1.0 MiB in ", site.run("list", site.archive)
    )
    said = site.run("run", site.archive, site.source, "--keep-last", "1", "--jitter", "0s")
    assert "1 point gone" in said
    told = json.loads(site.run("run", site.archive, site.source, "--keep-last", "1", "--json"))
    assert told["job"] == "archive run"
    assert told["take"]["bytes"] == 1 << 20
    assert told["prune"]["dropped"] == [2]
    assert told["record"] == site.listed()[0]["last"]
    assert site.metrics.read_text().endswith("# EOF\n")
    assert site.doctor() == []
    assert site.run("run", site.archive, site.source, "-q") == ""


def test_a_run_that_fails_is_told_by_the_list_and_by_doctor_until_one_is_good(site: Site) -> None:
    kept = site.disk.rename(site.folder / "away")
    said = site.run("run", site.archive, site.source, "--metrics", site.metrics, "--keep-last", "1", status=3)
    line = said.strip().removeprefix("lvmsync: ")
    listed = site.run("list", site.archive)
    assert f"last run of {site.source}: FAILED " in listed
    assert f" ago (status 3): {line}; none has been ok yet" in listed
    (found,) = site.doctor()
    assert line in found["problem"]
    assert "last_status{" in site.metrics.read_text()
    assert "} 3\n" in site.metrics.read_text()
    kept.rename(site.disk)
    site.run("run", site.archive, site.source)
    assert site.doctor() == []
    assert site.listed()[0]["last"]["failed_line"] == line


def test_a_run_that_finds_another_one_at_work_does_nothing_and_ends_with_8(site: Site) -> None:
    task = Task.of(parse_place(str(site.archive)), parse_source(site.source))
    with lock_task(site.state, task):
        said = site.run("run", site.archive, site.source, status=8)
    assert said == (
        f"lvmsync: another run takes {site.source} into {site.archive} just now: nothing was done; wait for it to end\n"
    )
    assert site.listed() == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_ended_while_it_waits_is_remembered_as_that(
    site: Site, number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert jobs.run.__kwdefaults__
    monkeypatch.setitem(jobs.run.__kwdefaults__, "sleep", lambda _: signal.raise_signal(number))
    words = "interrupted" if number == signal.SIGINT else "ended by SIGTERM"
    said = site.run("run", site.archive, site.source, "--jitter", "1h", "--metrics", site.metrics, status=130)
    assert said == f"lvmsync: {words}\n"
    last = site.listed()[0]["last"]
    assert (last["status"], last["line"], last["points"]) == (130, words, None)
    assert "last_status{" in site.metrics.read_text()


def test_a_run_that_is_ended_while_it_takes_is_remembered_as_that_and_prunes_nothing(site: Site) -> None:
    site.run("run", site.archive, site.source)
    site.disk.write_bytes(os.urandom(64 << 20))  # takes long to be made small
    words: list[str | Path] = ["--compress", "zstd:19", "--keep-last", "1", "--metrics", site.metrics]
    process = subprocess.Popen([LVMSYNC, "archive", "run", site.archive, site.source, *words], stderr=subprocess.PIPE)
    (record,) = site.state.glob("archives/*/record.json")
    try:
        while json.loads(record.read_text())["ended"]:
            assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
        process.communicate()
    assert (process.returncode, said) == (130, b"lvmsync: ended by SIGTERM\n")
    assert [one["number"] for one in json.loads(site.run("list", site.archive, "--json"))["points"]] == [1]
    last = site.listed()[0]["last"]
    assert (last["status"], last["line"], last["points"]) == (130, "ended by SIGTERM", 1)
    assert "} 130\n" in site.metrics.read_text()
    (found,) = site.doctor()
    assert "with status 130: ended by SIGTERM" in found["problem"]


def test_the_list_of_points_comes_though_a_record_is_damaged(site: Site) -> None:
    site.run("run", site.archive, site.source)
    (record,) = site.state.glob("archives/*/record.json")
    record.write_text("{")
    said = site.run("list", site.archive)
    assert "full copy" in said
    assert "move it away" in said
    (found,) = site.doctor()
    assert found["kind"] == "broken"


def test_the_options_of_a_run_are_those_of_the_timer(site: Site) -> None:
    words: list[str | Path] = [
        "install-timer", site.archive, "vg/lv", "--unit-dir", site.folder / "units", "--every", "1h", "--jitter", "10m",
        "--keep-daily", "7", "--keep-within", "2d", "--compress", "zstd:3", "--freeze", "--cow-size", "5G",
        "--extend-cmd", 'lvextend -L +1G "$LVMSYNC_VOLUME"', "--metrics", site.metrics, "-F", "/x/config",
    ]  # fmt: skip
    site.run(*words)
    files = sorted((site.folder / "units").iterdir())
    units = Units(files)
    assert (units.status, units.complaints) == (0, "")
    assert units.commands() == [
        [
            LVMSYNC, "archive", "run", str(site.archive), "vg/lv", "--keep-daily=7", "--keep-within=2d",
            "--compress=zstd:3", "--cow-size=5G", '--extend-cmd=lvextend -L +1G "$LVMSYNC_VOLUME"', "--freeze",
            "--ssh-config=/x/config", f"--metrics={site.metrics}", f"--state={site.state}",
        ]
    ]  # fmt: skip
    assert "RandomizedDelaySec=600\n" in files[1].read_text()
    assert "no run of vg/lv yet; every 1h" in site.run("list", site.archive)
    said = site.run(*words, "--dry-run", "--every", "daily")
    assert "  + OnCalendar=daily" in said
    assert "nothing was changed" in said
    assert "OnCalendar=hourly" in files[1].read_text()
    site.run("install-timer", site.archive, "vg/lv", "--unit-dir", site.folder / "units", "--remove", "--dry-run")
    assert all(path.exists() for path in files)
    site.run("install-timer", site.archive, "vg/lv", "--unit-dir", site.folder / "units", "--remove")
    assert list((site.folder / "units").iterdir()) == []
    assert site.listed() == []


def test_what_is_printed_is_what_is_written_and_nothing_else_is_done(site: Site) -> None:
    words: list[str | Path] = ["install-timer", site.archive, site.source, "--unit-dir", site.folder / "units"]
    printed = site.run(*words, "--print")
    assert not site.state.exists()
    assert not (site.folder / "units").exists()
    site.run(*words)
    files = sorted((site.folder / "units").iterdir())
    assert printed == "\n".join(f"# {path}\n{path.read_text()}" for path in files)


def test_the_line_for_cron_does_what_it_is_to_do(site: Site) -> None:
    hostile = site.folder / "100% it's \\ a $HOME"
    hostile.mkdir()
    archive, disk = hostile / "archive", hostile / "disk"
    disk.write_bytes(os.urandom(4096))
    site.run("init", archive, "-q")
    site.run(
        "install-timer", archive, f"full:{disk}", "--cron", "--unit-dir", site.folder / "cron", "--every", "15m",
        "--jitter", "0s", "--metrics", hostile / "m.prom", "--keep-last", "2",
    )  # fmt: skip
    (crontab,) = (site.folder / "cron").iterdir()
    lines = crontab.read_text().splitlines()
    assert lines[-1].startswith("*/15 * * * * root ")
    command = pass_through(lines[-1].removeprefix("*/15 * * * * root "), is_cronie=False)
    path = next(line.removeprefix("PATH=") for line in lines if line.startswith("PATH="))
    env = {"PATH": path, "HOME": "/root", "SHELL": "/bin/sh"}
    for _ in range(3):
        done = subprocess.run(["/bin/sh", "-c", command], env=env, cwd="/", capture_output=True, check=False)
        assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    told = json.loads(site.run("list", archive, "--json"))
    assert [one["number"] for one in told["points"]] == [2, 3]
    (only,) = told["runs"]
    assert (only["last"]["status"], only["timer"]["every"], only["overdue"]) == (0, "15m", False)
    assert (hostile / "m.prom").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["vg/lv", "--every", "7m"], "divide an hour"),
        (["vg/lv", "--every", "whenever"], "does not understand"),
        (["vg/lv", "--jitter", "long"], "--jitter 'long'"),
        (["vg/lv", "--keep-within", "long"], "--keep-within 'long'"),
        (["full:./disk"], "./disk: a timer runs in another folder"),
        (["compare:/dev/x,old=../y"], "../y: a timer runs in another folder"),
        (["./disk"], "./disk: a timer runs in another folder"),
        (["vg/snap", "-r", "./x"], "--data-source ./x"),
        (["vg/lv", "--user", "backup"], "--state DIR"),
        (["vg/lv", "--cron", "--every", "Mon 02:00"], "no form in a crontab"),
        (["vg/lv", "--every", "1 2 * * *"], "give --cron"),
    ],
)
def test_what_no_timer_can_do_is_refused(site: Site, words: list[str], said: str) -> None:
    assert said in site.run("install-timer", site.archive, *words, "--unit-dir", site.folder / "units", status=2)
    assert not (site.folder / "units").exists()


def test_a_run_refuses_what_is_no_span_of_time(site: Site) -> None:
    assert "--jitter 'x'" in site.run("run", site.archive, site.source, "--jitter", "x", status=2)
    assert site.listed() == []

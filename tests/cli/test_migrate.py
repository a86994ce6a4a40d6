"""The command line of migrate: what it refuses before anything is touched, and how it looks."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from lvmsync.cli import render_migrate
from lvmsync.cli.classic import run
from lvmsync.cli.migrate import seconds
from lvmsync.cli.migrate_jobs import FENCE
from lvmsync.errors import UsageError
from lvmsync.jobs.migrate.move import Outcome, Status
from tests.fake_programs import FakeProgram

PAIR = ["migrate", "vg/lv", "host:vg/lv"]
STATUS = Status("sending", 2, 5 << 20, 20 << 20, 8e6, 1e6, 3.25, 5.0, 0.5, 0.25)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "--max-downtime 5s"),
        (["--max-downtime", "5s"], "--stop-cmd CMD, or --libvirt DOMAIN"),
        (["--max-downtime", "soon", "--stop-cmd", "x"], "write a time such as 5s"),
        (["--max-downtime", "0", "--stop-cmd", "x"], "write a time such as 5s"),
        (["--max-downtime", "5s", "--stop-cmd", "x", "--libvirt", "y"], "do not go with it"),
        (["--max-downtime", "5s", "--stop-cmd", "x", "--libvirt-uri", "y"], "goes with --libvirt"),
        (["--max-downtime", "5s", "--stop-cmd", "x", "--fence", "wood"], "choose readonly, deactivate or none"),
        (["--max-downtime", "5s", "--stop-cmd", "x", "--on-overrun", "x"], "choose restart or go"),
        (["--max-downtime", "5s", "--stop-cmd", "x", "--on-no-convergence", "x"], "choose ask, abort or go"),
        (["--max-downtime", "5s", "--stop-cmd", "x", "--progress", "x"], "choose auto, json or none"),
        (["--max-downtime", "5s", "--stop-cmd", "x", "--back", "--verify"], "not for --back"),
        (["--max-downtime", "5s", "--stop-cmd", "x", "--back", "--fence", "deactivate"], "not for --back"),
        (["--max-downtime", "5s", "--stop-cmd", "x", "--back", "--cow-size", "1G"], "not for --back"),
        (["--abort", "--finish"], "choose one"),
    ],
)  # fmt: skip
def test_a_command_line_that_makes_no_sense_is_refused(
    capsys: pytest.CaptureFixture[str], words: list[str], told: str
) -> None:
    assert run([*PAIR, *words]) == 2
    assert told in capsys.readouterr().err


@pytest.mark.parametrize(("text", "value"), [("5", 5), ("5s", 5), ("500ms", 0.5), ("1.5m", 90), ("2 h", 7200)])
def test_times_have_units(text: str, value: float) -> None:
    assert seconds("--x", text) == pytest.approx(value)


@pytest.mark.parametrize("text", ["", "s", "-5", "5d", "1e3", "5 5"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--x"):
        seconds("--x", text)


def test_the_live_lines_show_rates_downtime_and_fill() -> None:
    shown = "\n".join(render_migrate.block(STATUS))
    for words in (
        "pass 2",
        "5.0 MiB of 20.0 MiB",
        "7.6 MiB/s sent, 976.6 KiB/s change",
        "3.2 s if stopped now, 5 s allowed",
    ):
        assert words in shown
    assert "snapshot stores 50 % full, target pool 25 % full" in shown
    early = "\n".join(render_migrate.block(Status("reading the map", 1, max_downtime=5.0)))
    assert "not known yet" in early
    assert "full" not in early


def test_a_log_gets_plain_lines_and_json_gets_objects(capsys: pytest.CaptureFixture[str]) -> None:
    with render_migrate.view("auto") as tell:
        tell(STATUS)  # too early for a line of numbers
        tell(replace(STATUS, words="stopping vg/lv"))
    assert capsys.readouterr().err == "migrate: stopping vg/lv\n"
    with render_migrate.view("json") as tell:
        tell(replace(STATUS, words="stopping vg/lv"))
    told = json.loads(capsys.readouterr().err)
    assert (told["predicted"], told["words"]) == (3.25, "stopping vg/lv")
    with render_migrate.view("none") as tell:
        tell(replace(STATUS, words="stopping vg/lv"))
    assert capsys.readouterr().err == ""
    assert render_migrate.line(STATUS) == "pass 2: sending 5.0 MiB of 20.0 MiB (25 %), predicted downtime 3.2 s"


def test_a_terminal_gets_live_lines(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    is_terminal: Callable[[], bool] = lambda: True  # noqa: E731
    monkeypatch.setattr("sys.stderr.isatty", is_terminal)
    with render_migrate.view("auto") as tell:
        tell(replace(STATUS, words="stopping vg/lv"))
    assert "stopping vg/lv" in capsys.readouterr().err


def test_the_end_says_what_was_promised_and_what_it_was(capsys: pytest.CaptureFixture[str]) -> None:
    outcome = Outcome(
        "vg/lv", "host:vg/lv", 60.0, 5.0, 3.0, 3.5, {}, {"start": 1.0}, [{}, {}], 1 << 30, 1 << 29,
        verified="whole", notes=["vg/lv is read-only now"],
    )  # fmt: skip
    render_migrate.print_outcome(outcome, as_json=False, quiet=False)
    told = capsys.readouterr().err
    assert "note: vg/lv is read-only now\n" in told
    assert "1.0 GiB in 2 passes and 60.0 s, compared as a whole; downtime 3.5 s until the start command" in told
    assert "(predicted 3.0 s, allowed 5 s)" in told
    render_migrate.print_outcome(outcome, as_json=True, quiet=False)
    assert json.loads(capsys.readouterr().out)["downtime"] == 3.5


@pytest.mark.parametrize("shell", ["sh", "bash"])
@pytest.mark.parametrize(
    ("there", "count", "is_fenced"), [(True, "   0", True), (True, "1", False), (False, "0", False)]
)
def test_a_volume_of_another_machine_is_fenced_where_the_kernel_counts_nobody_and_only_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shell: str, count: str, *, there: bool, is_fenced: bool
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    stat, dmsetup, lvchange, sleep = (FakeProgram(tmp_path, name) for name in ("stat", "dmsetup", "lvchange", "sleep"))
    sleep.answer("", "0.1")
    lvchange.answer("", "-y")
    dmsetup.answer(f"{count}\n", "info")
    if there:
        stat.answer("0xfd 0x1f\n", "-Lc")
    done = subprocess.run([shell, "-c", FENCE.format(name="vg/lv")], capture_output=True, check=False)
    assert (done.returncode == 0) == is_fenced
    assert (lvchange.folder / "calls").exists() == is_fenced
    assert not there or all(call.endswith("-j 253 -m 31") for call in dmsetup.calls())
    assert there or not (dmsetup.folder / "calls").exists()

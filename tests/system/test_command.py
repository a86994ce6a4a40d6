from __future__ import annotations

from pathlib import Path

import pytest

from lvmsync.errors import CommandError
from lvmsync.system import command
from lvmsync.system.command import has_program, run, run_to_end, search_path


def script(folder: Path, text: str) -> str:
    path = folder / "program"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def test_a_program_gets_its_arguments_as_they_are_no_input_and_the_c_locale(tmp_path: Path) -> None:
    program = script(tmp_path, 'printf "%s|" "$LC_ALL" "$@"; cat')
    assert run([program, "a b", "$(id)", ";"]) == "C|a b|$(id)|;|"


def test_a_missing_program_is_named() -> None:
    with pytest.raises(CommandError, match=r"cannot run 'no-such-program'.*is it installed"):
        run(["no-such-program", "x"])


def test_a_failure_gives_the_programs_own_last_words(tmp_path: Path) -> None:
    program = script(
        tmp_path,
        'echo "first\n  Device nope not found\nCommand failed.\n  Run \\`lvcreate --help\' for more" >&2; exit 3',
    )
    with pytest.raises(CommandError, match=r"program info' failed with status 3: Device nope not found$"):
        run([program, "info", "nope"])


@pytest.mark.parametrize(("says", "told"), [("Command failed", "Command failed"), ("", "it gave no reason")])
def test_a_failure_with_few_words_is_told_as_well(tmp_path: Path, says: str, told: str) -> None:
    with pytest.raises(CommandError, match=rf"program' failed with status 1: {told}$"):
        run([script(tmp_path, f"echo '{says}' >&2; exit 1"), "-a"])


def test_a_program_that_hangs_is_ended(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match=r"did not end within 0.2 s"):
        run([script(tmp_path, "exec sleep 60")], timeout=0.2)


def test_what_crons_path_leaves_away_is_looked_through_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bin_, sbin = tmp_path / "bin", tmp_path / "sbin"
    monkeypatch.setattr(command, "_ADMINISTRATION", {str(bin_): str(sbin)})
    for folder in (bin_, sbin):
        folder.mkdir()
    (sbin / "lvthing").write_text('#!/bin/sh\necho "$PATH"\n')
    (sbin / "lvthing").chmod(0o755)
    monkeypatch.setenv("PATH", str(bin_))
    assert has_program("lvthing")
    assert run(["lvthing"]) == f"{bin_}:{sbin}\n"
    monkeypatch.setenv("PATH", f"{sbin}:{bin_}/")
    assert search_path() == f"{sbin}:{bin_}/"  # once, and where it was
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not has_program("lvthing")  # where the programs beside are not looked for, these are not either


def test_lvms_commands_are_found_with_the_path_of_cron(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    assert search_path() == "/usr/bin:/bin:/usr/sbin:/sbin"


def test_what_a_program_that_runs_to_its_end_is_given_is_its_standard_input() -> None:
    assert run_to_end(["cat"], timeout=60, text="0 8 zero\n") == "0 8 zero\n"
    assert run_to_end(["cat"], timeout=60) == ""

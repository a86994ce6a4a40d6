"""Lines of a crontab, run as cron runs them; and words for how often, which systemd understands as well."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lvmsync.errors import UsageError
from lvmsync.formats.crontab import MOST_COMMAND, parse_every, quote, write_line

HOSTILE = [
    "a b", "$HOME", "`id`", "$(id)", "it's", 'say "x"', "100%", "%%", "\\%", "\\", "\\\\", "a\\", "a\\'b", "\\n", "*",
    "~", "-x", "", "#", "!", ";", "ä€", b"\xff\xfe".decode(errors="surrogateescape"), "\\134", "%\\", "'%'\\\"$",
]  # fmt: skip


def pass_through(line: str, *, is_cronie: bool) -> str:
    """Return what the shell gets of the command in a line, as do_command.c of two crons has it."""
    out, is_escaped = "", False
    for letter in line:
        if is_escaped:
            drops = letter == "%" or (letter == "\\" and not is_cronie)
            out = (out[:-1] if drops else out) + letter
            is_escaped = False
            continue
        if letter == "%":
            break
        is_escaped = letter == "\\"
        out += letter
    return out


def shown(line: str, folder: Path, *, is_cronie: bool) -> list[str]:
    """Run the command of a line, which prints its words, and return them."""
    command = pass_through(line, is_cronie=is_cronie)
    done = subprocess.run(["/bin/sh", "-c", os.fsencode(command)], capture_output=True, check=True, cwd=folder)
    return [os.fsdecode(word) for word in done.stdout.split(b"\0")[:-1]]


@pytest.mark.parametrize("is_cronie", [False, True])
@pytest.mark.parametrize("word", HOSTILE)
def test_the_shell_that_cron_starts_gets_each_word_as_it_is(word: str, is_cronie: bool, tmp_path: Path) -> None:
    line = write_line("0 0 * * *", "root", ["printf", "%s\\0", word, "end"], "/nonexistent")
    command = line.removeprefix("0 0 * * * root ")
    assert shown(command, tmp_path, is_cronie=is_cronie) == [word, "end"]


@given(st.text(st.sampled_from("%\\'\"$ a"), max_size=8))
def test_the_shell_gets_any_word_as_it_is(word: str) -> None:
    for is_cronie in (False, True):
        assert shown(f"printf '\\%s\\0' {quote(word)}", Path("/"), is_cronie=is_cronie) == [word]


def test_variables_come_from_a_file_where_there_is_one(tmp_path: Path) -> None:
    file = tmp_path / "it's 100%"
    line = write_line("0 0 * * *", "root", ["sh", "-c", 'printf "%s\\0" "$KEY"'], str(file))
    command = line.removeprefix("0 0 * * * root ")
    assert shown(command, tmp_path, is_cronie=False) == [""]
    file.write_text("KEY='a secret'\n")
    assert shown(command, tmp_path, is_cronie=False) == ["a secret"]


def test_a_line_that_cron_would_cut_off_is_refused() -> None:
    assert len(write_line("* * * * *", "root", ["x" * 900], "/e")) < MOST_COMMAND
    with pytest.raises(UsageError, match="cut it off"):
        write_line("* * * * *", "root", ["ä" * 490], "/e")


@pytest.mark.parametrize("word", ["a\nb", "a\rb", "\0", "\x7f"])
def test_a_word_that_would_end_a_line_is_refused(word: str) -> None:
    with pytest.raises(UsageError, match="control character"):
        quote(word)


@pytest.mark.parametrize(
    ("word", "calendar", "fields", "seconds"),
    [
        ("1m", "*:0/1", "* * * * *", 60),
        ("15m", "*:0/15", "*/15 * * * *", 900),
        ("60m", "hourly", "0 * * * *", 3600),
        ("1h", "hourly", "0 * * * *", 3600),
        ("6h", "0/6:00", "0 */6 * * *", 6 * 3600),
        ("24h", "daily", "0 0 * * *", 86400),
        ("1d", "daily", "0 0 * * *", 86400),
        ("weekly", "weekly", "0 0 * * 1", 7 * 86400),
        ("1w", "weekly", "0 0 * * 1", 7 * 86400),
        ("monthly", "monthly", "0 0 1 * *", 31 * 86400),
        ("yearly", "yearly", "0 0 1 1 *", 366 * 86400),
        ("Mon..Fri 02:00", "Mon..Fri 02:00", None, None),
        ("15 2 * * Mon-Fri", None, "15 2 * * Mon-Fri", None),
        ("*/5 1,2 1-7 * 0", None, "*/5 1,2 1-7 * 0", None),
    ],
)
def test_how_often_is_said_to_systemd_and_to_cron(
    word: str, calendar: str | None, fields: str | None, seconds: int | None
) -> None:
    every = parse_every(word)
    assert (every.word, every.calendar, every.fields, every.seconds) == (word, calendar, fields, seconds)
    if calendar:
        subprocess.run(["systemd-analyze", "calendar", "--", calendar], check=True, capture_output=True)


@pytest.mark.parametrize("word", ["", " ", "7m", "0m", "5h", "0h", "3d", "10s", "2w", "61m", "daily\nx"])
def test_what_no_calendar_repeats_is_refused(word: str) -> None:
    with pytest.raises(UsageError, match="--every"):
        parse_every(word)


@pytest.mark.parametrize("word", ["0 3 * * 1", "*/5 0-6/2 1,15 jan-MAR mon-fri", "59 23 31 12 7", "0 0 1 1 0"])
def test_the_five_fields_of_a_crontab_are_taken_as_they_are(word: str) -> None:
    assert parse_every(word).fields == word


@pytest.mark.parametrize(
    ("word", "part"),
    [
        ("99 * * * *", "minute"), ("*/0 * * * *", "minute"), ("0 24 * * *", "hour"), ("0 5-3 * * *", "hour"),
        ("0 0 0 * *", "day"), ("0 0 * 13 *", "month"), ("0 0 * foo *", "month"), ("0 0 * * 8", "day of the week"),
        ("0 0 * * mon-", "day of the week"), ("1, 0 * * *", "minute"), ("1-2-3 0 * * *", "minute"),
    ],
)  # fmt: skip
def test_a_time_that_never_comes_is_refused(word: str, part: str) -> None:
    with pytest.raises(UsageError, match=f"is no {part} of a crontab"):
        parse_every(word)

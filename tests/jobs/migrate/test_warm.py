"""A command that waits for its word: begun once, or never, or it is said that nobody knows."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from lvmsync.errors import TransportError
from lvmsync.interfaces import Transport
from lvmsync.jobs.migrate.warm import WarmCommand
from lvmsync.transport.pipe import Command


def here(words: list[str], on_stderr: Callable[[str], None]) -> AbstractContextManager[Transport]:
    return Command(words, on_stderr, name="here")


def warm(command: str, heard: list[str] | None = None) -> WarmCommand:
    return WarmCommand("far", command, here, {"LVMSYNC_TARGET": "a b"}, (heard if heard is not None else []).append)


def end_shell(command: WarmCommand) -> None:
    assert isinstance(command._transport, Command)
    command._transport._child.kill()
    command._transport._child.wait()


def end_child(command: WarmCommand) -> None:
    """Kill the process whose number the command has said."""
    assert command._has_spoken.wait(30)
    os.kill(int(command._last_words), 9)


def test_it_begins_when_it_is_told_to_and_tells_its_status(tmp_path: Path) -> None:
    heard: list[str] = []
    with warm(f'printf %s "$LVMSYNC_TARGET" >{tmp_path}/made; echo said', heard) as command:
        command.make_ready()
        assert not (tmp_path / "made").exists()
        command.make_ready()  # the line that there is will do
        assert command.run(30).status == 0
        assert command._has_spoken.wait(30)
    assert (tmp_path / "made").read_text() == "a b"
    assert heard == ["said"]


def test_a_command_that_fails_tells_its_status_and_last_words() -> None:
    with warm("echo no such guest >&2; exit 3") as command:
        command.make_ready()
        assert command.run(30).status == 3


def test_it_is_not_begun_when_it_is_let_go(tmp_path: Path) -> None:
    with warm(f"touch {tmp_path}/made") as command:
        command.make_ready()
    assert not (tmp_path / "made").exists()


def test_a_command_that_was_never_made_ready_is_not_begun() -> None:
    with warm("true") as command, pytest.raises(TransportError, match="was not begun"):
        command.run(30)


def test_a_line_that_dies_while_it_waits_is_opened_again(tmp_path: Path) -> None:
    with warm(f"touch {tmp_path}/made") as command:
        command.make_ready()
        end_shell(command)
        command.make_ready()
        assert command.run(30).status == 0
    assert (tmp_path / "made").exists()


def test_a_line_that_dies_before_the_word_is_an_error_and_nothing_began(tmp_path: Path) -> None:
    with warm(f"touch {tmp_path}/made") as command:
        command.make_ready()
        end_shell(command)
        with pytest.raises(TransportError):
            command.run(30)
    assert not (tmp_path / "made").exists()


def test_a_line_that_dies_behind_the_word_leaves_it_unknown() -> None:
    with warm("kill -9 $PPID") as command:  # the shell that waited
        command.make_ready()
        ended = command.run(30)
    assert ended.status is None
    assert "before the command had" in ended.words


def test_a_command_that_says_nothing_for_too_long_leaves_it_unknown() -> None:
    with warm("sleep 60 & echo $! >&2; wait") as command:
        command.make_ready()
        ended = command.run(0.4)
        assert ended.status is None
        assert "no byte moved" in ended.words
        end_child(command)


def test_what_it_leaves_running_does_not_hold_it() -> None:
    with warm("sleep 30 & echo $! >&2") as command:
        command.make_ready()
        began = time.monotonic()
        assert command.run(30).status == 0
        end_child(command)
    assert time.monotonic() - began < 10


@pytest.mark.parametrize("words", [["echo", "Welcome"], ["sh", "-c", "echo not here >&2; exit 1"]])
def test_a_machine_that_has_no_shell_for_us_is_told_before_anything_is_stopped(words: list[str]) -> None:
    command = WarmCommand("far", "true", lambda _, hear: Command(words, hear, name="far"), {}, lambda _: None)
    with command, pytest.raises(TransportError, match=r"should wait there|stopped reading|line is gone"):
        command.make_ready()

"""The first look at the command line: every way to write it, and the verb that it means."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import typer

from lvmsync.cli.app import assemble
from lvmsync.cli.classic import HIDDEN, VALUED, VERBS, translate
from lvmsync.errors import UsageError

COMMANDS = typer.main.get_command(assemble()).commands  # type: ignore[attr-defined]

SNAP, FAR, HERE = "vg/snap", "host:vg/lv", "/dev/x"


def actions(commands: dict[str, Any], verb: str = "") -> Iterator[tuple[str, Any]]:
    for name, command in commands.items():
        if verb:
            yield f"{verb}{name}", command
        yield from actions(getattr(command, "commands", {}), f"{verb}{name} ")


ACTIONS = dict(actions(COMMANDS))


def valued_options() -> Iterator[str]:
    for command in [*COMMANDS.values(), *ACTIONS.values()]:
        for option in command.params:
            if option.param_type_name == "option" and not option.is_flag:
                yield from option.opts


def test_every_option_that_takes_a_value_is_known_before_typer_is_there() -> None:
    assert set(valued_options()) | {"-a", "--apply"} == VALUED


def test_every_verb_that_goes_to_another_machine_has_all_options_of_the_line() -> None:
    line = {
        "--rsh", "--port", "--identity", "--sudo", "--remote-command", "--bwlimit", "--bwlimit-file", "--stall-timeout",
        "--streams", "--debug",
    }  # fmt: skip
    lacking = {}
    going = set()
    for name, command in (COMMANDS | ACTIONS).items():
        words = {word for option in command.params for word in option.opts}
        if words & (line - {"--debug"}):
            going.add(name)
            lacking[name] = line - words
    far = {
        "sync", "migrate", "verify", "repair", "plan", "doctor", "blksnap sync", "dattobd update", "dattobd cycle",
        "archive restore",
    }  # fmt: skip
    assert going == far
    assert not any(lacking.values()), lacking


def test_every_verb_is_a_command() -> None:
    assert set(COMMANDS) == {*VERBS, *HIDDEN}


def test_no_flag_of_the_original_is_an_option_of_a_verb_with_another_meaning() -> None:
    own = {"-a", "--apply", "--send", "--receive", "--server"}
    declared = {
        (name, word)
        for name, command in COMMANDS.items()
        for option in command.params
        for word in option.opts
        if word in own | {"-s", "--stdout"}
    }
    assert declared == {("send", "-s"), ("send", "--stdout")}


@pytest.mark.parametrize("words", [["--help"], ["-h"], ["--install-completion"], ["--show-completion"], ["-q", "-h"]])
def test_what_is_asked_of_the_program_itself_goes_to_it(words: list[str]) -> None:
    assert translate(words) in (words, ["--help"])


def test_no_words_at_all_ask_for_help() -> None:
    assert translate([]) == ["--help"]


@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_goes_first_and_all_else_keeps_its_order(verb: str) -> None:
    assert translate([verb, "a", "-q", "b"]) == [verb, "a", "-q", "b"]
    assert translate(["-q", "--state", "s", verb, "a", "-v", "b"]) == [verb, "-q", "--state", "s", "a", "-v", "b"]
    assert translate(["--help", verb]) == [verb, "--help"]


@pytest.mark.parametrize("option", sorted(VALUED - {"-a", "--apply"}))
def test_the_value_of_an_option_is_never_the_verb(option: str) -> None:
    assert translate([option, "send", "receive", HERE]) == ["receive", option, "send", HERE]
    assert translate([option, "send", SNAP, FAR]) == ["sync", option, "send", SNAP, FAR]
    assert translate([SNAP, option, "send", FAR]) == ["sync", SNAP, option, "send", FAR]
    assert translate([option, "--server", SNAP, FAR]) == ["sync", option, "--server", SNAP, FAR]


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ([SNAP, FAR], ["sync", SNAP, FAR]),
        ([SNAP, FAR, "-v"], ["sync", SNAP, FAR, "-v"]),
        (["-v", "-b", "f", SNAP, FAR], ["sync", "-v", "-b", "f", SNAP, FAR]),
        (["--snapback=f", SNAP, FAR], ["sync", "--snapback=f", SNAP, FAR]),
        (["-bf", SNAP, FAR], ["sync", "-bf", SNAP, FAR]),
        ([SNAP, "-e", "ssh -p 2222", FAR], ["sync", SNAP, "-e", "ssh -p 2222", FAR]),
        ([SNAP, "-r", "vg/later", FAR], ["sync", SNAP, "-r", "vg/later", FAR]),
        (["./sync", FAR], ["sync", "./sync", FAR]),
        ([SNAP, "./send"], ["sync", SNAP, "./send"]),
        (["--", SNAP, FAR], ["sync", "--", SNAP, FAR]),
        ([SNAP, "--", FAR], ["sync", SNAP, "--", FAR]),
        (["-v"], ["sync", "-v"]),
    ],
)
def test_a_source_and_a_target_are_a_sync(words: list[str], wanted: list[str]) -> None:
    assert translate(words) == wanted


@pytest.mark.parametrize("flag", ["-s", "--stdout", "--send"])
def test_to_standard_output_is_a_send(flag: str) -> None:
    assert translate([flag, SNAP]) == ["send", SNAP]
    assert translate([SNAP, flag]) == ["send", SNAP]
    assert translate([SNAP, "-r", "vg/later", flag, "-v"]) == ["send", SNAP, "-r", "vg/later", "-v"]
    assert translate([flag, "--", "-odd"]) == ["send", "--", "-odd"]
    assert translate([flag]) == ["send"]


@pytest.mark.parametrize("flag", ["--server", "--receive"])
def test_on_the_far_side_it_is_a_receive(flag: str) -> None:
    assert translate([flag, HERE]) == ["receive", HERE]
    assert translate([HERE, flag]) == ["receive", HERE]
    assert translate([flag, "--snapback", "f", HERE]) == ["receive", "--snapback", "f", HERE]
    assert translate([flag, "--server", "--receive", HERE]) == ["receive", HERE]


@pytest.mark.parametrize(
    "words",
    [["--apply", "f", HERE], ["--apply=f", HERE], ["-a", "f", HERE], ["-af", HERE], ["-a=f", HERE], [HERE, "-a", "f"]],
)
def test_a_file_is_applied_to_a_target_that_may_come_before_it(words: list[str]) -> None:
    assert translate(words) == ["apply", "f", HERE]
    assert translate([*words, "--snapback", "g"]) == ["apply", "f", HERE, "--snapback", "g"]
    assert translate(["-v", *words]) == ["apply", "f", "-v", HERE]


@pytest.mark.parametrize("words", [["--apply", "-", HERE], ["--apply=-", HERE], ["-a", "-", HERE], ["-a-", HERE]])
def test_applying_standard_input_is_a_receive_as_the_original_starts_it_on_the_far_side(words: list[str]) -> None:
    assert translate(words) == ["receive", HERE]
    assert translate([*words[:-1], "--snapback", "f", HERE]) == ["receive", "--snapback", "f", HERE]


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["--apply", "f", "--", "-odd"], ["apply", "f", "--", "-odd"]),
        (["--apply", "-", "--", "-odd"], ["receive", "--", "-odd"]),
    ],
)
def test_words_behind_two_dashes_are_no_options(words: list[str], wanted: list[str]) -> None:
    assert translate(words) == wanted


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--apply"], "--apply needs a file, or - for standard input"),
        (["-a"], "--apply needs a file"),
        (["--apply="], "--apply needs a file"),
        ([HERE, "--apply"], "--apply needs a file"),
        (["--apply", "f", "--send", SNAP], "'apply' and 'send' are both asked for; choose one"),
        (["--stdout", "-a", "f", SNAP], "'send' and 'apply' are both asked for"),
        (["--stdout", "-af", SNAP], "'send' and 'apply' are both asked for"),
        (["--send", "--receive", SNAP], "'send' and 'receive' are both asked for"),
        ([SNAP], "'vg/snap' alone: name a target as well, or a verb before it (send, receive, "),
        (["-v", "sned"], "'sned' alone"),
    ],
)
def test_words_that_do_not_go_together_are_refused(words: list[str], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        translate(words)
    assert message in str(caught.value)

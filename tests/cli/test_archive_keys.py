"""Encrypted archives by the command line: every action with a key, none without, and what is said then."""

from __future__ import annotations

import json
import os
import pty
import random
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from lvmsync.cli.archive import unlocking
from lvmsync.cli.classic import run

MIB = 1 << 20
PATTERN = b"a pattern that is easily found, again and again "
KEY_FILE, PASSPHRASE = "LVMSYNC_ARCHIVE_KEY_FILE", "LVMSYNC_ARCHIVE_PASSPHRASE"


class Site:
    """A device that is a file, and an archive of it that a key file opens."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys
        self.folder, self.archive, self.disk, self.key = folder, folder / "archive", folder / "disk", folder / "key"
        self.disk.write_bytes(PATTERN * (MIB // len(PATTERN)) + bytes(MIB // len(PATTERN)))

    def run(self, line: str, status: int = 0) -> str:
        """Run a line; return what it said."""
        found = run(line.replace("{}", str(self.folder)).split())
        said = self._capsys.readouterr()
        assert found == status, said.err
        return said.out + said.err

    def json(self, line: str) -> Any:
        return json.loads(self.run(f"{line} --json"))

    def secret(self, name: str, data: bytes, mode: int = 0o600) -> Path:
        path = self.folder / name
        path.write_bytes(data)
        path.chmod(mode)
        return path

    def stored(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in self.archive.iterdir()}


@pytest.fixture
def site(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Site:
    monkeypatch.setenv("LVMSYNC_STATE", str(tmp_path / "state"))
    monkeypatch.setattr(unlocking, "_TERMINAL", Path("/nonexistent/tty"))
    for name in (KEY_FILE, PASSPHRASE):
        monkeypatch.delenv(name, raising=False)
    site = Site(tmp_path, capsys)
    said = site.run("archive init {}/archive --encrypt --key-file {}/key")
    assert "keep a copy of both elsewhere" in said
    assert "is an archive now" in said
    return site


def test_every_action_works_with_the_key_and_nothing_lies_there_in_the_clear(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = "--key-file {}/key"
    assert (site.key.stat().st_mode & 0o777, site.key.stat().st_size) == (0o600, 32)
    site.run("archive take {}/archive full:{}/disk --label Wochenende --compress none " + key)
    first = site.disk.read_bytes()
    monkeypatch.setenv(KEY_FILE, str(site.key))  # as cron has it
    chance = random.Random(1)
    for number in range(3):
        old = site.folder / "old"
        old.write_bytes(data := site.disk.read_bytes())
        site.run("sync full:{}/old {}/mirror --create") if number == 0 else None
        at = chance.randrange(200) * 4096
        site.disk.write_bytes(data[:at] + PATTERN * 85 + data[at + len(PATTERN) * 85 :])
        site.run(f"sync compare:{{}}/disk {{}}/mirror --snapback {{}}/{number}.back")
        site.run(f"archive import {{}}/archive {{}}/{number}.back" + (" --new-chain" if number == 0 else ""))
    assert site.run("archive list {}/archive").count("\n") == 6
    assert "Wochenende" in site.run("archive show {}/archive 1")
    site.run("archive show {}/archive --svg {}/picture.svg")
    site.run("archive restore {}/archive --at Wochenende --to {}/restored --create")
    assert (site.folder / "restored").read_bytes() == first
    site.run("archive export {}/archive --at Wochenende -o {}/dump")
    site.run("archive combine {}/archive 2 4")
    site.run("archive prune {}/archive --keep-last 3")
    assert "rebuilt" in site.run("archive verify {}/archive --restore-test --mirror {}/mirror")
    stored = site.stored()
    assert not [name for name, data in stored.items() if b"Wochenende" in data or PATTERN[:20] in data]
    assert len([name for name, data in stored.items() if data.startswith(b"lvsseal1")]) == len(stored) - 1
    assert {path.stat().st_mode & 0o777 for path in site.archive.iterdir()} == {0o600}
    monkeypatch.delenv(KEY_FILE)
    site.run("archive init {}/plain")
    site.run("archive import {}/plain {}/dump --label Wochenende")
    site.run("archive restore {}/plain --to {}/again --create")
    assert (site.folder / "again").read_bytes() == first


def test_a_passphrase_can_be_changed_and_the_members_stay(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.run("archive take {}/archive full:{}/disk --key-file {}/key")
    before = site.stored()
    site.secret("word", b"correct horse\n")
    said = site.run("archive key add {}/archive --key-file {}/key --new-passphrase-file {}/word --label mine")
    assert "key 2 (passphrase) opens" in said
    assert site.json("archive list {}/archive --passphrase-file {}/word")["points"]
    monkeypatch.setenv(PASSPHRASE, "correct horse")
    assert "key 1 (key file) does not open" in site.run("archive key remove {}/archive 1")
    assert "is whole" in site.run("archive verify {}/archive")
    assert "that key file does not open" in site.run("archive list {}/archive --key-file {}/key", 2)
    table = site.run("archive key list {}/archive")
    assert [line.split()[:2] for line in table.splitlines()] == [["KEY", "KIND"], ["2", "passphrase"]]
    (told,) = site.json("archive key list {}/archive")["keys"]
    assert (told["number"], told["kind"], told["label"]) == (2, "passphrase", "mine")
    assert site.run("archive key add {}/archive --new-key-file {}/made -q") == ""
    assert (site.folder / "made").stat().st_mode & 0o777 == 0o600
    monkeypatch.setenv(PASSPHRASE, "correct house")
    assert "that passphrase does not open" in site.run("archive list {}/archive", 2)
    after = site.stored()
    assert {name: data for name, data in after.items() if not name.startswith("keys")} == {
        name: data for name, data in before.items() if not name.startswith("keys")
    }


@pytest.mark.parametrize(
    ("line", "status", "message"),
    [
        ("archive list {}/archive", 2, "is encrypted: say what opens it with --key-file, "),
        ("archive list {}/archive --key-file {}/wrong", 2, "does not open {}/archive; its keys are: 1 by key file"),
        ("archive take {}/archive full:{}/disk --key-file {}/wrong", 2, "that key file does not open"),
        ("archive list {}/archive --passphrase-file {}/word", 2, "that passphrase does not open"),
        ("archive list {}/plain --key-file {}/key", 2, "{}/plain is not encrypted"),
        ("archive take {}/plain full:{}/disk --passphrase-file {}/word", 2, "and --passphrase-file is given"),
        ("archive list {}/archive --key-file {}/key --passphrase-file {}/word", 2, "are both given; choose one"),
        ("archive list {}/archive --key-file {}/none", 3, "cannot read {}/none: No such file"),
        ("archive list {}/archive --key-file {}/open", 3, "can be read by others (mode 0640): a secret is"),
        ("archive list {}/archive --key-file {}/short", 2, "has 31 bytes: a key file has 32 to 1024 random ones"),
        ("archive list {}/archive --key-file {}/disk", 3, "can be read by others"),
        ("archive list {}/archive --key-file {}/long", 2, "has more than 1024 bytes"),
        ("archive list {}/archive --key-file /dev/zero", 2, "has more than 1024 bytes"),
        ("archive list {}/archive --key-file {}", 3, "cannot read {}"),
        ("archive list {}/archive --passphrase-file {}/empty", 2, "has to hold a passphrase: one line"),
        ("archive list {}/archive --passphrase-file {}/lines", 2, "has to hold a passphrase: one line"),
        ("archive init {}/new --key-file {}/key", 2, "would not be encrypted: add --encrypt"),
        ("archive init {}/new --encrypt", 2, "no terminal to type a passphrase on: use --key-file"),
        ("archive init {}/new --encrypt --key-file {}/no/where", 3, "cannot make {}/no/where"),
        ("archive init {}/new --encrypt --key-file {}/a --passphrase-file {}/word", 2, "choose one"),
        ("archive init {}/archive --encrypt --key-file {}/another", 8, "there is an archive at"),
        ("archive key add {}/archive --key-file {}/key", 2, "no terminal to type a passphrase on: use --new-key"),
        ("archive key add {}/archive --key-file {}/wrong --new-key-file {}/another", 2, "that key file does not open"),
        ("archive key add {}/archive --key-file {}/key --new-key-file {}/key", 2, "already: it is key 1"),
        ("archive key add {}/plain --key-file {}/key", 2, "{}/plain is not encrypted: it has no keys"),
        ("archive key list {}/plain", 2, "is not encrypted"),
        ("archive key list {}/none", 3, "there is no archive at {}/none"),
        ("archive key list {}", 3, "there is no archive at {}: 'lvmsync archive init"),
        ("archive key remove {}/archive 1 --key-file {}/key", 2, "key 1 is the last"),
        ("archive key remove {}/archive 2", 2, "is encrypted: say what opens it"),
        ("archive key nonsense {}/archive", 2, "nonsense"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_one_clear_line(site: Site, line: str, status: int, message: str) -> None:
    site.run("archive init {}/plain")
    site.secret("wrong", bytes(32))
    site.secret("word", b"word")
    site.secret("open", bytes(32), 0o640)
    site.secret("short", bytes(31))
    site.secret("long", bytes(1025))
    site.secret("empty", b"\n")
    site.secret("lines", b"one\ntwo\n")
    before = site.stored()
    said = site.run(line, status)
    assert message.replace("{}", str(site.folder)) in said
    assert len(said.splitlines()) == 1
    assert site.stored() == before
    assert not (site.folder / "another").exists()  # no key file is made for nothing
    assert not list((site.folder / "new").glob("*"))


def test_what_the_environment_says_is_refused_where_it_means_nothing(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.run("archive init {}/plain")
    for name in (KEY_FILE, PASSPHRASE):
        with monkeypatch.context() as patch:
            patch.setenv(name, str(site.key))
            assert f"is not encrypted (it has no keys-... object), and {name} is given" in site.run(
                "archive list {}/plain", 2
            )
            assert f"{name} is given, and the archive would not be encrypted" in site.run("archive init {}/new", 2)
            site.run("archive init {}/" + name + " --encrypt -q")
            site.run("archive list {}/" + name)
    monkeypatch.setenv(KEY_FILE, str(site.key))
    monkeypatch.setenv(PASSPHRASE, "x")
    assert "are both set: unset one" in site.run("archive list {}/archive", 2)
    site.run("archive list {}/archive --key-file {}/key")


def test_a_damaged_swapped_or_cut_object_is_named_by_verify(site: Site) -> None:
    key = "--key-file {}/key"
    for label in ("one", "two"):
        site.run(f"archive take {{}}/archive full:{{}}/disk --label {label} {key}")
    members = [site.archive / one["name"] for one in site.json(f"archive list {{}}/archive {key}")["members"]]
    whole = [member.read_bytes() for member in members]
    for spoiled in (whole[0][:-1], whole[0][: len(whole[0]) // 2], whole[0] + b"x", whole[1], b"", b"x" * 99999):
        members[0].write_bytes(spoiled)
        said = site.run(f"archive verify {{}}/archive {key}", 9)
        assert f"{members[0]}: " in said
        assert "it leads to point #1" in said
        site.run(f"archive restore {{}}/archive --at two --to {{}}/two --create {key}")
        (site.folder / "two").unlink()
        assert str(members[0]) in site.run(f"archive restore {{}}/archive --at one --to {{}}/one --create {key}", 6)
        assert not (site.folder / "one").exists() or not (site.folder / "one").read_bytes().strip(b"\0")
        (site.folder / "one").unlink(missing_ok=True)
    members[0].write_bytes(whole[0])
    keys = next(site.archive.glob("keys-*"))
    good = keys.read_bytes()
    keys.write_bytes(good[:100])
    assert f"{keys}: not the keys of an archive, or damaged ones" in site.run(f"archive verify {{}}/archive {key}", 4)
    keys.write_bytes(good)
    newest = max(site.archive.glob("catalogue-*"))
    newest.write_bytes(newest.read_bytes()[:-1])
    said = site.run(f"archive list {{}}/archive {key}", 4)
    assert f"the newest catalogue is damaged: {newest}: " in said


def test_a_timer_is_told_what_the_environment_says(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    line = "archive install-timer {}/archive vg/web --print"
    assert "key-file" not in site.run(line)
    monkeypatch.setenv(KEY_FILE, str(site.key))
    assert f"--key-file={site.key}" in site.run(line)
    said = site.run(line + " --passphrase-file {}/word")
    assert f"--passphrase-file={site.folder}/word" in said
    assert "key-file" not in said
    monkeypatch.delenv(KEY_FILE)
    monkeypatch.setenv(PASSPHRASE, "word")
    assert f"{PASSPHRASE} is not there when a timer runs: name a file" in site.run(line, 2)
    assert "key-file" in site.run(line + " --key-file {}/key")


def test_a_run_by_the_time_opens_it(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    line = "archive run {}/archive full:{}/disk --keep-last 1"
    assert "is encrypted: say what opens it" in site.run(line, 2)
    monkeypatch.setenv(KEY_FILE, str(site.key))
    site.run(line)
    assert "1 member" in site.run("archive verify {}/archive")


def on_a_terminal(words: list[str], typed: list[bytes]) -> tuple[int, str]:
    """Run lvmsync on a terminal of its own; type a line at each question."""
    pid, terminal = pty.fork()
    if not pid:
        os.execv(sys.executable, [sys.executable, "-m", "lvmsync", *words])
    said = b""
    try:
        with suppress(OSError):  # the terminal is gone when the process is
            while data := os.read(terminal, 1000):
                said += data
                if said.endswith(b": ") and typed:
                    os.write(terminal, typed.pop(0))
    finally:
        os.close(terminal)
        _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status), said.decode()


def answers() -> Iterator[tuple[str, list[bytes], int, str]]:
    yield "archive init {}/typed --encrypt", [b"one\n", b"two\n"], 2, "the two passphrases are not the same"
    yield "archive init {}/typed --encrypt", [b"\n"], 2, "no passphrase was typed"
    yield "archive init {}/typed --encrypt", [b"\x04"], 2, "no passphrase was typed"
    yield "archive init {}/typed --encrypt", [b"one\n", b"\x03"], 130, "interrupted"
    yield "archive init {}/typed --encrypt", [b"schl\xc3\xbcssel\n", b"schl\xc3\xbcssel\n"], 0, "is an archive now"
    yield "archive list {}/typed", [b"schlussel\n"], 2, "that passphrase does not open"
    yield "archive list {}/typed", [b"schl\xc3\xbcssel\n"], 0, "no points yet"
    yield "archive key add {}/typed", [b"schl\xc3\xbcssel\n", b"new\n", b"new\n"], 0, "key 2 (passphrase) opens"
    yield "archive run {}/typed full:{}/disk --keep-last 1", [b"new\n"], 0, "point #1: applied"
    yield "archive list {}/archive", [], 2, "is encrypted: say what opens it with"


def test_a_passphrase_is_typed_and_not_shown(site: Site) -> None:
    for line, typed, status, message in answers():
        words = line.replace("{}", str(site.folder)).split()
        found, said = on_a_terminal(words, list(typed))
        assert message in said
        assert found == status
        assert not [
            one for one in typed if one.decode().strip() and one.strip() and one.decode().strip() + "\r" in said
        ]
        if status and "init" in line:
            assert not list((site.folder / "typed").glob("*"))

"""Who may join a conversation, and what becomes of its socket."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from lvmsync.errors import ConflictError, DeviceError, LvmsyncError, TransportError, UsageError
from lvmsync.jobs.agent import streams
from lvmsync.jobs.agent.protocol import Line
from lvmsync.transport.striped import Socket, Striped


class First:
    """An agent that waits for more lines."""

    def __init__(self, state: Path, count: int) -> None:
        here, there = socket.socketpair()
        self.line, self.client = Line(Socket(there, "a")), Socket(here, "b")
        self.said: list[Mapping[str, Any]] = []
        self.told = threading.Event()
        self.outcome: Striped | LvmsyncError | None = None

        def say(_: str, values: Mapping[str, Any]) -> None:
            self.said.append(values)
            self.told.set()

        def run() -> None:
            try:
                self.outcome = streams.accept(self.line, say, count, state)
            except LvmsyncError as error:
                self.outcome = error

        self.thread = threading.Thread(target=run, daemon=True)
        self.thread.start()
        if 2 <= count <= 16:
            assert self.told.wait(10)

    def end(self) -> Striped | LvmsyncError | None:
        self.thread.join(10)
        assert not self.thread.is_alive()
        return self.outcome


def join(state: Path, name: str, secret: str) -> Socket:
    """Run an agent that joins, and return the line to it once it is welcome."""
    here, there = socket.socketpair()
    client = Socket(here, "c")
    outcome: list[LvmsyncError] = []
    told = threading.Event()

    def run() -> None:
        try:
            streams.join(Line(Socket(there, "d")), lambda *_: told.set(), name, secret, state)
        except LvmsyncError as error:
            outcome.append(error)
            told.set()

    threading.Thread(target=run, daemon=True).start()
    assert told.wait(10)
    if outcome:
        raise outcome[0]
    return client


def test_lines_that_know_the_secret_become_one(tmp_path: Path) -> None:
    first = First(tmp_path, 3)
    (ticket,) = first.said
    assert (tmp_path / "streams").stat().st_mode & 0o777 == 0o700
    joined = [join(tmp_path, ticket["id"], ticket["secret"]) for _ in range(2)]
    there = first.end()
    assert isinstance(there, Striped)
    here = Striped([first.client, *joined])
    here.send_all([bytes(3 << 20), b"end"])
    here.send_eof()
    buffer, total = memoryview(bytearray(1 << 20)), 0
    while count := there.receive_some(buffer):
        total += count
    assert total == (3 << 20) + 3
    assert list((tmp_path / "streams").iterdir()) == []


def test_a_wrong_secret_is_not_let_in_and_does_no_harm(tmp_path: Path) -> None:
    first = First(tmp_path, 2)
    (ticket,) = first.said
    for wrong in ("0" * 32, ticket["secret"][::-1]):
        with pytest.raises(ConflictError, match="does not want this one"):
            join(tmp_path, ticket["id"], wrong)
    join(tmp_path, ticket["id"], ticket["secret"])
    assert isinstance(first.end(), Striped)


def test_nobody_is_joined_by_a_path_or_where_nobody_waits(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as other:  # of another program, say
        other.bind(str(tmp_path / "socket"))
        other.listen()
        for name in ("../socket", str(tmp_path / "socket"), "", "A" * 32, "0" * 31):
            with pytest.raises(UsageError, match="makes no sense"):
                join(tmp_path, name, "0" * 32)
    with pytest.raises(ConflictError, match="no stream waits for this one"):
        join(tmp_path, "0" * 32, "0" * 32)


def test_a_folder_that_others_may_enter_is_refused(tmp_path: Path) -> None:
    (tmp_path / "streams").mkdir(mode=0o755)
    with pytest.raises(DeviceError, match="chmod 700"):
        join(tmp_path, "0" * 32, "0" * 32)


@pytest.mark.parametrize("count", [1, 17])
def test_a_number_out_of_range_is_refused(tmp_path: Path, count: int) -> None:
    assert isinstance(First(tmp_path, count).end(), UsageError)


def test_lines_that_do_not_come_are_not_waited_for_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "_JOIN_SECONDS", 0.2)
    outcome = First(tmp_path, 2).end()
    assert isinstance(outcome, TransportError)
    assert "stream 2 of 2 did not come" in str(outcome)
    assert list((tmp_path / "streams").iterdir()) == []


def test_sockets_of_agents_that_were_killed_are_swept_away_and_others_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "streams"
    folder.mkdir(mode=0o700)
    monkeypatch.chdir(folder)  # the path of a socket is short
    for name in ("a" * 32, "b" * 32 + ".new", "c" * 32):
        with socket.socket(socket.AF_UNIX) as left:
            left.bind(name)
        os.utime(folder / name, (1, 1))
    os.utime(folder / ("c" * 32))  # it may be about to listen
    (folder / "notes").touch()
    with socket.socket(socket.AF_UNIX) as alive:
        alive.bind("d" * 32)
        alive.listen()
        os.utime(folder / ("d" * 32), (1, 1))
        first = First(tmp_path, 2)
        names = sorted(path.name[:1] for path in folder.iterdir() if path.name != first.said[0]["id"])
        assert names == ["c", "d", "n"]
        join(tmp_path, first.said[0]["id"], first.said[0]["secret"])
        first.end()

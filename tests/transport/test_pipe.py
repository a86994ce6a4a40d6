"""This process's own stdin and stdout, and the cleaning of a peer's stderr."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import pytest

from lvmsync.errors import TransportError
from lvmsync.transport.lines import Lines
from lvmsync.transport.pipe import Command

ROOT = Path(__file__).resolve().parents[2]

ECHO = """
import subprocess
from lvmsync.transport.pipe import Stdio
with Stdio() as line:
    print("a stray print", flush=True)
    subprocess.run("echo a stray program; cat", shell=True)
    buffer = memoryview(bytearray(1 << 16))
    while count := line.receive_some(buffer):
        line.send_all([buffer[:count], b""])
    line.send_eof()
    assert line.aclose() == 0
"""

SEND = """
import sys
from lvmsync.errors import LvmsyncError
from lvmsync.transport.pipe import Stdio
try:
    with Stdio() as line:
        while True:
            line.send_all([bytes(1 << 20)])
except LvmsyncError as error:
    print(error, file=sys.stderr)
    sys.exit(error.exit_code)
"""


def python(script: str) -> list[str]:
    return [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{script}"]


def test_stdin_and_stdout_are_the_line_and_nothing_else_gets_at_them() -> None:
    data = os.urandom(3 << 20)
    result = subprocess.run(python(ECHO), input=data, capture_output=True, check=True, timeout=60)
    assert result.stdout == data
    assert result.stderr.decode().splitlines() == ["a stray print", "a stray program"]


def test_files_serve_as_stdin_and_stdout(tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(data := os.urandom(100_000))
    with (tmp_path / "in").open("rb") as source, (tmp_path / "out").open("wb") as sink:
        subprocess.run(python(ECHO), stdin=source, stdout=sink, check=True, timeout=60)
    assert (tmp_path / "out").read_bytes() == data


def test_pipes_that_do_not_block_are_waited_for() -> None:
    data = os.urandom(3 << 20)
    (stdin, feed), (result, stdout) = os.pipe(), os.pipe()
    os.set_blocking(stdin, False)
    os.set_blocking(stdout, False)
    with subprocess.Popen(python(ECHO), stdin=stdin, stdout=stdout) as echo:
        os.close(stdin)
        os.close(stdout)

        def send() -> None:
            with os.fdopen(feed, "wb") as file:
                file.write(data)

        feeder = threading.Thread(target=send)
        feeder.start()
        with os.fdopen(result, "rb") as file:
            assert file.read() == data
        feeder.join()
    assert echo.returncode == 0


def test_a_reader_that_is_gone_is_an_error_of_the_line() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        result = subprocess.run(python(SEND), stdout=writer, stderr=subprocess.PIPE, timeout=60, check=False)
    finally:
        os.close(writer)
    assert (result.returncode, result.stderr.count(b"\n")) == (7, 1)


@pytest.mark.parametrize("work", ["line.receive_some(memoryview(bytearray(1)))", "line.send_all([bytes(8 << 20)])"])
def test_a_far_side_that_is_gone_without_a_word_is_a_stall(work: str) -> None:
    script = SEND.replace(
        "while True:\n            line.send_all([bytes(1 << 20)])", f"line.stall_timeout = 0.3\n        {work}"
    )
    (stdin, feed), (result, stdout) = os.pipe(), os.pipe()
    try:
        done = subprocess.run(
            python(script), stdin=stdin, stdout=stdout, stderr=subprocess.PIPE, timeout=60, check=False
        )
        assert os.get_blocking(stdout)  # others may use it
    finally:
        for fd in stdin, feed, result, stdout:
            os.close(fd)
    assert done.returncode == 7
    assert done.stderr.startswith(b"standard input and output: no byte moved for 0.3 s")


def test_a_full_disk_is_an_error_of_this_machine() -> None:
    with Path("/dev/full").open("wb") as full:
        result = subprocess.run(python(SEND), stdout=full, stderr=subprocess.PIPE, timeout=60, check=False)
    assert (result.returncode, result.stderr) == (3, b"stdout: No space left on device; the stream is not complete\n")


@pytest.mark.parametrize(
    ("data", "lines"),
    [
        (b"a\nb\r\nc", ["a", "b", "c"]),
        (b"10%\r20%\r\n", ["10%", "20%"]),
        (b"\x1b[2J\x1b[1;31mred\x1b[m", ["red"]),
        (b"\x1b]52;c;ZXZpbA==\x07clip", ["clip"]),
        (b"\x1b]0;title\x1b\\text", ["text"]),
        (b"\xc2\x9b31mred \xc2\x9d0;t\x07end", ["red end"]),
        (b"\x1bPq#0\x1b\\sixel \x1bcreset \x1b(B.", ["sixel reset ."]),
        (b"a\x00b\x08c\x7fd\x1b", ["abcd"]),
        ("a\u202eb\u2028c".encode(), ["abc"]),
        (b"\xff\xfe ok", ["\ufffd\ufffd ok"]),
        (b"\n\n \n\x1b[0m\n", []),
        (b"x" * 10_000, ["x" * 4096, "x" * 4096, "x" * 1808]),
    ],
)
@pytest.mark.parametrize("step", [1, 3, 1 << 20])
def test_lines_of_a_peer_are_shown_without_what_drives_a_terminal(data: bytes, lines: list[str], step: int) -> None:
    said: list[str] = []
    parser = Lines(said.append)
    for start in range(0, len(data), step):
        parser.feed(data[start : start + step])
    parser.end()
    assert said == lines


@pytest.mark.parametrize("said", ["", "yes | head -c 3000000"])
def test_a_thread_that_receives_while_the_line_is_closed_finds_its_end(said: str) -> None:
    counts: list[int] = []

    def receive() -> None:
        buffer = memoryview(bytearray(4096))
        with suppress(TransportError):
            while not counts or counts[-1]:
                counts.append(line.receive_some(buffer))

    with Command(["sh", "-c", f"cat; {said}"], lambda _: None) as line:
        thread = threading.Thread(target=receive)
        line.send_all([b"x"])
        thread.start()
        assert line.aclose() == 0
        thread.join(10)
        assert not thread.is_alive()

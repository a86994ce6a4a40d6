"""One set of tests over every transport that has a far side: local, a command, the ssh program, asyncssh."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import FrameType

import pytest

from lvmsync.errors import TransportError, UsageError
from lvmsync.interfaces import Transport
from lvmsync.names import Host
from lvmsync.transport import Ssh, open_transport
from tests.sshd import Sshd, make_key, run_sshd, write_config, write_known_hosts

MIB = 1 << 20
HERE = Host(None, "127.0.0.1")
Open = Callable[..., AbstractContextManager[Transport]]


@pytest.fixture(autouse=True)
def _net() -> Iterator[None]:
    """End a test that hangs."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise AssertionError("hangs")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(120)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    with run_sshd(tmp_path_factory.mktemp("sshd")) as server:
        yield server


@pytest.fixture
def local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Open:
    """The local transport, with an lvmsync that runs its words as a command."""
    package = tmp_path / "path" / "lvmsync"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text(
        "import os, sys\n"
        "try:\n    os.execvp(sys.argv[1], sys.argv[1:])\n"
        "except FileNotFoundError:\n    print('not found', file=sys.stderr)\n    sys.exit(127)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(package.parent))

    def start(words: Sequence[str], on_stderr: Callable[[str], None] = print) -> AbstractContextManager[Transport]:
        return open_transport(None, words, on_stderr=on_stderr)

    return start


@pytest.fixture
def wrapper(tmp_path: Path) -> Open:
    """A command in place of ssh: ``RSH HOST COMMAND``."""
    script = tmp_path / "rsh"
    script.write_text('#!/bin/sh\n[ "$#" = 3 ] && [ "$1 $2" = "-x me@far" ] || exit 99\nexec sh -c "$3"\n')
    script.chmod(0o755)

    def start(words: Sequence[str], on_stderr: Callable[[str], None] = print) -> AbstractContextManager[Transport]:
        return open_transport(Host("me", "far"), words, rsh=[str(script), "-x"], on_stderr=on_stderr)

    return start


@pytest.fixture
def ssh(sshd: Sshd) -> Open:
    def start(words: Sequence[str], on_stderr: Callable[[str], None] = print) -> AbstractContextManager[Transport]:
        return open_transport(HERE, words, rsh=["ssh", "-F", str(sshd.config)], on_stderr=on_stderr)

    return start


@pytest.fixture
def asyncssh(sshd: Sshd) -> Open:
    def start(
        words: Sequence[str], on_stderr: Callable[[str], None] = print, stall_timeout: float | None = 60
    ) -> AbstractContextManager[Transport]:
        options = Ssh(config=str(sshd.config))
        return open_transport(HERE, words, ssh=options, stall_timeout=stall_timeout, on_stderr=on_stderr)

    return start


@pytest.fixture(params=["local", "wrapper", "ssh", "asyncssh"])
def far(request: pytest.FixtureRequest) -> Open:
    start: Open = request.getfixturevalue(request.param)
    return start


def receive_all(line: Transport) -> bytes:
    buffer = memoryview(bytearray(MIB))
    received = bytearray()
    while count := line.receive_some(buffer):
        received += buffer[:count]
    return bytes(received)


def send_forever(line: Transport, sent: list[int]) -> None:
    data = bytes(MIB)
    for _ in range(1000):
        line.send_all([data])
        sent.append(len(data))
    pytest.fail("it takes everything")


def resident() -> int:
    """Bytes of memory that this process holds now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


def test_100_mib_go_there_and_back_unchanged(far: Open) -> None:
    pieces = [os.urandom(MIB) for _ in range(4)]
    sent, received = hashlib.sha256(), hashlib.sha256()
    with far(["cat"]) as line:

        def send() -> None:
            for number in range(100):
                data = bytearray(pieces[number % 4])
                sent.update(data)
                line.send_all([data[:5], memoryview(data)[5:]])
                data[:] = bytes(MIB)  # the buffer is ours again: what was sent must not change with it
            line.send_eof()

        sender = threading.Thread(target=send)
        sender.start()
        buffer = memoryview(bytearray(MIB))
        while count := line.receive_some(buffer):
            received.update(buffer[:count])
        sender.join()
        assert line.aclose() == 0
    assert received.digest() == sent.digest()


def test_thousands_of_small_buffers_of_every_kind_arrive_in_order(far: Open) -> None:
    kinds = [bytes, bytearray, memoryview]
    buffers = [kinds[number % 3](b"%d," % number) for number in range(5000)]
    with far(["cat"]) as line:
        line.send_all([b"", *buffers, b""])
        line.send_all([])
        line.send_eof()
        assert receive_all(line) == b"".join(buffers)
        assert line.aclose() == 0


@pytest.mark.parametrize("status", [0, 3, 9, 127, 255])
def test_the_exit_status_of_the_far_side_is_given(far: Open, status: int) -> None:
    with far(["sh", "-c", f"cat >/dev/null; exit {status}"]) as line:
        line.send_all([b"x"])
        assert line.aclose() == status
        assert line.aclose() == status


def test_a_far_side_that_a_signal_ends_gives_128_and_its_number(far: Open, request: pytest.FixtureRequest) -> None:
    with far(["sh", "-c", "kill -KILL $$"]) as line:
        assert receive_all(line) == b""
        assert line.aclose() == (255 if "[ssh]" in request.node.name else 128 + 9)  # the ssh program says 255


def test_a_far_program_that_is_missing_gives_127(far: Open) -> None:
    said: list[str] = []
    with far(["lvmsync-is-not-here"], said.append) as line:
        assert receive_all(line) == b""
        assert line.aclose() == 127
    assert "not found" in said[-1]


def test_the_far_stderr_comes_line_by_line_and_cannot_drive_the_terminal(far: Open) -> None:
    said: list[str] = []
    script = r"printf 'one\ntwo \033[31mred\033[0m\033]0;title\007\n\n\377\tlast' >&2; printf data"
    with far(["sh", "-c", script], said.append) as line:
        assert receive_all(line) == b"data"
        assert line.aclose() == 0
    assert said == ["one", "two red", "\ufffd last"]


def test_after_our_end_the_far_side_can_still_talk(far: Open) -> None:
    with far(["sh", "-c", "wc -c; echo done"]) as line:
        line.send_all([bytes(3 * MIB)])
        line.send_eof()
        assert receive_all(line).split() == [str(3 * MIB).encode(), b"done"]
        assert line.receive_some(memoryview(bytearray(1))) == 0
        assert line.aclose() == 0


def test_sending_after_our_end_is_a_mistake_of_the_caller(far: Open) -> None:
    with far(["cat"]) as line:
        line.send_eof()
        line.send_eof()
        with pytest.raises(ValueError, match=r"after|closed"):
            line.send_all([b"x"])
        assert line.aclose() == 0


def test_what_the_far_side_said_before_it_ended_is_received(far: Open) -> None:
    with far(["sh", "-c", f"head -c {30 * MIB} /dev/zero; exit 4"]) as line:
        assert receive_all(line) == bytes(30 * MIB)
        assert line.aclose() == 4


def test_a_far_side_that_dies_in_the_middle_is_an_error_of_the_line_and_has_a_status(far: Open) -> None:
    with far(["sh", "-c", "head -c 3000000 >/dev/null; exit 5"]) as line:
        with pytest.raises(TransportError):
            send_forever(line, [])
        assert line.aclose() == 5


def test_what_the_far_side_left_is_received_after_it_refused_more(asyncssh: Open) -> None:
    with asyncssh(["sh", "-c", f"head -c {10 * MIB} /dev/zero; exit 3"]) as line:
        with pytest.raises(TransportError, match="status 3"):
            send_forever(line, [])
        assert receive_all(line) == bytes(10 * MIB)
        assert line.aclose() == 3


def test_hostile_words_reach_the_far_side_as_they_are(far: Open, tmp_path: Path) -> None:
    words = [
        "a b", "", "'", '"', "a'b\"c", "$(touch X)", "`touch X`", "; touch X", "&& touch X", "|", "*", "~", "$HOME",
        "new\nline", "tab\t", "\\", "\\n", "-n", "--", "#", "!!", "ümlaut", "\x1b[31m", "a\rb",
    ]  # fmt: skip
    # env: the program, not a shell's own printf
    with far(["env", "printf", "%s\\0", *[word.replace("X", str(tmp_path / "X")) for word in words]]) as line:
        got = receive_all(line).decode().split("\0")[:-1]
        assert line.aclose() == 0
    assert got == [word.replace("X", str(tmp_path / "X")) for word in words]
    assert not (tmp_path / "X").exists()


def test_leaving_without_a_close_cuts_the_line(far: Open) -> None:
    def interrupted() -> None:
        with far(["sh", "-c", "echo here; while echo more; do :; done"]) as line:
            assert line.receive_some(memoryview(bytearray(4))) == 4
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()


def test_a_line_that_is_cut_is_not_an_end(asyncssh: Open, ssh: Open, sshd: Sshd) -> None:
    for start in asyncssh, ssh:
        with start(["sh", "-c", "echo here; exec cat"]) as line:
            assert line.receive_some(memoryview(bytearray(5))) == 5
            sshd.cut()
            with pytest.raises(TransportError):
                send_forever(line, [])
            if start is ssh:
                assert line.aclose() == 255
            else:
                with pytest.raises(TransportError, match="connection lost"):
                    line.receive_some(memoryview(bytearray(1)))
                with pytest.raises(TransportError, match="connection lost"):
                    line.aclose()


def test_a_far_side_that_does_not_read_is_a_stall_and_takes_no_memory(asyncssh: Open, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    fd = os.open(gate, os.O_RDWR)
    try:
        with asyncssh(["cat", str(gate)], stall_timeout=0.3) as line:
            before = resident()
            sent: list[int] = []
            with pytest.raises(TransportError, match="no byte moved"):
                send_forever(line, sent)
            assert sum(sent) < 32 * MIB
            assert resident() - before < 64 * MIB
            with pytest.raises(TransportError, match="no byte moved"):
                line.aclose()
    finally:
        os.close(fd)


def test_a_far_side_that_hangs_is_a_stall_both_ways(far: Open, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    fd = os.open(gate, os.O_RDWR)
    try:
        blocked: list[Callable[[Transport], object]] = [
            lambda line: send_forever(line, []),
            lambda line: line.receive_some(memoryview(bytearray(1))),
        ]
        for work in blocked:
            with far(["sh", "-c", f"echo here; read line < {gate}"]) as line:
                assert line.receive_some(memoryview(bytearray(5))) == 5
                line.stall_timeout = 0.5
                with pytest.raises(TransportError, match=r"no byte moved for 0\.5 s: the line or the far side hangs"):
                    work(line)
                with pytest.raises(TransportError, match="no byte moved"):
                    line.aclose()
    finally:
        os.close(fd)


def test_signs_of_life_from_a_far_side_that_does_not_read_are_no_stall(far: Open) -> None:
    with far(["sh", "-c", "for i in 1 2 3 4 5 6; do sleep 0.5; echo alive; done; cat > /dev/null"]) as line:
        line.stall_timeout = 2
        for _ in range(40):
            line.send_all([bytes(MIB)])
        line.send_eof()
        assert receive_all(line) == b"alive\n" * 6
        assert line.aclose() == 0


def test_a_stream_that_is_received_slowly_takes_no_memory(asyncssh: Open) -> None:
    with asyncssh(["head", "-c", str(400 * MIB), "/dev/zero"]) as line:
        before = most = resident()
        total = 0
        buffer = memoryview(bytearray(MIB))
        while count := line.receive_some(buffer):
            total += count
            most = max(most, resident())
            for _ in range(20):  # slow, but no sleep: give the loop's thread its turns
                os.sched_yield()
                hashlib.sha256(buffer).digest()
        assert total == 400 * MIB
        assert most - before < 80 * MIB
        assert line.aclose() == 0


def test_a_program_that_cannot_be_started_is_named() -> None:
    with (
        pytest.raises(TransportError, match=r"no-such-rsh: cannot be started: No such file"),
        open_transport(HERE, ["true"], rsh=["no-such-rsh"], on_stderr=print),
    ):
        pass


@pytest.mark.parametrize(
    ("host", "words", "rsh", "ssh"),
    [
        (Host(None, "-oProxyCommand=x"), ["true"], None, Ssh()),
        (Host("-oProxyCommand=x", "a"), ["true"], ["ssh"], Ssh()),
        (HERE, ["a\0b"], None, Ssh()),
        (HERE, ["true"], [], Ssh()),
        (HERE, ["true"], ["ssh"], Ssh(port=1)),
        (HERE, ["true"], ["ssh"], Ssh(identity="key")),
    ],
)
def test_what_cannot_be_passed_on_safely_is_refused(
    host: Host, words: list[str], rsh: list[str] | None, ssh: Ssh
) -> None:
    with pytest.raises(UsageError):
        open_transport(host, words, rsh=rsh, ssh=ssh, on_stderr=print)


def login_error(options: Ssh, host: Host = HERE) -> str:
    with (
        pytest.raises(TransportError) as caught,
        open_transport(host, ["true"], ssh=options, on_stderr=print),
    ):
        pass
    assert caught.value.exit_code == 7
    assert caught.value.__cause__
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_an_unknown_host_key_is_refused_and_the_message_says_what_to_do(sshd: Sshd, tmp_path: Path) -> None:
    config = tmp_path / "config"
    for known_hosts in Path("none"), tmp_path / "missing", Path("/dev/null"):
        write_config(config, sshd.port, known_hosts=known_hosts, key=sshd.user_key)
        message = login_error(Ssh(config=str(config)))
        assert "127.0.0.1: unknown host: its key SHA256:" in message
        assert f"ssh -p {sshd.port} 127.0.0.1" in message
        assert "-e ssh" in message


def test_a_changed_host_key_is_refused_loudly(sshd: Sshd, tmp_path: Path) -> None:
    make_key(tmp_path / "other")
    write_known_hosts(tmp_path / "known_hosts", sshd.port, tmp_path / "other.pub")
    write_config(tmp_path / "config", sshd.port, known_hosts=tmp_path / "known_hosts", key=sshd.user_key)
    message = login_error(Ssh(config=str(tmp_path / "config")))
    assert "HAS CHANGED" in message
    assert f"ssh-keygen -R '[127.0.0.1]:{sshd.port}'" in message


def test_a_login_that_is_refused_says_what_to_try(sshd: Sshd, tmp_path: Path) -> None:
    make_key(tmp_path / "other")
    write_config(tmp_path / "config", sshd.port, known_hosts=sshd.known_hosts, key=tmp_path / "other")
    message = login_error(Ssh(config=str(tmp_path / "config")))
    assert "login refused" in message
    assert "-e ssh" in message


def test_port_and_identity_override_the_config(sshd: Sshd, tmp_path: Path) -> None:
    make_key(tmp_path / "other")
    write_config(tmp_path / "config", 1, known_hosts=sshd.known_hosts, key=tmp_path / "other")
    options = Ssh(port=sshd.port, identity=str(sshd.user_key), config=str(tmp_path / "config"))
    with open_transport(HERE, ["true"], ssh=options, on_stderr=print) as line:
        assert line.aclose() == 0


def test_a_missing_key_file_and_a_bad_config_are_named(sshd: Sshd, tmp_path: Path) -> None:
    assert "/no/such/key: No such file" in login_error(Ssh(config=str(sshd.config), identity="/no/such/key"))
    (tmp_path / "config").write_text("Host *\n  Port many\n")
    assert "Invalid Port integer value: many" in login_error(Ssh(config=str(tmp_path / "config")))


def test_a_closed_port_and_a_bad_name_are_told_apart(sshd: Sshd) -> None:
    assert "connection refused" in login_error(Ssh(config=str(sshd.config), port=1))
    assert "not a host name" in login_error(Ssh(), Host(None, "a" * 70 + ".example"))


def test_noise_of_the_far_shell_is_seen_by_the_receiver_of_the_bytes(wrapper: Open) -> None:
    """A banner on stdout is not filtered: the stream's first line is checked by who reads the stream."""
    with wrapper(["sh", "-c", "echo Welcome; cat"]) as line:
        line.send_all([b"data"])
        line.send_eof()
        assert receive_all(line) == b"Welcome\ndata"


def test_the_local_far_side_is_this_interpreter(tmp_path: Path, local: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    trap = tmp_path / "trap"
    shutil.copytree(tmp_path / "path" / "lvmsync", trap / "lvmsync")
    (trap / "lvmsync" / "__main__.py").write_text("print('the wrong one')")
    monkeypatch.chdir(trap)  # a folder called lvmsync lies in the working folder
    with local([sys.executable, "-c", "import sys; print(sys.executable)"]) as line:
        assert receive_all(line).decode().strip() == sys.executable

"""``archive serve``: what real clients of NBD see of an archive is what was, whatever they and others do."""

from __future__ import annotations

import ctypes
import os
import random
import re
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lvmsync.cli.classic import run
from lvmsync.extents import ChangeMap
from lvmsync.jobs.nbd.overlay import BLOCK, Overlay
from lvmsync.jobs.nbd.volume import Volume
from lvmsync.nbd import wire
from lvmsync.nbd.allocation import Allocation
from tests.archive_history import Both, Forward, History, Reverse
from tests.nbd.talk import go, option, request
from tests.nbd_server import LVMSYNC, Served, padded, receive, serving
from tests.sshd import run_sshd

K = 1024
SIZE = 192 * K + 519  # no multiple of a sector


@pytest.fixture
def short(tmp_path: Path) -> Iterator[Path]:
    """Return a path for a socket; those of tests are too long at times."""
    path = Path(f"/tmp/lvmsync-nbd-{os.getpid()}-{sha256(str(tmp_path).encode()).hexdigest()[:8]}")
    yield path
    path.unlink(missing_ok=True)


def digests(folder: Path) -> dict[str, str]:
    return {str(path): sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*") if path.is_file()}


def make(
    kind: type[Forward] | type[Reverse] | type[Both], folder: Path, seed: int, count: int = 10
) -> Forward | Reverse:
    return kind(folder, History.make(seed, count, SIZE, may_resize=kind is Forward))


def count_members(pid: int) -> int:
    """Return how many members of an archive a process has open; it may open and close some meanwhile."""
    count = 0
    for path in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):
            count += path.readlink().suffix == ".stream"
    return count


def options_of(archive: Forward | Reverse) -> list[object]:
    return ["--mirror", archive.image] if isinstance(archive, Reverse) else []


def require_map(found: list[tuple[int, int, int]], data: bytes) -> None:
    """What is told to be zeros is zeros, and all bytes are told of."""
    at = 0
    for offset, length, flags in found:
        assert offset == at
        at += length
        if flags & wire.STATE_ZERO:
            assert not any(data[offset:at])
    assert at == len(data)


@pytest.mark.parametrize("kind", [Forward, Reverse, Both])
@pytest.mark.parametrize("seed", range(2))
def test_every_point_is_what_it_was_for_every_client(
    kind: type[Forward] | type[Reverse] | type[Both], seed: int, tmp_path: Path, short: Path
) -> None:
    archive = make(kind, tmp_path, seed)
    points = archive.shelf.catalogue.points
    before = digests(tmp_path)
    with serving(tmp_path / "archive", short, *options_of(archive), state=tmp_path / "state") as server:
        for point in points:
            wanted = archive.history.data_of(point)
            assert server.copy(point.number) == wanted
            assert server.convert(point.number, tmp_path / "copy") == padded(wanted)
            found = server.map(point.number)
            require_map(found, wanted)
            if kind is Forward:
                assert any(flags & wire.STATE_ZERO for _, _, flags in found)
        assert server.copy() == archive.history.data_of(points[-1])
        listed = server.exports()
        assert [one["export-name"] for one in listed] == ["", *(str(point.number) for point in points)]
        assert [one["export-size"] for one in listed[1:]] == [point.size for point in points]
        assert all(one["description"].startswith(f"point #{one['export-name']}, 2026-03-") for one in listed[1:])
        assert all(one["is_read_only"] and one["can_multi_conn"] for one in listed)
        said = server.end()
        assert (server.process.returncode, said) == (130, "lvmsync: interrupted\n")
    assert not short.exists()
    (tmp_path / "copy").unlink()
    assert digests(tmp_path) == before


def test_without_the_mirror_only_what_can_be_restored_is_served(tmp_path: Path, short: Path) -> None:
    archive = make(Reverse, tmp_path, 1, 3)
    assert isinstance(archive, Reverse)
    assert run(["archive", "serve", str(tmp_path / "archive"), "--nbd", f"unix:{short}"]) == 8
    assert not short.exists()
    state = tmp_path / "state"
    with serving(tmp_path / "archive", short, *options_of(archive), "--at", 1, state=state) as server:
        assert "point #1 of" in server.line
        assert server.copy() == archive.history.states[0].data
        # and nothing changes the mirror meanwhile
        for line in (
            f"archive serve {tmp_path}/archive --nbd unix:{short}2 --mirror {archive.image}",
            f"recover {archive.image}",
        ):
            assert run([*line.split(), "--state", str(state)]) in (3, 8)


def test_many_clients_at_once_see_the_same(tmp_path: Path, short: Path) -> None:
    archive = make(Forward, tmp_path, 5, 20)
    points = list(archive.shelf.catalogue.points) * 2
    with serving(tmp_path / "archive", short) as server, ThreadPoolExecutor(8) as pool:
        for point, found in zip(points, pool.map(lambda one: server.copy(one.number), points), strict=True):
            assert found == archive.history.data_of(point)
        # points that nobody uses do not stay open for ever; the server may still be hearing that the last clients went
        deadline = time.monotonic() + 60
        while (held := count_members(server.process.pid)) > 4 * 20 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert held <= 4 * 20


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    """An archive of one point of 24 MiB and some bytes; 8 MiB of it are zeros."""
    folder = tmp_path_factory.mktemp("large")
    data = random.Random(3).randbytes(8 << 20) + bytes(8 << 20) + random.Random(4).randbytes((8 << 20) + 777)
    (folder / "disk").write_bytes(data)
    for line in (f"archive init {folder}/archive", f"archive take {folder}/archive full:{folder}/disk --label big"):
        assert run(line.split()) == 0
    return folder / "archive", data


def test_an_archive_of_another_machine_is_served(
    large: tuple[Path, bytes], short: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    archive, data = large
    with (
        run_sshd(tmp_path_factory.mktemp("sshd")) as sshd,
        serving(f"ssh://127.0.0.1{archive}", short, "-F", sshd.config, "--writable") as server,
    ):
        assert server.copy("big") == data
        server.io("write -P 1 100 1000")
        assert server.copy() == data[:100] + b"\1" * 1000 + data[1100:]
        assert server.end() == "lvmsync: interrupted\n"


def start(server: Served, name: str = "", *, is_structured: bool = False) -> socket.socket:
    """Connect, and choose an export."""
    line = server.connect()
    assert receive(line, 18) == b"NBDMAGICIHAVEOPT\0\3"
    line.sendall(struct.pack(">I", 3))
    if is_structured:
        line.sendall(option(wire.OPT_STRUCTURED_REPLY))
        assert len(receive(line, 20)) == 20
    line.sendall(go(name))
    assert len(receive(line, 52)) == 52
    return line


def test_requests_that_are_under_way_at_once_are_all_answered(large: tuple[Path, bytes], short: Path) -> None:
    archive, data = large
    with serving(archive, short) as server, start(server, "big") as line:
        chance = random.Random(1)
        wanted = {}
        asked = b""
        for cookie in range(200):
            length = chance.choice((0, 1, 512, 5000, 100_000))
            offset = chance.randrange(len(data) - length)
            wanted[cookie] = data[offset : offset + length]
            asked += request(wire.CMD_READ, offset, length, cookie=cookie)
        line.sendall(asked + request(wire.CMD_READ, len(data), 1, cookie=200) + request(wire.CMD_DISC))
        for _ in range(201):
            magic, error, cookie = struct.unpack(">IIQ", receive(line, 16))
            assert magic == 0x67446698
            if cookie == 200:
                assert error == wire.EINVAL
                continue
            assert error == 0
            want = wanted.pop(cookie)
            assert receive(line, len(want)) == want
        assert not wanted
        assert line.recv(1) == b""


def require_one_thread(server: Served) -> None:
    """No thread is left of clients that are gone; they may take a while to end."""
    tasks = Path(f"/proc/{server.process.pid}/task")
    for _ in range(600):
        if len(list(tasks.iterdir())) == 1:
            return
        time.sleep(0.1)
    pytest.fail(f"{len(list(tasks.iterdir()))} threads are left")


def test_a_client_that_is_killed_or_reads_nothing_stops_nobody_else(large: tuple[Path, bytes], short: Path) -> None:
    archive, data = large
    with serving(archive, short) as server:
        lazy = start(server)
        lazy.sendall(request(wire.CMD_READ, 0, len(data)) * 50)  # and takes none of the replies
        for _ in range(5):
            gone = start(server)
            gone.sendall(request(wire.CMD_READ, 0, len(data)) * 3 + b"cut short")
            assert gone.recv(1000)
            gone.close()
        killed = subprocess.Popen(["nbdcopy", server.uri(), "-"], stdout=subprocess.PIPE)
        assert killed.stdout
        assert killed.stdout.read(100)
        killed.kill()
        killed.wait()
        killed.stdout.close()
        assert server.copy() == data
        lazy.close()
        require_one_thread(server)
        lazy = start(server)
        lazy.sendall(request(wire.CMD_READ, 0, len(data)) * 50)
        assert server.end(signal.SIGTERM) == "lvmsync: ended by SIGTERM\n"
        assert server.process.returncode == 130
        lazy.close()
    assert not short.exists()


def test_a_signal_that_comes_to_a_clients_thread_is_heeded(large: tuple[Path, bytes], short: Path) -> None:
    archive, data = large
    with serving(archive, short) as server, start(server) as line:
        line.sendall(request(wire.CMD_READ, 0, len(data)) * 50)
        assert line.recv(1000)
        pid = server.process.pid
        others = [int(path.name) for path in Path(f"/proc/{pid}/task").iterdir() if path.name != str(pid)]
        assert others
        assert ctypes.CDLL(None, use_errno=True).tgkill(pid, others[-1], signal.SIGTERM) == 0
        assert server.process.wait(60) == 130
    assert not short.exists()


def test_a_server_that_was_killed_leaves_a_socket_that_is_replaced_and_one_that_lives_is_not(
    large: tuple[Path, bytes], short: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    archive, data = large
    with serving(archive, short) as server:
        assert short.stat().st_mode & 0o777 == 0o600
        server.end(signal.SIGKILL)
    assert short.is_socket()
    with serving(archive, short) as server:
        assert server.copy() == data
        words = ["archive", "serve", str(archive), "--nbd", f"unix:{short}"]
        assert run(words) == 8
        assert "serves at" in capsys.readouterr().err
        assert server.copy() == data
        # one that somebody else has put there is not removed
        short.unlink()
        with serving(archive, short) as other:
            server.end()
            assert other.copy() == data
            other.end()
    assert not short.exists()
    short.write_text("mine")
    assert run(words) == 3
    assert short.read_text() == "mine"


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ("", "--nbd unix:PATH"),
        ("--nbd tcp:localhost", "only unix:PATH"),
        ("--nbd unix:", "only unix:PATH"),
        ("--nbd unix", "only unix:PATH"),
        ("--nbd /a/socket", "only unix:PATH"),
        (f"--nbd unix:/tmp/{'x' * 120}", "107 bytes"),
        ("--nbd unix:/tmp/x --store /tmp", "--writable"),
        ("--nbd unix:/tmp/x --writable --store /nowhere", "no folder"),
        ("--nbd unix:/tmp/x --at 99", "no point"),
    ],
)
def test_what_cannot_be_served_is_said(
    line: str, word: str, large: tuple[Path, bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["archive", "serve", str(large[0]), *line.split()]) == 2
    said = capsys.readouterr().err
    assert word in said
    assert len(said.splitlines()) == 1


def test_a_folder_that_is_not_there_is_said(large: tuple[Path, bytes], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["archive", "serve", str(large[0]), "--nbd", "unix:/nowhere/at/all"]) == 3
    assert "cannot make the socket /nowhere/at/all" in capsys.readouterr().err


def test_no_bytes_whatever_end_the_server(large: tuple[Path, bytes], short: Path) -> None:
    archive, data = large
    with serving(archive, short, "--writable") as server:
        pieces = st.one_of(
            st.binary(max_size=60),
            st.builds(option, st.integers(0, 12), st.binary(max_size=30)),
            st.sampled_from([go(""), go("1"), go("none"), option(wire.OPT_LIST), option(wire.OPT_STRUCTURED_REPLY)]),
            st.builds(request, st.sampled_from([0, 2, 3, 5, 7, 9]), st.integers(0, 1 << 25), st.integers(0, 1 << 25)),
        )

        @settings(max_examples=60)
        @given(st.booleans(), st.lists(pieces, max_size=12))
        def say(is_polite: bool, said: list[bytes]) -> None:
            with server.connect() as line:
                line.sendall(struct.pack(">I", 3) if is_polite else b"")
                try:
                    for one in said:
                        line.sendall(one)
                    line.shutdown(socket.SHUT_WR)
                    while line.recv(1 << 20):
                        pass
                except (BrokenPipeError, ConnectionResetError):
                    pass

        say()
        assert server.copy() == data
        assert server.end() == "lvmsync: interrupted\n"


def test_one_client_too_many_is_sent_away(large: tuple[Path, bytes], short: Path) -> None:
    archive, data = large
    with serving(archive, short) as server:
        lines = [start(server) for _ in range(64)]
        with server.connect() as line:
            assert line.recv(100) == b""
        for line in lines:
            line.close()
        while True:  # until a place is free
            with server.connect() as line:
                if line.recv(1):
                    break
        assert server.copy() == data
        assert "there are 64 clients" in server.end()


def test_a_damaged_member_is_an_error_of_its_reader_and_told_once(tmp_path: Path, short: Path) -> None:
    data = random.Random(3).randbytes(8 << 20)
    disk, archive = tmp_path / "disk", tmp_path / "archive"
    disk.write_bytes(data)
    run(["archive", "init", str(archive)])
    assert run(["archive", "take", str(archive), f"full:{disk}", "--compress", "none"]) == 0
    (member,) = archive.glob("*.stream")
    with member.open("r+b") as file:
        file.seek((5 << 20) + 300_000)
        byte = file.read(1)
        file.seek((5 << 20) + 300_000)
        file.write(bytes([byte[0] ^ 1]))
    with serving(archive, short) as server:
        for _ in range(3):
            assert subprocess.run(["nbdcopy", server.uri(), "null:"], stderr=subprocess.DEVNULL, check=False).returncode
        assert "Input/output error" in server.io("read 5632k 512", status=1, is_reading=True)
        with start(server) as line:
            line.sendall(request(wire.CMD_READ, 5632 * K, 512) + request(wire.CMD_READ, 100, 1000, cookie=8))
            found = {}
            for _ in range(2):
                _, error, cookie = struct.unpack(">IIQ", receive(line, 16))
                found[cookie] = error, b"" if error else receive(line, 1000)
            assert found == {7: (wire.EIO, b""), 8: (0, data[100:1100])}
        said = server.end().splitlines()
        assert len(said) == 2
        assert member.name in said[0]
        assert said[1] == "lvmsync: interrupted"


def test_a_point_whose_member_is_missing_cannot_be_chosen_and_others_can(tmp_path: Path, short: Path) -> None:
    archive = make(Forward, tmp_path, 2, 3)
    last = archive.shelf.catalogue.members[-1]
    (tmp_path / "archive" / last.name).unlink()
    with serving(tmp_path / "archive", short) as server:
        assert subprocess.run(["nbdinfo", server.uri(3)], stderr=subprocess.DEVNULL, check=False).returncode
        assert server.copy(2) == archive.history.states[1].data
        assert re.fullmatch(rf"lvmsync: .*{last.name}.*\nlvmsync: interrupted\n", server.end())


def test_what_is_written_is_read_back_and_nothing_is_touched(tmp_path: Path, short: Path) -> None:
    archive = make(Both, tmp_path, 4, 5)
    assert isinstance(archive, Reverse)
    before = digests(tmp_path / "archive") | digests(archive.folder / "mirror")
    mirror = sha256(archive.image.read_bytes()).hexdigest()
    wanted = bytearray(archive.history.states[3].data)
    size = len(wanted)
    store = tmp_path / "store"
    store.mkdir()
    words = [*options_of(archive), "--writable", "--at", 4, "--store", store]
    with serving(tmp_path / "archive", short, *words, state=tmp_path / "state") as server:
        server.io(
            "write -P 7 5000 10000", "discard 64k 16k", "write -z 100k 30000", "write -P 9 101k 1", "flush",
            f"write -P 1 {size - 5} 5", f"write -z {size - 3} 2", "write -f -P 3 70k 100", "discard 128k 4k",
        )  # fmt: skip
        wanted[5000:15000] = b"\7" * 10000
        wanted[64 * K : 80 * K] = bytes(16 * K)
        wanted[100 * K : 100 * K + 30000] = bytes(30000)
        wanted[101 * K] = 9
        wanted[size - 5 :] = b"\1\1\0\0\1"
        wanted[70 * K : 70 * K + 100] = b"\3" * 100
        wanted[128 * K : 132 * K] = bytes(4 * K)
        for name in ("", 4):  # one point is one state, whatever it is called, and for all clients
            assert server.copy(name) == wanted
            assert server.convert(name, tmp_path / "copy") == padded(bytes(wanted))
            require_map(server.map(name), bytes(wanted))
        assert any(at <= 128 * K and at + length >= 132 * K and flags == 3 for at, length, flags in server.map())
        assert server.copy(3) == archive.history.states[2].data
        new = random.Random(1).randbytes(size)
        (tmp_path / "new").write_bytes(new)
        subprocess.run(["nbdcopy", str(tmp_path / "new"), server.uri(3)], check=True)
        assert server.copy(3) == new
        assert server.copy() == wanted
        assert list(store.iterdir()) == []
        server.end()
    assert digests(tmp_path / "archive") | digests(archive.folder / "mirror") == before
    assert sha256(archive.image.read_bytes()).hexdigest() == mirror
    with serving(tmp_path / "archive", short, *words, state=tmp_path / "state") as server:
        assert server.copy() == archive.history.states[3].data


def test_who_may_not_write_is_told_so(large: tuple[Path, bytes], short: Path) -> None:
    archive, data = large
    with serving(archive, short) as server:
        assert "Permission denied" in server.io("write 0 512", status=1)
        with start(server) as line:
            line.sendall(request(wire.CMD_WRITE, 0, 4) + b"abcd" + request(wire.CMD_READ, 0, 4, cookie=8))
            assert receive(line, 36) == (
                struct.pack(">IIQ", 0x67446698, wire.EPERM, 7) + struct.pack(">IIQ", 0x67446698, 0, 8) + data[:4]
            )


PAGES = 12
steps = st.lists(
    st.tuples(
        st.sampled_from(["write", "zero"]),
        st.integers(0, PAGES * BLOCK + 99),
        st.sampled_from([1, 99, 4096, 9000, 40000]),
    ),
    max_size=10,
)  # fmt: skip


@settings(max_examples=150)
@given(steps, st.integers(1, 50))
def test_an_overlay_is_what_was_below_with_what_was_written(
    tmp_path_factory: pytest.TempPathFactory, script: list[tuple[str, int, int]], most: int
) -> None:
    size = PAGES * BLOCK + 100
    chance = random.Random(size)
    below = bytearray(chance.randbytes(size))
    below[BLOCK : 3 * BLOCK] = bytes(2 * BLOCK)
    below[30000:34000] = bytes(4000)
    allocation = Allocation.of(
        size, ChangeMap.from_extents([(BLOCK, 2 * BLOCK)]), ChangeMap.from_extents([(30000, 4000)])
    )
    wanted = bytearray(below)
    frozen = bytes(below)
    folder = tmp_path_factory.getbasetemp()

    def gather(offset: int, length: int) -> list[bytes]:
        return [frozen[offset : offset + length]]

    volume = Volume(size, gather, allocation, lambda: Overlay(folder, size, gather))
    try:
        for number, (what, offset, length) in enumerate(script):
            length = min(length, size - offset)
            if what == "zero":
                volume.zero(offset, length)
                wanted[offset : offset + length] = bytes(length)
            else:
                data = bytes([number + 1]) * length
                volume.write(offset, memoryview(data))
                wanted[offset : offset + length] = data
        assert volume.is_changed == bool(script)
        for may_have_holes in (False, True):
            found = b""
            for at, length, buffers in volume.read(0, size, may_have_holes=may_have_holes):
                assert at == len(found)
                found += bytes(length) if buffers is None else b"".join(bytes(one) for one in buffers)
            assert found == wanted
        at = 0
        while at < size:
            for length, flags in struct.iter_unpack(">II", volume.status(at, size - at, most)):
                assert not flags or not any(wanted[at : at + length])
                at += length
        assert at == size
    finally:
        volume.close()


def test_holes_of_a_read_are_left_out_where_they_are_large() -> None:
    size = 1 << 20
    data = np.ones(size, np.uint8)
    data[100 * K : 300 * K] = 0
    data[500 * K : 510 * K] = 0
    holes = ChangeMap.from_extents([(100 * K, 200 * K), (500 * K, 10 * K)])
    volume = Volume(size, lambda at, length: [data[at : at + length].data], Allocation.of(size, holes, holes), None)
    parts = volume.read(50 * K, 900 * K, may_have_holes=True)
    assert [(offset, length, buffers is None) for offset, length, buffers in parts] == [
        (50 * K, 50 * K, False), (100 * K, 200 * K, True), (300 * K, 650 * K, False)
    ]  # fmt: skip


def test_a_full_disk_is_no_room_for_the_client_and_the_server_goes_on(large: tuple[Path, bytes], short: Path) -> None:
    archive, data = large
    # a limit on the size of files stands for the full disk: EFBIG, which is no room, too
    shell = f"ulimit -f 1024; exec {LVMSYNC} archive serve {archive} --nbd unix:{short} --writable"
    process = subprocess.Popen(
        ["bash", "-c", shell],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "LVMSYNC_STATE": str(archive / "..")},
    )
    try:
        assert process.stderr
        server = Served(process, short, process.stderr.readline())
        assert "No space left" in server.io("write -P 1 0 4k", "write -P 2 8M 4k", status=1)
        assert server.copy() == b"\1" * 4096 + data[4096:]
        said = server.end()
        assert "cannot keep what is written" in said
        assert len(said.splitlines()) == 2
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()

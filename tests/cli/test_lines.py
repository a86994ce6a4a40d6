"""Lines that hang, break, are slow, or are several: what a sync makes of them, over a real sshd and a proxy."""

from __future__ import annotations

import fcntl
import json
import os
import random
import signal
import subprocess
import termios
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from lvmsync.cli.limit import FILE_NAME
from tests.cli.site import BIN, Site, error, make_site, run_far_side
from tests.proxy import Proxy, run_proxy
from tests.sshd import Sshd, write_config, write_known_hosts

KIB, MIB = 1 << 10, 1 << 20
SIZE = 4 * MIB
OLD = bytes(SIZE)
NEW = random.Random(1).randbytes(SIZE)  # does not compress
PATIENCE = "8"  # seconds
SOURCE = "compare:./origin,old=./base"


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    with run_far_side(tmp_path_factory) as sshd:
        yield sshd


@pytest.fixture
def proxy(sshd: Sshd) -> Iterator[Proxy]:
    with run_proxy(sshd.port) as proxy:
        yield proxy


@pytest.fixture
def site(request: pytest.FixtureRequest, sshd: Sshd, proxy: Proxy, tmp_path: Path) -> Site:
    """Two sides with a proxy between them; the built-in ssh leads through it, unless a test asks for both."""
    return make_line(tmp_path, sshd, proxy, getattr(request, "param", "asyncssh"))


def make_line(folder: Path, sshd: Sshd, proxy: Proxy, way: str) -> Site:
    made = make_site(folder, sshd, way, store=b"", origin=NEW, target=OLD)
    (folder / "base").write_bytes(OLD)
    ssh = folder / "home/.ssh"
    write_known_hosts(ssh / "known_hosts", proxy.port, sshd.folder / "host.pub")
    write_config(ssh / "config", proxy.port, known_hosts=ssh / "known_hosts", key=sshd.user_key)
    return made


both_ways = pytest.mark.parametrize("site", ["asyncssh", "rsh"], indirect=True)


def command(site: Site, *options: str) -> list[str]:
    rsh = ["-e", f"ssh -F {site.folder / 'home/.ssh/config'}"] if site.way == "rsh" else []
    return [str(BIN / "lvmsync"), "sync", SOURCE, f"127.0.0.1:{site.target}", *rsh, *options]


def start(site: Site, *options: str, **more: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command(site, *options),
        cwd=site.folder,
        env={**os.environ, "HOME": str(site.folder / "home"), "LVMSYNC_STATE": str(site.folder / "state")},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # no terminal: SIGHUP means one thing
        **more,
    )


def finish(running: subprocess.Popen[str]) -> subprocess.CompletedProcess[str]:
    stdout, stderr = running.communicate(timeout=100)
    return subprocess.CompletedProcess(running.args, running.returncode, stdout, stderr)


def run(site: Site, *options: str) -> subprocess.CompletedProcess[str]:
    return finish(start(site, *options))


def wait_for(condition: Callable[[], object], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def wait_for_bytes(running: subprocess.Popen[str], proxy: Proxy, count: int) -> None:
    """Wait until so many bytes went through; at once an error if the program ends before."""
    wait_for(lambda: proxy.moved > count or running.poll() is not None)
    assert running.poll() is None, finish(running).stderr


def is_free(target: Path) -> bool:
    """Tell whether nobody holds a target's lock."""
    with target.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def hang(site: Site, proxy: Proxy, *options: str) -> None:
    running = start(site, "--stall-timeout", PATIENCE, "--bwlimit", "2M", *options)
    wait_for_bytes(running, proxy, MIB)
    assert not is_free(site.target)
    proxy.stall()
    began = time.monotonic()
    done = finish(running)
    assert done.returncode == 7, done.stderr
    assert f"no byte moved for {PATIENCE} s: the line or the far side hangs; try again" in error(done)
    wait_for(lambda: is_free(site.target))  # the agent has given up, too: its line is still there
    assert time.monotonic() - began < 30
    assert site.target.read_bytes() == OLD


def say_nothing(site: Site, proxy: Proxy) -> None:
    done = run(site, "--stall-timeout", PATIENCE, "--remote-command", site.program("silent", "exec sleep 100"))
    assert done.returncode == 7
    assert f"no byte moved for {PATIENCE} s" in error(done)


def be_busy(site: Site, proxy: Proxy) -> None:
    # A disk that takes its time at the last sync: longer than the patience
    slow = site.program("slow", f'LD_PRELOAD= exec {BIN / "python"} {site.folder / "far" / "slow.py"} "$@"')
    (site.folder / "far" / "slow.py").write_text(
        "import sys, time\n"
        "from lvmsync.targets.block import BlockTarget\n"
        "sync = BlockTarget.sync\n"
        f"def slow(self):\n    time.sleep({PATIENCE} + 1)\n    sync(self)\n"
        "BlockTarget.sync = slow\n"
        "from lvmsync.cli.classic import run\n"
        "sys.exit(run(sys.argv[1:]))\n"
    )
    done = run(site, "--stall-timeout", PATIENCE, "--remote-command", slow, "--no-undo")
    assert done.returncode == 0, done.stderr
    assert site.target.read_bytes() == NEW


def cut(site: Site, proxy: Proxy, *options: str) -> None:
    running = start(site, "--bwlimit", "2M", *options)
    wait_for_bytes(running, proxy, MIB)
    proxy.cut()
    done = finish(running)
    assert done.returncode == 7, done.stderr
    error(done)
    wait_for(lambda: is_free(site.target))
    assert site.target.read_bytes() == OLD


SLOW: dict[str, tuple[str, Callable[[Site, Proxy], None]]] = {
    "a line that hangs in mid-stream, built-in ssh": ("asyncssh", hang),
    "a line that hangs in mid-stream, -e ssh": ("rsh", hang),
    "several streams that hang": ("asyncssh", lambda site, proxy: hang(site, proxy, "--streams", "2")),
    "a line that is cut in mid-stream, built-in ssh": ("asyncssh", cut),
    "a line that is cut in mid-stream, -e ssh": ("rsh", cut),
    "several streams of which all are cut, built-in ssh": ("asyncssh", lambda *line: cut(*line, "--streams", "2")),
    "several streams of which all are cut, -e ssh": ("rsh", lambda *line: cut(*line, "--streams", "2")),
    "a far side that hangs before it answers": ("asyncssh", say_nothing),
    "a far side that is busy for long": ("asyncssh", be_busy),
}
"""What takes seconds of waiting, each on a line of its own: they wait at the same time."""


@pytest.fixture(scope="module")
def waited(sshd: Sshd, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Future[None]]]:
    def carry_out(way: str, story: Callable[[Site, Proxy], None]) -> None:
        with run_proxy(sshd.port) as proxy:
            story(make_line(tmp_path_factory.mktemp("line"), sshd, proxy, way), proxy)

    with ThreadPoolExecutor(5) as pool:
        yield {name: pool.submit(carry_out, *story) for name, story in SLOW.items()}


@pytest.mark.parametrize("name", SLOW)
def test_a_line_that_hangs_or_breaks_ends_both_sides_and_frees_the_target_and_a_busy_one_is_waited_for(
    name: str, waited: dict[str, Future[None]]
) -> None:
    waited[name].result()


def test_a_limit_is_kept(site: Site, proxy: Proxy) -> None:
    done = run(site, "--bwlimit", "2M", "--json")
    assert done.returncode == 0, done.stderr
    receipt = json.loads(done.stdout)
    assert receipt["wire_bytes"] == pytest.approx(SIZE, rel=0.01)
    assert 0.9 * 2 <= receipt["seconds"] <= 1.4 * 2
    assert site.target.read_bytes() == NEW


def test_a_limit_in_a_file_is_followed_and_sighup_reads_it_at_once(site: Site, proxy: Proxy) -> None:
    file = site.folder / "rate"
    file.write_text("100K")
    running = start(site, "--bwlimit-file", str(file))
    wait_for_bytes(running, proxy, 50 * KIB)
    file.write_text("none")
    running.send_signal(signal.SIGHUP)
    done = finish(running)
    assert done.returncode == 0, done.stderr
    assert f"note: the rate is not limited now, says {file}" in done.stderr
    assert site.target.read_bytes() == NEW


def test_a_plain_limit_is_steered_through_the_state_folder(site: Site, proxy: Proxy) -> None:
    running = start(site, "--bwlimit", "100K")
    wait_for_bytes(running, proxy, 50 * KIB)
    file = site.folder / "state" / FILE_NAME
    file.parent.mkdir(exist_ok=True)
    file.write_text("none")
    running.send_signal(signal.SIGHUP)
    done = finish(running)
    assert done.returncode == 0, done.stderr
    assert site.target.read_bytes() == NEW


def test_sighup_ends_a_job_where_there_is_no_file(site: Site, proxy: Proxy) -> None:
    running = start(site, "--bwlimit", "100K")
    wait_for_bytes(running, proxy, 50 * KIB)
    running.send_signal(signal.SIGHUP)
    done = finish(running)
    assert done.returncode == 130
    assert "ended by SIGHUP" in error(done)


def test_a_terminal_that_hangs_up_ends_a_job_though_there_is_a_file(site: Site, proxy: Proxy) -> None:
    file = site.folder / "rate"
    file.write_text("100K")
    master, slave = os.openpty()

    def take_terminal() -> None:
        fcntl.ioctl(slave, termios.TIOCSCTTY, 0)

    running = start(site, "--bwlimit-file", str(file), preexec_fn=take_terminal, pass_fds=[slave])
    os.close(slave)
    wait_for_bytes(running, proxy, 50 * KIB)
    running.send_signal(signal.SIGHUP)  # the terminal is there: this only reads the file
    moved = proxy.moved
    wait_for_bytes(running, proxy, moved + 50 * KIB)
    os.close(master)
    done = finish(running)
    assert done.returncode == 130
    assert "ended by SIGHUP" in error(done)


@both_ways
def test_several_streams_carry_one_sync(site: Site, proxy: Proxy) -> None:
    done = run(site, "--streams", "3", "--json", "--compress", "none")
    assert done.returncode == 0, done.stderr
    receipt = json.loads(done.stdout)
    assert (receipt["confirmed"], receipt["bytes"]) == (True, SIZE)
    assert proxy.connections == 3
    assert site.target.read_bytes() == NEW


def test_several_streams_refuse_and_compare_as_one_does(site: Site) -> None:
    site.target.write_bytes(OLD[:-512])
    done = run(site, "--streams", "2")
    assert done.returncode == 3
    assert "too small" in error(done)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--bwlimit", "fast"], "not a size: 'fast'"),
        (["--bwlimit-file", "./none"], "cannot read the rate in none"),
        (["--stall-timeout", "1"], "--stall-timeout 1 is out of range: 3 at least, or 0"),
        (["--streams", "17"], "17 is not in the range"),
    ],
)
def test_what_makes_no_sense_is_refused(site: Site, options: list[str], words: str) -> None:
    done = run(site, *options)
    assert done.returncode in (2, 3)
    assert words in error(done)

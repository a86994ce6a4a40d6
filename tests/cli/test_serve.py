"""``lvmsync serve`` as the forced command of a key, and ``lvmsync agent``, over a real sshd: what they do, and end."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lvmsync.jobs.agent.protocol import REQUEST, encode
from lvmsync.stream import v4
from lvmsync.stream.frames import FULL, Header
from tests.cli.site import BIN, Site, error, make_site, run_far_side
from tests.sshd import Sshd, children, make_key

NEW = bytes(range(256)) * 4096
OLD = bytes(len(NEW))


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    with run_far_side(tmp_path_factory) as sshd:
        make_key(sshd.folder / "served")
        yield sshd


@pytest.fixture
def site(sshd: Sshd, tmp_path: Path) -> Site:
    return make_site(tmp_path, sshd, "asyncssh", store=b"", origin=NEW, target=OLD)


def served(site: Site, *options: str) -> list[str]:
    """Let a key that is served do nothing else, and return the options that use it."""
    key = (site.sshd.folder / "served.pub").read_text()
    command = f"{BIN}/lvmsync serve --allow '{site.folder}/far/*.img' {' '.join(options)}"
    keys = (site.sshd.folder / "user.pub").read_text() + f'restrict,command="{command}" {key}'
    (site.sshd.folder / "authorized_keys").write_text(keys)
    text = site.sshd.config.read_text().replace(str(site.sshd.user_key), str(site.sshd.folder / "served"))
    (site.folder / "ssh_config").write_text(text)
    (site.folder / "home/.ssh/config").write_text(text)
    return ["-e", f"ssh -F {site.folder}/ssh_config"]


def test_a_served_key_brings_its_targets_up_to_date(site: Site) -> None:
    rsh = served(site)
    for source, way in (("full:./origin", rsh), ("compare:./origin", [])):
        site.target.write_bytes(OLD)
        done = site.sync(source, *way)
        assert done.returncode == 0, done.stderr
        assert site.target.read_bytes() == NEW


def test_a_served_key_may_have_several_streams_with_the_same_rights(site: Site) -> None:
    served(site)
    done = site.sync("full:./origin", "--streams", "3")
    assert done.returncode == 0, done.stderr
    assert site.target.read_bytes() == NEW
    done = site.sync("full:./origin", "--streams", "3", target=str(site.folder / "home/.ssh/config"))
    assert (done.returncode, "allows" in error(done)) == (2, True), done.stderr


def test_a_served_key_is_refused_all_else_and_nothing_is_changed(site: Site) -> None:
    served(site)
    other = site.folder / "secret"
    other.write_bytes(OLD)
    (site.folder / "far" / "link.img").symlink_to(other)
    far = f"{site.folder}/far"
    for target in (str(other), f"{far}/link.img", "vg0/web"):
        done = site.sync("full:./origin", target=target)
        assert (done.returncode, "this server" in error(done)) == (2, True), done.stderr
    for options, words in (
        (["--snapback", f"{far}/back.img"], "where a file is put"),
        (["--archive", f"{far}/archive"], "no archive that this server allows"),
        (["--no-undo", "--ignore-base"], "without --permit ignore-base"),
        (["--allow-smaller-target"], "without --permit allow-smaller"),
    ):
        done = site.sync("full:./origin", *options)
        assert (done.returncode, words in error(done)) == (2, True), done.stderr
    done = site.sync("full:./origin", "--create", target=f"{far}/made.img")
    assert (done.returncode, "without --allow-create" in error(done)) == (2, True), done.stderr
    assert sorted(path.name for path in (site.folder / "far").glob("*.img")) == ["link.img", "target.img"]
    assert other.read_bytes() == site.target.read_bytes() == OLD


def test_what_a_server_was_started_for_is_done(site: Site) -> None:
    served(site, "--allow-create", "--permit ignore-base", "--permit allow-smaller", "--no-compare")
    done = site.sync("full:./origin", "--create", "--ignore-base", target=f"{site.folder}/far/made.img")
    assert done.returncode == 0, done.stderr
    assert (site.folder / "far/made.img").read_bytes() == NEW
    done = site.sync("compare:./origin")
    assert (done.returncode, "--no-compare" in error(done)) == (2, True), done.stderr


def test_a_served_key_adds_to_the_archives_that_it_may(site: Site) -> None:
    for name in "archive", "other":
        assert site.run("archive", "init", f"{site.folder}/far/{name}").returncode == 0
    served(site, f"--allow-archive '{site.folder}/far/arch*'")
    for data in (NEW, OLD):
        (site.folder / "origin").write_bytes(data)
        done = site.sync("full:./origin", "--archive", f"{site.folder}/far/archive")
        assert done.returncode == 0, done.stderr
    done = site.sync("full:./origin", "--archive", f"{site.folder}/far/other")
    assert (done.returncode, "no archive that this server allows" in error(done)) == (2, True), done.stderr
    listed = site.run("archive", "list", f"{site.folder}/far/archive", "--json")
    assert len(json.loads(listed.stdout)["points"]) == 2
    assert json.loads(site.run("archive", "list", f"{site.folder}/far/other", "--json").stdout)["points"] == []


@pytest.mark.parametrize(
    "asked", ["touch x; id", "lvmsync agent", "lvmsync recover --accept ./target.img", "$(touch x)"]
)
def test_a_served_key_runs_no_command(site: Site, asked: str) -> None:
    *_, rsh = served(site)
    done = subprocess.run(
        [*rsh.split(), "127.0.0.1", asked],
        input=b'lvmsync REQUEST {"verb": "standing", "target": "/etc/passwd"}\n',
        capture_output=True,
        cwd=site.folder,
        check=False,
    )
    greeting, answer, *rest = done.stdout.decode().splitlines()
    assert greeting.startswith("lvmsync AGENT {")
    assert '"code": 2' in answer
    assert "no target that this server allows" in answer
    assert not rest
    assert not Path("~/x").expanduser().exists()


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["serve"], "nothing is allowed"),
        (["serve", "--allow", "/dev/*"], "allow volumes as VG/LV"),
        (["serve", "--allow", "vg0/*", "--permit", "everything"], "--permit everything: choose of no-undo"),
        (["serve", "--allow", "vg0/*", "--most-copies", "0"], "most-copies"),
    ],
)
def test_a_server_that_is_started_wrongly_does_not_serve(site: Site, words: list[str], reason: str) -> None:
    done = site.run(*words)
    assert (done.returncode, reason in error(done)) == (2, True), done.stderr
    assert not done.stdout


def test_an_lvmsync_that_is_too_old_is_told_so(site: Site) -> None:
    old = site.program("old", "echo \"lvmsync: 'agent' alone: name a target as well\" >&2; exit 2")
    done = site.sync("full:./origin", "--remote-command", old)
    assert done.returncode == 2
    assert "lvmsync there is too old or is no lvmsync" in error(done)


def descendants(pid: int) -> list[int]:
    return [one for child in children(pid) for one in (child, *descendants(child))]


def find_agent(sshd: Sshd) -> int:
    """Return the process of the one agent that runs."""
    for pid in descendants(sshd.process.pid):
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        if b"agent" in words and words[0].endswith(b"python"):
            return pid
    raise AssertionError("no agent runs")


def wait_for_end(pidfd: int) -> None:
    assert select.select([pidfd], [], [], 30)[0], "it still runs"


@pytest.mark.parametrize("in_stream", [False, True])
def test_an_agent_ends_when_its_line_is_cut(site: Site, in_stream: bool) -> None:
    """The client is killed, so that nothing says goodbye."""
    ssh = ["ssh", "-F", str(site.sshd.config), "127.0.0.1", f"{BIN}/lvmsync agent"]
    with subprocess.Popen(ssh, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as client:
        assert client.stdin
        assert client.stdout
        assert client.stdout.readline().startswith(b"lvmsync AGENT")
        agent = os.pidfd_open(find_agent(site.sshd))
        if in_stream:
            header = Header(size=len(OLD), extents=1, changed_bytes=len(OLD), intent=FULL, source="full", name="x")
            asked = encode(REQUEST, {"verb": "receive", "target": str(site.target), "options": {}})
            client.stdin.write(asked + b"".join(map(bytes, v4.Encoder().encode(header))))
            client.stdin.flush()
            assert client.stdout.readline() == b"lvmsync READY\n"
        client.kill()
    wait_for_end(agent)
    os.close(agent)
    assert site.sync("full:./origin").returncode == 0  # nothing is left open or locked
    assert site.target.read_bytes() == NEW


def test_an_agent_ends_in_the_middle_of_its_work(site: Site) -> None:
    """It hashes a device, in lockstep with nobody: its line is found to be gone by its sign of life."""
    program = site.program("slow", f"exec {BIN}/python -P -c '{SLOW}' agent")
    ssh = ["ssh", "-F", str(site.sshd.config), "127.0.0.1", program]
    with subprocess.Popen(ssh, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as client:
        assert client.stdin
        assert client.stdout
        assert client.stdout.readline().startswith(b"lvmsync AGENT")
        agent = os.pidfd_open(find_agent(site.sshd))
        client.stdin.write(encode(REQUEST, {"verb": "recover", "target": str(site.target)}))
        client.stdin.flush()
        assert client.stdout.readline() == b"lvmsync WAIT\n"
        began = time.monotonic()
        client.send_signal(signal.SIGKILL)
    wait_for_end(agent)
    os.close(agent)
    assert time.monotonic() - began < 30


SLOW = """
import time, sys
import lvmsync.jobs.agent.server as server, lvmsync.jobs.recover as recover
from lvmsync.cli import main
server.serve.__kwdefaults__["beat"] = 0.1
recover.recover = lambda *a, **b: time.sleep(600)
main()
"""

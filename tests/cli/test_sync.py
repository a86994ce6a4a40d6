"""``lvmsync sync``, the installed command: to a path, over a real sshd in process, and with ``-e ssh``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.cow_store import CHUNK, build_store
from tests.sshd import Sshd, run_sshd

BIN = Path(sys.executable).parent
CHUNKS = 64
OLD = bytes(range(256)) * (CHUNK * CHUNKS // 256)
WAYS = ("path", "asyncssh", "rsh")


@dataclass(frozen=True)
class Site:
    """A source here, a target there, and the words to get from one to the other."""

    folder: Path
    sshd: Sshd
    way: str
    new: bytes

    @property
    def target(self) -> Path:
        return self.folder / "far" / "target.img"

    def sync(self, *options: str, target: str | None = None) -> subprocess.CompletedProcess[str]:
        place = f"{'' if self.way == 'path' else '127.0.0.1:'}{target or self.target}"
        rsh = ["-e", f"ssh -F {self.sshd.config}"] if self.way == "rsh" else []
        return subprocess.run(
            [str(BIN / "lvmsync"), "sync", "snapshot:./store,origin=./origin", place, *rsh, *options],
            cwd=self.folder,
            env={**os.environ, "HOME": str(self.folder / "home"), "LVMSYNC_STATE": str(self.folder / "far" / "state")},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )

    def program(self, name: str, script: str) -> str:
        """Write a program for the far side, and return its path."""
        path = self.folder / "far" / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        return str(path)


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    state = tmp_path_factory.mktemp("state")
    env = {"PATH": f"{BIN}:/usr/bin:/bin", "LVMSYNC_STATE": str(state)}
    with run_sshd(tmp_path_factory.mktemp("sshd"), env=env) as sshd:
        yield sshd


@pytest.fixture(params=WAYS)
def site(request: pytest.FixtureRequest, sshd: Sshd, tmp_path: Path) -> Site:
    new = bytearray(OLD)
    changed = [5, 6, 40, 63]
    for chunk in changed:
        new[chunk * CHUNK : (chunk + 1) * CHUNK] = bytes([chunk]) * CHUNK
    store = build_store([(chunk, 2 + index) for index, chunk in enumerate(changed)])
    for folder in "far", "home", "home/.ssh":
        (tmp_path / folder).mkdir()
    (tmp_path / "home/.ssh/config").write_text(sshd.config.read_text())
    (tmp_path / "home/.ssh/known_hosts").write_text(sshd.known_hosts.read_text())
    (tmp_path / "store").write_bytes(store)
    (tmp_path / "origin").write_bytes(new)
    made = Site(tmp_path, sshd, request.param, bytes(new))
    made.target.write_bytes(OLD)
    return made


over_ssh = pytest.mark.parametrize("site", ["asyncssh", "rsh"], indirect=True)


def error(done: subprocess.CompletedProcess[str]) -> str:
    """Return the one line that ends a failure, our own."""
    lines = [line for line in done.stderr.splitlines() if line.startswith("lvmsync: ")]
    assert len(lines) == 1, done.stderr
    assert "Traceback" not in done.stderr
    return lines[0]


def test_the_receipt_is_the_receivers_and_the_snapback_leads_back(site: Site) -> None:
    done = site.sync("--json", "--snapback", str(site.folder / "far" / "snapback"))
    assert done.returncode == 0, done.stderr
    receipt = json.loads(done.stdout)
    assert (receipt["confirmed"], receipt["durable"], receipt["bytes"]) == (True, True, 4 * CHUNK)
    assert site.target.read_bytes() == site.new
    subprocess.run(
        [str(BIN / "lvmsync"), "apply", "far/snapback", str(site.target), "--state", "elsewhere"],
        cwd=site.folder,
        check=True,
        capture_output=True,
    )
    assert site.target.read_bytes() == OLD


def test_a_dry_run_asks_the_target_and_changes_nothing(site: Site) -> None:
    done = site.sync("--dry-run")
    assert done.returncode == 0, done.stderr
    assert "dry run: nothing was written" in done.stderr
    assert site.target.read_bytes() == OLD
    site.target.unlink()
    assert site.sync("--dry-run").returncode == 3


@pytest.mark.parametrize("options", [["--format", "3"], ["--atomic"], ["--no-undo"], ["--compress", "zstd:3"]])
def test_every_kind_of_stream_and_transaction_arrives(site: Site, options: list[str]) -> None:
    done = site.sync(*options)
    assert done.returncode == 0, done.stderr
    assert site.target.read_bytes() == site.new


def test_a_target_that_the_far_side_refuses_ends_with_its_status_and_reason(site: Site) -> None:
    site.target.write_bytes(OLD[:-512])
    done = site.sync()
    assert done.returncode == 3
    assert "too small" in error(done)
    assert site.target.read_bytes() == OLD[:-512]
    missing = site.sync(target=str(site.folder / "none"))
    assert missing.returncode == 3
    assert "there is no such device or file" in error(missing)


def test_names_reach_the_far_side_as_one_word(site: Site) -> None:
    name = str(site.folder / "far" / "a b'c\"$(touch x);`touch y`&")
    Path(name).write_bytes(OLD)
    done = site.sync(target=name)
    assert done.returncode == 0, done.stderr
    assert Path(name).read_bytes() == site.new
    assert not list(site.folder.rglob("[xy]"))


@over_ssh
def test_a_far_side_without_lvmsync_is_told_with_the_next_step(site: Site) -> None:
    done = site.sync("--remote-command", "/no/such/lvmsync")
    assert done.returncode == 7
    assert "lvmsync was not found there; install it, or name its path with --remote-command" in error(done)
    assert site.target.read_bytes() == OLD


@over_ssh
def test_a_noisy_shell_is_told_and_nothing_is_written(site: Site) -> None:
    noisy = site.program("noisy", f'echo "Welcome to the machine"; exec {BIN / "lvmsync"} "$@"')
    done = site.sync("--remote-command", noisy)
    assert done.returncode == 7
    assert "said 'Welcome to the machine' where lvmsync should have answered" in error(done)
    assert site.target.read_bytes() == OLD


@over_ssh
def test_a_far_side_that_ends_well_without_a_word_is_no_success(site: Site) -> None:
    done = site.sync("--remote-command", site.program("silent", "exit 0"))
    assert done.returncode == 7
    assert "is it an lvmsync that can answer?" in error(done)


@over_ssh
def test_a_far_side_that_confirms_something_else_is_no_success(site: Site) -> None:
    liar = site.program(
        "liar", 'echo "lvmsync READY"; cat > /dev/null; echo \'lvmsync RECEIPT {"bytes": 1, "extents": 1}\''
    )
    done = site.sync("--remote-command", liar)
    assert done.returncode == 9
    assert "do not use the target" in error(done)


@over_ssh
def test_a_far_side_that_is_killed_ends_with_a_failed_line(site: Site) -> None:
    done = site.sync("--remote-command", site.program("killed", 'echo "lvmsync READY"; kill -9 $$'))
    assert done.returncode == 7
    error(done)


@over_ssh
def test_what_the_far_side_says_on_stderr_is_shown(site: Site) -> None:
    talker = site.program("talker", f'echo "disk nearly full" >&2; exec {BIN / "lvmsync"} "$@"')
    done = site.sync("--remote-command", talker)
    assert done.returncode == 0, done.stderr
    assert f"127.0.0.1:{site.target}: disk nearly full" in done.stderr.splitlines()

"""Two sides for the tests of a sync: a folder here, a target there, and three ways between them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import pytest

from lvmsync.cli.classic import run
from tests.sshd import Sshd, run_sshd

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
WAYS = ("path", "asyncssh", "rsh")
STORE = "snapshot:./store,origin=./origin"


@dataclass(frozen=True)
class Site:
    """A source here, a target there, and the words to get from one to the other."""

    folder: Path
    sshd: Sshd
    way: str

    @property
    def target(self) -> Path:
        return self.folder / "far" / "target.img"

    @property
    def state(self) -> Path:
        """The state folder of the target's side."""
        return self.folder / "far" / "state" if self.way == "path" else self.sshd.folder / "state"

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a command line in this process; see `start` for a process of its own."""
        stdout, stderr = StringIO(), StringIO()
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(stdout), redirect_stderr(stderr):
            patch.chdir(self.folder)
            for name, value in self.env.items():
                patch.setenv(name, value)
            status = run(words)
        return subprocess.CompletedProcess(words, status, stdout.getvalue(), stderr.getvalue())

    @property
    def env(self) -> dict[str, str]:
        return {"HOME": str(self.folder / "home"), "LVMSYNC_STATE": str(self.folder / "far" / "state")}

    def start(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run the installed command."""
        return subprocess.run(
            [str(BIN / "lvmsync"), *words],
            cwd=self.folder,
            env={**os.environ, **self.env},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )

    def sync(self, source: str, *options: str, target: str | None = None) -> subprocess.CompletedProcess[str]:
        place = f"{'' if self.way == 'path' else '127.0.0.1:'}{target or self.target}"
        rsh = ["-e", f"ssh -F {self.sshd.config}"] if self.way == "rsh" else []
        return self.run("sync", source, place, *rsh, *options)

    def program(self, name: str, script: str) -> str:
        """Write a program for the far side, and return its path."""
        path = self.folder / "far" / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        return str(path)


@contextmanager
def run_far_side(factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    """Run a sshd whose sessions find the lvmsync that is tested."""
    folder = factory.mktemp("sshd")
    env = {"PATH": f"{BIN}:/usr/bin:/bin", "PYTHONPATH": str(ROOT), "LVMSYNC_STATE": str(folder / "state")}
    with run_sshd(folder, env=env) as sshd:
        yield sshd


def make_site(folder: Path, sshd: Sshd, way: str, *, store: bytes, origin: bytes, target: bytes) -> Site:
    """Make both sides: a COW store and its origin here, a target there."""
    for name in "far", "home", "home/.ssh":
        (folder / name).mkdir()
    (folder / "home/.ssh/config").write_text(sshd.config.read_text())
    (folder / "home/.ssh/known_hosts").write_text(sshd.known_hosts.read_text())
    (folder / "store").write_bytes(store)
    (folder / "origin").write_bytes(origin)
    site = Site(folder, sshd, way)
    site.target.write_bytes(target)
    return site


def error(done: subprocess.CompletedProcess[str]) -> str:
    """Return the one line that ends a failure, our own."""
    lines = [line for line in done.stderr.splitlines() if line.startswith("lvmsync: ")]
    assert len(lines) == 1, done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    return lines[0]

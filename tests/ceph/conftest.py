"""The ``ceph`` fixture: a real cluster of one node (``scripts/ceph``) that all tests of a run share."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
SCRIPT = HERE.parent.parent / "scripts/ceph"
PROGRAMS = ("ceph", "ceph-mon", "ceph-osd", "radosgw", "rbd")


@dataclass(frozen=True)
class Ceph:
    """A running cluster; ``env`` is what its clients need: CEPH_CONF, RBD_POOL, and AWS_... for S3."""

    folder: Path
    env: Mapping[str, str]

    def control(self, verb: str) -> str:
        """Run ``scripts/ceph VERB`` for it: ``stop`` and ``start``, ``status``."""
        return control(verb, self.folder)

    def rbd(self, *words: str, stdin: bytes | None = None) -> bytes:
        """Return what ``rbd WORDS`` prints; the test fails when it does."""
        done = subprocess.run(["rbd", *words], input=stdin, capture_output=True, env={**os.environ, **self.env})
        assert done.returncode == 0, f"rbd {shlex.join(words)}: {done.returncode}: {done.stderr.decode()}"
        return done.stdout


def control(verb: str, folder: Path) -> str:
    done = subprocess.run([SCRIPT, verb, folder], capture_output=True, text=True)
    assert done.returncode == 0, f"scripts/ceph {verb}: {done.returncode}: {done.stderr}"
    return done.stdout


def parsed(lines: str) -> dict[str, str]:
    """Read what ``scripts/ceph env`` prints."""
    words = [shlex.split(line) for line in lines.splitlines()]
    return dict(word.split("=", 1) for _export, word in words)


@pytest.fixture(scope="session")
def ceph_cluster() -> Iterator[Ceph]:
    """Start the run's cluster; skip without the programs, or fail where they are required (CI).

    A process of its own waits for the end of a pipe that only we hold, and destroys the cluster then: it goes away
    with this run, however that ends.
    """
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    if missing:
        reason = f"{', '.join(missing)}: not here; scripts/ceph install"
        if os.environ.get("LVMSYNC_REQUIRE_CEPH") or os.environ.get("CI"):
            pytest.fail(f"Ceph is required here, but {reason}")
        pytest.skip(reason)
    folder = Path(tempfile.mkdtemp(prefix="lvmsync-ceph-", dir="/tmp"))  # the paths of sockets must be short
    script = 'trap "" INT TERM HUP; read -r _; "$1" destroy "$2"; exec rm -rf "$2"'
    words = ["bash", "-c", script, "-", os.fspath(SCRIPT), os.fspath(folder)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True) as end:
        yield Ceph(folder, parsed(control("start", folder)))  # leaving the block closes the pipe, and waits
    assert end.returncode == 0
    assert not folder.exists()


@pytest.fixture
def ceph(ceph_cluster: Ceph, monkeypatch: pytest.MonkeyPatch) -> Ceph:
    """Give the run's cluster, with its ``env`` set for this test."""
    for name, value in ceph_cluster.env.items():
        monkeypatch.setenv(name, value)
    return ceph_cluster


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test of this folder as ``ceph``."""
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.ceph)

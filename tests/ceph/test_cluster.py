"""The cluster of the tests itself: images and buckets work, it keeps them, and it goes away."""

from __future__ import annotations

import os
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from tests.ceph.conftest import SCRIPT, Ceph, control, parsed


def test_an_image_keeps_its_bytes_over_a_stop(ceph: Ceph) -> None:
    content = os.urandom(1 << 20)
    ceph.rbd("import", "--no-progress", "-", "kept", stdin=content)
    ceph.control("stop")
    assert ceph.control("status").splitlines() == ["mon: down", "osd: down", "rgw: down"]
    assert parsed(ceph.control("start")) == ceph.env
    assert ceph.rbd("export", "--no-progress", "kept", "-") == content


def test_the_gateway_knows_the_bucket_and_wants_a_key(ceph: Ceph) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"{ceph.env['AWS_ENDPOINT_URL']}/{ceph.env['S3_BUCKET']}")
    assert refused.value.code == 403
    with pytest.raises(urllib.error.HTTPError) as unknown:
        urllib.request.urlopen(f"{ceph.env['AWS_ENDPOINT_URL']}/another-bucket")
    assert unknown.value.code == 404


def test_a_folder_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    done = subprocess.run([SCRIPT, "start", tmp_path], capture_output=True, text=True)
    assert done.returncode == 1
    assert "neither empty nor one of ours" in done.stderr
    assert control("destroy", tmp_path) == ""
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_a_run_that_is_killed_leaves_no_cluster(tmp_path: Path) -> None:
    inner = tmp_path / "test_inner.py"
    inner.write_text(
        "import os, signal\n"
        "from tests.ceph.conftest import Ceph, ceph_cluster\n"
        "def test_inner(ceph_cluster: Ceph) -> None:\n"
        "    print(ceph_cluster.folder, flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    words = [sys.executable, "-m", "pytest", "-q", "-s", "-p", "no:cacheprovider", os.fspath(inner)]
    root = SCRIPT.parent.parent
    # The destroyer holds our pipe for its stderr: the output ends when it has ended.
    done = subprocess.run(
        [*words, "--rootdir", os.fspath(root), "-c", os.fspath(root / "pyproject.toml")],
        cwd=root,
        capture_output=True,
        text=True,
    )
    assert done.returncode == -9, done.stdout + done.stderr
    folder = next(line for line in done.stdout.splitlines() if "/tmp/lvmsync-ceph-" in line).split()[-1]
    assert not Path(folder).exists()

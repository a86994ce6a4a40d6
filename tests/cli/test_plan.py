"""``plan``, the installed command, on sources that tell their changes by themselves."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.cli.site import STORE, Site, error, make_site, run_far_side
from tests.cow_store import CHUNK, build_store
from tests.sshd import Sshd

OLD = np.random.default_rng(1).bytes(4 << 20)


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    with run_far_side(tmp_path_factory) as sshd:
        yield sshd


@pytest.fixture(params=["path", "asyncssh"])
def site(request: pytest.FixtureRequest, sshd: Sshd, tmp_path: Path) -> Site:
    return make_site(tmp_path, sshd, request.param, store=bytes(build_store([(5, 2), (40, 3)])), origin=OLD, target=OLD)


def place(site: Site) -> str:
    return f"{'' if site.way == 'path' else '127.0.0.1:'}{site.target}"


def test_what_would_be_sent_and_what_it_costs(site: Site) -> None:
    done = site.run("plan", STORE, place(site), "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["kind"], found["changed_bytes"], found["extents"], found["size"]) == (
        "snapshot", 2 * CHUNK, 2, len(OLD),
    )  # fmt: skip
    assert found["refusal"] is None
    assert found["undo_bytes"] == 2 * CHUNK
    assert found["target_state"]["size"] == len(OLD)
    assert found["chunks"][0] == {
        "chunk": CHUNK,
        "bytes": 2 * CHUNK,
        "store": found["chunks"][0]["store"],
        "times": 1.0,
    }
    done = site.run("plan", STORE, place(site))
    assert "over the line" in done.stdout
    assert "by chunk size" in done.stdout
    assert site.target.read_bytes() == OLD
    assert not list((site.folder / "far").glob("state/targets/*/record.json"))


def test_what_sync_would_refuse_is_refused_with_the_reason(site: Site) -> None:
    site.target.write_bytes(OLD[:-CHUNK])
    done = site.run("plan", STORE, place(site), "--json")
    assert done.returncode == 3
    found = json.loads(done.stdout)
    assert found["kind"] == "refused"
    assert "too small" in found["refusal"]["message"]
    assert "too small" in error(done)
    sync = site.run("sync", STORE, place(site), "--frozen")
    assert sync.returncode == done.returncode


def test_a_target_that_would_be_made(site: Site) -> None:
    site.target.unlink()
    assert site.run("plan", "full:./origin", place(site)).returncode == 3
    done = site.run("plan", "full:./origin", place(site), "--create")
    assert done.returncode == 0, done.stderr
    assert "is not there" in done.stdout
    assert not site.target.exists()


@pytest.mark.parametrize("site", ["path"], indirect=True)
def test_what_cannot_be_planned_is_said(site: Site) -> None:
    done = site.run("plan", "compare:./origin", place(site))
    assert (done.returncode, "repair --dry-run" in error(done)) == (2, True)
    done = site.run("plan", STORE, place(site), "--full")
    assert (done.returncode, "whose snapshots lvmsync takes" in error(done)) == (2, True)

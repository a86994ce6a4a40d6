"""``verify`` and ``repair``, the installed command on files: to a path, and over a real sshd."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.cli.site import BIN, STORE, Site, error, make_site, run_far_side
from tests.cow_store import CHUNK, build_store
from tests.sources.loops import sparse
from tests.sshd import Sshd

BLOCK = 4096
OLD = np.random.default_rng(1).bytes(4 << 20)
CHANGED = 40  # chunk of the store


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    with run_far_side(tmp_path_factory) as sshd:
        yield sshd


@pytest.fixture(params=["path", "asyncssh"])
def site(request: pytest.FixtureRequest, sshd: Sshd, tmp_path: Path) -> Site:
    store = bytearray(build_store([(CHANGED, 2)]))
    store[2 * CHUNK : 3 * CHUNK] = OLD[CHANGED * CHUNK : (CHANGED + 1) * CHUNK]
    return make_site(tmp_path, sshd, request.param, store=bytes(store), origin=OLD, target=OLD)


here = pytest.mark.parametrize("site", ["path"], indirect=True)


def flip(path: Path, *places: int) -> bytes:
    data = bytearray(path.read_bytes())
    for place in places:
        data[place] ^= 1
    path.write_bytes(data)
    return bytes(data)


def run(site: Site, verb: str, source: str, *options: str) -> subprocess.CompletedProcess[str]:
    return site.run(verb, source, f"{'' if site.way == 'path' else '127.0.0.1:'}{site.target}", *options)


def test_a_true_copy_is_equal_and_its_root_is_shown(site: Site) -> None:
    done = run(site, "verify", "./origin")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].split()[0] == lines[1].split()[0]
    assert len(lines[0].split()[0]) == 32
    assert lines[2].startswith("equal: ")
    assert run(site, "verify", "./origin").stdout.splitlines()[0] != lines[0]  # another seed
    assert run(site, "verify", "./origin", "-q").stdout == ""


def test_a_copy_that_differs_is_status_9_with_the_ranges(site: Site) -> None:
    flip(site.target, 5, 3 * BLOCK, 4 * BLOCK, 9 * BLOCK, 20 * BLOCK)
    before = site.target.read_bytes()
    done = run(site, "verify", "./origin")
    assert done.returncode == 9
    assert "differs: 8192 bytes at 12288" in done.stdout
    assert "equal" not in done.stdout
    assert f"{5 * BLOCK} of {len(OLD)} bytes differ (4096 bytes at 0, 8192 bytes at 12288, 4096 bytes at" in error(done)
    assert "and 1 more ranges): do not use it" in error(done)
    found = json.loads((again := run(site, "verify", "./origin", "--json")).stdout)
    assert again.returncode == 9
    assert found["differing"] == [[0, BLOCK], [3 * BLOCK, 2 * BLOCK], [9 * BLOCK, BLOCK], [20 * BLOCK, BLOCK]]
    assert (found["is_equal"], found["differing_bytes"], found["size"]) == (False, 5 * BLOCK, len(OLD))
    assert found["root"] != found["target_root"]
    assert site.target.read_bytes() == before


def test_a_shorter_copy_differs_and_a_longer_one_is_told(site: Site) -> None:
    site.target.write_bytes(OLD[:-100])
    assert run(site, "verify", "./origin").returncode == 9
    site.target.write_bytes(OLD + b"more")
    done = run(site, "verify", "./origin")
    assert done.returncode == 0, done.stderr
    assert f"what is past {len(OLD)} was not compared" in done.stdout


def test_only_what_changed_is_compared_if_that_is_wanted(site: Site) -> None:
    flip(site.folder / "origin", CHANGED * CHUNK + 7)
    flip(site.target, 0)  # not of the delta
    done = run(site, "verify", STORE, "--changed")
    assert done.returncode == 9
    assert f"4096 bytes at {CHANGED * CHUNK}" in error(done)
    flip(site.target, CHANGED * CHUNK + 7)
    done = run(site, "verify", STORE, "--changed", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["compared_bytes"] == CHUNK
    assert json.loads(done.stdout)["root"] is None


@here
def test_a_delta_that_compares_nothing_or_has_no_room_in_the_target_is_not_equal(site: Site) -> None:
    site.target.write_bytes(OLD[:-BLOCK])
    done = run(site, "verify", STORE, "--changed")
    assert (done.returncode, "it is no copy of that" in error(done), done.stdout) == (9, True, "")
    site.target.write_bytes(bytes(len(OLD)))
    (site.folder / "store").write_bytes(build_store([]))
    done = run(site, "verify", STORE, "--changed")
    assert (done.returncode, "nothing changed, so there is nothing to compare" in error(done)) == (8, True), done.stderr
    assert done.stdout == ""


@here
def test_what_cannot_be_verified_is_said_in_one_line(site: Site) -> None:
    for words, code, message in (
        (["./origin", "--changed", "--whole"], 2, "choose one"),
        (["./origin", "-r", "./store"], 2, "-r is for --changed"),
        ([STORE], 2, "name the device, file or snapshot itself"),
        (["./none"], 3, "no such device or file"),
        ([str(site.target)], 2, "are the same"),
        (["compare:./origin", "--changed"], 2, "names nothing to compare with"),
    ):
        done = run(site, "verify", *words)
        assert (done.returncode, message in error(done)) == (code, True), done.stderr
    site.target.unlink()
    done = run(site, "verify", "./origin")
    assert (done.returncode, "there is no such device or file" in error(done)) == (3, True), done.stderr


@here
def test_a_copy_in_the_middle_of_a_receive_is_not_verified_and_repair_ends_that_first(site: Site) -> None:
    new = flip(site.folder / "origin", 0, CHANGED * CHUNK + 7)
    stream = site.folder / "stream"
    assert site.run("send", "full:./origin", "-o", str(stream)).returncode == 0
    state = site.folder / "far" / "state"
    words = [str(BIN / "lvmsync"), "receive", str(site.target), "--state", str(state)]
    receiver = subprocess.Popen(words, stdin=subprocess.PIPE)
    assert receiver.stdin
    receiver.stdin.write(stream.read_bytes()[:-200])
    receiver.stdin.flush()
    deadline = time.monotonic() + 20
    while not any(json.loads(one.read_text())["transaction"] for one in state.glob("targets/*/record.json")):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    receiver.kill()
    receiver.wait()
    receiver.stdin.close()
    done = run(site, "verify", "./origin")
    assert (done.returncode, "is in the middle of a receive" in error(done)) == (8, True), done.stderr
    dry = run(site, "repair", "./origin", "--dry-run")
    assert dry.returncode == 0, dry.stderr
    assert "which would be ended first" in dry.stderr
    done = run(site, "repair", "./origin")
    assert done.returncode == 0, done.stderr
    assert "was ended first: rolled back" in done.stderr
    assert site.target.read_bytes() == new
    assert run(site, "verify", "./origin").returncode == 0


def test_repair_sends_only_what_differs_and_keeps_a_way_back(site: Site) -> None:
    spoilt = flip(site.target, 5, 100 * BLOCK)
    dry = run(site, "repair", "./origin", "--dry-run")
    assert dry.returncode == 0, dry.stderr
    assert "8.0 KiB in 2 extents" in dry.stderr
    assert site.target.read_bytes() == spoilt
    back = site.folder / "far" / "back"
    done = run(site, "repair", "./origin", "-b", str(back), "--json")
    assert done.returncode == 0, done.stderr
    receipt = json.loads(done.stdout)
    assert (receipt["job"], receipt["bytes"], receipt["durable"]) == ("repair", 2 * BLOCK, True)
    assert site.target.read_bytes() == OLD
    assert run(site, "verify", "./origin").returncode == 0
    again = run(site, "repair", "./origin")
    assert again.returncode == 0, again.stderr
    assert "nothing differed: 0 bytes" in again.stderr
    assert back.exists()


@here
def test_repair_refuses_a_target_that_is_too_small_or_not_there(site: Site) -> None:
    site.target.write_bytes(OLD[:-BLOCK])
    done = run(site, "repair", "./origin")
    assert (done.returncode, "too small; extend it first" in error(done)) == (3, True), done.stderr
    site.target.unlink()
    done = run(site, "repair", "./origin")
    assert (done.returncode, "'lvmsync sync --create' makes one" in error(done)) == (3, True), done.stderr
    assert not site.target.exists()
    done = run(site, "repair", "full:./origin")
    assert done.returncode == 2


@here
def test_a_sparse_tebibyte_is_verified_in_a_moment(site: Site) -> None:
    sparse(site.folder / "origin", 1 << 40, (1 << 39, b"data"))
    sparse(site.target, 1 << 40, (1 << 39, b"data"))
    assert run(site, "verify", "./origin").returncode == 0
    sparse(site.target, 1 << 40, (1 << 39, b"date"))
    assert run(site, "verify", "./origin").returncode == 9

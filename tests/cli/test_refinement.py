"""``--minimal``, ``--audit``, ``compare:`` and ``full:``, the installed command: to a path and over a real sshd."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.cli.site import BIN, STORE, WAYS, Site, error, make_site, run_far_side
from tests.cow_store import CHUNK, build_store
from tests.sources.loops import loop_of, sparse
from tests.sshd import Sshd

MIB = 1 << 20
OLD = np.random.default_rng(1).bytes(4 * MIB)
REWRITTEN, CHANGED = 5, 40  # chunks of the store: one was written with the same bytes


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    with run_far_side(tmp_path_factory) as sshd:
        yield sshd


@pytest.fixture(params=WAYS)
def site(request: pytest.FixtureRequest, sshd: Sshd, tmp_path: Path) -> Site:
    store = bytearray(build_store([(REWRITTEN, 2), (CHANGED, 3)]))
    for chunk, at in ((REWRITTEN, 2), (CHANGED, 3)):
        store[at * CHUNK : (at + 1) * CHUNK] = OLD[chunk * CHUNK : (chunk + 1) * CHUNK]
    site = make_site(tmp_path, sshd, request.param, store=bytes(store), origin=OLD, target=OLD)
    write_origin(site, CHANGED * CHUNK + 7)
    return site


def write_origin(site: Site, *places: int) -> bytes:
    """Change a byte at each place of what the origin was, and return what it is now."""
    new = bytearray(OLD)
    for place in places:
        new[place] ^= 1
    (site.folder / "origin").write_bytes(new)
    return bytes(new)


over_ssh = pytest.mark.parametrize("site", ["asyncssh", "rsh"], indirect=True)
here = pytest.mark.parametrize("site", ["path"], indirect=True)


def receipt_of(done: subprocess.CompletedProcess[str]) -> dict[str, object]:
    assert done.returncode == 0, done.stderr
    receipt = json.loads(done.stdout)
    assert isinstance(receipt, dict)
    return receipt


# ---- compare:


def test_compare_brings_the_target_up_to_date_with_what_differs(site: Site) -> None:
    new = write_origin(site, 0, MIB - 1, 3 * MIB + 5)
    receipt = receipt_of(site.sync("compare:./origin", "--json"))
    assert (receipt["bytes"], receipt["extents"], receipt["confirmed"]) == (3 * 4096, 3, True)
    assert site.target.read_bytes() == new
    assert receipt_of(site.sync("compare:./origin", "--json"))["bytes"] == 0


def test_compare_tells_what_a_dry_run_would_send(site: Site) -> None:
    done = site.sync("compare:./origin", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "it would be 4.0 KiB in 1 extent" in done.stderr
    assert site.target.read_bytes() == OLD


def test_compare_refuses_a_smaller_target_unless_told(site: Site) -> None:
    site.target.write_bytes(OLD[: 2 * MIB + 5])
    new = write_origin(site, 0)
    assert "too small" in error(site.sync("compare:./origin"))
    assert site.sync("compare:./origin", "--allow-smaller-target").returncode == 0
    assert site.target.read_bytes() == new[: 2 * MIB + 5]


def test_compare_leaves_the_rest_of_a_larger_target_alone(site: Site) -> None:
    site.target.write_bytes(OLD + b"tail")
    new = write_origin(site, 4 * MIB - 1)
    done = site.sync("compare:./origin")
    assert done.returncode == 0, done.stderr
    assert "what is past 4194304 was not compared" in done.stderr
    assert site.target.read_bytes() == new + b"tail"


def test_compare_with_no_target_there_says_so(site: Site) -> None:
    done = site.sync("compare:./origin", target=str(site.folder / "none"))
    assert done.returncode == 3
    assert "there is no such device or file" in error(done)
    created = site.sync("compare:./origin", "--create", target=str(site.folder / "none"))
    assert created.returncode == 2
    assert "nothing to compare with: use full:./origin" in error(created)


@over_ssh
def test_a_noisy_shell_is_told_and_a_missing_lvmsync_too(site: Site) -> None:
    noisy = site.program("noisy", f'echo "Welcome"; exec {BIN / "lvmsync"} "$@"')
    done = site.sync("compare:./origin", "--remote-command", noisy)
    assert done.returncode == 7
    assert "said 'Welcome' where lvmsync should have answered" in error(done)
    done = site.sync("compare:./origin", "--remote-command", "/no/such/lvmsync")
    assert done.returncode == 7
    assert "lvmsync was not found there" in error(done)
    assert site.target.read_bytes() == OLD


def test_compare_is_minimal_by_itself_and_has_nothing_to_audit(site: Site) -> None:
    done = site.sync("compare:./origin", "--audit", "5")
    assert done.returncode == 2
    assert "compare:./origin has no tracker that could miss a change" in error(done)
    assert receipt_of(site.sync("compare:./origin", "--minimal", "--json"))["bytes"] == 4096


@here
def test_compare_of_two_files_is_sent_and_drawn(site: Site) -> None:
    name = "compare:./origin,old=./far/target.img"
    assert json.loads(site.run("changes", name, "--json").stdout)["extents"] == [[CHANGED * CHUNK, 4096]]
    assert site.run("send", name, "-o", "stream").returncode == 0
    assert site.run("apply", "stream", str(site.target)).returncode == 0
    assert site.target.read_bytes() == (site.folder / "origin").read_bytes()
    done = site.run("send", "compare:./origin", "-o", "other")
    assert done.returncode == 2
    assert "compare:./origin,old=PATH, or use sync" in error(done)


@over_ssh
def test_a_device_that_is_in_use_far_away_is_refused(site: Site) -> None:
    with loop_of(site.target) as device:
        done = site.sync("compare:./origin", target=str(device))
        assert done.returncode == 0, done.stderr
        holder = os.open(device, os.O_RDONLY | os.O_EXCL)
        try:
            done = site.sync("compare:./origin", target=str(device))
            assert done.returncode == 3
            assert "mounted, or held" in error(done)
        finally:
            os.close(holder)


# ---- full:


def test_full_makes_a_sparse_copy(site: Site) -> None:
    sparse(site.folder / "image", 16 * MIB, (5 * MIB, OLD[:MIB]))
    copy = site.folder / "far" / "copy"
    receipt = receipt_of(site.sync("full:./image", "--create", "--json", "--compress", "none", target=str(copy)))
    assert receipt["bytes"] == 16 * MIB
    assert int(str(receipt["wire_bytes"])) < MIB + 10000
    assert copy.read_bytes() == (site.folder / "image").read_bytes()
    assert copy.stat().st_blocks * 512 <= 2 * MIB


@here
def test_full_says_what_it_is_in_the_stream(site: Site) -> None:
    assert site.run("send", "full:./origin", "-o", "stream").returncode == 0
    assert json.loads(site.run("inspect", "stream", "--json").stdout)["header"]["intent"] == "full"
    done = site.run("send", "full:./origin", "-o", "other", "--minimal")
    assert done.returncode == 2
    assert "full:./origin has no base; write compare:./origin instead" in error(done)


# ---- --minimal and --audit


def test_minimal_leaves_a_chunk_away_that_was_written_with_the_same_bytes(site: Site) -> None:
    receipt = receipt_of(site.sync(STORE, "--minimal", "--audit", "100", "--json"))
    assert (receipt["bytes"], receipt["extents"]) == (4096, 1)
    assert site.target.read_bytes() == (site.folder / "origin").read_bytes()
    notes = str(receipt["notes"])
    assert "--audit: 4186112 bytes that the tracker calls unchanged are the same" in notes
    assert "--minimal: of 8192 changed bytes, 4096 differ" in notes


@here
def test_the_base_may_be_the_target_itself(site: Site) -> None:
    done = site.sync(STORE, "--minimal", "--base-data", str(site.target), "--json")
    assert receipt_of(done)["bytes"] == 4096
    assert site.target.read_bytes() == (site.folder / "origin").read_bytes()


def test_a_missed_change_stops_before_anything_is_sent(site: Site) -> None:
    write_origin(site, CHANGED * CHUNK + 7, 3 * MIB + 4096)
    base = site.folder / "base"
    base.write_bytes(OLD)
    done = site.sync(STORE, "--audit", "100", "--base-data", str(base))
    assert done.returncode == 9
    assert f"{STORE}: 4096 bytes at {3 * MIB + 4096} differ from {base}" in error(done)
    assert "compare the whole device" in error(done)
    assert site.target.read_bytes() == OLD


@here
def test_changes_and_send_take_them_too(site: Site) -> None:
    done = site.run("changes", STORE, "--minimal", "--audit", "100", "--json")
    assert json.loads(done.stdout)["extents"] == [[CHANGED * CHUNK, 4096]]
    assert len([line for line in done.stderr.splitlines() if line.startswith("note: --")]) == 2
    assert json.loads(site.run("changes", STORE, "--json").stdout)["changed_bytes"] == 2 * CHUNK
    done = site.run("send", STORE, "--minimal", "-o", "stream", "--json")
    assert receipt_of(done)["bytes"] == 4096
    write_origin(site, 0)
    base = site.folder / "base"
    base.write_bytes(OLD)
    done = site.run("changes", STORE, "--audit", "100", "--base-data", str(base))
    assert done.returncode == 9


@here
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--audit", "0"], "--audit 0 is out of range"),
        (["--audit", "101"], "--audit 101 is out of range"),
        (["--audit", "nan"], "'--audit': nan is not a number"),
        (["--audit", "all"], "Invalid value for '--audit'"),
        (["--base-data", "./origin"], "give one of these as well"),
        (["--minimal", "--base-data", "origin"], "neither VG/LV nor a path"),
    ],
)
def test_wrong_options_are_a_usage_error(site: Site, options: list[str], message: str) -> None:
    done = site.run("send", STORE, "-o", "stream", *options)
    assert done.returncode == 2
    assert message in error(done)
    assert not (site.folder / "stream").exists()


@here
def test_the_verb_between_two_lvmsyncs_is_not_shown(site: Site) -> None:
    shown = site.run("--help").stdout
    assert " serve " in shown
    assert " agent " not in shown

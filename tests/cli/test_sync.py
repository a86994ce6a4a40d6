"""``lvmsync sync``, the installed command: to a path, over a real sshd in process, and with ``-e ssh``."""

from __future__ import annotations

import json
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.site import BIN, STORE, WAYS, Site, error, make_site, run_far_side
from tests.cow_store import CHUNK, build_store
from tests.sshd import Sshd

CHUNKS = 64
GREETING = """echo 'lvmsync AGENT {"protocol": 2, "version": "9", "host": "far"}'"""
READY = 'echo "lvmsync READY"'
OLD = bytes(range(256)) * (CHUNK * CHUNKS // 256)
CHANGED = (5, 6, 40, 63)  # chunks
NEW = bytearray(OLD)
for chunk in CHANGED:
    NEW[chunk * CHUNK : (chunk + 1) * CHUNK] = bytes([chunk]) * CHUNK


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    with run_far_side(tmp_path_factory) as sshd:
        yield sshd


@pytest.fixture(params=WAYS)
def site(request: pytest.FixtureRequest, sshd: Sshd, tmp_path: Path) -> Site:
    store = build_store([(chunk, 2 + index) for index, chunk in enumerate(CHANGED)])
    return make_site(tmp_path, sshd, request.param, store=store, origin=bytes(NEW), target=OLD)


over_ssh = pytest.mark.parametrize("site", ["asyncssh", "rsh"], indirect=True)


def test_the_receipt_is_the_receivers_and_the_snapback_leads_back(site: Site) -> None:
    done = site.sync(STORE, "--json", "--snapback", str(site.folder / "far" / "snapback"))
    assert done.returncode == 0, done.stderr
    receipt = json.loads(done.stdout)
    assert (receipt["confirmed"], receipt["durable"], receipt["bytes"]) == (True, True, 4 * CHUNK)
    assert site.target.read_bytes() == bytes(NEW)
    subprocess.run(
        [str(BIN / "lvmsync"), "apply", "far/snapback", str(site.target), "--state", "elsewhere"],
        cwd=site.folder,
        check=True,
        capture_output=True,
    )
    assert site.target.read_bytes() == OLD


def test_a_mirror_and_its_whole_past_by_one_line(site: Site) -> None:
    archive, state = site.folder / "far" / "archive", ["--state", str(site.state)]
    assert site.run("archive", "init", str(archive)).returncode == 0
    past, chance = [], random.Random(3)
    for number in range(4):
        if number:
            at = chance.randrange(len(OLD) // 4096) * 4096
            changed = bytearray((site.folder / "origin").read_bytes())
            changed[at : at + 4096] = chance.randbytes(4096)
            (site.folder / "origin").write_bytes(changed)
        done = site.sync("full:./origin" if not number else "compare:./origin", "--archive", str(archive))
        assert done.returncode == 0, done.stderr
        past.append(site.target.read_bytes())
    assert past[3] == (site.folder / "origin").read_bytes()
    for number, data in enumerate(past, 1):
        to = f"{site.folder}/restored{number}"
        words = ["archive", "restore", str(archive), "--at", str(number), "--to", to, "--create"]
        done = site.run(*words, "--mirror", str(site.target), *state)
        assert done.returncode == 0, done.stderr
        assert Path(to).read_bytes() == data
    done = site.run("archive", "verify", str(archive), "--restore-test", "--mirror", str(site.target), *state)
    assert (done.returncode, "4 points rebuilt" in done.stdout + done.stderr) == (0, True), done.stderr
    done = site.sync("compare:./origin", "--archive", str(site.folder / "none"))
    assert (done.returncode, "there is no archive at" in error(done)) == (3, True)


@pytest.mark.parametrize("site", ["path"], indirect=True)
def test_an_archive_on_a_third_machine_is_reached_from_the_targets_side(site: Site) -> None:
    word = f"ssh://127.0.0.1{site.folder}/third"
    assert site.run("archive", "init", word).returncode == 0
    for source in ("full:./origin", STORE):
        done = site.sync(source, "--archive", word)
        assert done.returncode == 0, done.stderr
    assert len(list((site.folder / "third").glob("catalogue-*"))) > 1
    done = site.run("archive", "verify", word, "--restore-test", "--mirror", str(site.target))
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("site", ["path"], indirect=True)
def test_a_receiver_at_the_end_of_a_pipe_has_an_archive_as_well(site: Site) -> None:
    assert site.run("archive", "init", "./archive").returncode == 0
    for number, source in enumerate(("full:./origin", STORE)):
        assert site.run("send", source, "-o", f"./{number}.stream").returncode == 0
        words = ["--receive", str(site.target), "-i", f"./{number}.stream", "--archive", "./archive"]
        done = site.run(*words)
        assert done.returncode == 0, done.stderr
    assert "; its past is in" in done.stderr
    assert "archive, point #2" in done.stderr
    done = site.run("archive", "verify", "./archive", "--restore-test", "--mirror", str(site.target))
    assert (done.returncode, "2 points rebuilt" in done.stdout + done.stderr) == (0, True), done.stderr
    assert (site.run("receive", str(site.target), "-i", "x", "--archive", "./a", "--no-undo").returncode) == 2


@pytest.mark.parametrize("site", ["path"], indirect=True)
@pytest.mark.parametrize("option", ["--no-undo", "--snapback=./back"])
def test_an_archive_is_in_the_place_of_other_undos(site: Site, option: str) -> None:
    done = site.sync(STORE, "--archive", "./archive", option)
    assert (done.returncode, "go without --no-undo and --snapback" in error(done)) == (2, True)


@pytest.mark.parametrize("option", ["--archive", "--snapback"])
def test_an_option_whose_variable_is_not_set_is_no_option_that_was_left_out(site: Site, option: str) -> None:
    done = site.sync(STORE, option, "")
    assert done.returncode == 2
    assert f"{option} is empty: is a variable not set?" in done.stderr
    assert site.target.read_bytes() == OLD


def test_a_dry_run_asks_the_target_and_changes_nothing(site: Site) -> None:
    done = site.sync(STORE, "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "dry run: nothing was written" in done.stderr
    assert site.target.read_bytes() == OLD
    site.target.unlink()
    assert site.sync(STORE, "--dry-run").returncode == 3


@pytest.mark.parametrize(
    ("site", "options"),
    [
        ("path", ["--format", "3"]),
        ("asyncssh", ["--atomic"]),
        ("rsh", ["--no-undo"]),
        ("asyncssh", ["--compress", "zstd:3"]),
    ],
    indirect=["site"],
)
def test_every_kind_of_stream_and_transaction_arrives(site: Site, options: list[str]) -> None:
    done = site.sync(STORE, *options)
    assert done.returncode == 0, done.stderr
    assert site.target.read_bytes() == bytes(NEW)


def test_a_target_that_the_far_side_refuses_ends_with_its_status_and_reason(site: Site) -> None:
    site.target.write_bytes(OLD[:-512])
    done = site.sync(STORE)
    assert done.returncode == 3
    assert "too small" in error(done)
    assert site.target.read_bytes() == OLD[:-512]
    missing = site.sync(STORE, target=str(site.folder / "none"))
    assert missing.returncode == 3
    assert "there is no such device or file" in error(missing)


def test_names_reach_the_far_side_as_one_word(site: Site) -> None:
    name = str(site.folder / "far" / "a b'c\"$(touch x);`touch y`&")
    Path(name).write_bytes(OLD)
    done = site.sync(STORE, target=name)
    assert done.returncode == 0, done.stderr
    assert Path(name).read_bytes() == bytes(NEW)
    assert not list(site.folder.rglob("[xy]"))


@over_ssh
def test_a_far_side_without_lvmsync_is_told_with_the_next_step(site: Site) -> None:
    done = site.sync(STORE, "--remote-command", "/no/such/lvmsync")
    assert done.returncode == 7
    assert "lvmsync was not found there; install it, or name its path with --remote-command" in error(done)
    assert site.target.read_bytes() == OLD


@over_ssh
def test_a_noisy_shell_is_told_and_nothing_is_written(site: Site) -> None:
    noisy = site.program("noisy", f'echo "Welcome to the machine"; exec {BIN / "lvmsync"} "$@"')
    done = site.sync(STORE, "--remote-command", noisy)
    assert done.returncode == 7
    assert "said 'Welcome to the machine' where lvmsync should have answered" in error(done)
    assert site.target.read_bytes() == OLD


@over_ssh
def test_a_far_side_that_ends_well_without_a_word_is_no_success(site: Site) -> None:
    done = site.sync(STORE, "--remote-command", site.program("silent", "exit 0"))
    assert done.returncode == 7
    assert "is it an lvmsync that can answer?" in error(done)


@over_ssh
def test_a_far_side_that_confirms_something_else_is_no_success(site: Site) -> None:
    liar = site.program(
        "liar", f'{GREETING}; {READY}; echo \'lvmsync RECEIPT {{"bytes": 1, "extents": 1}}\'; cat > /dev/null'
    )
    done = site.sync(STORE, "--remote-command", liar)
    assert done.returncode == 9
    assert "do not use the target" in error(done)


@over_ssh
def test_a_far_side_that_is_killed_ends_with_a_failed_line(site: Site) -> None:
    done = site.sync(STORE, "--remote-command", site.program("killed", f"{GREETING}; {READY}; kill -9 $$"))
    assert done.returncode == 7
    error(done)


@over_ssh
def test_what_the_far_side_says_on_stderr_is_shown(site: Site) -> None:
    talker = site.program("talker", f'echo "disk nearly full" >&2; exec {BIN / "lvmsync"} "$@"')
    done = site.sync(STORE, "--remote-command", talker)
    assert done.returncode == 0, done.stderr
    assert f"127.0.0.1:{site.target}: disk nearly full" in done.stderr.splitlines()

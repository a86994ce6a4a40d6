"""`lvmsync era`, and era sources on the command line: words, exit codes, one line each."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.era_machine import G4K, EraMachine, running

LVMSYNC = str(Path(sys.executable).with_name("lvmsync"))


def call(*words: str, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    env = os.environ if folder is None else os.environ | {"LVMSYNC_STATE": str(folder / "state")}
    return subprocess.run([LVMSYNC, *words], env=env, capture_output=True, text=True, cwd=folder, check=False)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("era")
    meta = G4K.image("meta-snap2.img", folder)
    G4K.image("origin-after.img", folder)
    (folder / "small").write_bytes(meta.read_bytes()[: 8 * 4096])
    (folder / "zeros").write_bytes(bytes(1 << 20))
    damaged = bytearray(meta.read_bytes())
    damaged[100] ^= 1
    (folder / "damaged").write_bytes(damaged)
    return folder


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["changes", "era:./meta-snap2.img"], 2, "since which era?"),
        (["changes", "era:./meta-snap2.img,since=-1"], 2, "since=-1 is out of range"),
        (["changes", "era:./meta-snap2.img,since=x"], 2, "since=x is out of range"),
        (["changes", "era:./meta-snap2.img,since=4294967296"], 2, "is out of range"),
        (["changes", "era:./meta-snap2.img,since=1,snap=both"], 2, "snap=both is out of range"),
        (["changes", "era:./meta-snap2.img,since=1,id=3"], 2, "unknown key 'id'"),
        (["changes", "era:./meta-snap2.img,since=1,size=1G"], 2, "they do not belong together"),
        (["changes", "era:./nowhere,since=1"], 3, "no such device or file"),
        (["changes", "era:.//,since=1"], 3, "is a directory"),
        (["changes", "era:./zeros,since=1"], 4, "magic 0, not 2126579579: this is no era metadata"),
        (["changes", "era:./damaged,since=1"], 4, "the superblock is damaged"),
        (["changes", "era:./small,since=1"], 4, "small: "),
        (["send", "-o", "x", "era:./meta-snap2.img,since=1"], 2, "where is the data? Name it with -r"),
        (["send", "-o", "x", "-r", "./zeros", "era:./meta-snap2.img,since=1"], 2, "zeros has 1048576 bytes"),
        (
            ["send", "-o", "x", "-r", "./origin-after.img", "era:./meta-snap2.img,since=11"],
            8,
            "past the current era 10",
        ),
        (["sync", "-r", "./origin-after.img", "era:./meta-snap2.img,since=11", "./copy"], 8, "past the current era 10"),
        (["sync", "-r", "./origin-after.img", "era:./meta-snap2.img", "./copy"], 2, "no era is remembered"),
        (["era", "size", "0"], 2, "not what dm-era can track"),
        (["era", "size", "x"], 2, "neither VG/LV nor a path"),
        (["era", "size", "1G", "--granularity", "5K"], 2, "the kernel takes multiples of 4 KiB"),
        (["era", "size", "7E", "--granularity", "4K"], 2, "take larger blocks"),
        (["era", "size"], 2, "Missing argument"),
        (["era", "nothing"], 2, "No such command"),
        (["era", "create", "a/b", "./zeros", "./small"], 2, "is no name for an era device"),
        (["era", "create", "a", "./zeros", "./small"], 2, "is a plain file; make a loop device of it first"),
        (["era", "create", "a", "x/y", "./small", "--no-unit", "--unit-dir", "/x"], 2, "do not go together"),
        (["era", "start", "a"], 3, "lvmsync made no era device called a"),
        (["era", "start", "../a"], 2, "is no name for an era device"),
        (["era", "status", "a"], 3, "there is no era device called a; there are: none"),
        (["era", "checkpoint", "a"], 3, "a is not active"),
        (["era", "changes", "a"], 2, "Missing option '--since'"),
        (["era", "changes", "a", "--since", "1"], 3, "cannot open /dev/mapper/a"),
        (["era", "remove", "a"], 3, "lvmsync made no era device called a"),
    ],
)
def test_bad_input_gets_one_line_and_its_status(place: Path, words: list[str], status: int, message: str) -> None:
    done = call(*words, folder=place)
    assert (done.returncode, done.stdout) == (status, "")
    assert done.stderr.startswith("lvmsync: ")
    assert done.stderr.count("\n") == 1
    assert message in done.stderr
    assert not (place / "x").exists()


def test_a_stream_of_an_era_brings_a_copy_up_to_date(place: Path, tmp_path: Path) -> None:
    copy = G4K.image("origin-at-snap.img", tmp_path)
    word = "era:./meta-snap2.img,since=8,snap=held"
    done = call("sync", "-r", "./origin-after.img", word, str(copy), folder=place)
    assert done.returncode == 0, done.stderr
    assert copy.read_bytes() == (place / "origin-after.img").read_bytes()


def test_an_era_to_come_is_shown_as_nothing_with_a_warning(place: Path) -> None:
    done = call("changes", "--json", "era:./meta-snap2.img,since=99", folder=place)
    assert (done.returncode, json.loads(done.stdout)["extents"]) == (0, [])
    assert "since=99 is past the current era 10" in done.stderr


def test_sizes_are_told_to_people_and_programs() -> None:
    done = call("era", "size", "200G", "--granularity", "2M")
    assert "A = 101, a writeset W = 4 blocks" in done.stdout
    assert "      164 blocks  the rule of thumb in print" in done.stdout
    found = json.loads(call("era", "size", "200G", "--granularity", "2M", "--json").stdout)
    assert (found["nr_blocks"], found["least"]) == (102400, 3 * 101 + 6 * 4 + 32)


@pytest.mark.parametrize("action", ["size", "create", "start", "status", "checkpoint", "changes", "remove"])
def test_each_action_has_help(action: str) -> None:
    assert call("era", "-h", action).stdout.startswith(f"Usage: lvmsync era {action} ")


def test_era_alone_shows_help() -> None:
    assert "checkpoint" in call("era").stdout


# ---- with a device; dmsetup and names as in tests.era_machine, in this process


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[EraMachine]:
    with running(tmp_path, monkeypatch) as one:
        yield one


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    from lvmsync.cli.classic import run as run_words

    status = run_words(words)
    shown = capsys.readouterr()
    return status, shown.out, shown.err


def test_the_life_of_a_device(machine: EraMachine, capsys: pytest.CaptureFixture[str]) -> None:
    machine.take_down()
    origin, metadata = str(machine.origin), str(machine.metadata)
    status, out, err = run(
        capsys, "era", "create", "er", origin, metadata, "--granularity", "4K", "--force", "--no-unit"
    )
    assert (status, err.count("note: ")) == (0, 1)
    assert out.endswith("er: era 7, metadata 0 % full, 16.0 MiB in blocks of 4.0 KiB\n")
    machine.uuid = json.loads((machine.folder / "state/era/er.json").read_text())["uuid"]
    machine.set_up()
    machine.show("meta-snap.img")
    assert run(capsys, "era", "start", "er", "--json")[0] == 0
    assert run(capsys, "-q", "era", "status")[:2] == (0, "")
    (shown,) = json.loads(run(capsys, "era", "status", "er", "--json")[1])
    assert (shown["era"], shown["is_active"]) == (7, True)
    status, out, err = run(capsys, "era", "changes", "er", "--since", "3", "--json")
    assert (status, len(json.loads(out)["extents"])) == (0, 795)
    assert run(capsys, "era", "checkpoint", "er")[:2] == (0, "8\n")
    status, out, err = run(capsys, "era", "checkpoint", "er", "--json")
    assert json.loads(out) == {"name": "er", "era": 8, "before": 8, "advanced": False}
    assert "began no new era: it still is 8" in err
    machine.hold()
    assert "taken by another program" in run(capsys, "era", "status")[1]
    machine.set_raw_status("Error")
    status, out, err = run(capsys, "era", "status")
    assert (status, err.count("\n")) == (5, 1)
    assert "er: failed" in out
    assert "has failed (status 'Error')" in err
    status, _, err = run(capsys, "era", "remove", "er", "--force")
    assert (status, err) == (0, "er was removed; writes to its origin are not tracked any more\n")
    assert run(capsys, "era", "status")[:2] == (0, "there is no era device\n")


def test_a_sync_remembers_the_era_of_its_target(machine: EraMachine, capsys: pytest.CaptureFixture[str]) -> None:
    copy = machine.folder / "copy"
    word = f"era:{machine.node}"
    assert run(capsys, "sync", word, str(copy), "--create", "--dry-run")[0] == 0
    assert not list((machine.folder / "state").glob("era/*/*"))
    status, _, err = run(capsys, "sync", word, str(copy), "--create")
    assert status == 0, err
    assert f"{copy} is at era 8 now" in err
    machine.show("meta-snap2.img")
    after = G4K.image("origin-after.img", machine.folder).read_bytes()
    fd = os.open(machine.origin, os.O_WRONLY | os.O_DSYNC)
    os.pwrite(fd, after, 0)
    os.close(fd)
    status, out, err = run(capsys, "sync", word, str(copy), "--json")
    assert status == 0, err
    receipt = json.loads(out)
    assert copy.read_bytes() == after
    assert receipt["bytes"] < 2 << 20
    assert receipt["point"] == f"era:{machine.uuid}:10"
    assert f"    {copy} is at era 10" in run(capsys, "era", "status", "er")[1]


def test_changes_since_an_era_are_not_taken_by_a_target_that_is_not_at_it(
    machine: EraMachine, capsys: pytest.CaptureFixture[str]
) -> None:
    copy, back = machine.folder / "copy", machine.folder / "back"
    word = f"era:{machine.node}"
    assert run(capsys, "sync", word, str(copy), "--create")[0] == 0
    machine.show("meta-snap2.img")
    assert run(capsys, "sync", word, str(copy), "--snapback", str(back))[0] == 0
    assert run(capsys, "sync", f"{word},since=3", str(copy))[0] == 0  # more than it needs
    assert run(capsys, "apply", str(back), str(copy), "--ignore-base")[0] == 0
    status, _, err = run(capsys, "sync", word, str(copy))
    assert (status, err.count("\n")) == (8, 1)
    assert f"is at point era:{machine.uuid}:8, and the stream starts from era:{machine.uuid}:10" in err
    assert "with since=0, or give --ignore-base" in err
    copy.unlink()
    status, _, err = run(capsys, "sync", word, str(copy), "--create")
    assert (status, err.count("\n")) == (8, 1)
    assert not copy.exists()
    assert run(capsys, "sync", f"{word},since=0", str(copy), "--create")[0] == 0
    assert run(capsys, "sync", word, str(copy))[0] == 0
    assert copy.read_bytes() == machine.origin.read_bytes()

"""`lvmsync dattobd` on the command line: words, exit codes, one line each."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.dattobd_store import BLOCK, build_cow, build_snapshot

LVMSYNC = str(Path(sys.executable).with_name("lvmsync"))
SIZE = 1 << 20


def call(*words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"LVMSYNC_STATE": str(folder / "state")}
    return subprocess.run([LVMSYNC, *words], env=env, capture_output=True, text=True, cwd=folder, check=False)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dattobd")
    (folder / "cow").write_bytes(build_cow(SIZE, {3: 1, 200: 1}))
    (folder / "unclean").write_bytes(build_cow(SIZE, {3: 1}, flags=0))
    (folder / "kept").write_bytes(build_snapshot(SIZE, {3: b"old"}))
    (folder / "damaged").write_bytes(build_cow(SIZE, {3: 1}, changed=7))
    (folder / "snapshot").write_bytes(b"new " * (SIZE // 4))
    (folder / "image").write_bytes(b"old " * (SIZE // 4))
    return folder


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["setup"], 2, "Missing argument"),
        (["nothing"], 2, "No such command"),
        (["setup", "./image", "--driver", "blk"], 2, "there are dattobd and elastio-snap"),
        (["setup", "./image", "--space", "1000"], 2, "the drivers take whole MiB"),
        (["setup", "./image", "--space", "0"], 2, "the drivers take whole MiB"),
        (["setup", "./image", "--cache", "x"], 2, "x"),
        (["setup", "./image", "--no-unit", "--unit-dir", "x"], 2, "do not go together"),
        (["setup", "./image"], 3, "neither dattobd nor elastio-snap is loaded; run 'modprobe dattobd'"),
        (["cycle", "./image", "./copy"], 3, "neither dattobd nor elastio-snap is loaded"),
        (["cycle", "./image", "./copy", "--create", "--compare"], 2, "nothing to compare with"),
        (["cycle", "7", "./copy"], 3, "minor 7 is not tracked"),
        (["to-incremental", "0"], 3, "0 is not tracked; neither dattobd nor elastio-snap is loaded"),
        (["to-snapshot", "./image"], 3, "image is not tracked"),
        (["destroy", "./image"], 3, "image is not tracked"),
        (["reload", "./image"], 3, "nothing is recorded of ./image"),
        (["update", "./snapshot", "./cow"], 2, "Missing argument"),
        (["update", "./snapshot", "./nowhere", "./image"], 3, "no such device or file"),
        (["update", "./snapshot", "./unclean", "./image"], 5, "without CLEAN"),
        (["update", "./snapshot", "./kept", "./image"], 4, "not incremental"),
        (["update", "./snapshot", "./damaged", "./image"], 4, "damaged: "),
        (["update", "./snapshot", "./image", "./image"], 4, "no COW file"),
        (["update", "./nowhere", "./cow", "./image"], 3, "no such device or file"),
    ],
)  # fmt: skip
def test_bad_input_gets_one_line_and_its_status(place: Path, words: list[str], status: int, message: str) -> None:
    before = (place / "image").read_bytes()
    done = call("dattobd", *words, folder=place)
    lines = [line for line in done.stderr.splitlines() if line.startswith("lvmsync: ")]
    assert (done.returncode, len(lines)) == (status, 1), done.stderr
    assert message in lines[0]
    assert "Traceback" not in done.stderr
    assert (place / "image").read_bytes() == before


def test_update_copies_what_changed_and_can_be_undone(place: Path) -> None:
    old = b"old " * (SIZE // 4)
    done = call("dattobd", "update", "./snapshot", "./cow", "./image", "--snapback", "undo", "--dry-run", folder=place)
    assert done.returncode == 0, done.stderr
    assert (place / "image").read_bytes() == old
    done = call("dattobd", "update", "./snapshot", "./cow", "./image", "--snapback", "undo", folder=place)
    assert done.returncode == 0, done.stderr
    wanted = bytearray(old)
    for block in (3, 200):
        wanted[block * BLOCK : (block + 1) * BLOCK] = b"new " * (BLOCK // 4)
    assert (place / "image").read_bytes() == wanted
    assert call("apply", "undo", "./image", folder=place).returncode == 0
    assert (place / "image").read_bytes() == old


def test_status_without_a_module_is_no_error(place: Path) -> None:
    done = call("dattobd", "status", folder=place)
    assert (done.returncode, done.stdout) == (0, "nothing is tracked\n")
    assert call("dattobd", "status", "--json", folder=place).stdout == "[]\n"
    assert call("dattobd", "reload", folder=place).returncode == 0

"""A target that is where the data is read is refused, whichever way either is named; and other slips of a user."""

from __future__ import annotations

from pathlib import Path

import pytest

from lvmsync.cli import classic
from lvmsync.cli.asked import Orders, Way
from lvmsync.cli.classic import run
from lvmsync.cli.delivery import agent_words
from lvmsync.names import parse_target
from tests.sources.loops import loop_of

BLOCK = 64 << 10
MAP = "blksnap:./map,since=1,number=2,block-size=64K"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LVMSYNC_STATE", str(tmp_path / "state"))
    (tmp_path / "map").write_bytes(bytes([0, 2, 1, 2]))
    (tmp_path / "image").write_bytes(b"new!" * BLOCK)
    (tmp_path / "copy").write_bytes(b"old!" * BLOCK)
    return tmp_path


def complaint(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    status = run(words)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("lvmsync: ")]
    return status, line


def test_a_copy_onto_the_data_itself_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "link").symlink_to("image")
    with loop_of(folder / "image") as loop:
        pairs = [("./image", "./image"), ("./image", "./link"), (str(loop), "./image"), ("./image", str(loop))]
        for data, target in [*pairs, (str(loop), str(loop))]:
            status, line = complaint(capsys, "sync", MAP, target, "-r", data)
            assert (status, "are the same: the copy would be itself" in line) == (2, True), line
    assert run(["sync", MAP, "./copy", "-r", "./image", "-q"]) == 0
    assert (folder / "copy").read_bytes()[BLOCK : BLOCK + 4] == b"new!"


def test_a_base_that_is_the_data_itself_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for option in (["--minimal"], ["--audit", "100"]):
        words = ["sync", MAP, "./copy", "-r", "./image", "--base-data", "./image", *option]
        status, line = complaint(capsys, *words)
        assert (status, "cannot be the base as well" in line) == (2, True), line
    assert (folder / "copy").read_bytes() == b"old!" * BLOCK


def test_a_point_that_the_stream_does_not_know_is_told(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for note in (False, True):
        assert run(["sync", MAP, "./copy", "-r", "./image"]) == 0
        assert ("does not say what it starts from" in capsys.readouterr().err) == note


def test_deltas_of_saved_maps_that_do_not_lead_on_are_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    generation = "3021f85e-b958-4dd4-aea2-fa580d72c86f"
    (folder / "third").write_bytes(bytes([3, 2, 1, 2]))
    third = "blksnap:./third,since={},number=3,block-size=64K,generation=" + generation
    assert run(["sync", f"{MAP},generation={generation}", "./copy", "-r", "./image", "-q"]) == 0
    assert run(["sync", third.format(2), "./copy", "-r", "./image", "-q"]) == 0
    before = (folder / "copy").read_bytes()
    status, line = complaint(capsys, "sync", f"{MAP},generation={generation}", "./copy", "-r", "./image", "-q")
    assert (status, "is at point blksnap:" in line) == (8, True), line  # older than the copy
    other = third.format(2).replace("3021", "9999")
    assert complaint(capsys, "sync", other, "./copy", "-r", "./image", "-q")[0] == 8
    assert (folder / "copy").read_bytes() == before


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["-e", "ssh '"], """--rsh: cannot split 'ssh '' into words: No closing quotation"""),
        (["-e", ""], "--rsh: the command is empty"),
        (["--remote-command", '"'], """--remote-command: cannot split '"' into words"""),
        (["--remote-command", " "], "--remote-command: the command is empty"),
        (["--port", "0"], "0 is not in the range"),
        (["--port", "65536"], "65536 is not in the range"),
    ],
)
def test_a_way_that_makes_no_sense_is_refused(
    folder: Path, capsys: pytest.CaptureFixture[str], options: list[str], words: str
) -> None:
    status, line = complaint(capsys, "sync", "full:./image", "far:/copy", *options)
    assert (status, words in line) == (2, True), line


def test_no_memory_is_no_bug(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def fail(_: object) -> int:
        raise MemoryError

    monkeypatch.setattr(classic, "_run", fail)
    status, line = complaint(capsys, "changes", "./x")
    assert (status, "out of memory" in line) == (3, True)


def test_what_makes_room_for_a_target_is_a_word_of_the_command_that_serves_it() -> None:
    way = Way(target_extend_cmd="make room -n 1", sudo=True)
    for word, start in (("host:vg/lv", ["sudo", "-n", "lvmsync"]), ("vg/lv", [])):
        place = parse_target(word)
        assert agent_words(way, place, Orders()) == [*start, "agent", "--target-extend-cmd", "make room -n 1"]

"""``lvmsync archive``, by the command line: what it prints, how it ends, and what is there afterwards."""

from __future__ import annotations

import json
import os
import random
import shutil
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from lvmsync.cli.classic import run
from tests.sshd import run_sshd

MIB = 1 << 20


class Site:
    """A device that is a file, its mirror, and an archive of both kinds of members."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder = folder
        self._capsys = capsys
        self.chance = random.Random(7)
        self.disk, self.mirror, self.archive = folder / "disk", folder / "mirror", folder / "archive"
        self.disk.write_bytes(self.chance.randbytes(2 * MIB) + bytes(MIB))
        self.past: list[bytes] = []

    def run(self, line: str, status: int = 0) -> str:
        """Run a line; return what it said."""
        found = run(line.split())
        said = self._capsys.readouterr()
        assert found == status, said.err
        return said.out + said.err

    def json(self, line: str, status: int = 0) -> Any:
        assert run([*line.split(), "--json"]) == status
        return json.loads(self._capsys.readouterr().out)

    def write(self) -> None:
        data = bytearray(self.disk.read_bytes())
        for _ in range(3):
            at = self.chance.randrange(700) * 4096
            data[at : at + 4096] = self.chance.randbytes(4096)
        self.disk.write_bytes(data)

    def sync(self, number: int) -> None:
        """Bring the mirror up to date, its snapback into the archive."""
        self.past.append(self.mirror.read_bytes())
        self.write()
        self.run(f"sync compare:{self.disk} {self.mirror} --snapback {self.folder}/{number}.back")
        self.run(f"archive import {self.archive} {self.folder}/{number}.back")


@pytest.fixture
def site(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Site:
    monkeypatch.setenv("LVMSYNC_STATE", str(tmp_path / "state"))
    site = Site(tmp_path, capsys)
    assert "is an archive now" in site.run(f"archive init {site.archive}")
    site.run(f"sync full:{site.disk} {site.mirror} --create")
    return site


def test_any_state_of_a_mirror_is_listed_restored_and_proved(site: Site) -> None:
    for number in range(4):
        site.sync(number)
    table = site.run(f"archive list {site.archive}").splitlines()
    assert table[0].split()[:2] == ["POINT", "TIME"]
    assert [line.split()[0] for line in table[1:]] == ["1", "2", "3", "4", "5"]
    assert "back from #2 (the mirror, 4 steps)" in table[1]
    assert "the mirror" in table[5]

    for number, data in enumerate(site.past, 1):
        target = site.folder / f"restored{number}"
        site.run(f"archive restore {site.archive} --at {number} --to {target} --create --mirror {site.mirror}")
        assert target.read_bytes() == data
    said = site.run(f"archive restore {site.archive} --at 2 --to {site.folder}/x --create", 8)
    assert "point #2 is reached back from the mirror" in said
    assert not (site.folder / "x").exists()

    assert "4 members" in site.run(f"archive verify {site.archive}")
    said = site.run(f"archive verify {site.archive} --restore-test --mirror {site.mirror}")
    assert "5 points rebuilt, each with the digest that it had" in said

    said = site.run(f"archive combine {site.archive} 1 4 --dry-run")
    assert "nothing was changed: that was a dry run" in said
    assert "3 members" in said
    assert "2 points gone" in site.run(f"archive combine {site.archive} 4 1")
    assert [one["number"] for one in site.json(f"archive list {site.archive}")["points"]] == [1, 4, 5]
    site.run(f"archive restore {site.archive} --at 1 --to {site.folder}/again --create --mirror {site.mirror}")
    assert (site.folder / "again").read_bytes() == site.past[0]
    said = site.run(f"archive verify {site.archive} --restore-test --mirror {site.mirror}")
    assert "3 points rebuilt" in said


def test_a_restore_that_is_not_what_the_archive_had_is_taken_back(site: Site) -> None:
    site.run(f"archive take {site.archive} full:{site.disk}")
    site.run(f"archive verify {site.archive} --restore-test")
    newest = max(site.archive.glob("catalogue-*.json"))
    catalogue = json.loads(newest.read_text())
    catalogue["points"][0]["digest"] = "0" * 32
    newest.write_text(json.dumps(catalogue))
    target = site.folder / "target"
    target.write_bytes(old := os.urandom(3 * MIB))
    said = site.run(f"archive restore {site.archive} --to {target}", 9)
    assert "and had 00000000000000000000000000000000: do not use it" in said
    assert "was rolled back: it is as it was" in said
    assert target.read_bytes() == old


def test_a_restore_is_a_copy_at_a_point_from_which_deltas_go_on_and_can_be_undone(site: Site) -> None:
    site.run(f"archive take {site.archive} full:{site.disk} --label first")
    first = site.disk.read_bytes()
    target, back = site.folder / "target", site.folder / "target.back"
    target.write_bytes(old := os.urandom(len(first)))
    site.run(f"archive restore {site.archive} --at first --to {target} --snapback {back}")
    assert target.read_bytes() == first
    site.run(f"apply {back} {target}")
    assert target.read_bytes() == old
    receipt = site.json(f"archive restore {site.archive} --to {target}")
    assert (receipt["job"], receipt["confirmed"]) == ("archive restore", True)
    assert receipt["point"] == site.json(f"archive show {site.archive} first")["id"]
    said = site.run(f"archive restore {site.archive} --to {site.mirror} --mirror {site.mirror}", 8)
    assert "does not have that point" in said
    assert "--to" in site.run(f"archive restore {site.archive}", 2)


def test_a_point_is_exported_whole_or_as_what_leads_to_it(site: Site) -> None:
    for number in range(3):
        site.sync(number)
    dump = site.folder / "dump"
    site.run(f"archive export {site.archive} --at 1 --from 3 -o {dump}")
    copy = site.folder / "copy"
    copy.write_bytes(site.past[2])
    site.run(f"apply {dump} {copy} --ignore-base")
    assert copy.read_bytes() == site.past[0]
    whole = site.folder / "whole"
    receipt = site.json(f"archive export {site.archive} --at 2 --mirror {site.mirror} -o {whole}")
    assert receipt["bytes"] == 3 * MIB
    other = site.folder / "other"
    site.run(f"archive init {other}")
    site.run(f"archive import {other} {whole} --label moved")
    site.run(f"archive restore {other} --at moved --to {site.folder}/moved --create")
    assert (site.folder / "moved").read_bytes() == site.past[1]
    assert "is there already" in site.run(f"archive export {site.archive} --mirror {site.mirror} -o {dump}", 3)
    assert "no members lead from point #1 to #3" in site.run(
        f"archive export {site.archive} --at 3 --from 1 -o {site.folder}/none", 8
    )


def test_what_is_kept_is_told_and_the_rest_goes(site: Site) -> None:
    for number in range(5):
        site.sync(number)
    plan = site.json(f"archive prune {site.archive} --keep-last 2 --dry-run")
    assert (plan["drops"], plan["dry_run"], plan["dropped"]) == ([1, 2, 3, 4], True, [])
    said = site.run(f"archive prune {site.archive} --keep-last 3 --keep-within 1m --dry-run")
    assert "stays (last 1, within, the mirror is at it)" in said
    said = site.run(f"archive prune {site.archive} --keep-last 3")
    assert "3 points gone" in said
    assert "nothing is to be done" in site.run(f"archive prune {site.archive} --keep-last 3")
    assert site.run(f"archive prune {site.archive} --keep-last 3 -q") == ""
    assert "is whole" in site.run(f"archive verify {site.archive} --mirror {site.mirror}")


def test_a_fault_ends_with_9_and_says_which_points_it_costs(site: Site) -> None:
    for number in range(3):
        site.sync(number)
    shown = site.json(f"archive list {site.archive}")
    member = site.archive / shown["members"][1]["name"]
    whole = member.read_bytes()
    member.write_bytes(whole[:-9])
    said = site.run(f"archive verify {site.archive} --mirror {site.mirror} --restore-test", 9)
    assert f"{member}: stream is cut" in said
    assert "it leads to point #2 from #3" in said
    told = site.json(f"archive verify {site.archive} --mirror {site.mirror}", 9)
    assert len(told["faults"]) == 1
    member.write_bytes(whole)
    assert site.run(f"archive verify {site.archive} --mirror {site.mirror} -q") == ""
    index = site.archive / shown["members"][0]["index"]
    index.unlink()
    assert "--repair makes it anew" in site.run(f"archive verify {site.archive}", 9)
    assert "it was made anew" in site.run(f"archive verify {site.archive} --repair")


def test_what_it_consists_of_is_shown_and_drawn(site: Site) -> None:
    site.run(f"archive take {site.archive} full:{site.disk} --label <start>")
    for number in range(2):
        site.run(f"sync full:{site.disk} {site.mirror}-{number} --create")
    said = site.run(f"archive show {site.archive}")
    assert "1 points, 1 members" in said
    assert "full to #1: 3.0 MiB changed" in said
    said = site.run(f"archive show {site.archive} 1")
    assert "label: <start>" in said
    assert "reached from a full copy by:" in said
    picture = site.folder / "picture.svg"
    site.run(f"archive show {site.archive} --svg {picture}")
    root = ElementTree.fromstring(picture.read_text())
    assert len(root.findall(".//{*}rect")) > 100
    assert "is there already" in site.run(f"archive show {site.archive} --svg {picture}", 3)
    empty = site.folder / "empty"
    site.run(f"archive init {empty}")
    assert site.run(f"archive list {empty}") == "no points yet\n"
    assert "has no points yet" in site.run(f"archive restore {empty} --to {site.folder}/y --create", 2)
    assert "0 members" in site.run(f"archive verify {empty}")


@pytest.mark.parametrize(
    ("line", "status", "message"),
    [
        ("archive list {}/none", 3, "there is no archive at {}/none: 'lvmsync archive init {}/none' makes one"),
        ("archive init {}", 8, "is not empty"),
        ("archive init ftp://host/x", 2, "ssh://HOST/PATH or s3://BUCKET/PREFIX, not ftp://"),
        ("archive init host:x", 2, "write ./host:x if that is a folder here"),
        ("archive take {}/archive {}/none", 3, "cannot open"),
        ("archive take {}/archive full:{}/disk --label 7", 2, "no number"),
        ("archive import {}/archive {}/disk", 6, "not an lvmsync stream"),
        ("archive import {}/archive {}/disk {}/disk --label x", 2, "--label is for one point"),
        ("archive combine {}/archive 1 2", 2, "has no points yet"),
        ("archive prune {}/archive", 2, "say what is to be kept"),
        ("archive prune {}/archive --keep-within soon", 2, "90m, 36h, 14d, 8w"),
        ("archive prune {}/archive --keep-last -1", 2, "keep-last"),
        ("archive verify {}/archive --mirror {}/disk", 8, "no sync of this machine has brought it to a point"),
        ("archive verify {}/archive --mirror {}/none", 3, "none"),
        ("archive export {}/archive --json", 2, "name a file with -o"),
        ("archive nonsense {}/archive", 2, "nonsense"),
    ],
)
def test_what_makes_no_sense_is_one_clear_line(site: Site, line: str, status: int, message: str) -> None:
    before = sorted(path.name for path in site.archive.iterdir())
    said = site.run(line.replace("{}", str(site.folder)), status)
    assert message.replace("{}", str(site.folder)) in said
    assert len(said.splitlines()) == 1
    assert sorted(path.name for path in site.archive.iterdir()) == before


def test_a_mirror_that_was_written_to_or_is_in_the_middle_of_something_is_no_base(site: Site) -> None:
    site.sync(0)
    with site.mirror.open("r+b") as file:
        file.write(b"x")
    said = site.run(f"archive verify {site.archive} --mirror {site.mirror}", 8)
    assert "was written to by something else" in said
    site.run(f"sync full:{site.disk} {site.mirror}")
    assert "does not have that point" in site.run(f"archive verify {site.archive} --mirror {site.mirror}", 8)
    shutil.rmtree(site.folder / "state")
    assert "no sync of this machine" in site.run(f"archive verify {site.archive} --mirror {site.mirror}", 8)


def test_an_archive_on_another_machine_is_used_as_one_here(site: Site) -> None:
    (site.folder / "sshd").mkdir()
    with run_sshd(site.folder / "sshd") as sshd:
        far, config = f"ssh://127.0.0.1{site.folder}/far", f"-F {sshd.config}"
        assert "is an archive now" in site.run(f"archive init {far} {config}")
        states = []
        for number in range(3):
            if number:
                site.write()
            site.run(f"archive take {far} full:{site.disk} --label p{number} {config}")
            states.append(site.disk.read_bytes())
        for number, state in enumerate(states):
            site.run(f"archive restore {far} --at p{number} --to {site.folder}/out{number} --create {config}")
            assert (site.folder / f"out{number}").read_bytes() == state
        assert len(site.json(f"archive list {far} {config}")["points"]) == 3
        site.run(f"archive prune {far} --keep-last 2 {config}")
        assert "is whole: 2 members" in site.run(f"archive verify {far} --restore-test {config}")
        # The same folder, seen from where it lies
        assert "is whole: 2 members" in site.run(f"archive verify {site.folder}/far --restore-test")
        assert "there is no archive at ssh://127.0.0.1/none" in site.run(
            f"archive list ssh://127.0.0.1/none {config}", 3
        )
    assert "127.0.0.1: connection refused" in site.run(f"archive list {far} {config}", 7)

"""An archive's points as RBD diffs: imported by hand, they are the same bytes, and ``sync`` goes on from there."""

from __future__ import annotations

from pathlib import Path

import pytest

from lvmsync.cli.classic import run
from lvmsync.images import parse_image, snapshot_name
from lvmsync.jobs.archive.shelf import Shelf
from lvmsync.jobs.archive.take import take
from lvmsync.jobs.progress import ignore
from lvmsync.jobs.rbd.fill import Filling, fill
from lvmsync.jobs.send import StreamOptions
from lvmsync.stores.folder import FolderStore
from tests.ceph.conftest import Ceph
from tests.ceph.images import MIB, History, export, fresh, lvmsync


def test_diffs_of_an_archive_are_imported_by_hand(ceph: Ceph, tmp_path: Path) -> None:
    history, archive = History.make(21, 8), tmp_path / "archive"
    lvmsync(f"archive init {archive} -q")
    shelf = Shelf.open(FolderStore(archive))
    for number in range(7):
        take(shelf, history.source(number), StreamOptions(), ignore)
    # All of #1, then deltas over one step and over several, to standard output once
    with fresh(ceph, 1 * MIB) as image:
        for at, since in (("1", None), ("2", "1"), ("5", "2"), ("7", "5")):
            file = tmp_path / f"{at}.diff"
            start = f" --from {since}" if since else ""
            lvmsync(f"archive export {archive} --at {at}{start} --format rbd-diff -o {file} -q")
            ceph.rbd("import-diff", "--no-progress", str(file), image)
            name = snapshot_name(history.point(int(at) - 1).id)
            assert export(ceph, f"{image}@{name}") == history.states[int(at) - 1].data
        assert export(ceph, image) == history.states[6].data
        fill(parse_image(image), history.source(7), Filling(tmp_path), ignore)
        assert export(ceph, image) == history.states[7].data


def test_snapshots_have_the_names_that_are_asked_for(ceph: Ceph, tmp_path: Path) -> None:
    history, archive = History.make(22, 2), tmp_path / "archive"
    lvmsync(f"archive init {archive} -q")
    shelf = Shelf.open(FolderStore(archive))
    for number in range(2):
        take(shelf, history.source(number), StreamOptions(), ignore)
    with fresh(ceph, 1 * MIB) as image:
        lvmsync(f"archive export {archive} --at 1 --format rbd-diff --to-snap monday -o {tmp_path}/1 -q")
        lvmsync(
            f"archive export {archive} --at 2 --from 1 --format rbd-diff --from-snap monday --to-snap tuesday"
            f" -o {tmp_path}/2 -q"
        )
        for number in (1, 2):
            ceph.rbd("import-diff", "--no-progress", f"{tmp_path}/{number}", image)
        assert export(ceph, f"{image}@monday") == history.states[0].data
        assert export(ceph, f"{image}@tuesday") == history.states[1].data
        # Straight into the cluster: not over an image that holds something else
        lvmsync(f"archive restore {archive} --at 1 --to rbd:{image} --state {tmp_path}/state -q", 8)
        with fresh(ceph) as other:
            lvmsync(f"archive restore {archive} --at 1 --to rbd:{other} --create --state {tmp_path}/state -q")
            lvmsync(f"archive restore {archive} --at 2 --to rbd:{other} --state {tmp_path}/state -q")
            assert export(ceph, other) == history.states[1].data


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("--format raw", "write stream or rbd-diff"),
        ("--to-snap x", "are for --format rbd-diff"),
        ("--format rbd-diff --compress zstd", "is not for --format rbd-diff"),
        ("--format rbd-diff --from-snap x", "give that as well"),
    ],
)
def test_options_that_do_not_go_together_are_refused(
    ceph: Ceph, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: str, told: str
) -> None:
    assert run(["archive", "export", str(tmp_path / "none"), "-o", str(tmp_path / "x"), *words.split()]) == 2
    assert told in capsys.readouterr().err

"""Lines to a real agent that are cut: the run opens another one, and goes on where it was."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lvmsync.cli.delivery import Delivery, Orders, Way
from lvmsync.errors import PeerError
from lvmsync.jobs.progress import Receipt, ignore
from lvmsync.jobs.replica.copy import PassOptions
from lvmsync.jobs.replica.run import foresee, sync_volume
from lvmsync.system.lvm import LogicalVolume
from tests import replica_machine
from tests.replica_machine import Machine, install

SIZE = 16 << 20
CUT = 6_000_000


class Site:
    """A volume, and a target behind lines of which the first ones are cut after `CUT` bytes."""

    def __init__(self, folder: Path) -> None:
        (folder / "volumes").mkdir()
        self.folder = folder
        self.machine = Machine(folder / "volumes")
        self.volume: LogicalVolume = self.machine.add("lv")
        self.machine.path(self.volume).write_bytes(os.urandom(SIZE))
        self.way = folder / "way"

    def cut(self, lines: int) -> None:
        """Let the next ``lines`` lines be cut."""
        (self.folder / "lines").write_text("")
        self.way.write_text(
            f"""#!/bin/bash
            cd {self.folder}
            echo x >>lines
            shift
            if (($(wc -l <lines) <= {lines})); then
                dd bs=64k iflag=count_bytes count={CUT} status=none
            else
                cat
            fi | tee -a sent | LVMSYNC_STATE={self.folder}/there bash -c "$*"
            """
        )
        self.way.chmod(0o755)

    def sync(self, retries: int = 3) -> Receipt:
        target = f"host:{self.folder}/copy"
        with Delivery(target, Way(rsh=str(self.way)), Orders(), ignore, compress="none") as delivery:
            return sync_volume(
                lambda: delivery.agent, self.volume, delivery.place.name, target, self.folder / "here",
                PassOptions(create=True), ignore, retries=retries, wait=0.05,
            )  # fmt: skip

    def foresee(self) -> Receipt:
        target = f"host:{self.folder}/copy"
        with Delivery(target, Way(rsh=str(self.way)), Orders(), ignore) as delivery:
            options = PassOptions(create=True)
            return foresee(delivery.agent, self.volume, delivery.place.name, target, self.folder / "here", options)

    @property
    def is_same(self) -> bool:
        return (self.folder / "copy").read_bytes() == self.machine.path(self.volume).read_bytes()


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    monkeypatch.setattr(replica_machine, "SIZE", SIZE)
    made = Site(tmp_path)
    install(made.machine, monkeypatch)
    return made


def test_a_run_goes_on_after_each_cut_and_sends_hardly_anything_twice(site: Site) -> None:
    site.cut(2)

    receipt = site.sync()

    assert receipt.kind == "resume"
    assert len(receipt.notes) == 2
    assert site.is_same
    assert (site.folder / "sent").stat().st_size < 1.05 * SIZE
    assert len(site.machine.ours()) == 1


def test_when_it_gives_up_the_next_run_finishes_and_brings_the_target_up_to_date(site: Site) -> None:
    site.cut(2)
    with pytest.raises(PeerError) as caught:
        site.sync(retries=1)
    assert caught.value.exit_code == 6
    assert "it was tried 2 times" in caught.value.__notes__[-1]
    assert site.foresee().kind == "resume"
    site.machine.write(site.volume, 0, 4000)

    receipt = site.sync()

    assert receipt.kind == "resume"
    assert "finished the copy" in " ".join(receipt.notes)
    assert site.is_same
    assert (site.folder / "sent").stat().st_size < 1.1 * SIZE
    assert len(site.machine.ours()) == 1


def test_what_is_no_matter_of_the_line_is_not_tried_again(site: Site) -> None:
    site.cut(0)
    site.sync()
    (site.folder / "lines").write_text("")
    (site.folder / "copy").write_bytes(bytes(SIZE))

    with pytest.raises(Exception, match="was written to by something else"):
        site.sync()

    assert (site.folder / "lines").read_text() == "x\n"


def test_a_dry_run_remembers_nothing_and_makes_nothing(site: Site) -> None:
    site.cut(0)
    receipt = site.foresee()

    assert (receipt.kind, receipt.bytes, receipt.dry_run) == ("first", SIZE, True)
    assert site.machine.ours() == []
    assert not (site.folder / "copy").exists()
    assert not list((site.folder / "here").rglob("record.json"))

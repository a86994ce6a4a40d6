"""Lines to a real agent that are cut: the run opens another one, and goes on where it was."""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import pytest

from lvmsync.cli.asked import Orders, Way
from lvmsync.cli.delivery import Delivery
from lvmsync.errors import PeerError, TransportError
from lvmsync.jobs.agent.client import Agent
from lvmsync.jobs.progress import Receipt, ignore
from lvmsync.jobs.replica.copy import PassOptions
from lvmsync.jobs.replica.run import foresee, retried, sync_volume
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
            fi | tee -a sent | PATH={Path(sys.executable).parent}:$PATH LVMSYNC_STATE={self.folder}/there bash -c "$*"
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
    site.cut(1)
    with pytest.raises(PeerError) as caught:
        site.sync(retries=0)
    assert caught.value.exit_code == 6
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


@dataclass
class Flaky:
    """Work over lines that fail, each of which brings it on by some bytes."""

    bytes_each: int
    goal: int
    done: int = 0
    seen: int = 0
    waits: list[float] = field(default_factory=list)

    def work(self, agent: Agent) -> Receipt:
        self.seen = self.done
        self.done += self.bytes_each
        if self.done < self.goal:
            raise TransportError("the line was cut")
        return Receipt("sync")

    def run(self, monkeypatch: pytest.MonkeyPatch, retries: int) -> Receipt:
        monkeypatch.setattr(time, "sleep", self.waits.append)
        agent = cast(Agent, None)
        return retried(lambda: agent, self.work, ignore, retries=retries, find_place=lambda: self.seen)


def test_failures_are_counted_anew_once_something_got_across_and_no_wait_is_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    flaky = Flaky(bytes_each=10, goal=500)

    receipt = flaky.run(monkeypatch, retries=2)

    assert receipt.notes == ["the line failed 49 times and was opened again each time, last: the line was cut"]
    assert max(flaky.waits) <= 4


def test_lines_over_which_nothing_gets_are_given_up_after_waits_that_do_not_grow_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    flaky = Flaky(bytes_each=0, goal=500)

    with pytest.raises(TransportError) as caught:
        flaky.run(monkeypatch, retries=20)

    assert caught.value.__notes__ == ["it was tried 21 times; run it again to go on where it was"]
    assert flaky.waits == [2, 4, 8, 16, *[30] * 16]

"""A volume whose snapshots lvmsync takes, with a real image in the place of its copy; LVM is a simulated one."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import pytest

from lvmsync.errors import ConflictError
from lvmsync.images import parse_image
from lvmsync.jobs.agent.client import Agent
from lvmsync.jobs.progress import Receipt, ignore
from lvmsync.jobs.rbd.fill import Filling
from lvmsync.jobs.rbd.side import ImageSide
from lvmsync.jobs.replica.copy import PassOptions
from lvmsync.jobs.replica.run import sync_volume
from tests.ceph.conftest import Ceph
from tests.ceph.images import export, fresh, write
from tests.replica_machine import SIZE, Machine, install


def test_a_volume_is_copied_whole_and_then_what_changed(
    ceph: Ceph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "volumes").mkdir()
    machine = Machine(tmp_path / "volumes")
    install(machine, monkeypatch)
    volume = machine.add("lv")
    machine.path(volume).write_bytes(bytes(SIZE))
    machine.write(volume, *range(200))

    with fresh(ceph) as image:
        target = f"rbd:{image}"

        def sync(*, full: bool = False) -> Receipt:
            how = Filling(tmp_path / "state", ignore_base=full)
            side = cast(Agent, ImageSide(parse_image(image), how))
            options = PassOptions(create=True, full=full, minimal=False)
            return sync_volume(lambda: side, volume, target, target, tmp_path / "state", options, ignore, retries=0)

        assert sync().kind == "first"
        assert export(ceph, image) == machine.path(volume).read_bytes()
        for number in range(3):
            machine.write(volume, number, 100 + number)
            receipt = sync()
            assert (receipt.kind, receipt.bytes) == ("delta", 2 * 4096)
            assert export(ceph, image) == machine.path(volume).read_bytes()
        assert sync().kind == "nothing"
        write(ceph, image, (0, b"somebody else"))
        machine.write(volume, 7)
        with pytest.raises(ConflictError, match="was written to by something else"):
            sync()
        assert sync(full=True).kind == "first"
        assert export(ceph, image) == machine.path(volume).read_bytes()
        (base,) = machine.ours()
        assert "lvmsync.role=base" in base.tags

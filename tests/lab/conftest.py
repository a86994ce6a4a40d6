"""The ``lab`` fixture: guests with a real kernel, in a folder of the test's own."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.lab import guest


@dataclass(frozen=True)
class Lab:
    """Where one test's guests keep their disks and their share."""

    folder: Path

    @property
    def share(self) -> Path:
        return self.folder / "share"

    def disk(self, name: str = "disk", size: int = 256 << 20) -> Path:
        """Make an empty disk of ``size`` bytes."""
        return guest.make_disk(self.folder / f"{name}.img", size)

    def run(
        self,
        script: str | Path,
        *,
        disks: Sequence[Path] = (),
        timeout: float = 300,
        env: Mapping[str, str] = {},
        modules: Sequence[str] = (),
    ) -> guest.Result:
        """Run ``script`` in a guest; the test fails with its console when its status is not 0."""
        result = guest.run(script, disks=disks, share=self.share, timeout=timeout, env=env, modules=modules)
        return result.check()

    def start(
        self,
        script: str | Path,
        *,
        disks: Sequence[Path] = (),
        env: Mapping[str, str] = {},
        modules: Sequence[str] = (),
    ) -> guest.Guest:
        """Boot a guest that the test will wait for or cut; use it in a ``with`` block."""
        return guest.Guest.start(script, disks=disks, share=self.share, env=env, modules=modules)


@pytest.fixture(scope="session")
def lab_machine() -> None:
    """Skip without what a guest needs; fail instead where the lab is required (CI)."""
    lacking = guest.missing()
    if lacking is None:
        return
    if os.environ.get("LVMSYNC_REQUIRE_LAB") or os.environ.get("CI"):
        pytest.fail(f"the lab is required here, but {lacking}")
    pytest.skip(lacking)


@pytest.fixture(scope="module", autouse=True)
def freed_disks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Remove the disks of a module's guests when it has ended: they may lie in memory."""
    base = tmp_path_factory.getbasetemp()
    before = set(base.iterdir())
    yield
    for folder in set(base.iterdir()) - before:
        for disk in folder.rglob("*.img"):
            disk.unlink()


@pytest.fixture
def lab(lab_machine: None, tmp_path: Path) -> Lab:
    return Lab(tmp_path)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test of this folder as ``lab``."""
    for item in items:
        if item.path.is_relative_to(guest.LAB):
            item.add_marker(pytest.mark.lab)

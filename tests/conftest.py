"""The order of test files: the lab's first, whose guests take minutes, so that none of them is the last to end.

And what coverage is measured of, and what no test does: ask the device mapper of the machine that it runs on.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from lvmsync.system import dm_control
from lvmsync.transport import pipe
from tests.forked import Processes

# No test is about time, and machines are slow at times.
settings.register_profile("lvmsync", settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("lvmsync")

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # nothing here multiplies matrices; threads cost each start


@pytest.fixture(autouse=True)
def no_control_node(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let nothing ask the kernel of this machine for its devices: tests have programs that play dmsetup."""
    monkeypatch.setattr(dm_control, "CONTROL", Path("/nonexistent/control"))


@pytest.fixture(autouse=True)
def forked_far_side(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the far side on this machine start by a fork, but where its start is what is tested."""
    if request.path.parent.name != "transport":
        monkeypatch.setattr(pipe, "subprocess", Processes)


PURE = ("tests", "formats", "stream", "chain", "nbd")
"""Folders of the tests of pure modules. Only they are measured for coverage, which doubles the time of a test."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: "lab" not in item.path.parent.name)
    for item in items:
        if item.path.parent.name not in PURE:
            item.add_marker("no_cover")

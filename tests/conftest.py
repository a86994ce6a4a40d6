"""The order of test files: the lab's first, whose guests take minutes, so that none of them is the last to end."""

from __future__ import annotations

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: "lab" not in item.path.parent.name)

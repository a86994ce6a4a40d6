"""The fixtures: images and texts from real kernels, and the answers that go with them."""

from __future__ import annotations

import functools
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import zstandard

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures"


@dataclass(frozen=True)
class Case:
    """One recorded state of a mechanism: a folder, and what the manifest says of it."""

    mechanism: str
    name: str
    facts: dict[str, Any]

    def __str__(self) -> str:
        return self.name

    def image(self, key: str, folder: Path) -> Path:
        """Unpack the image that the manifest calls ``key`` to ``folder``, and return its path."""
        entry = self.facts["files"][key]
        packed = FIXTURES / self.mechanism / entry["file"]
        with packed.open("rb") as file:
            data = zstandard.ZstdDecompressor().stream_reader(file).read()
        assert hashlib.sha256(data).hexdigest() == entry["sha256"], f"{packed} is damaged"
        path = folder / Path(entry["file"]).name.removesuffix(".zst")
        path.write_bytes(data)
        return path

    def text(self, name: str) -> str:
        """Return a recorded text, as in ``dmsetup-status.txt``."""
        return (FIXTURES / self.mechanism / self.name / name).read_text()

    def has_text(self, name: str) -> bool:
        return (FIXTURES / self.mechanism / self.name / name).exists()


@functools.cache
def list_cases(mechanism: str) -> tuple[Case, ...]:
    """Return the cases of a mechanism: snapshot, proto3."""
    manifest = json.loads((FIXTURES / mechanism / "manifest.json").read_text())
    return tuple(Case(mechanism, facts["name"], facts) for facts in manifest["cases"])


def find_case(mechanism: str, name: str) -> Case:
    return next(case for case in list_cases(mechanism) if case.name == name)

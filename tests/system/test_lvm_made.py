"""A snapshot as the kernel tells of it."""

from __future__ import annotations

import pytest

from lvmsync.formats.thin import parse_thin_table
from lvmsync.system import dm, lvm_made
from lvmsync.system.dm import Line, Mapped
from lvmsync.system.lvm import LogicalVolume
from lvmsync.system.lvm_made import find_made

GROUP = "g" * 32
ORIGIN = LogicalVolume(
    "my-vg", "lv", GROUP + "a" * 32, "Vwi-a-tz--", frozenset({"thin"}), frozenset({"public"}), 1 << 20, "", "", False,
    "", (253, 4), None, "pool", GROUP + "p" * 32, 1,
)  # fmt: skip


@pytest.mark.parametrize(
    ("name", "length", "is_found"),
    [
        ("my--vg-lv.lvmsync.1", 1 << 20, True),
        ("my--vg-another", 1 << 20, False),
        ("my--vg-lv.lvmsync.1", 2 << 20, False),
    ],
    ids=["it", "another", "resized"],
)
def test_of_another_volume_or_a_resized_one_the_kernel_does_not_tell_enough(
    monkeypatch: pytest.MonkeyPatch, name: str, length: int, *, is_found: bool
) -> None:
    device = Mapped(name, f"LVM-{GROUP}{'b' * 32}", (253, 9), 0)
    line = Line(device, 0, length, "thin", "253:2 7")
    assert parse_thin_table(line.text, "x")[1] == 7
    monkeypatch.setattr(dm, "list_tables", lambda: [line])
    monkeypatch.setattr(lvm_made, "_number_of", lambda _: (253, 9))
    made = find_made(ORIGIN, "lv.lvmsync.1", ["lvmsync"])
    assert (made and (made.id, made.thin_id)) == ((GROUP + "b" * 32, 7) if is_found else None)

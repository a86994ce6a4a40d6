"""``sync --group``: how its words are read, and what makes no group."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest

from lvmsync.cli import group
from lvmsync.cli.classic import run
from lvmsync.errors import UsageError
from lvmsync.jobs.progress import GroupReceipt, Receipt
from lvmsync.jobs.replica import run as runs
from lvmsync.system import lvm
from lvmsync.system.lvm import LogicalVolume


def volume(name: str) -> LogicalVolume:
    vg, short = name.split("/")
    kinds = frozenset({"linear"}), frozenset({"public"})
    return LogicalVolume(
        vg, short, f"{name:x>64}", "", *kinds, 1 << 20, "", "", False, "", (253, 9), None, "", "", None
    )


@pytest.fixture
def members(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What a group was asked for with."""
    asked: list[Any] = []

    def sync_group(name: str, connect: object, members: Sequence[Any], *more: Any, **options: Any) -> GroupReceipt:
        asked.append([name, members, more[2], options])
        receipts = [
            Receipt("sync", one.volume.full_name, one.place, kind="delta", confirmed=True, durable=True)
            for one in members
        ]
        return GroupReceipt("sync group", name, "c0", "delta", receipts, still_seconds=0.25, confirmed=True)

    from lvmsync.jobs.replica import group as jobs

    monkeypatch.setattr(jobs, "sync_group", sync_group)
    monkeypatch.setattr(lvm, "list_around", lambda name: None)
    monkeypatch.setattr(group, "find_managed", lambda word, *_: volume(word.removeprefix("/dev/")))
    return asked


def test_each_copy_has_the_name_of_its_volume_in_the_group_that_is_named_last(
    members: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["sync", "--group", "db", "vg/data", "/dev/vg/log", "other/data=data2", "me@host:vg2"]) == 0
    ((name, found, stillness, options),) = members
    assert name == "db"
    assert [(one.target, one.place) for one in found] == [
        ("vg2/data", "me@host:vg2/data"), ("vg2/log", "me@host:vg2/log"), ("vg2/data2", "me@host:vg2/data2")
    ]  # fmt: skip
    assert (stillness.freeze_cmd, stillness.limit, options["retries"]) == (None, 10, runs.RETRIES)
    said = capsys.readouterr().err
    assert "group db: 3 volumes were committed together; writes stood still for 0.2 s at the most" in said


def test_its_receipt_is_one_object(members: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    still = ["--freeze", "--freeze-cmd", "F", "--thaw-cmd", "T", "--freeze-limit", "3"]
    assert run(["sync", "--group", "db", *still, "--json", "vg/data", "vg2"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["group"], told["cut"], [one["source"] for one in told["members"]]) == ("db", "c0", ["vg/data"])
    stillness = members[0][2]
    assert (stillness.freeze, stillness.freeze_cmd, stillness.thaw_cmd, stillness.limit) == (True, "F", "T", 3)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("vg/a vg/b vg/c", "'vg/c' is one word more; to cut several volumes together give --group NAME"),
        ("vg/a vg/b --freeze-cmd x", "--freeze-cmd is for volumes that are cut together"),
        ("--group db vg/a", "Missing argument"),
        ("--group d,b vg/a vg2", "--group 'd,b': a name of letters"),
        ("--group db vg/a host:vg2/b", "'host:vg2/b': with --group the last word is the volume group"),
        ("--group db vg/a /srv/copies", "'/srv/copies': with --group the last word is the volume group"),
        ("--group db host:vg/a vg2", "are on: run 'lvmsync sync --group db VG/LV ... HOST:vg2' there"),
        ("--group db vg/a host:vg/b=c vg2", "host:vg/b=c: the volumes of a group are pushed"),
        ("--group db vg/a vg/a vg2", "vg/a is named twice"),
        ("--group db vg/a vg3/a vg2", "vg/a and vg3/a would both be copied to vg2/a: write vg3/a=NAME for one of them"),
        ("--group db vg/a= vg2", "vg/a=: a name is missing behind '='"),
        ("--group db vg/a vg2 --freeze-cmd x", "give both, or what was frozen would stay so"),
        ("--group db vg/a vg2 --freeze-limit 0", "--freeze-limit 0 is out of range"),
        ("--group db vg/a vg2 --no-undo", "--no-undo: the copies of a group are brought back together"),
        ("--group db vg/a vg2 --frozen", "--group: -r, --frozen, --audit"),
    ],
)
def test_what_makes_no_group_is_refused_in_one_line(
    words: str, message: str, members: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["sync", *words.split()]) == UsageError.exit_code
    assert message in capsys.readouterr().err
    assert members == []

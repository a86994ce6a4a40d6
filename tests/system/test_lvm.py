from __future__ import annotations

import json
from pathlib import Path

import pytest

from lvmsync.errors import ChangesLost, CommandError, DeviceError, UsageError
from lvmsync.names import Volume
from lvmsync.system import lvm
from lvmsync.system.dm import Mapped
from tests.fake_programs import FakeProgram
from tests.fixture_files import Case, list_cases

RECORDED = [case for case in list_cases("snapshot") if case.has_text("lvs-full.json")]


@pytest.fixture
def lvs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeProgram:
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    return FakeProgram(tmp_path, "lvs")


def row(**changes: str) -> dict[str, str]:
    fields = {
        "vg_name": "vg",
        "vg_uuid": "UTI8MH-m8Jf-xooY-sv1o-2tz2-Qqro-vPrP0z",
        "lv_name": "snap",
        "lv_uuid": "Ny0mm5-tWeP-76kQ-d6Rm-vtf6-1Gnt-3yVijt",
        "lv_attr": "swi-a-s---",
        "lv_layout": "linear",
        "lv_role": "public,snapshot,thicksnapshot",
        "lv_size": "1048576",
        "lv_time": "1795254316",
        "origin": "data",
        "origin_uuid": "D8BF5o-ekZa-dNOz-Sjkj-FGcl-e3Qe-8tcO8D",
        "lv_merging": "",
        "lv_snapshot_invalid": "",
        "lv_merge_failed": "",
        "lv_kernel_major": "254",
        "lv_kernel_minor": "3",
    }
    return fields | changes


ORIGIN = {
    "lv_name": "data",
    "lv_attr": "owi-a-s---",
    "lv_role": "public,origin,thickorigin",
    "origin": "",
    "origin_uuid": "",
}


def report(*rows: dict[str, str]) -> str:
    return json.dumps({"report": [{"lv": list(rows)}]})


def volume(**changes: str) -> lvm.LogicalVolume:
    return lvm.parse_report(report(row(**changes)))[0]


def test_a_snapshot_is_read_whole() -> None:
    found = volume()
    assert (found.full_name, found.origin, found.size, found.number) == ("vg/snap", "data", 1048576, (254, 3))
    assert len(found.id) == 64
    assert found.id[:32] == found.origin_id[:32]
    assert found.id.endswith("Ny0mm5tWeP76kQd6Rmvtf61Gnt3yVijt")
    assert found.origin_id.endswith("D8BF5oekZadNOzSjkjFGcle3Qe8tcO8D")
    assert found.time == "2026-11-21T09:45:16+00:00"
    assert found.is_classic_snapshot
    lvm.require_usable_snapshot(found)


@pytest.mark.parametrize("case", RECORDED, ids=str)
def test_a_recorded_report_is_used_or_refused_as_its_state_demands(case: Case) -> None:
    snapshots = [one for one in lvm.parse_report(case.text("lvs-full.json")) if one.is_classic_snapshot]
    if not snapshots:
        assert case.facts["kind"] == "po"  # made with dmsetup: LVM sees two plain volumes
        return
    first = snapshots[0]
    assert not first.name.startswith("[")
    if case.facts["kind"] == "merge":
        with pytest.raises(ChangesLost, match="being merged into vg/data, or will be"):
            lvm.require_usable_snapshot(first)
    elif not case.facts["usable"]:
        with pytest.raises(ChangesLost, match="LVM says 'snapshot invalid'"):
            lvm.require_usable_snapshot(first)
    else:
        lvm.require_usable_snapshot(first)
        assert first.id in case.text("dmsetup-info.txt")
        assert first.size == case.facts["cow_size"] or case.name == "c4k-full-cut-at-area-end"


def test_lvs_is_asked_for_bytes_in_json_and_for_one_group(lvs: FakeProgram) -> None:
    lvs.answer(report(row(), row(**ORIGIN)), "-a")
    assert lvm.find_volume("vg/snap").name == "snap"
    (call,) = lvs.calls()
    assert "--reportformat json --units b --nosuffix" in call
    assert call.endswith(" vg")


def test_a_missing_volume_is_named_and_so_are_those_that_are_there(lvs: FakeProgram) -> None:
    lvs.answer(report(row(), row(**ORIGIN), row(lv_name="[hidden]", lv_role="private")), "-a")
    with pytest.raises(DeviceError, match=r"no volume 'nope' in group 'vg'; it has: data, snap$"):
        lvm.find_volume("vg/nope")
    lvs.answer(report(), "-a")
    with pytest.raises(DeviceError, match="it has: no volumes"):
        lvm.find_volume("vg/nope")


def test_a_missing_group_gives_the_words_of_lvs_and_the_next_step(lvs: FakeProgram) -> None:
    lvs.fail('  Volume group "nope" not found\n  Cannot process volume group nope\n', "-a")
    with pytest.raises(CommandError, match=r"Cannot process volume group nope; .*See 'vgs'"):
        lvm.find_volume("nope/x")
    with pytest.raises(CommandError, match="does 'lvs' work by hand"):
        lvm.list_volumes()


def test_a_volume_is_found_by_its_id_in_any_group(lvs: FakeProgram) -> None:
    lvs.answer(report(row(), row(**ORIGIN)), "-a")
    wanted = volume()
    assert lvm.find_volume_by_id(wanted.id) == wanted
    assert lvm.find_volume_by_id("x" * 64) is None


def test_a_dm_uuid_gives_the_id_and_the_part() -> None:
    name = "a" * 32 + "B" * 32
    assert lvm.parse_dm_uuid(f"LVM-{name}") == (name, "")
    assert lvm.parse_dm_uuid(f"LVM-{name}-cow") == (name, "-cow")
    assert lvm.parse_dm_uuid(f"CRYPT-{name}") is None
    assert lvm.parse_dm_uuid("") is None


def test_a_plain_volume_is_refused_and_its_snapshots_are_listed(lvs: FakeProgram) -> None:
    lvs.answer(report(row(), row(lv_name="b"), row(**ORIGIN), row(origin="other", lv_name="c")), "-a")
    with pytest.raises(UsageError, match=r"vg/data is a plain volume, not a snapshot; its snapshots: vg/b, vg/snap$"):
        lvm.require_usable_snapshot(volume(**ORIGIN))
    lvs.answer(report(row(**ORIGIN)), "-a")
    with pytest.raises(UsageError, match="it has no classic snapshot"):
        lvm.require_usable_snapshot(volume(**ORIGIN))


@pytest.mark.parametrize(
    ("layout", "role", "found"),
    [
        ("thin,pool", "private", "a thin pool; name a thin snapshot in it"),
        ("thin,sparse", "public", "a volume of a thin pool; a classic snapshot is needed"),
        ("thin,sparse", "public,snapshot,thinsnapshot", "a volume of a thin pool; a classic snapshot is needed"),
    ],
)
def test_what_belongs_to_a_thin_pool_is_no_classic_snapshot(layout: str, role: str, found: str) -> None:
    with pytest.raises(UsageError, match=f"vg/snap is {found}"):
        lvm.require_usable_snapshot(volume(lv_layout=layout, lv_role=role))


def test_an_inactive_snapshot_is_refused_with_the_command_that_helps() -> None:
    with pytest.raises(DeviceError, match="lvchange -ay vg/data"):
        lvm.require_usable_snapshot(volume(lv_kernel_major="-1", lv_kernel_minor="-1"))


def test_a_failed_merge_is_lost() -> None:
    with pytest.raises(ChangesLost, match="merge failed"):
        lvm.require_usable_snapshot(volume(lv_merge_failed="merge failed"))


def test_a_volume_of_unknown_age_has_no_time() -> None:
    assert volume(lv_time="").time is None
    assert volume(lv_time="2024-01-01 00:00:00 +0000").time is None


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"report": [{"lv": [{}]}]}', '{"report": [{"lv": ["x"]}]}', "null"])
def test_a_report_of_another_shape_is_an_error(text: str) -> None:
    with pytest.raises(CommandError, match="cannot read the report of lvs"):
        lvm.parse_report(text)


def test_what_lvm_told_just_now_is_not_asked_for_again(lvs: FakeProgram) -> None:
    told = lvm.parse_report(report(row(), row(**ORIGIN), row(vg_name="other")))
    assert lvm.find_volume("vg/data", told) is told[1]
    assert lvm.find_named(Volume("vg/snap"), told) is told[0]
    assert lvm.find_volume_by_id(told[0].id, told) is told[0]
    with pytest.raises(DeviceError, match="there is no volume 'x' in group 'vg'; it has: data, snap"):
        lvm.find_volume("vg/x", told)
    with pytest.raises(DeviceError, match="in group 'other'; it has: snap"):
        lvm.find_volume("other/data", told)


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("vg-pool-tpool", "vg/pool"),
        ("vg-data", "vg/data"),
        ("my--vg-po--ol-tpool", "my-vg/po-ol"),
        ("vg---a----b-cow", "vg-/a--b"),
        ("vg", None),
        ("vg-a-b-c", None),
    ],
)
def test_the_kernels_name_of_a_volume_tells_its_own(name: str, found: str | None) -> None:
    uuid = f"LVM-{volume().id}-tpool"
    assert lvm.name_of_device(Mapped(name, uuid, (254, 1), 0)) == found
    assert lvm.name_of_device(Mapped(name, "CRYPT-x", (254, 1), 0)) is None

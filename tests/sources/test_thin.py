"""Thin devices as sources: from copies of the kernel's metadata, and of a pool that a fake dmsetup runs."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from lvmsync.errors import ChangesLost, ConflictError, DeviceError, FormatError, UsageError
from lvmsync.extents import ChangeMap
from lvmsync.names import parse_source
from lvmsync.sources import Reading, open_source
from lvmsync.sources.thin import find_unmapped
from lvmsync.system import dm
from lvmsync.system.device import aligned_buffer, open_device
from tests.fake_pool import GROUP, POOL, FakePool, notes
from tests.fake_programs import FakeProgram
from tests.fixture_files import Case, find_case, list_cases
from tests.metadata_store import Thin, build_pool
from tests.sources.loops import loop_of
from tests.sources.machine import number_of

CASES = list_cases("thin")
SMALL = [case for case in CASES if case.facts["volume_size"] < 1 << 30]
BASIC = find_case("thin", "c64k-basic")
SIZE, HELD = BASIC.facts["volume_size"], 106
PAIRS = [
    (case, view, pair)
    for case in SMALL
    for view in case.facts["metadata"]
    for pair in case.facts["metadata"][view]["pairs"]
]
MAP_ONLY = Reading(with_data=False)


def name_pair(value: object) -> str:
    return f"{value['snap1']}-{value['snap2']}" if isinstance(value, dict) else str(value)


def answer(case: Case, view: str, base: int, head: int) -> tuple[ChangeMap, ChangeMap]:
    """Return changes and holes of a recorded pair."""
    pairs: list[dict[str, Any]] = case.facts["metadata"][view]["pairs"]
    pair = next(one for one in pairs if (one["snap1"], one["snap2"]) == (base, head))
    chunk, size = case.facts["chunk_size"], case.facts["volume_size"]
    gone = [(first * chunk, count * chunk) for first, count, kind in pair["runs"] if kind == "left_only"]
    changes = ChangeMap.from_extents((start, end - start) for start, end in pair["changed_ranges"])
    return changes, ChangeMap.from_extents(gone).clip(size)


def metadata_of(case: Case, view: str, folder: Path) -> Path:
    return case.image(case.facts["metadata"][view]["image"], folder)


# ---- copies of the metadata


@pytest.mark.parametrize(("case", "view", "pair"), PAIRS, ids=name_pair)
def test_every_pair_of_a_copy_gives_the_ranges_and_holes_that_are_listed(
    case: Case, view: str, pair: dict[str, Any], tmp_path: Path
) -> None:
    snap = "held" if view.endswith("-m") else "live"
    base, head, size = pair["snap1"], pair["snap2"], case.facts["volume_size"]
    word = f"thin:{metadata_of(case, view, tmp_path)},id={head},base={base},size={size}"
    for name in (f"{word},snap={snap}", *([word] if snap == "live" else [])):
        with open_source(parse_source(name), MAP_ONLY) as source:
            assert (source.changes, source.holes) == answer(case, view, base, head)
            assert (source.kind, source.name, source.size) == ("thin", name, size)
            assert source.granularity == case.facts["chunk_size"]
            assert (source.base, source.head, source.notes, source.is_full) == (None, None, (), False)
            source.confirm()
            with pytest.raises(UsageError, match="name it with -r"):
                source.data.read([0], [512], memoryview(bytearray(512)))


def test_a_large_pool_is_read_in_parts(tmp_path: Path) -> None:
    case = find_case("thin", "c64k-120k-mappings")
    path = metadata_of(case, "reserved-m", tmp_path)
    size = case.facts["volume_size"]
    for snap in ("held", "live"):
        with open_source(parse_source(f"thin:{path},id=0,base=1,size={size},snap={snap}"), MAP_ONLY) as source:
            assert (len(source.changes), source.holes.total_bytes) == (14895, 1320 * 65536)
        with open_source(parse_source(f"thin:{path},id=6,base=1,size={size},snap={snap}"), MAP_ONLY) as source:
            assert not len(source.changes)


def test_without_a_base_everything_is_sent_and_what_is_not_mapped_is_a_hole(tmp_path: Path) -> None:
    path = metadata_of(BASIC, "reserved-m", tmp_path)
    with open_source(parse_source(f"thin:{path},id=6,size={SIZE},snap=held"), MAP_ONLY) as source:
        assert source.changes == ChangeMap.whole(SIZE)
        # The volume was written at 0 to 196608 and 589824 to 655360, and nowhere else.
        assert source.holes == ChangeMap.from_extents([(196608, 393216), (655360, SIZE - 655360)])
        assert source.is_full


def test_a_device_that_is_not_there_lists_those_that_are(tmp_path: Path) -> None:
    path = metadata_of(BASIC, "clean", tmp_path)
    for keys in ("id=2,base=1", "id=1,base=2", "id=2"):
        with pytest.raises(UsageError, match=r"no thin device 2 in this pool; it has 1, 3, 4, 5, 6, 7$"):
            open_source(parse_source(f"thin:{path},{keys}"), MAP_ONLY).__enter__()


def test_data_is_read_where_r_says_and_gives_the_size(tmp_path: Path) -> None:
    path, volume = metadata_of(BASIC, "later", tmp_path), BASIC.image("vol-later.img", tmp_path)
    word = f"thin:{path},id=1,base=3"
    with open_source(parse_source(word), Reading(data_source=str(volume))) as source:
        assert (source.size, source.data.size) == (SIZE, SIZE)
        assert (source.changes, source.holes) == answer(BASIC, "later", 3, 1)
        assert source.notes == (f"That {volume} holds the state of thin device 1 is your word.",)
        buffer = memoryview(bytearray(4096))
        source.data.read([8192000], [4096], buffer)
        assert bytes(buffer) == volume.read_bytes()[8192000:8196096]
        source.confirm()
        volume.write_bytes(bytes(SIZE))
        with pytest.raises(DeviceError, match="was written to while it was read"):
            source.confirm()


def test_a_copy_without_a_place_to_read_data_is_refused(tmp_path: Path) -> None:
    path = metadata_of(BASIC, "later", tmp_path)
    with pytest.raises(UsageError, match=r"where is the data of thin device 1\? Name it with -r"):
        open_source(parse_source(f"thin:{path},id=1,base=3")).__enter__()
    small = tmp_path / "small"
    small.write_bytes(bytes(65536))
    with pytest.raises(UsageError, match=rf"small has 65536 bytes, less than the {SIZE} of thin:"):
        open_source(parse_source(f"thin:{path},id=1,size={SIZE}"), Reading(data_source=str(small))).__enter__()


def test_a_size_that_nothing_tells_ends_with_the_last_mapping_and_says_so(tmp_path: Path) -> None:
    path = metadata_of(BASIC, "reserved-m", tmp_path)
    with open_source(parse_source(f"thin:{path},id=1,base=4,snap=held"), MAP_ONLY) as source:
        assert source.size == source.changes.end == 8388608
        assert "give size=" in source.notes[0]
    with open_source(parse_source(f"thin:{path},id=5,base=3,snap=held"), MAP_ONLY) as source:
        assert source.size == 8388608


def test_the_bases_data_is_read_where_it_is_said(tmp_path: Path) -> None:
    path = metadata_of(BASIC, "reserved-m", tmp_path)
    new, old = (str(BASIC.image(name, tmp_path)) for name in ("vol.img", "s1.img"))
    name = parse_source(f"thin:{path},id=1,base=3,snap=held")
    with open_source(name, Reading(data_source=new, base_source=old, with_base=True)) as source:
        assert source.base_data is not None
        assert source.base_data.size == SIZE
    with pytest.raises(UsageError, match="where the base's data is was not said; name it with --base-data"):
        open_source(name, Reading(data_source=new, with_base=True)).__enter__()


def test_a_metadata_snapshot_that_is_not_held_is_refused(tmp_path: Path) -> None:
    path = metadata_of(BASIC, "clean", tmp_path)
    with pytest.raises(DeviceError, match="no metadata snapshot is reserved; leave snap=held away"):
        open_source(parse_source(f"thin:{path},id=1,base=3,snap=held"), MAP_ONLY).__enter__()


@pytest.mark.parametrize(
    ("size", "error", "message"),
    [
        (0, FormatError, "0 bytes, not even one block"),
        (4095, FormatError, "0 bytes, not even one block"),
        (4096, FormatError, "1 blocks, not 512 as the superblock says: it is cut short"),
        (2 << 20, FormatError, "no b-tree node"),
    ],
)
def test_metadata_that_is_cut_is_refused_with_its_name(
    size: int, error: type[Exception], message: str, tmp_path: Path
) -> None:
    path = metadata_of(BASIC, "clean", tmp_path)
    data = bytearray(path.read_bytes()[:size])
    if size > 4096:
        data[4096:] = bytes(len(data) - 4096)
    path.write_bytes(data)
    with pytest.raises(error, match=message) as caught:
        open_source(parse_source(f"thin:{path},id=1,base=3"), MAP_ONLY).__enter__()
    assert str(path) in str(caught.value)
    assert getattr(caught.value, "device", None) == str(path)


# ---- a pool that runs


@pytest.fixture
def live(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Path]]:
    """Give loop devices over fixture images, and let the fake programs be found."""
    monkeypatch.setenv("LVMSYNC_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    (tmp_path / "misc").write_text("236 device-mapper\n")
    monkeypatch.setattr(dm, "MISC_DEVICES", tmp_path / "misc")
    monkeypatch.setattr(dm, "NODES", tmp_path / "mapper")
    monkeypatch.setattr(dm, "CLOSE_WAIT", 0.001)
    with ExitStack() as stack:
        yield lambda name: stack.enter_context(loop_of(BASIC.image(name, tmp_path)))


class Live:
    """The recorded pool, with ``vol`` as its one active thin device."""

    def __init__(self, folder: Path, loops: Callable[[str], Path]) -> None:
        self.metadata, self.volume = loops("meta-reserved.img"), loops("vol.img")
        self.own = loops("other.img")  # stands for the pool's own device: it is opened, and never read
        self.pool = FakePool(folder, self.metadata, HELD, own=self.own)
        self.pool.add_thin("vg-vol", self.volume, 1, dm.NODES)
        self.state = folder / "state"


@pytest.fixture
def machine(tmp_path: Path, live: Callable[[str], Path]) -> Live:
    return Live(tmp_path, live)


TAKEN, GIVEN_BACK = "reserve_metadata_snap", "release_metadata_snap"


def test_of_a_pool_that_runs_data_is_opened_first_and_the_metadata_snapshot_is_held_for_the_map_only(
    machine: Live,
) -> None:
    loop = shlex.quote(str(machine.volume))
    machine.pool.put("on-reserve", f"ls -l /proc/$PPID/fd | grep -q {loop}$ && say data is open")
    with open_source(parse_source(f"thin:{machine.metadata},id=1,base=3")) as source:
        assert (source.changes, source.holes) == answer(BASIC, "reserved-m", 3, 1)
        assert source.size == SIZE
        assert source.notes == ()
        # All is given back before the first byte of data is read.
        assert machine.pool.messages() == [TAKEN, "data is open", GIVEN_BACK]
        assert (machine.pool.held, notes(machine.state)) == ("-", [])
        buffer = aligned_buffer(4096)
        source.data.read([8192000], [4096], buffer)
        assert bytes(buffer) == machine.volume.read_bytes()[8192000:8196096]
        source.confirm()


def test_the_pool_itself_can_be_named(machine: Live) -> None:
    with open_source(parse_source(f"thin:{machine.own},id=4,base=3,size={SIZE}"), MAP_ONLY) as source:
        assert (source.changes, source.holes) == answer(BASIC, "reserved-m", 3, 4)
    assert machine.pool.messages() == [TAKEN, GIVEN_BACK]


def test_a_device_that_is_not_active_has_its_data_nowhere(machine: Live) -> None:
    with pytest.raises(UsageError, match="where is the data of thin device 4"):
        open_source(parse_source(f"thin:{machine.metadata},id=4,base=3")).__enter__()
    assert machine.pool.messages() == []


def test_live_metadata_of_a_pool_that_runs_is_not_read(machine: Live) -> None:
    with pytest.raises(UsageError, match="whose live metadata changes while it is read; leave snap=live away"):
        open_source(parse_source(f"thin:{machine.metadata},id=1,base=3,snap=live"), MAP_ONLY).__enter__()
    assert machine.pool.messages() == []


def test_a_metadata_snapshot_of_the_users_own_is_read_and_left(machine: Live) -> None:
    name = parse_source(f"thin:{machine.metadata},id=1,base=3,snap=held")
    with pytest.raises(DeviceError, match="no metadata snapshot is reserved"):
        open_source(name, MAP_ONLY).__enter__()
    machine.pool.hold(HELD)
    with open_source(name, MAP_ONLY) as source:
        assert (source.changes, source.holes) == answer(BASIC, "reserved-m", 3, 1)
    assert (machine.pool.messages(), machine.pool.held) == ([], str(HELD))
    machine.pool.put("on-status", "[ -e seen ] && echo - >held; touch seen")
    with pytest.raises(ConflictError, match="was given back while it was read"):
        open_source(name, MAP_ONLY).__enter__()


def test_another_programs_metadata_snapshot_is_left_alone(machine: Live) -> None:
    machine.pool.hold(HELD)
    with pytest.raises(ConflictError, match="by another program"):
        open_source(parse_source(f"thin:{machine.metadata},id=1,base=3")).__enter__()
    assert (machine.pool.messages(), machine.pool.held) == ([], str(HELD))


def test_a_wrong_number_gives_the_metadata_snapshot_back(machine: Live) -> None:
    with pytest.raises(UsageError, match="no thin device 2 in this pool"):
        open_source(parse_source(f"thin:{machine.metadata},id=1,base=2"), MAP_ONLY).__enter__()
    assert machine.pool.messages() == [TAKEN, GIVEN_BACK]
    assert (machine.pool.held, notes(machine.state)) == ("-", [])


def test_a_pool_that_fails_while_data_is_read_is_noticed(machine: Live) -> None:
    with open_source(parse_source(f"thin:{machine.metadata},id=1,base=3")) as source:
        machine.pool.put("status", "0 32768 thin-pool Fail\n")
        with pytest.raises(ChangesLost, match="has failed"):
            source.confirm()


def test_what_is_not_mapped_of_an_active_device_is_known(
    machine: Live, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for loop in (machine.volume, machine.metadata, machine.own):
        (tmp_path / "sys" / loop.name).mkdir(parents=True)
        (tmp_path / "sys" / number_of(loop)).symlink_to(loop.name)
    (tmp_path / "sys" / machine.volume.name / "dm").mkdir()
    monkeypatch.setattr(dm, "SYSFS_BLOCK", tmp_path / "sys")
    with open_device(str(machine.volume)) as device:
        found = find_unmapped(device, "full")
    assert found is not None
    mapped = BASIC.facts["metadata"]["reserved-m"]["devices"]["1"]["mapped_blocks"]
    assert found.holes.total_bytes == SIZE - mapped * 65536
    with open_device(str(machine.metadata)) as device:
        assert find_unmapped(device, "full") is None
    with open_device(str(machine.own)) as device:
        assert find_unmapped(device, "full") is None


# ---- LVM's names


@pytest.fixture
def lvs(tmp_path: Path, machine: Live) -> list[dict[str, str]]:
    """Let lvs print the recorded volumes; return them, to be changed."""
    rows = json.loads(BASIC.text("reserved-lvs-full.json"))["report"][0]["lv"]
    pool = next(row["lv_uuid"] for row in rows if row["segtype"] == "thin-pool")
    for row in rows:
        row |= {"vg_uuid": GROUP, "lv_role": "public", "lv_merging": "", "lv_layout": "thin,sparse"}
        row["lv_time"] = str(int(datetime.fromisoformat(row["lv_time"]).timestamp()))
        for key in ("lv_uuid", "pool_lv_uuid"):
            row[key] = row[key].replace(pool, POOL)
    return list(rows)


def name_volume(
    lvs: list[dict[str, str]], folder: Path, word: str, data_source: str | None = None
) -> tuple[ChangeMap, ChangeMap, str, str]:
    """Open a volume for its map alone; return changes, holes, and the ids of base and head."""
    program = FakeProgram(folder, "lvs")
    program.answer(json.dumps({"report": [{"lv": lvs}]}), "-a")
    with open_source(parse_source(word), Reading(with_data=False, data_source=data_source)) as source:
        assert source.base is not None
        assert source.head is not None
        assert source.head.parent == source.base.id
        return source.changes, source.holes, source.base.id, source.head.id


def id_of(lvs: list[dict[str, str]], name: str) -> str:
    return "lv:" + GROUP + next(row["lv_uuid"] for row in lvs if row["lv_name"] == name).replace("-", "")


@pytest.mark.parametrize(
    ("word", "data_source", "pair", "base", "head"),
    [
        ("vg/s1", None, (3, 1), "s1", ""),
        ("vg/s2", None, (4, 1), "s2", ""),
        ("vg/vol", None, (3, 1), "s1", ""),
        ("vg/s1", "vg/s2", (3, 4), "s1", "s2"),
        ("vg/s1", "vg/s1b", (3, 5), "s1", "s1b"),
    ],
)
def test_a_volume_of_lvm_means_its_snapshots(
    machine: Live,
    lvs: list[dict[str, str]],
    tmp_path: Path,
    word: str,
    data_source: str | None,
    pair: tuple[int, int],
    base: str,
    head: str,
) -> None:
    changes, holes, old, new = name_volume(lvs, tmp_path, word, data_source)
    assert (changes, holes) == answer(BASIC, "reserved-m", *pair)
    assert old == id_of(lvs, base)
    assert new == id_of(lvs, head) if head else new.startswith("origin:")
    assert machine.pool.messages() == [TAKEN, GIVEN_BACK]


@pytest.mark.parametrize(
    ("word", "data_source", "message"),
    [
        ("vg/other", None, "a thin volume without a snapshot"),
        ("vg/s1", "vg/s1", "is the base itself"),
        ("vg/s2", "vg/s1", "before vg/s2 .*; name a later snapshot"),
        ("vg/s1", "vg/pool", "is no volume of the thin pool vg/pool"),
        ("vg/s1", "vg/other", "vg/other has nothing to do with vg/s1"),
    ],
)
def test_a_volume_that_cannot_be_meant_is_refused_before_anything_is_taken(
    machine: Live, lvs: list[dict[str, str]], tmp_path: Path, word: str, data_source: str | None, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        name_volume(lvs, tmp_path, word, data_source)
    assert not (machine.pool.folder / "calls").exists() or machine.pool.messages() == []


def test_a_snapshot_whose_origin_is_gone_needs_a_head(machine: Live, lvs: list[dict[str, str]], tmp_path: Path) -> None:
    left = [row for row in lvs if row["lv_name"] != "vol"]
    with pytest.raises(UsageError, match="name the newer state with -r"):
        name_volume(left, tmp_path, "vg/s2")


def test_a_pool_that_is_not_active_is_told(machine: Live, lvs: list[dict[str, str]], tmp_path: Path) -> None:
    for row in lvs:
        row["pool_lv_uuid"] = row["pool_lv_uuid"].replace(POOL, POOL[::-1])
    with pytest.raises(DeviceError, match="the thin pool vg/pool is not active; run 'lvchange -ay vg/pool'"):
        name_volume(lvs, tmp_path, "vg/s1")


def test_a_head_that_has_grown_has_all_that_is_behind_the_bases_end(
    machine: Live, lvs: list[dict[str, str]], tmp_path: Path
) -> None:
    for row in lvs:
        if row["lv_name"] == "s1":
            row["lv_size"] = str(SIZE // 2)
    changes, holes, _, _ = name_volume(lvs, tmp_path, "vg/s1")
    listed, gone = answer(BASIC, "reserved-m", 3, 1)
    tail = ChangeMap.from_extents([(SIZE // 2, SIZE // 2)])
    assert changes == listed | tail
    assert holes - tail == gone.clip(SIZE // 2)
    assert len(holes & tail)


def test_a_base_that_was_written_to_is_told(machine: Live, lvs: list[dict[str, str]], tmp_path: Path) -> None:
    program = FakeProgram(tmp_path, "lvs")
    program.answer(json.dumps({"report": [{"lv": lvs}]}), "-a")
    with open_source(parse_source("vg/s1b"), MAP_ONLY) as source:
        assert "vg/s1b was written to after it was made" in source.notes[-1]


def test_data_that_ends_before_the_last_mapping_is_refused(tmp_path: Path) -> None:
    path = metadata_of(BASIC, "reserved-m", tmp_path)
    short = tmp_path / "short"
    short.write_bytes(bytes(100_000))
    for base in ("", ",base=3"):
        name = parse_source(f"thin:{path},id=1{base},snap=held")
        with pytest.raises(UsageError, match="short has 100000 bytes, and thin device 1 has data at 8323072"):
            open_source(name, Reading(data_source=str(short))).__enter__()
    name = parse_source(f"thin:{path},id=1,base=3,snap=held,size=96K")
    with open_source(name, Reading(data_source=str(short))) as source:  # its user's word
        assert source.size == 98304
        assert "which is left out" in source.notes[0]


def test_a_device_without_mappings_has_no_size_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "meta"
    path.write_bytes(build_pool({1: Thin({}), 2: Thin({})}).image)
    with open_source(parse_source(f"thin:{path},id=1,base=2"), MAP_ONLY) as source:
        assert source.size == 0

"""What COW files lead to: the driver's snapshot device, copies of it, and all states that it must not be read in."""

from __future__ import annotations

import json
import os
import random
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from lvmsync.errors import ChangesLost, ConflictError, DeviceError, FormatError, UsageError
from lvmsync.extents import ChangeMap
from lvmsync.names import CowFile, Volume, parse_source
from lvmsync.sources import Reading, Source, open_source
from lvmsync.sources.dattobd import make_point, open_cow_file, open_incremental
from lvmsync.sources.dattobd_blocks import warn_of_zeroes
from lvmsync.system import dattobd
from lvmsync.system.device import open_device
from lvmsync.system.mounts import Mount
from tests.dattobd_store import BLOCK, UUID, build_cow, build_header, build_snapshot
from tests.sources.loops import loop_of

MAP = Reading(with_data=False)
SIZE = 1 << 20
BLOCKS = {3: 1, 4: 1, 200: 1}
RANGES = [(3 * BLOCK, 2 * BLOCK), (200 * BLOCK, BLOCK)]
OTHER_UUID = "f" * 32


class Machine:
    """A machine with the driver: its /proc file, a tracked device and the snapshot of that, all of them plain files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("dev", "proc"):
            (folder / name).mkdir()
        self.device = folder / "device"
        self.device.write_bytes(b"now " * (SIZE // 4))
        self.snapshot = folder / "dev" / "datto0"
        self.snapshot.write_bytes(b"snap" * (SIZE // 4))
        self.cow = folder / "cow"
        self.cow.write_bytes(build_cow(SIZE, BLOCKS))

    def track(self, *devices: dict[str, Any], name: str = "datto-info") -> None:
        """Let the driver say that it tracks these; what is not given is of an active snapshot that follows ours."""
        listed: list[dict[str, Any]] = [
            {
                "minor": number, "cow_file": "/.new", "block_device": str(self.device), "max_cache": 0, "fallocate": 0,
                "seq_id": 2, "uuid": UUID, "version": 1, "nr_changed_blocks": 0, "state": 3,
            }
            | one
            for number, one in enumerate(devices)
        ]  # fmt: skip
        for one in listed:
            if one["state"] & 4:
                for key in ("fallocate", "seq_id", "uuid", "version", "nr_changed_blocks"):
                    del one[key]
        text = json.dumps({"version": "0.12.1", "devices": listed}, indent=1)
        (self.folder / "proc" / name).write_text(text)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    monkeypatch.setattr(dattobd, "ROOT", tmp_path)
    return Machine(tmp_path)


def open_now(stack: ExitStack, machine: Machine, reading: Reading | None = None, keys: str = "") -> Source:
    return stack.enter_context(open_source(parse_source(f"dattobd:{machine.cow}{keys}"), reading or Reading()))


def read(source: Source, offset: int, length: int) -> bytes:
    out = bytearray(length)
    source.data.read([offset], [length], memoryview(out))
    return bytes(out)


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


# ---- the index in a file


@pytest.mark.parametrize("seed", range(6))
def test_a_file_with_holes_is_read_where_it_has_data(machine: Machine, stack: ExitStack, seed: int) -> None:
    rng = random.Random(seed)
    size = rng.randrange(1, 60 << 30 >> 9) * 512
    entries = size // BLOCK
    pages = {rng.randrange(entries // 512 + 1) for _ in range(rng.choice([0, 1, 30, 3000]))}
    blocks = {512 * page + at for page in pages for at in rng.sample(range(512), 9) if 512 * page + at < entries}
    blocks |= {0, max(0, entries - 1)} if seed % 2 and entries else set()
    end = BLOCK + -(-entries // 4096) * 32768
    with machine.cow.open("wb", buffering=0) as file:
        file.truncate(end)
        file.write(build_header(fpos=end // BLOCK, changed=len(blocks)))
        for at in blocks:
            os.pwrite(file.fileno(), (1).to_bytes(8, "little"), BLOCK + 8 * at)
    source = open_now(stack, machine, MAP, f",size={size}")
    tail = [(entries * BLOCK, size % BLOCK)]
    assert source.changes == ChangeMap.from_extents([*((at * BLOCK, BLOCK) for at in blocks), *tail])


# ---- the snapshot that the driver shows


def test_the_data_is_that_of_the_snapshot_device_that_follows(machine: Machine, stack: ExitStack) -> None:
    machine.track({"uuid": OTHER_UUID, "block_device": "/dev/other"}, {"minor": 7})
    (machine.folder / "dev" / "datto7").write_bytes(b"good" * (SIZE // 4))
    source = open_now(stack, machine)
    assert read(source, 3 * BLOCK, 8) == b"goodgood"
    assert (source.kind, source.size, source.granularity, len(source.holes)) == ("dattobd", SIZE, 4096, 0)
    assert [tuple(one) for one in source.changes] == RANGES
    assert source.base == make_point(UUID, 1)
    assert source.head
    assert (source.head.id, source.head.parent) == (f"dattobd:{UUID}:2", f"dattobd:{UUID}:1")
    assert not any("your word" in note for note in source.notes)
    source.confirm()


def test_the_other_driver_is_asked_as_well(machine: Machine, stack: ExitStack) -> None:
    machine.track({}, name="elastio-snap-info")
    machine.snapshot.rename(machine.folder / "dev" / "elastio-snap0")
    assert read(open_now(stack, machine), 0, 4) == b"snap"


def test_the_snapshot_device_has_the_size_that_counts(machine: Machine, stack: ExitStack) -> None:
    machine.track({})
    assert open_now(stack, machine, keys=",size=1M").size == SIZE
    for size in (SIZE - 512, SIZE + 512):
        with pytest.raises(UsageError, match=f"size={size}: .*/dev/datto0 has {SIZE} bytes; leave size= away"):
            open_now(stack, machine, keys=f",size={size}")


def test_the_snapshot_device_may_be_named(machine: Machine, stack: ExitStack) -> None:
    machine.track({})
    link = machine.folder / "link"
    link.symlink_to(machine.snapshot)
    source = open_now(stack, machine, Reading(data_source=str(link)))
    assert not any("your word" in note for note in source.notes)
    machine.track({"state": 2})
    with pytest.raises(ChangesLost, match=r"did not last until it was read \(.*\); compare the whole device"):
        source.confirm()


def test_only_the_map_needs_no_data_and_takes_the_size_of_the_device(machine: Machine, stack: ExitStack) -> None:
    machine.track({"state": 2})
    source = open_now(stack, machine, MAP)
    assert source.size == SIZE
    source.confirm()
    with pytest.raises(UsageError):
        read(source, 0, 512)
    machine.device.unlink()
    assert open_now(stack, machine, MAP).size == 16 << 20


@pytest.mark.parametrize(
    ("now", "message"),
    [
        ({"state": 2}, r"snapshot 2 of .*/device did not last"),
        ({"state": 1}, r"did not last"),
        ({"error": -27}, r"did not last until it was read \(.*-27"),
        ({"seq_id": 3}, r"snapshot 2 of .*/device was given up before it was read"),
        ({"uuid": OTHER_UUID}, r"was given up"),
        ({"minor": 1}, r"was given up"),
    ],
)
def test_a_snapshot_that_did_not_last_is_noticed(
    machine: Machine, stack: ExitStack, now: dict[str, Any], message: str
) -> None:
    machine.track({})
    source = open_now(stack, machine)
    machine.track({"nr_changed_blocks": 9})
    source.confirm()
    machine.track(now)
    with pytest.raises(ChangesLost, match=message):
        source.confirm()
    machine.track()
    with pytest.raises(ChangesLost, match="given up"):
        source.confirm()


# ---- states that do not give it


@pytest.mark.parametrize(
    ("now", "error", "message"),
    [
        ({"seq_id": 1, "state": 2}, DeviceError, r"uses for .*/device now .*: run 'lvmsync dattobd to-snapshot'"),
        ({"seq_id": 1, "state": 3}, DeviceError, r"only after 'lvmsync dattobd to-incremental' and then"),
        ({"seq_id": 1, "state": 2, "error": -5}, ChangesLost, r"nothing is tracked any more; compare the whole device"),
        ({"seq_id": 1, "state": 0}, DeviceError, r"leads to 2: mount the device, then run 'lvmsync dattobd to-snap"),
        ({"state": 2}, DeviceError, r"that snapshot was given up, so what it held is gone; run"),
        ({"state": 1}, DeviceError, r"mount the device first, then it is active"),
        ({"state": 0}, DeviceError, r"that snapshot was given up"),
        ({"error": -27}, ChangesLost, r"its snapshot cannot be read; compare the whole device"),
        ({"seq_id": 3}, ConflictError, r"snapshot 3, and .*/cow leads to 2: name the COW file of snapshot 2"),
        ({"seq_id": 9, "state": 2}, ConflictError, r"snapshot 9, and .*/cow leads to 2"),
        ({"uuid": OTHER_UUID}, UsageError, rf"no driver tracks series {UUID}, so where is snapshot 2\?.*with -r"),
        ({"state": 4}, UsageError, r"\(.*/device is not verified yet: mount it first\)"),
    ],
)
def test_a_driver_in_another_state_is_said_with_the_next_step(
    machine: Machine, stack: ExitStack, now: dict[str, Any], error: type[Exception], message: str
) -> None:
    machine.track(now)
    with pytest.raises(error, match=message):
        open_now(stack, machine)


@pytest.mark.parametrize("state", [2, 3])
def test_a_copy_of_the_current_cow_file_is_refused_for_its_map_too(
    machine: Machine, stack: ExitStack, state: int
) -> None:
    machine.track({"seq_id": 1, "state": state})
    with pytest.raises(DeviceError, match=r"the COW file that dattobd uses"):
        open_now(stack, machine, MAP)


def test_a_file_that_is_not_clean_is_refused_and_named(machine: Machine, stack: ExitStack) -> None:
    machine.cow.write_bytes(build_cow(SIZE, BLOCKS, flags=2))
    with pytest.raises(ChangesLost, match=f"{machine.cow}: COW file byte 4: flags 0x2 without CLEAN"):
        open_now(stack, machine, MAP)


# ---- what else -r may name


def test_a_copy_of_the_snapshot_is_its_users_word_unless_said_which_it_is(machine: Machine, stack: ExitStack) -> None:
    copy = machine.folder / "copy"
    copy.write_bytes(machine.snapshot.read_bytes())
    reading = Reading(data_source=str(copy))
    source = open_now(stack, machine, reading)
    assert source.notes[0] == f"That {copy} holds snapshot 2 of series {UUID} is your word."
    assert read(source, 0, 4) == b"snap"
    for keys, notes in ((f",uuid={UUID}", 1), (",seqid=2", 1), (f",uuid={UUID.upper()},seqid=2", 0)):
        said = open_now(stack, machine, reading, keys).notes
        assert sum("your word" in note for note in said) == notes
    machine.track({"state": 2, "seq_id": 5})
    open_now(stack, machine, reading)
    copy.write_bytes(b"x")
    with pytest.raises(DeviceError, match="was written to while it was read"):
        source.confirm()


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (f",uuid={OTHER_UUID}", f"COW file of series {UUID}, and uuid={OTHER_UUID} is of another"),
        (",seqid=1", "leads to 2, not to seqid=1; name the COW file of snapshot 0"),
        (",seqid=3", "leads to 2, not to seqid=3; name the COW file of snapshot 2"),
    ],
)
def test_the_wrong_file_is_refused_by_what_the_user_says(
    machine: Machine, stack: ExitStack, keys: str, message: str
) -> None:
    for reading in (MAP, Reading(data_source=str(machine.snapshot))):
        with pytest.raises(ConflictError, match=message):
            open_now(stack, machine, reading, keys)


def test_a_snapshot_of_another_series_is_refused(machine: Machine, stack: ExitStack) -> None:
    machine.track({}, {"uuid": OTHER_UUID, "block_device": "/dev/other"})
    other = machine.folder / "dev" / "datto1"
    other.write_bytes(bytes(SIZE))
    with pytest.raises(ConflictError, match=rf"is a snapshot of /dev/other \(series {OTHER_UUID}\), and .*/cow is of"):
        open_now(stack, machine, Reading(data_source=str(other)))
    machine.track({"uuid": OTHER_UUID})
    with pytest.raises(ConflictError, match="they do not belong together"):
        open_now(stack, machine, Reading(data_source=str(machine.snapshot)))


def test_the_device_itself_is_not_the_snapshot(machine: Machine, stack: ExitStack) -> None:
    machine.track({})
    with pytest.raises(UsageError, match=r"is the device itself, which is written to"):
        open_now(stack, machine, Reading(data_source=str(machine.device)))


def test_another_block_device_is_refused_while_the_driver_knows_the_series(machine: Machine, stack: ExitStack) -> None:
    with loop_of(machine.device) as loop:
        reading = Reading(data_source=str(loop))
        with open_device(str(loop), exclusive=True), pytest.raises(DeviceError, match="held by another program"):
            open_now(stack, machine, reading)  # such as a receiver, which would write to it
        assert any("your word" in note for note in open_now(stack, machine, reading).notes)
        stack.pop_all().close()
        machine.track({"block_device": "/dev/other"})
        with pytest.raises(UsageError, match=rf"{loop} is not the snapshot of /dev/other, which is .*/dev/datto0"):
            open_now(stack, machine, reading)
        machine.cow = loop
        with pytest.raises(UsageError, match="a block device; name the COW file"):
            open_now(stack, machine, MAP)
        stack.close()


def test_data_that_is_too_small_or_too_large_for_the_index_is_refused(machine: Machine, stack: ExitStack) -> None:
    copy = machine.folder / "copy"
    for size, error, message in (
        (SIZE - 512, UsageError, f"copy has {SIZE - 512} bytes, less than the {SIZE}"),
        (0, UsageError, "copy has 0 bytes"),
    ):
        copy.write_bytes(bytes(size))
        with pytest.raises(error, match=message):
            open_now(stack, machine, Reading(data_source=str(copy)), f",size={SIZE}")
    for size in (0, SIZE - 100):
        copy.write_bytes(bytes(size))
        with pytest.raises(UsageError, match=f"copy has {size} bytes, which is no device"):
            open_now(stack, machine, Reading(data_source=str(copy)))
    copy.write_bytes(bytes(200 * BLOCK))
    with pytest.raises(FormatError, match=r"cow: .*entry of block 200"):
        open_now(stack, machine, Reading(data_source=str(copy)))
    os.truncate(copy, 17 << 20)
    with pytest.raises(FormatError, match="cut short, or is of another device"):
        open_now(stack, machine, Reading(data_source=str(copy)))
    os.truncate(machine.cow, 1 << 20)
    assert "longer than the index" in open_now(stack, machine, MAP, ",size=1M").notes[0]
    assert [tuple(one) for one in open_now(stack, machine, MAP, ",size=1M").changes] == RANGES


def test_a_size_that_is_not_known_is_said(machine: Machine, stack: ExitStack) -> None:
    source = open_now(stack, machine, MAP)
    assert source.size == 16 << 20
    assert "it is 16777216 bytes at the most" in source.notes[0]


def test_the_base_is_read_only_where_it_is_said_to_be(machine: Machine, stack: ExitStack) -> None:
    machine.track({})
    assert open_now(stack, machine).base_data is None
    with pytest.raises(UsageError, match="keeps no old content; name the base with --base-data"):
        open_now(stack, machine, Reading(with_base=True))
    source = open_now(stack, machine, Reading(with_base=True, base_source=str(machine.device)))
    assert source.base_data
    assert source.base_data.name == str(machine.device)


# ---- snapshot mode


@pytest.fixture
def closed(machine: Machine) -> Machine:
    """Return a machine whose COW file is one in snapshot mode, of an unmounted device."""
    machine.cow.write_bytes(build_snapshot(SIZE, {9: b"nine", 3: b"three", 4: b"four"}))
    return machine


def test_the_old_content_is_taken_from_the_file_and_the_rest_from_the_device(closed: Machine, stack: ExitStack) -> None:
    source = open_now(stack, closed, Reading(data_source=str(closed.device), with_base=True))
    assert [tuple(one) for one in source.changes] == [(3 * BLOCK, 2 * BLOCK), (9 * BLOCK, BLOCK)]
    assert (source.base, source.head) == (make_point(UUID, 1), None)
    assert source.base_data
    assert source.base_data.size == SIZE
    out = bytearray(20 + 2 * BLOCK)
    source.base_data.read([9 * BLOCK, 3 * BLOCK - 4, 4 * BLOCK], [8, BLOCK + 8, BLOCK + 4], memoryview(out))
    old = b"nine\0\0\0\0", b"now three" + bytes(BLOCK - 5) + b"four", b"four" + bytes(BLOCK - 4) + b"now "
    assert bytes(out) == b"".join(old)
    assert read(source, 3 * BLOCK, 4) == b"now "
    assert source.notes[0] == f"That {closed.device} holds the device as it was unmounted is your word."
    assert "what umount wrote is not in it" in source.notes[1]
    closed.device.write_bytes(b"x" * SIZE)
    with pytest.raises(DeviceError, match="was written to while it was read"):
        source.confirm()


def test_the_driver_says_which_device_it_is(closed: Machine, stack: ExitStack) -> None:
    with pytest.raises(UsageError, match=r"no driver tracks this series now, so where is the device\? Name it with -r"):
        open_now(stack, closed)
    closed.track({"seq_id": 1, "state": 1})
    assert read(open_now(stack, closed), 0, 4) == b"now "
    assert open_now(stack, closed, MAP).size == SIZE
    with pytest.raises(UsageError, match="is a snapshot; the changes lead to the device itself"):
        open_now(stack, closed, Reading(data_source=str(closed.snapshot)))
    closed.track({"seq_id": 2, "state": 1})
    with pytest.raises(UsageError, match="no driver tracks this series now"):
        open_now(stack, closed)


def test_a_device_that_was_unmounted_is_sent_only_if_its_user_knows_what_is_missing(
    closed: Machine, stack: ExitStack
) -> None:
    with loop_of(closed.device) as loop:
        with pytest.raises(UsageError, match=r"what umount wrote, and any mount since, is not in .*/cow.*--frozen"):
            open_now(stack, closed, Reading(data_source=str(loop)))
        source = open_now(stack, closed, Reading(data_source=str(loop), frozen=True))
        assert read(source, 3 * BLOCK, BLOCK) == b"now " * 1024
        assert open_now(stack, closed, Reading(data_source=str(loop), with_data=False)).size == SIZE
        stack.close()


def test_an_incremental_file_can_be_insisted_on(closed: Machine, stack: ExitStack) -> None:
    name = CowFile(Volume(str(closed.cow)))
    with pytest.raises(FormatError, match=r"in snapshot mode \(flags 0x1\), not incremental: no snapshot follows it"):
        open_incremental(name, MAP).__enter__()
    with pytest.raises(ConflictError, match="leads to no snapshot"):
        open_now(stack, closed, MAP, ",seqid=2")
    with pytest.raises(ConflictError, match="is of another"):
        open_now(stack, closed, MAP, f",uuid={OTHER_UUID}")
    stack.enter_context(open_cow_file(name, MAP))


# ---- what the drivers do not record


def test_the_blocks_of_a_cow_file_that_were_noted_are_read_as_well(machine: Machine, stack: ExitStack) -> None:
    noted = ChangeMap.from_extents([(100 * BLOCK, 3 * BLOCK), (SIZE - BLOCK, 2 * BLOCK)])
    name = CowFile(Volume(str(machine.cow)), SIZE)
    source = stack.enter_context(open_incremental(name, MAP, noted))
    assert [tuple(one) for one in source.changes] == [
        RANGES[0], (100 * BLOCK, 3 * BLOCK), RANGES[1], (SIZE - BLOCK, BLOCK)
    ]  # fmt: skip
    assert "are read as well." in source.notes[0]
    source = stack.enter_context(open_cow_file(name, MAP))
    assert [tuple(one) for one in source.changes] == RANGES
    assert "own blocks were is not known" in source.notes[0]


@pytest.fixture
def mounted(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> tuple[Machine, dict[str, Any]]:
    """Return a machine whose device is mounted with both COW files on it, and what is said of that."""
    said: dict[str, Any] = {
        "mounts": [Mount((8, 1), "/", "/mnt", "ext4", "/dev/sda1")],
        str(machine.cow): ((8, 1), ChangeMap.from_extents([(50 * BLOCK, BLOCK)])),
        "/mnt/.new": ((8, 1), ChangeMap.from_extents([(60 * BLOCK, BLOCK)])),
    }
    where = "lvmsync.sources.dattobd_blocks."
    monkeypatch.setattr(where + "number_of", lambda path: (8, 1))
    monkeypatch.setattr(where + "find_mounts", lambda number: said["mounts"] if number == (8, 1) else [])
    monkeypatch.setattr(where + "device_of_file", lambda path: said[path][0])
    monkeypatch.setattr(where + "find_file_extents", lambda path: said[path][1])
    machine.track({})
    return machine, said


def test_the_blocks_of_both_cow_files_are_read_as_well(
    mounted: tuple[Machine, dict[str, Any]], stack: ExitStack
) -> None:
    machine, _ = mounted
    source = open_now(stack, machine)
    own = [(50 * BLOCK, BLOCK), (60 * BLOCK, BLOCK)]
    assert [tuple(one) for one in source.changes] == [RANGES[0], *own, RANGES[1]]
    assert "are read as well, but for those that" in source.notes[0]
    noted = ChangeMap.from_extents([(51 * BLOCK, BLOCK)])
    source = stack.enter_context(open_incremental(CowFile(Volume(str(machine.cow))), Reading(), noted))
    assert (50 * BLOCK, 2 * BLOCK) in [tuple(one) for one in source.changes]
    assert source.notes[0].endswith("are read as well.")


def test_why_the_blocks_of_the_cow_files_are_not_known_is_said(
    mounted: tuple[Machine, dict[str, Any]], stack: ExitStack
) -> None:
    machine, said = mounted
    cow, kind = str(machine.cow), Mount((8, 1), "/", "/mnt", "btrfs", "/dev/sda1")
    for change, reason in (
        ({"mounts": []}, "is not mounted"),
        ({"mounts": [kind]}, "btrfs does not tell where on the device a file lies"),
        ({cow: ((8, 2), None)}, f"{cow} is not on {machine.device}"),
        ({"/mnt/.new": ((8, 2), None)}, f"/mnt/.new is not on {machine.device}"),
        ({cow: ((8, 1), None)}, f"the file system does not tell where {cow} lies"),
    ):
        kept = said | {}
        said.update(change)
        note = next(note for note in open_now(stack, machine).notes if "own blocks" in note)
        assert "could be found (" in note
        assert f"{reason}): they differ" in note
        said.update(kept)


@contextmanager
def mounted_on(loop: Path, point: Path) -> Iterator[None]:
    point.mkdir()
    subprocess.run(["mount", "-t", "ext4", loop, point], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", point], check=True)


@pytest.mark.parametrize("block_size", [1024, 4096])
def test_the_blocks_found_on_a_real_file_system_hold_the_cow_files(
    machine: Machine, tmp_path: Path, block_size: int
) -> None:
    image, point = tmp_path / "image", tmp_path / "mnt"
    with image.open("wb") as file:
        file.truncate(24 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-F", "-b", str(block_size), image], check=True)
    contents = build_cow(24 << 20, {9: 1, 6000: 1}), os.urandom(11_000)
    with loop_of(image) as loop, mounted_on(loop, point):
        machine.cow = point / "folder" / "old"
        machine.cow.parent.mkdir()
        machine.cow.write_bytes(contents[0])
        (point / ".new").write_bytes(contents[1])
        machine.track({"block_device": str(loop)})
        with ExitStack() as stack:
            source = open_now(stack, machine, MAP)
        assert source.size == 24 << 20
        own = source.changes - ChangeMap.from_extents([(9 * BLOCK, BLOCK), (6000 * BLOCK, BLOCK)])
        assert "are read as well, but for those that" in source.notes[0]
        subprocess.run(["sync", "-f", point], check=True)
        with image.open("rb") as file:
            found = [os.pread(file.fileno(), one.length, one.offset) for one in own]
    pages = {piece[at : at + block_size] for piece in found for at in range(0, len(piece), block_size)}
    for content in contents:
        for at in range(0, len(content), block_size):
            assert content[at : at + block_size].ljust(block_size, b"\0") in pages
    assert own.total_bytes <= sum(map(len, contents)) + 8 * BLOCK
    assert all(one.offset % BLOCK == one.length % BLOCK == 0 for one in own)


@pytest.mark.parametrize(("discards", "notes"), [("0\n", 0), ("4096\n", 1), ("junk", 1), (None, 1)])
def test_discards_are_spoken_of_unless_the_device_does_none(
    mounted: tuple[Machine, dict[str, Any]],
    stack: ExitStack,
    monkeypatch: pytest.MonkeyPatch,
    discards: str | None,
    notes: int,
) -> None:
    machine, _ = mounted
    disk = machine.folder / "sys" / "sda"
    for partition, number in (("sda", "8:1"), ("sda/sda1", "8:1")):
        folder = machine.folder / "sys" / partition
        (disk / "queue").mkdir(parents=True, exist_ok=True)
        folder.mkdir(exist_ok=True)
        if partition != "sda":
            (folder / "partition").write_text("1\n")
        if discards is not None:
            (disk / "queue" / "discard_max_bytes").write_text(discards)
        link = machine.folder / "sys" / number
        link.unlink(missing_ok=True)
        link.symlink_to(folder)
        monkeypatch.setattr("lvmsync.sources.dattobd_blocks.SYSFS_BLOCK", machine.folder / "sys")
        assert sum("Discards" in note for note in open_now(stack, machine).notes) == notes


@pytest.mark.parametrize(
    ("driver", "limit", "warned"),
    [
        (dattobd.DATTOBD, "0\n", False),
        (dattobd.DATTOBD, "4096\n", True),
        (dattobd.DATTOBD, None, False),
        (dattobd.ELASTIO, "4096\n", False),
    ],
)
def test_a_device_that_takes_writes_of_zeros_is_spoken_of_where_they_crash_the_driver(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, driver: dattobd.Driver, limit: str | None, warned: bool
) -> None:
    (tmp_path / "8:1" / "queue").mkdir(parents=True)
    if limit is not None:
        (tmp_path / "8:1" / "queue" / "write_zeroes_max_bytes").write_text(limit)
    monkeypatch.setattr("lvmsync.sources.dattobd_blocks.SYSFS_BLOCK", tmp_path)
    monkeypatch.setattr("lvmsync.sources.dattobd_blocks.number_of", lambda path: (8, 1))
    found = warn_of_zeroes(driver, "/dev/sda1")
    assert len(found) == warned
    assert all("crashes the kernel of Linux 6.1" in note for note in found)


def test_the_tracked_device_is_named_as_the_origin(machine: Machine, stack: ExitStack) -> None:
    machine.track({})
    assert open_now(stack, machine).origin == str(machine.device)

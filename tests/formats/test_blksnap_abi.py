"""The requests and structs of blksnap, against numbers and offsets that a compiler gave."""

from __future__ import annotations

import json
import struct
from typing import Any

import pytest

from lvmsync.errors import FormatError
from lvmsync.formats import blksnap_abi as abi
from lvmsync.formats.blksnap import Tracking
from lvmsync.formats.blksnap_abi import COMMANDS, PROBE, REQUESTS, Abi, Event, Layout
from tests.fixture_files import FIXTURES

FACTS: dict[str, Any] = json.loads((FIXTURES / "blksnap/abi.json").read_text())
OURS = {
    "VERSION": "version",
    "TRACKER_REMOVE": "detach",
    "TRACKER_COLLECT": "list_trackers",
    "TRACKER_READ_CBT_MAP": "read_map",
    "TRACKER_MARK_DIRTY_BLOCKS": "mark_dirty",
    "SNAPSHOT_CREATE": "create",
    "SNAPSHOT_DESTROY": "destroy",
    "SNAPSHOT_APPEND_STORAGE": "append_storage",
    "SNAPSHOT_TAKE": "take",
    "SNAPSHOT_COLLECT": "list_snapshots",
    "SNAPSHOT_COLLECT_IMAGES": "list_images",
    "SNAPSHOT_WAIT_EVENT": "wait_event",
    "MOD": "modification",
    "BDEVFILTER_ATTACH": "attach",
    "BDEVFILTER_DETACH": "detach",
    "BDEVFILTER_CTL": "control",
    "BLKFILTER_ATTACH": "attach",
    "BLKFILTER_DETACH": "detach",
    "BLKFILTER_CTL": "control",
}
NEVER_SENT = {"SETLOG", "GET_SECTOR_STATE"}

LAYOUTS: dict[str, dict[str, tuple[Layout, dict[str, str]]]] = {  # of each struct: ours, and its fields' names here
    "v1": {
        "blk_snap_version": (abi.VERSION, {}),
        "blk_snap_mod": (abi.MODIFICATION, {"compatibility_flags": "flags", "name": "name"}),
        "blk_snap_dev_t": (abi.DEVICE, {}),
        "blk_snap_cbt_info": (
            abi.CBT_INFO,
            {
                "dev_id": "major", "blk_size": "block_size", "device_capacity": "capacity",
                "blk_count": "block_count", "generation_id": "generation", "snap_number": "number",
            },
        ),
        "blk_snap_tracker_read_cbt_bitmap": (
            REQUESTS[Abi.V1]["read_map"].layout,
            {"dev_id": "major", "offset": "offset", "length": "length", "buff": "address"},
        ),
        "blk_snap_tracker_mark_dirty_blocks": (
            REQUESTS[Abi.V1]["mark_dirty"].layout,
            {"dev_id": "major", "count": "count", "dirty_blocks_array": "address"},
        ),
        "blk_snap_tracker_collect": (
            REQUESTS[Abi.V1]["list_trackers"].layout, {"count": "count", "cbt_info_array": "address"},
        ),
        "blk_snap_snapshot_collect": (
            REQUESTS[Abi.V1]["list_snapshots"].layout, {"count": "count", "ids": "address"},
        ),
        "blk_snap_snapshot_create": (
            REQUESTS[Abi.V1]["create"].layout, {"count": "count", "dev_id_array": "address", "id": "id"},
        ),
        "blk_snap_snapshot_append_storage": (
            REQUESTS[Abi.V1]["append_storage"].layout,
            {"id": "id", "dev_id": "major", "count": "count", "ranges": "address"},
        ),
        "blk_snap_snapshot_collect_images": (
            REQUESTS[Abi.V1]["list_images"].layout,
            {"id": "id", "count": "count", "image_info_array": "address"},
        ),
        "blk_snap_image_info": (abi.IMAGE_INFO, {}),
        "blk_snap_block_range": (abi.RANGE, {}),
        "blk_snap_event_low_free_space": (abi.REQUESTED, {}),
        "blk_snap_event_corrupted": (abi.CORRUPTED, {}),
        "blk_snap_snapshot_event": (
            REQUESTS[Abi.V1]["wait_event"].layout,
            {"id": "id", "timeout_ms": "timeout", "code": "code", "time_label": "time", "data": "data"},
        ),
    },
    "v7": {
        "bdevfilter_name": (REQUESTS[Abi.V7]["attach"].layout, {"name": "filter"}),
        "bdevfilter_ctl": (
            REQUESTS[Abi.V7]["control"].layout,
            {"name": "filter", "cmd": "command", "optlen": "length", "opt": "address"},
        ),
        "blksnap_snapshot_append_storage": (
            REQUESTS[Abi.V7]["append_storage"].layout, {"devpath": "device", "count": "count", "ranges": "address"},
        ),
        "blksnap_mod": (abi.MODIFICATION, {}),
        "blksnap_event_low_free_space": (abi.REQUESTED, {}),
    },
    "up": {
        "blkfilter_attach": (REQUESTS[Abi.UP]["attach"].layout, {"opt": "address", "optlen": "length"}),
        "blkfilter_detach": (REQUESTS[Abi.UP]["detach"].layout, {}),
        "blkfilter_ctl": (
            REQUESTS[Abi.UP]["control"].layout, {"cmd": "command", "optlen": "length", "opt": "address"},
        ),
        "blksnap_event_no_space": (abi.REQUESTED, {}),
    },
}  # fmt: skip
for _name in ("v7", "up"):
    LAYOUTS[_name] |= {
        "blksnap_cbtinfo": (
            COMMANDS["read_tracking"].layout,
            {
                "device_capacity": "capacity", "block_size": "block_size", "block_count": "block_count",
                "generation_id": "generation", "changes_number": "number",
            },
        ),
        "blksnap_cbtmap": (
            COMMANDS["read_map"].layout, {"offset": "offset", "length": "length", "buffer": "address"},
        ),
        "blksnap_cbtdirty": (COMMANDS["mark_dirty"].layout, {"dirty_sectors": "address"}),
        "blksnap_snapshotadd": (COMMANDS["add"].layout, {}),
        "blksnap_snapshotinfo": (COMMANDS["read_image"].layout, {"error_code": "error", "image": "image"}),
        "blksnap_sectors": (abi.RANGE, {}),
        "blksnap_version": (abi.VERSION, {}),
        "blksnap_snapshot_create": (
            REQUESTS[Abi(7 if _name == "v7" else 2)]["create"].layout,
            {"diff_storage_limit_sect": "limit_sectors", "diff_storage_filename": "path", "id": "id"},
        ),
        "blksnap_snapshot_collect": (
            REQUESTS[Abi(7 if _name == "v7" else 2)]["list_snapshots"].layout, {"ids": "address"},
        ),
        "blksnap_snapshot_event": (
            REQUESTS[Abi(7 if _name == "v7" else 2)]["wait_event"].layout,
            {"timeout_ms": "timeout", "code": "code", "time_label": "time", "data": "data"},
        ),
        "blksnap_event_corrupted": (abi.CORRUPTED, {}),
    }  # fmt: skip
EMPTY = {"blk_snap_tracker_remove", "blk_snap_snapshot_destroy", "blk_snap_snapshot_take"}  # a device, an id, an id
NOT_OURS = {"blk_snap_setlog", "blk_snap_get_sector_state", "blk_snap_sector_state", "blksnap_setlog"}


@pytest.mark.parametrize("kind", Abi)
def test_request_numbers_are_those_of_the_headers_and_there_are_no_others(kind: Abi) -> None:
    facts = FACTS[kind.name.lower()]["ioctls"]
    assert set(facts) - NEVER_SENT <= set(OURS)
    wanted = {OURS[name]: one for name, one in facts.items() if name not in NEVER_SENT}
    assert {name: request.number for name, request in REQUESTS[kind].items()} == {
        name: int(one["number"], 16) for name, one in wanted.items()
    }
    assert {name: request.layout.size for name, request in REQUESTS[kind].items()} == {
        name: one["size"] for name, one in wanted.items()
    }


def test_the_number_that_may_crash_the_first_generation_is_not_in_its_table() -> None:
    assert 12 not in {request.number & 0xFF for request in REQUESTS[Abi.V1].values()}
    assert PROBE & 0xFF == 0


@pytest.mark.parametrize(
    ("kind", "name", "facts"),
    [(kind, name, facts) for kind in ("v1", "v7", "up") for name, facts in FACTS[kind]["structs"].items()],
)
def test_fields_lie_where_a_compiler_put_them(kind: str, name: str, facts: dict[str, Any]) -> None:
    if name in EMPTY | NOT_OURS:
        assert facts["size"] in (8, 16) or name in NOT_OURS
        return
    layout, names = LAYOUTS[kind][name]
    assert layout.size == facts["size"]
    for field, (offset, size) in facts["fields"].items():
        ours = names[field]
        mark: int | bytes = b"\xff" * min(size, 4) if ours in abi._BYTES else 0xEE
        raw = layout.encode(**{ours: mark})
        first = next(at for at, byte in enumerate(raw) if byte)
        assert first == offset, field
        assert layout.decode(raw)[ours] == (mark if isinstance(mark, int) else mark.ljust(size, b"\0"))


def test_a_struct_of_another_length_and_a_field_of_another_name_are_refused() -> None:
    with pytest.raises(FormatError, match="answered 7 bytes, not 8"):
        abi.VERSION.decode(bytes(7))
    with pytest.raises(KeyError, match="no such field: patch"):
        abi.VERSION.encode(patch=1)


def test_ids_are_written_in_the_order_of_their_bytes() -> None:
    raw = bytes(range(16))
    text = "00010203-0405-0607-0809-0a0b0c0d0e0f"
    assert abi.decode_uuid(raw) == text
    assert abi.encode_uuid(text) == raw
    with pytest.raises(ValueError, match="no uuid"):
        abi.encode_uuid("0001")


def tracking_values(**changed: Any) -> dict[str, Any]:
    values = {"capacity": 41964032, "block_size": 65536, "block_count": 641, "generation": bytes(16), "number": 2}
    return values | changed


def test_a_tracking_whose_numbers_fit_together_is_taken() -> None:
    expected = Tracking("00000000-0000-0000-0000-000000000000", 2, 65536, 641, 41964032)
    assert abi.decode_tracking(tracking_values()) == expected


@pytest.mark.parametrize(
    "changed", [{"block_count": 640}, {"block_count": 642}, {"block_size": 0}, {"block_size": 65537}, {"capacity": 0}]
)
def test_a_tracking_whose_numbers_do_not_fit_together_is_refused(changed: dict[str, int]) -> None:
    with pytest.raises(FormatError, match="not understood"):
        abi.decode_tracking(tracking_values(**changed))


def event(code: int, data: bytes) -> bytes:
    return struct.pack("<16sIIq", bytes(16), 50, code, 12345).ljust(32, b"\0") + data.ljust(4064, b"\0")


@pytest.mark.parametrize(
    ("kind", "code", "expected"),
    [
        (Abi.V1, 0, "low_space"),
        (Abi.V1, 1, "corrupted"),
        (Abi.V7, 0, "corrupted"),
        (Abi.V7, 1, "low_space"),
        (Abi.UP, 0, "corrupted"),
        (Abi.UP, 1, "no_space"),
    ],
)
def test_each_generation_has_its_own_codes_of_events(kind: Abi, code: int, expected: str) -> None:
    if expected == "corrupted":
        wanted = Event("corrupted", 12345, device=(254, 16), errno=28)
        assert abi.decode_event(kind, event(code, struct.pack("<IIi", 254, 16, 28))) == wanted
    else:
        wanted = Event(expected, 12345, sectors=2097152)
        assert abi.decode_event(kind, event(code, struct.pack("<Q", 2097152))) == wanted


def test_an_event_that_is_not_known_is_refused() -> None:
    for kind in Abi:
        with pytest.raises(FormatError, match="event 2"):
            abi.decode_event(kind, event(2, b""))
        with pytest.raises(FormatError, match="not 4096"):
            abi.decode_event(kind, bytes(32))

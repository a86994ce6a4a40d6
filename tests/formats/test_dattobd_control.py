"""Requests, info structs and /proc texts of dattobd and elastio-snap, as the real drivers wrote them."""

from __future__ import annotations

import json
import random
import re
from typing import Any

import pytest

from lvmsync.errors import FormatError
from lvmsync.formats.dattobd_control import REQUESTS, STATES, Info, parse_tracked
from tests.dattobd_store import FOLDER, Case, list_cases

INFOS = [(case, key) for case in list_cases() for key in case.facts["files"] if key.startswith("info.")]
PROCS = [(case, key) for case in list_cases() for key in case.facts["files"] if key.startswith("proc.")]


def proc(case: Case, key: str) -> str:
    path: str = case.facts["files"][key]["path"]
    return (FOLDER / path).read_text()


def test_the_request_numbers_are_those_of_the_table() -> None:
    rows = re.findall(r"^\| (\d+) \|[^|]*\|[^|]*\| (0x\w+) \| (0x\w+|-) \|$", (FOLDER / "FORMAT.md").read_text(), re.M)
    assert len(rows) == 11
    by_number = {request.nr: request for request in REQUESTS.values()}
    assert len(by_number) == 11
    for nr, datto, elastio in rows:
        assert by_number[int(nr)].number(0x91) == int(datto, 16)
        if elastio != "-":
            assert by_number[int(nr)].number(0x41) == int(elastio, 16)


@pytest.mark.parametrize(
    ("name", "values", "wanted"),
    [
        (
            "setup",
            {"bdev": 1, "cow": 2, "fallocated_space": 3, "cache_size": 4, "minor": 5},
            "0100000000000000" "0200000000000000" "0300000000000000" "0400000000000000" "0500000000000000",
        ),
        ("reload_snapshot", {"bdev": 1, "cow": 2, "cache_size": 3, "minor": 4},
         "0100000000000000" "0200000000000000" "0300000000000000" "0400000000000000"),
        ("reload_incremental", {"minor": 4}, "00" * 24 + "0400000000000000"),
        ("to_snapshot", {"cow": 1, "fallocated_space": 2, "minor": 3},
         "0100000000000000" "0200000000000000" "0300000000000000"),
        ("reconfigure", {"cache_size": 1, "minor": 2}, "0100000000000000" "0200000000000000"),
        ("expand", {"size": 1, "minor": 2}, "0100000000000000" "0200000000000000"),
        ("auto_expand", {"step_size": 1, "reserved_space": 2, "minor": 3},
         "0100000000000000" "0200000000000000" "0300000000000000"),
        ("destroy", {"minor": 7}, "07000000"),
        ("to_incremental", {"minor": 7}, "07000000"),
        ("find_free_minor", {}, "00000000"),
    ],
)  # fmt: skip
def test_a_request_is_encoded_as_the_table_says_and_decoded_again(
    name: str, values: dict[str, int], wanted: str
) -> None:
    request = REQUESTS[name]
    assert request.encode(**values).hex() == wanted
    assert request.decode(bytes.fromhex(wanted)) == dict.fromkeys(request.fields, 0) | values


def test_a_struct_of_another_length_is_refused() -> None:
    with pytest.raises(FormatError, match="request 4: 5 bytes, not 4"):
        REQUESTS["destroy"].decode(bytes(5))
    with pytest.raises(FormatError, match="request 8: 8271 bytes, not 8272"):
        Info.parse(bytes(8271))


@pytest.mark.parametrize(("case", "key"), INFOS, ids=str)
def test_every_recorded_info_is_what_proc_said_then(case: Case, key: str) -> None:
    info = Info.parse(case.bytes(key))
    name = f"proc.{key.split('.')[1]}.json"
    if name in case.facts["files"]:
        device = next(one for one in parse_tracked(proc(case, name))[1] if one.minor == info.minor)
        assert (info.state, info.cow, info.bdev) == (device.state, device.cow_file, device.block_device)
        assert (info.error, info.cache_size) == (device.error or 0, device.max_cache)
        if device.is_verified:
            assert (info.uuid, info.seqid, info.version) == (device.uuid, device.seqid, device.version)
            assert info.nr_changed_blocks >= (device.nr_changed_blocks or 0)
        else:
            assert (info.uuid, info.seqid) == ("0" * 32, 0)


@pytest.mark.parametrize(("case", "key"), PROCS, ids=str)
def test_every_recorded_proc_text_gives_its_values(case: Case, key: str) -> None:
    raw = json.loads(proc(case, key))
    version, devices = parse_tracked(proc(case, key))
    assert version == raw["version"] == case.facts["driver_version"]
    assert len(devices) == len(raw["devices"])
    for device, values in zip(devices, raw["devices"], strict=True):
        expand = values.pop("auto_expand", None)
        values["seqid"] = values.pop("seq_id", None)
        for name, value in values.items():
            assert getattr(device, name) == value
        assert device.has_failed == ("error" in values)
        assert device.auto_expand == (expand and (expand["step_size_mib"], expand["reserved_space_mib"]))
        assert (device.is_snapshot, device.is_active, device.is_verified) == (
            bool(device.state & 1), bool(device.state & 2), not device.state & 4
        )  # fmt: skip
        assert device.words.startswith(STATES[device.state])
        assert ("failed with error -27" in device.words) == device.has_failed


def test_all_states_were_recorded() -> None:
    seen = {one.state for case, key in PROCS for one in parse_tracked(proc(case, key))[1]}
    assert seen == set(STATES)


GOOD: dict[str, Any] = {
    "minor": 0, "cow_file": "/.datto", "block_device": "/dev/vda", "max_cache": 1, "fallocate": 2, "seq_id": 3,
    "uuid": "0" * 32, "version": 1, "nr_changed_blocks": 4, "state": 2,
}  # fmt: skip


WRONG: list[dict[str, Any]] = [
    {"state": 6}, {"state": 7}, {"state": 8}, {"state": True}, {"error": 5}, {"error": 0}, {"error": -5000},
    {"uuid": "0" * 31}, {"uuid": "G" * 32}, {"seq_id": 1 << 64}, {"minor": 1.5},
    {"auto_expand": 5}, {"auto_expand": {}}, {"cow_size_current": -1},
]  # fmt: skip


def text_of(*devices: object, **more: object) -> str:
    return json.dumps({"version": "1", "devices": list(devices), **more}, indent="\t", ensure_ascii=False)


def test_paths_are_taken_as_the_driver_prints_them() -> None:
    text = text_of(GOOD).replace("/.datto", r'/a"b\n\u0041').replace("/dev/vda", '/dev/"')
    (device,) = parse_tracked(text)[1]
    assert (device.cow_file, device.block_device) == (r'/a"b\n\u0041', '/dev/"')


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        "[" * 100_000,
        '{"version": "1", "devices": [NaN]}',
        '{"version": "1", "version": "1", "devices": []}',
        text_of(1),
        text_of(GOOD, GOOD),
        *(text_of({key: value for key, value in GOOD.items() if key != gone}) for gone in GOOD),
        *(text_of(GOOD | {key: "x" if isinstance(value, int) else 1}) for key, value in GOOD.items()),
        *(text_of(GOOD | {key: -1}) for key, value in GOOD.items() if isinstance(value, int)),
        *(text_of(GOOD | change) for change in WRONG),
    ],
)  # fmt: skip
def test_what_no_driver_writes_is_refused(text: str) -> None:
    with pytest.raises(FormatError):
        parse_tracked(text)


def test_devices_come_by_minor() -> None:
    found = parse_tracked(text_of(GOOD | {"minor": 2}, GOOD | {"minor": 1}))[1]
    assert [one.minor for one in found] == [1, 2]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"state": 6}, "state 6 is not known"),
        ({"error": 5}, "error 5"),
        ({"cow": b"x" * 4096}, "a path of 4096 bytes"),
        ({"bdev": b"x" * 4096}, "a path of 4096 bytes"),
    ],
)
def test_an_info_that_no_driver_writes_is_refused(values: dict[str, Any], message: str) -> None:
    data = REQUESTS["info"].encode(**{"uuid": b"", "cow": b"", "bdev": b"", **values})
    with pytest.raises(FormatError, match=message):
        Info.parse(data)


def test_damaged_answers_are_our_error_or_values() -> None:
    chance = random.Random(1)
    texts = [proc(case, key) for case, key in PROCS]
    infos = [case.bytes(key) for case, key in INFOS]
    junk = ['"', "{", "}", "[", "1e999", "9" * 5000, "-", "null", "true", "\n", "\udc80", "ä"]
    refused = 0
    for _ in range(2000):
        text, info = chance.choice(texts), bytearray(chance.choice(infos))
        at = chance.randrange(len(text))
        text = text[:at] + chance.choice(["", *junk]) + text[at + chance.randrange(9) :]
        info[chance.choice([chance.randrange(64), chance.randrange(len(info))])] ^= 1 << chance.randrange(8)
        try:
            assert all(one.state in STATES for one in parse_tracked(text)[1])
            assert Info.parse(bytes(info)).state in STATES
        except FormatError:
            refused += 1
    assert 0 < refused < 2000

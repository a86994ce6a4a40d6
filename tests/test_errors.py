"""The error tree, its exit codes, and the docstring that draws it."""

from __future__ import annotations

import re

import pytest

from lvmsync import errors
from lvmsync.errors import CommandError, DeviceError, LvmsyncError, PeerError, SyncFailed, TransportError

CODES = {
    "UsageError": 2,
    "DeviceError": 3,
    "SyncFailed": 3,
    "CommandError": 3,
    "FormatError": 4,
    "ChangesLost": 5,
    "StreamError": 6,
    "TransportError": 7,
    "ConflictError": 8,
    "VerifyError": 9,
}


def subclasses(parent: type[LvmsyncError]) -> list[type[LvmsyncError]]:
    """Return the classes below one, of the tree itself: another module may have a case of its own below a leaf."""
    found = [one for child in parent.__subclasses__() for one in (child, *subclasses(child))]
    return [one for one in found if one.__module__ == errors.__name__]


def test_every_error_has_its_exit_code() -> None:
    assert {one.__name__: one.exit_code for one in subclasses(LvmsyncError) if one is not PeerError} == CODES


def test_the_tree_in_the_docstring_is_the_tree_of_the_classes() -> None:
    drawn = re.findall(r"[├└]── (\w+) +([\d-]+)", errors.__doc__ or "")
    assert dict(drawn) == {name: str(code) for name, code in CODES.items()} | {"PeerError": "2-9"}


@pytest.mark.parametrize(
    ("status", "code"),
    [(2, 2), (3, 3), (6, 6), (9, 9), (1, 7), (10, 7), (127, 7), (130, 7), (137, 7), (255, 7), (-9, 7), (0, 7)],
)
def test_a_peers_own_codes_are_kept_and_those_of_shells_mean_a_failed_line(status: int, code: int) -> None:
    assert PeerError("gone", status).exit_code == code
    assert PeerError.exit_code == LvmsyncError.exit_code  # the instance has it, not the class


def test_only_a_failed_line_is_worth_another_try() -> None:
    assert [one for one in subclasses(LvmsyncError) if one.transient] == [TransportError]


def test_an_error_holds_the_device_and_the_offset_it_is_about() -> None:
    error = DeviceError("broken", device="/dev/x", offset=4096)
    assert (str(error), error.device, error.offset) == ("broken", "/dev/x", 4096)
    bare = CommandError("lvs failed")
    assert (bare.device, bare.offset) == (None, None)


def test_a_failed_sync_is_a_device_error_too() -> None:
    assert issubclass(SyncFailed, DeviceError)

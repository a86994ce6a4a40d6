"""A target that was made for a first copy: that keeps no undo, and everything that comes after it does."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lvmsync.errors import DeviceError, StreamError
from lvmsync.extents import ChangeMap
from lvmsync.history import Point
from lvmsync.jobs.create import create_file
from lvmsync.jobs.progress import Receipt, ignore
from lvmsync.jobs.receive import ReceiveOptions, receive
from lvmsync.jobs.recover import recover
from lvmsync.jobs.send import Resume, Sender, StreamOptions
from lvmsync.jobs.standing import standing
from lvmsync.sources.source import Source
from lvmsync.system import seen
from tests.fakes import make_source, reader

SIZE = 4 << 20


class Made:
    """A target that the agent made, allocated as a volume is, and what is to be on it."""

    def __init__(self, folder: Path) -> None:
        self.target, self.state = folder / "made", folder / "state"
        create_file(str(self.target), SIZE, self.state)
        self.new = os.urandom(SIZE)
        self.source = replace(
            make_source(self.new, [(0, SIZE)]), head=Point("lv:one"), changes=ChangeMap.whole(SIZE), is_full=True
        )

    def stream(self, source: Source, resume: Resume | None = None) -> bytes:
        sent = bytearray()

        def keep(buffers: Sequence[bytes | bytearray | memoryview]) -> None:
            for buffer in buffers:
                sent.extend(buffer)

        Sender(source, keep, StreamOptions(resumable=True), ignore, resume=resume).deliver()
        return bytes(sent)

    def receive(self, stream: bytes, **options: Any) -> Receipt:
        chosen = ReceiveOptions(str(self.target), self.state, **{"resumable": True, **options})
        return receive(reader(stream), chosen, ignore)

    def undos(self) -> list[Path]:
        return list(self.state.rglob("*.undo"))


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Made:
    # As of a volume, all of which is there: a file of zeros would have nothing to save.
    monkeypatch.setattr("lvmsync.targets.block.BlockTarget.allocated", property(lambda self: SIZE))
    return Made(tmp_path)


def fill_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    room = SimpleNamespace(f_bavail=256, f_frsize=4096)
    monkeypatch.setattr("lvmsync.jobs.transaction.os.statvfs", lambda folder: room)


def test_a_first_copy_of_more_than_the_state_folder_has_room_for_goes_to_a_target_that_was_made(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill_the_disk(monkeypatch)
    assert standing(str(made.target), made.state).made

    assert made.receive(made.stream(made.source)).point == "lv:one"

    assert made.target.read_bytes() == made.new
    assert not standing(str(made.target), made.state).made


def test_the_next_change_of_all_of_it_keeps_an_undo_and_needs_the_room(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    made.receive(made.stream(made.source))
    fill_the_disk(monkeypatch)

    with pytest.raises(DeviceError, match=f"{256 * 4096} bytes free, and up to .* are needed"):
        made.receive(made.stream(replace(made.source, head=Point("lv:two"))))


def test_one_that_is_cut_is_gone_on_with_or_begun_anew_and_has_no_undo_either(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill_the_disk(monkeypatch)
    stream = made.stream(made.source)
    for rest in ("begun anew", "gone on with"):
        with pytest.raises(StreamError):
            made.receive(stream[: len(stream) // 2], restart=True)
        found = standing(str(made.target), made.state)
        assert found.transaction
        assert (found.transaction.can_go_back, found.dirty, made.undos()) == (False, True, [])
        if rest == "begun anew":
            # After a reboot nothing tells any more that nobody wrote to it meanwhile.
            monkeypatch.setattr(seen, "was_written", lambda before, now: "unknown")

    open_one = standing(str(made.target), made.state).transaction
    assert open_one
    made.receive(made.stream(made.source, Resume(open_one.offset, open_one.id)))

    assert made.target.read_bytes() == made.new


def test_a_target_that_was_written_to_after_it_was_made_keeps_its_undo(made: Made) -> None:
    theirs = os.urandom(SIZE)
    made.target.write_bytes(theirs)
    stream = made.stream(made.source)
    with pytest.raises(StreamError):
        made.receive(stream[: len(stream) // 2])
    assert len(made.undos()) == 1

    recover(str(made.target), made.state, ignore)

    assert made.target.read_bytes() == theirs


def test_a_copy_that_could_not_be_gone_on_with_is_taken_back(made: Made) -> None:
    stream = made.stream(made.source)

    with pytest.raises(StreamError) as caught:
        made.receive(stream[: len(stream) // 2], resumable=False)

    assert "rolled back" in caught.value.__notes__[0]
    assert made.target.read_bytes() == bytes(SIZE)


def test_a_file_that_cannot_be_noted_is_removed_again(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("not a folder")

    with pytest.raises(DeviceError, match="state folder"):
        create_file(str(tmp_path / "made"), SIZE, tmp_path / "state")

    assert not (tmp_path / "made").exists()


def test_an_empty_file_as_a_crash_leaves_it_is_taken_and_no_other(tmp_path: Path) -> None:
    target = tmp_path / "made"
    target.touch()
    assert standing(str(target), tmp_path / "state").is_blank

    create_file(str(target), SIZE, tmp_path / "state")

    assert standing(str(target), tmp_path / "state").made
    for content in (b"theirs", bytes(SIZE)):
        target.write_bytes(content)
        with pytest.raises(DeviceError, match="is there already"):
            create_file(str(target), SIZE, tmp_path / "state")
        assert target.read_bytes() == content

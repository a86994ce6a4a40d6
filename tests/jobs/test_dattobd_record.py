"""The lock on the records of dattobd: held by one run, and no other failure is taken for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from lvmsync.errors import ConflictError
from lvmsync.jobs.dattobd_record import hold_records


def test_records_are_held_by_one_run_at_a_time(tmp_path: Path) -> None:
    is_busy = pytest.raises(ConflictError, match="another 'lvmsync dattobd' is at work")
    with hold_records(tmp_path), is_busy, hold_records(tmp_path):
        pass
    with hold_records(tmp_path):
        pass


def test_a_failure_of_the_work_itself_is_not_taken_for_another_run(tmp_path: Path) -> None:
    with pytest.raises(BlockingIOError), hold_records(tmp_path):
        raise BlockingIOError

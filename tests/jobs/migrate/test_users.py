"""Who uses the volume: commands of this machine, and a guest of libvirt's own test driver."""

from __future__ import annotations

from pathlib import Path

import pytest

from lvmsync.errors import CommandError
from lvmsync.jobs.migrate.move import Ended
from lvmsync.jobs.migrate.users import by_commands, by_libvirt, far_command, local_command
from lvmsync.system.virsh import Domain
from tests.jobs.migrate.test_warm import warm


def test_commands_stop_and_start_and_are_told_what_it_is_about(tmp_path: Path) -> None:
    env = {"LVMSYNC_SOURCE": "vg/lv"}
    stop = local_command(f'echo "$LVMSYNC_SOURCE" >{tmp_path}/stopped', env, 30)
    with warm(f"touch {tmp_path}/restarted") as restart, warm(f"touch {tmp_path}/started") as start:
        users = by_commands(stop, far_command(restart, 30), start, 30)
        assert users.restart
        assert users.start
        users.ready()
        assert list(tmp_path.iterdir()) == []
        users.stop()
        assert (tmp_path / "stopped").read_text() == "vg/lv\n"
        users.restart()
        assert users.start() == Ended(0, "")
    assert {path.name for path in tmp_path.iterdir()} == {"stopped", "restarted", "started"}


@pytest.mark.parametrize("command", ["echo no such guest >&2; exit 3", "kill -9 $$"])
def test_a_command_that_fails_is_an_error_here_and_there(command: str) -> None:
    with pytest.raises(CommandError, match=r"failed with status 3.*no such guest|SIGKILL"):
        by_commands(local_command(command, {}, 30), None, None, 30).stop()
    with warm(command) as there, pytest.raises(CommandError, match=r"failed with status (3: no such guest|137)"):
        by_commands(far_command(there, 30), None, None, 30).stop()


def test_a_far_command_that_nobody_knows_the_end_of_is_an_error() -> None:
    with warm("kill -9 $PPID") as there, pytest.raises(CommandError, match="did not end in order"):
        by_commands(far_command(there, 30), None, None, 30).stop()


def test_a_guest_is_stopped_and_started_again_by_libvirt() -> None:
    with Domain("test", "test:///default") as domain:
        users = by_libvirt(domain, "test:///default", None, 30)
        assert users.restart
        users.ready()
        users.stop()
        assert domain.is_off()
        users.restart()
        assert domain.state() == "running"
    assert users.how_to_stop == "virsh -c test:///default shutdown test"
    assert (users.domain, users.uri, users.start) == ("test", "test:///default", None)

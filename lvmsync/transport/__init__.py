"""How bytes travel to the far side: a child process here, any command, or ssh in this process."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

from lvmsync.errors import UsageError
from lvmsync.interfaces import Transport
from lvmsync.names import Host
from lvmsync.transport import local, pipe


@dataclass(frozen=True)
class Ssh:
    """Options of the built-in ssh; what is None comes from the user's ssh config.

    Attributes:
        port: where sshd listens.
        identity: path of a private key, offered besides the agent's keys.
        config: path of the ssh config; None: ``~/.ssh/config``, where it exists.
        connect_timeout: seconds that the login may take, and then the start of the command.
    """

    port: int | None = None
    identity: str | None = None
    config: str | None = None
    connect_timeout: float = 30


_DEFAULTS = Ssh()

STALL_TIMEOUT = 120.0
"""Seconds without a byte after which a line counts as dead."""
SHORTEST_STALL = 3.0
"""The fewest such seconds: who works shows a sign of life three times in them."""


def open_transport(
    host: Host | None,
    words: Sequence[str],
    *,
    rsh: Sequence[str] | None = None,
    ssh: Ssh = _DEFAULTS,
    stall_timeout: float | None = None,
    on_stderr: Callable[[str], None],
) -> AbstractContextManager[Transport]:
    """Return the line to a far side, opened on ``with``; a line that was not closed in it is cut at its end.

    Args:
        host: where the far side runs; None: on this machine.
        words: the far command, one word each. Without a host they begin behind the program's name.
        rsh: the words of a command that is run as ``RSH [USER@]HOST COMMAND``; None: the built-in ssh.
        ssh: options of the built-in ssh.
        stall_timeout: see `Transport`; only for a far side that says something when it is busy for long.
        on_stderr: gets each line of the far side's stderr, made harmless; called from another thread.

    Raises:
        UsageError: a word cannot be passed on, or options do not fit together.
        TransportError: on ``with``: no line to the far side.
    """
    if any("\0" in word for word in words):
        raise UsageError("the far command: a word with a zero byte cannot be passed on")
    match host, rsh:
        case None, _:
            return local.Local(words, on_stderr, stall_timeout=stall_timeout)
        case Host(), _ if str(host).startswith("-") or host.address.startswith("-"):
            # ssh would take it for an option, and some options run commands
            raise UsageError(f"host {str(host)!r}: a name cannot begin with '-'")
        case Host(), None:
            from lvmsync.transport import asyncssh  # slow to import, and most jobs are local

            return asyncssh.connect(host, shlex.join(words), ssh, on_stderr, stall_timeout=stall_timeout)
        case Host(), [_, *_]:
            if ssh.port is not None or ssh.identity is not None:
                raise UsageError("port and identity belong to the built-in ssh: write them into the --rsh command")
            argv = [*rsh, str(host), shlex.join(words)]
            return pipe.Command(argv, on_stderr, name=str(host), stall_timeout=stall_timeout)
        case _:
            raise UsageError("the --rsh command is empty")

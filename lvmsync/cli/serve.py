"""``lvmsync serve``, what a key that can do nothing else is for; and ``lvmsync agent``, what a sync starts."""

from __future__ import annotations

import signal
import sys
import threading
from typing import TYPE_CHECKING, Annotated

import typer

from lvmsync.cli.options import Debug, State, TargetExtendCmd
from lvmsync.errors import UsageError

if TYPE_CHECKING:
    from lvmsync.jobs.agent.policy import Policy


def agent(target_extend_cmd: TargetExtendCmd = None, state: State = None, debug: Debug = False) -> None:
    """Serve the lvmsync at the other end of standard input and output: all that this user may do."""
    from lvmsync.jobs.agent.policy import Policy

    _serve_stdio(Policy(extend_cmd=target_extend_cmd), state)


def serve(
    allow: Annotated[
        list[str] | None,
        typer.Option("--allow", metavar="PATTERN", help="what may be written: 'vg0/*', or a path; may be repeated"),
    ] = None,
    allow_pull: Annotated[
        list[str] | None,
        typer.Option("--allow-pull", metavar="PATTERN", help="what may be read by who pulls; may be repeated"),
    ] = None,
    allow_create: Annotated[bool, typer.Option("--allow-create", help="targets may be made")] = False,
    allow_snapshot: Annotated[
        bool, typer.Option("--allow-snapshot", help="a snapshot for the way back may be made of a target")
    ] = False,
    allow_archive: Annotated[
        list[str] | None,
        typer.Option(
            "--allow-archive",
            metavar="PATTERN",
            help="archive that what is overwritten may be put into: a path, or an address; may be repeated",
        ),
    ] = None,
    permit: Annotated[
        list[str] | None,
        typer.Option("--permit", metavar="OPTION", help="no-undo, ignore-base, allow-smaller or accept; repeat"),
    ] = None,
    most_copies: Annotated[
        int, typer.Option("--most-copies", metavar="N", help="copies of one volume that pulls may keep", min=1)
    ] = 4,
    no_compare: Annotated[bool, typer.Option("--no-compare", help="digests of targets are told to no one")] = False,
    target_extend_cmd: TargetExtendCmd = None,
    state: State = None,
    debug: Debug = False,
) -> None:
    """Serve an lvmsync elsewhere as the forced command of its key, and touch only what is allowed."""
    from lvmsync.jobs.agent.policy import RISKS, Policy, parse_archive_pattern, parse_pattern

    if not allow and not allow_pull:
        raise UsageError("nothing is allowed: give --allow PATTERN (to write) or --allow-pull PATTERN (to read)")
    risks = frozenset(word.replace("-", "_") for word in permit or ())
    for risk in risks.difference(RISKS):
        known = ", ".join(name.replace("_", "-") for name in RISKS)
        raise UsageError(f"--permit {risk.replace('_', '-')}: choose of {known}")
    policy = Policy(
        targets=tuple(map(parse_pattern, allow or ())),
        sources=tuple(map(parse_pattern, allow_pull or ())),
        may_create=allow_create,
        may_snapshot=allow_snapshot,
        may_compare=not no_compare,
        files=frozenset(),
        archives=tuple(map(parse_archive_pattern, allow_archive or ())),
        risks=risks,
        most_copies=most_copies,
        extend_cmd=target_extend_cmd,
    )
    _serve_stdio(policy, state)


def _serve_stdio(policy: Policy, state: str | None) -> None:
    from lvmsync.jobs.agent.server import serve as run
    from lvmsync.jobs.progress import ignore
    from lvmsync.system.ledger import state_folder
    from lvmsync.transport.pipe import Stdio

    if sys.stdin is not None and sys.stdin.isatty():
        raise UsageError("standard input is a terminal: this serves another lvmsync, whose 'sync' starts it")
    with Stdio() as stdio:
        run(stdio, policy, state_folder(state), ignore, on_lost=_end_work)


def _end_work() -> None:
    """End what the main thread does as SIGTERM ends it: what is half done is brought back, or stopped cleanly."""
    ident = threading.main_thread().ident
    assert ident
    signal.pthread_kill(ident, signal.SIGTERM)

"""``lvmsync migrate``: a volume that is in use goes to another place, with a downtime that was promised."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from lvmsync.cli.asked import Snapshots, View, Way
from lvmsync.cli.options import Compress, Create, DryRun, State
from lvmsync.errors import UsageError

if TYPE_CHECKING:
    from lvmsync.jobs.migrate.move import Options

_SECONDS = {"ms": 0.001, "s": 1.0, "": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}


@dataclass(frozen=True)
class Commands:
    """How what uses the volume is stopped and started.

    Attributes:
        stop, restart: where the source is.
        start: where the target is.
        domain, uri: of libvirt.
        each: time that each of them may take, as the user wrote it.
    """

    stop: Annotated[
        str | None, typer.Option("--stop-cmd", metavar="CMD", help="stops what uses the source; back when it has")
    ] = None
    restart: Annotated[
        str | None, typer.Option("--restart-cmd", metavar="CMD", help="starts that again here, if a step fails")
    ] = None
    start: Annotated[str | None, typer.Option("--start-cmd", metavar="CMD", help="starts it where the target is")] = (
        None
    )
    domain: Annotated[
        str | None, typer.Option("--libvirt", metavar="DOMAIN", help="stop, and if need be restart, this guest")
    ] = None
    uri: Annotated[str | None, typer.Option("--libvirt-uri", metavar="URI", help="where libvirt has it")] = None
    each: Annotated[
        str, typer.Option("--command-timeout", metavar="TIME", help="how long each of the commands may take")
    ] = "5m"

    def __post_init__(self) -> None:
        if self.domain and (self.stop or self.restart):
            raise UsageError("--libvirt stops and restarts the guest; --stop-cmd and --restart-cmd do not go with it")
        if self.uri and not self.domain:
            raise UsageError("--libvirt-uri goes with --libvirt")
        seconds("--command-timeout", self.each)

    @property
    def timeout(self) -> float:
        """Seconds that each of the commands may take."""
        return seconds("--command-timeout", self.each)


@dataclass(frozen=True)
class Limits:
    """What a migration may cost, and what becomes of it where that is not enough; times as the user wrote them."""

    max_downtime: Annotated[
        str | None, typer.Option("--max-downtime", metavar="TIME", help="how long nothing may run: 5s, 500ms, 2m")
    ] = None
    stop_time: Annotated[
        str | None, typer.Option("--stop-time", metavar="TIME", help="what stopping takes, for the prediction")
    ] = None
    start_time: Annotated[
        str | None, typer.Option("--start-time", metavar="TIME", help="what starting takes, for the prediction")
    ] = None
    max_passes: Annotated[int, typer.Option("--max-passes", help="passes before a stop, at the most", min=1)] = 30
    max_stops: Annotated[int, typer.Option("--max-stops", help="stops that may be called off", min=1)] = 3
    on_no_convergence: Annotated[
        str | None,
        typer.Option("--on-no-convergence", metavar="ask|abort|go", help="if passes do not bring the downtime down"),
    ] = None
    on_overrun: Annotated[
        str, typer.Option("--on-overrun", metavar="restart|go", help="if a downtime turns out too long")
    ] = "restart"
    fence: Annotated[
        str, typer.Option("--fence", metavar="readonly|deactivate|none", help="what becomes of the source")
    ] = "readonly"

    def __post_init__(self) -> None:
        _choose("--fence", self.fence, ("readonly", "deactivate", "none"))
        _choose("--on-overrun", self.on_overrun, ("restart", "go"))
        if self.on_no_convergence is not None:
            _choose("--on-no-convergence", self.on_no_convergence, ("ask", "abort", "go"))

    def options(self, *, may_ask: bool) -> Options:
        """Return them as the job wants them.

        Args:
            may_ask: there is somebody to ask.

        Raises:
            UsageError: no downtime is said, or what should be a time is none.
        """
        from lvmsync.jobs.migrate.move import Options

        if self.max_downtime is None:
            raise UsageError("say how long nothing may run: --max-downtime 5s")
        return Options(
            max_downtime=seconds("--max-downtime", self.max_downtime),
            stop_seconds=None if self.stop_time is None else seconds("--stop-time", self.stop_time),
            start_seconds=None if self.start_time is None else seconds("--start-time", self.start_time),
            max_passes=self.max_passes,
            max_stops=self.max_stops,
            on_no_convergence=self.on_no_convergence or ("ask" if may_ask else "abort"),
            on_overrun=self.on_overrun,
            fence=self.fence != "none",
            ask=_ask,
        )


def migrate(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="the volume, vg/lv")],
    target: Annotated[str, typer.Argument(metavar="[HOST:]TARGET", help="where it goes: vg/lv, a device or a file")],
    *,
    limits: Limits,
    commands: Commands,
    verify: Annotated[
        bool, typer.Option("--verify", help="compare the whole target before the stop, and its changes after")
    ] = False,
    no_way_back: Annotated[
        bool, typer.Option("--no-way-back", help="keep no snapshot of the target for 'migrate --back'")
    ] = False,
    back: Annotated[bool, typer.Option("--back", help="the way back: TARGET is in use, and SOURCE is to be")] = False,
    abort: Annotated[bool, typer.Option("--abort", help="after a crash: let the source be used again")] = False,
    finish: Annotated[bool, typer.Option("--finish", help="after a crash: it runs on the target, leave it so")] = False,
    force: Annotated[bool, typer.Option("--force", help="with --abort: nothing runs on the target, I looked")] = False,
    create: Create = False,
    snapshots: Snapshots,
    compress: Compress = None,
    way: Way,
    dry_run: DryRun = False,
    state: State = None,
    view: View,
) -> None:
    """Move a volume in use: passes until the rest fits the downtime, then stop, send the rest, start."""
    from lvmsync.cli import render_migrate
    from lvmsync.cli.migrate_jobs import Asked, go, go_back, settle
    from lvmsync.jobs.migrate.move import Outcome
    from lvmsync.jobs.progress import Receipt

    asked = Asked(source, target, way, commands, limits.fence, compress, state)
    if abort or finish:
        if abort and finish:
            raise UsageError("--abort and --finish are both given; choose one")
        said = settle(asked, is_abort=abort, is_back=back, is_forced=force)
        return None if view.quiet else _say(said)
    is_terminal = sys.stdin is not None and sys.stdin.isatty() and sys.stderr.isatty()
    options = limits.options(may_ask=is_terminal and not view.as_json)
    if not (commands.stop or commands.domain):
        raise UsageError("say how what uses the source is stopped: --stop-cmd CMD, or --libvirt DOMAIN")
    with render_migrate.view(view.style) as tell:
        if back:
            if create or verify or dry_run or way.target_extend_cmd or snapshots != Snapshots():
                raise UsageError(
                    "--create, --verify, --dry-run, --full, --target-extend-cmd and options of snapshots are for the"
                    " way there, not for --back"
                )
            outcome: Outcome | Receipt = go_back(asked, options, tell)
        else:
            outcome = go(
                asked, options, tell, snapshots=snapshots, create=create, verify=verify, way_back=not no_way_back,
                dry_run=dry_run,
            )  # fmt: skip
    if isinstance(outcome, Receipt):
        return view.print_receipt(outcome)
    render_migrate.print_outcome(outcome, as_json=view.as_json, quiet=view.quiet)


def seconds(option: str, text: str) -> float:
    """Read a time: ``5``, ``5s``, ``500ms``, ``2m``, ``1h``.

    Raises:
        UsageError: it is none, or not more than nothing.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?) *([a-z]*)", text.strip())
    if not match or match[2] not in _SECONDS or not float(match[1]):
        raise UsageError(f"{option} {text}: write a time such as 5s, 500ms or 2m")
    return float(match[1]) * _SECONDS[match[2]]


def _choose(option: str, word: str, words: tuple[str, ...]) -> None:
    if word not in words:
        raise UsageError(f"{option} {word}: choose {', '.join(words[:-1])} or {words[-1]}")


def _ask(reason: str) -> bool:
    """Ask at the terminal whether to go on though the downtime will be too long."""
    return typer.confirm(f"{reason}. Stop it all the same?", default=False, err=True)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)

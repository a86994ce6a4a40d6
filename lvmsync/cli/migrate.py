"""``lvmsync migrate``: a volume that is in use goes to another place, with a downtime that was promised."""

from __future__ import annotations

import re
import sys
from typing import Annotated

import typer

from lvmsync.cli.options import (
    Bwlimit,
    BwlimitFile,
    Compress,
    Create,
    Debug,
    DryRun,
    Identity,
    Json,
    Port,
    ProgressStyle,
    Quiet,
    RemoteCommand,
    Rsh,
    StallTimeout,
    State,
    Streams,
    Sudo,
    Verbose,
)
from lvmsync.errors import UsageError

_SECONDS = {"ms": 0.001, "s": 1.0, "": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}


def migrate(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="the volume, vg/lv")],
    target: Annotated[str, typer.Argument(metavar="[HOST:]TARGET", help="where it goes: vg/lv, a device or a file")],
    max_downtime: Annotated[
        str | None, typer.Option("--max-downtime", metavar="TIME", help="how long nothing may run: 5s, 500ms, 2m")
    ] = None,
    stop_cmd: Annotated[
        str | None, typer.Option("--stop-cmd", metavar="CMD", help="stops what uses the source; back when it has")
    ] = None,
    restart_cmd: Annotated[
        str | None, typer.Option("--restart-cmd", metavar="CMD", help="starts that again here, if a step fails")
    ] = None,
    start_cmd: Annotated[
        str | None, typer.Option("--start-cmd", metavar="CMD", help="starts it where the target is")
    ] = None,
    libvirt: Annotated[
        str | None, typer.Option("--libvirt", metavar="DOMAIN", help="stop, and if need be restart, this guest")
    ] = None,
    libvirt_uri: Annotated[
        str | None, typer.Option("--libvirt-uri", metavar="URI", help="where libvirt has it")
    ] = None,
    stop_time: Annotated[
        str | None, typer.Option("--stop-time", metavar="TIME", help="what stopping takes, for the prediction")
    ] = None,
    start_time: Annotated[
        str | None, typer.Option("--start-time", metavar="TIME", help="what starting takes, for the prediction")
    ] = None,
    command_timeout: Annotated[
        str, typer.Option("--command-timeout", metavar="TIME", help="how long each of the commands may take")
    ] = "5m",
    verify: Annotated[
        bool, typer.Option("--verify", help="compare the whole target before the stop, and its changes after")
    ] = False,
    max_passes: Annotated[int, typer.Option("--max-passes", help="passes before a stop, at the most", min=1)] = 30,
    max_stops: Annotated[int, typer.Option("--max-stops", help="stops that may be called off", min=1)] = 3,
    on_no_convergence: Annotated[
        str | None,
        typer.Option("--on-no-convergence", metavar="ask|abort|go", help="if passes do not bring the downtime down"),
    ] = None,
    on_overrun: Annotated[
        str, typer.Option("--on-overrun", metavar="restart|go", help="if a downtime turns out too long")
    ] = "restart",
    fence: Annotated[
        str, typer.Option("--fence", metavar="readonly|deactivate|none", help="what becomes of the source")
    ] = "readonly",
    no_way_back: Annotated[
        bool, typer.Option("--no-way-back", help="keep no snapshot of the target for 'migrate --back'")
    ] = False,
    back: Annotated[bool, typer.Option("--back", help="the way back: TARGET is in use, and SOURCE is to be")] = False,
    abort: Annotated[bool, typer.Option("--abort", help="after a crash: let the source be used again")] = False,
    finish: Annotated[bool, typer.Option("--finish", help="after a crash: it runs on the target, leave it so")] = False,
    force: Annotated[bool, typer.Option("--force", help="with --abort: nothing runs on the target, I looked")] = False,
    create: Create = False,
    thin_pool: Annotated[
        str | None, typer.Option("--thin-pool", metavar="VG/POOL", help="with --create: the target's thin pool")
    ] = None,
    cow_size: Annotated[
        str | None, typer.Option("--cow-size", metavar="SIZE", help="store of the snapshots that are taken")
    ] = None,
    chunk_size: Annotated[
        str | None, typer.Option("--chunk-size", metavar="SIZE", help="chunks of these snapshots: 4K to 512K")
    ] = None,
    extend_cmd: Annotated[
        str | None,
        typer.Option("--extend-cmd", metavar="CMD", help="makes room in $LVMSYNC_VOLUME when that becomes full"),
    ] = None,
    extend_at: Annotated[
        float | None, typer.Option("--extend-at", metavar="PERCENT", help="when that is  [default: 70]")
    ] = None,
    compress: Compress = None,
    rsh: Rsh = None,
    port: Port = None,
    identity: Identity = None,
    sudo: Sudo = False,
    remote_command: RemoteCommand = "lvmsync",
    bwlimit: Bwlimit = None,
    bwlimit_file: BwlimitFile = None,
    stall_timeout: StallTimeout = 120,
    streams: Streams = 1,
    as_json: Json = False,
    dry_run: DryRun = False,
    state: State = None,
    progress: ProgressStyle = "auto",
    quiet: Quiet = False,
    verbose: Verbose = False,
    debug: Debug = False,
) -> None:
    """Move a volume in use: passes until the rest fits the downtime, then stop, send the rest, start."""
    from lvmsync.cli import render, render_migrate
    from lvmsync.cli.delivery import Way
    from lvmsync.cli.migrate_jobs import Commands, go, go_back, settle
    from lvmsync.cli.replica import Managing
    from lvmsync.jobs.migrate.move import Options, Outcome
    from lvmsync.jobs.progress import Receipt

    _choose("--fence", fence, ("readonly", "deactivate", "none"))
    _choose("--on-overrun", on_overrun, ("restart", "go"))
    is_terminal = sys.stdin is not None and sys.stdin.isatty() and sys.stderr.isatty()
    without_word = on_no_convergence or ("ask" if is_terminal and not as_json else "abort")
    _choose("--on-no-convergence", without_word, ("ask", "abort", "go"))
    if libvirt and (stop_cmd or restart_cmd):
        raise UsageError("--libvirt stops and restarts the guest; --stop-cmd and --restart-cmd do not go with it")
    if libvirt_uri and not libvirt:
        raise UsageError("--libvirt-uri goes with --libvirt")
    timeout = seconds("--command-timeout", command_timeout)
    way = Way(rsh, port, identity, sudo, remote_command, bwlimit, bwlimit_file, stall_timeout or None, streams)
    asked = Commands(stop_cmd, restart_cmd, start_cmd, libvirt, libvirt_uri, timeout)
    if abort or finish:
        if abort and finish:
            raise UsageError("--abort and --finish are both given; choose one")
        said = settle(source, target, way, asked, state, is_abort=abort, is_back=back, is_forced=force)
        if not quiet:
            _say(said)
        return
    if max_downtime is None:
        raise UsageError("say how long nothing may run: --max-downtime 5s")
    if not (stop_cmd or libvirt):
        raise UsageError("say how what uses the source is stopped: --stop-cmd CMD, or --libvirt DOMAIN")
    options = Options(
        max_downtime=seconds("--max-downtime", max_downtime),
        stop_seconds=None if stop_time is None else seconds("--stop-time", stop_time),
        start_seconds=None if start_time is None else seconds("--start-time", start_time),
        max_passes=max_passes,
        max_stops=max_stops,
        on_no_convergence=without_word,
        on_overrun=on_overrun,
        fence=fence != "none",
        ask=_ask,
    )
    managing = Managing(
        thin_pool=thin_pool, store=cow_size, chunk=chunk_size, extend_cmd=extend_cmd, extend_at=extend_at
    )
    with render_migrate.view("none" if quiet else progress) as tell:
        if back:
            if create or verify or dry_run or managing != Managing():
                raise UsageError(
                    "--create, --verify, --dry-run and options of snapshots are for the way there, not for --back"
                )
            outcome: Outcome | Receipt = go_back(
                source, target, way, asked, options, tell, fence=fence, compress=compress, state=state
            )
        else:
            outcome = go(
                source, target, way, asked, options, tell, fence=fence, verify=verify, way_back=not no_way_back,
                create=create, managing=managing, compress=compress, state=state, dry_run=dry_run, debug=debug,
            )  # fmt: skip
    if isinstance(outcome, Receipt):
        render.print_receipt(outcome, as_json=as_json, quiet=quiet)
        return
    render_migrate.print_outcome(outcome, as_json=as_json, quiet=quiet)


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

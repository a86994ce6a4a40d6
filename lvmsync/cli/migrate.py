"""``lvmsync migrate``: a volume that is in use goes to another place, with a downtime that was promised."""

from __future__ import annotations

import re
import shlex
import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING, Annotated

import typer

from lvmsync.cli.options import (
    Bwlimit,
    BwlimitFile,
    Compress,
    Create,
    Debug,
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

if TYPE_CHECKING:
    from lvmsync.cli.delivery import Way
    from lvmsync.jobs.migrate.users import Users
    from lvmsync.jobs.migrate.warm import WarmCommand
    from lvmsync.names import TargetName

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
    state: State = None,
    progress: ProgressStyle = "auto",
    quiet: Quiet = False,
    verbose: Verbose = False,
    debug: Debug = False,
) -> None:
    """Move a volume in use: passes until the rest fits the downtime, then stop, send the rest, start."""
    from lvmsync.cli import render_migrate
    from lvmsync.cli.delivery import Delivery, Orders, Way
    from lvmsync.cli.files import stream_options
    from lvmsync.jobs.migrate.cutover import refuse_leftover
    from lvmsync.jobs.migrate.drive import migrate as run
    from lvmsync.jobs.migrate.move import Options
    from lvmsync.jobs.migrate.state import open_journal
    from lvmsync.jobs.migrate.volume import Job, open_move
    from lvmsync.jobs.progress import ignore
    from lvmsync.jobs.replica.copy import PassOptions
    from lvmsync.jobs.replica.snapshots import find_source
    from lvmsync.system.ledger import state_folder

    _choose("--fence", fence, ("readonly", "deactivate", "none"))
    _choose("--on-overrun", on_overrun, ("restart", "go"))
    is_terminal = sys.stdin is not None and sys.stdin.isatty() and sys.stderr.isatty()
    without_word = on_no_convergence or ("ask" if is_terminal and not as_json else "abort")
    _choose("--on-no-convergence", without_word, ("ask", "abort", "go"))
    if libvirt and (stop_cmd or restart_cmd):
        raise UsageError("--libvirt stops and restarts the guest; --stop-cmd and --restart-cmd do not go with it")
    if libvirt_uri and not libvirt:
        raise UsageError("--libvirt-uri goes with --libvirt")
    if abort or finish:
        if abort and finish:
            raise UsageError("--abort and --finish are both given; choose one")
        _settle(source, target, restart_cmd, state, command_timeout, is_abort=abort, is_forced=force, quiet=quiet)
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
    way = Way(rsh, port, identity, sudo, remote_command, bwlimit, bwlimit_file, stall_timeout or None, streams)
    with ExitStack() as stack:
        tell = stack.enter_context(render_migrate.view("none" if quiet else progress))
        delivery = Delivery(target, way, Orders(state=None, debug=debug), ignore, compress=compress)
        stack.enter_context(delivery)
        stream = stream_options(4, compress or ("zstd:1" if delivery.place.host else None))
        volume = find_source(source)
        timeout = seconds("--command-timeout", command_timeout)
        env = {"LVMSYNC_SOURCE": volume.full_name, "LVMSYNC_TARGET": target}
        shells = _Shells(stack, delivery.place, way, env)
        job = Job(
            volume=volume,
            target=delivery.place.name,
            place=str(delivery.place),
            state=state_folder(state),
            options=PassOptions(stream=stream, create=create, thin_pool=thin_pool),
            connect=lambda: delivery.agent,
            users=shells.users(stop_cmd, restart_cmd, start_cmd, libvirt, libvirt_uri, timeout),
            fence=fence,
            verify=verify,
            way_back=not no_way_back,
        )
        journal = stack.enter_context(open_journal(job.state, job.note))
        if journal.before and journal.before.has_stopped:
            refuse_leftover(journal.before)
        job.users.ready()  # a way that is not there is told before anything is sent
        move = stack.enter_context(open_move(job))
        outcome = run(move, options, journal, tell)
    render_migrate.print_outcome(outcome, as_json=as_json, quiet=quiet)


class _Shells:
    """The shells in which commands of the user's run, here and where the target is."""

    def __init__(self, stack: ExitStack, place: TargetName, way: Way, env: dict[str, str]) -> None:
        self._stack = stack
        self._place = place
        self._way = way
        self._env = env

    def users(
        self,
        stop: str | None,
        restart: str | None,
        start: str | None,
        domain: str | None,
        uri: str | None,
        timeout: float,
    ) -> Users:
        """Return how the volume's user is stopped and started."""
        from lvmsync.jobs.migrate.users import by_commands, by_libvirt

        there = self.there(start) if start else None
        if domain:
            from lvmsync.system.virsh import Domain

            return by_libvirt(self._stack.enter_context(Domain(domain, uri)), there, timeout)
        assert stop
        return by_commands(self.here(stop), self.here(restart) if restart else None, there, timeout)

    def here(self, command: str) -> WarmCommand:
        """Return a command of this machine."""
        from lvmsync.jobs.migrate.warm import WarmCommand
        from lvmsync.transport.pipe import Command

        return self._stack.enter_context(
            WarmCommand(
                "this machine",
                command,
                lambda words, hear: Command(words, hear, name="this machine"),
                self._env,
                lambda line: _say(line),
            )
        )

    def there(self, command: str) -> WarmCommand:
        """Return a command of the target's machine, reached as the target is."""
        from lvmsync.jobs.migrate.warm import WarmCommand
        from lvmsync.transport import Ssh, open_transport

        way, host = self._way, self._place.host
        if host is None:
            return self.here(command)
        return self._stack.enter_context(
            WarmCommand(
                str(host),
                command,
                lambda words, hear: open_transport(
                    host,
                    [*(("sudo", "-n") if way.sudo else ()), *words],
                    rsh=shlex.split(way.rsh) if way.rsh else None,
                    ssh=Ssh(port=way.port, identity=way.identity),
                    on_stderr=hear,
                ),
                self._env,
                lambda line: _say(f"{host}: {line}"),
            )
        )


def _settle(
    source: str,
    target: str,
    restart: str | None,
    state: str | None,
    command_timeout: str,
    *,
    is_abort: bool,
    is_forced: bool,
    quiet: bool,
) -> None:
    """Carry out ``--abort`` or ``--finish``: deal with what a migration that was cut off has left."""
    from lvmsync.cli.delivery import Way
    from lvmsync.jobs.migrate.settle import abort, finish
    from lvmsync.jobs.migrate.state import Note, open_journal
    from lvmsync.jobs.replica.snapshots import find_source
    from lvmsync.names import parse_target
    from lvmsync.system.ledger import state_folder

    place = parse_target(target)
    volume = find_source(source)
    with ExitStack() as stack:
        journal = stack.enter_context(open_journal(state_folder(state), Note(volume.full_name, volume.id, str(place))))
        if journal.before is None:
            said = f"no migration of {volume.full_name} to {place} was cut off: nothing is left"
        elif is_abort:
            shells = _Shells(stack, place, Way(), {"LVMSYNC_SOURCE": volume.full_name, "LVMSYNC_TARGET": str(place)})
            note = journal.before
            users = None
            if restart or note.restart or note.domain:
                users = shells.users(
                    "true", restart or note.restart or None, None, note.domain or None, note.uri or None,
                    seconds("--command-timeout", command_timeout),
                )  # fmt: skip
            said = abort(journal, volume, users, is_forced=is_forced)
        else:
            said = finish(journal, volume)
    if not quiet:
        _say(said)


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

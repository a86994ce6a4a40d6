"""What uses the volume: how it is stopped here and started there, by commands of the user's or through libvirt."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lvmsync.errors import CommandError
from lvmsync.jobs.migrate.move import Ended
from lvmsync.jobs.migrate.warm import WarmCommand
from lvmsync.system.hooks import run_hook

if TYPE_CHECKING:
    from lvmsync.system.virsh import Domain


@dataclass(frozen=True)
class Users:
    """How the volume's user is stopped and started; each raises LvmsyncError if that fails.

    Attributes:
        stop: returns when it has stopped.
        ready: makes sure that the others can begin at once.
        restart: starts it again where it was stopped; None: there is no way.
        start: starts it on the target's side; None: nobody wants that.
        how_to_stop, how_to_restart, how_to_start: in words, empty where there is none.
        domain, uri: of libvirt; empty where it has nothing to do with it.
    """

    stop: Callable[[], None]
    ready: Callable[[], None] = lambda: None
    restart: Callable[[], None] | None = None
    start: Callable[[], Ended] | None = None
    how_to_stop: str = ""
    how_to_restart: str = ""
    how_to_start: str = ""
    domain: str = ""
    uri: str = ""


@dataclass(frozen=True)
class Command:
    """A command that stops the user, or starts it again on the same side.

    Attributes:
        words: as its user wrote it.
        run: runs it to its end; raises LvmsyncError if it fails.
        ready: makes sure that it can begin at once.
    """

    words: str
    run: Callable[[], object]
    ready: Callable[[], None] = lambda: None


def local_command(command: str, env: Mapping[str, str], timeout: float) -> Command:
    """Return a command of this machine. It has a process group of its own: Ctrl-C reaches it only through us."""
    return Command(command, lambda: run_hook(command, env=env, timeout=timeout))


def far_command(warm: WarmCommand, timeout: float) -> Command:
    """Return a command of another machine."""
    return Command(warm.command, lambda: require_success(warm, timeout), warm.make_ready)


def by_commands(stop: Command, restart: Command | None, start: WarmCommand | None, timeout: float) -> Users:
    """Return a user that commands stop and start.

    Args:
        stop: stops it.
        restart: starts it again on the same side.
        start: starts it on the target's side.
        timeout: seconds that ``start`` may be silent for.
    """

    def ready() -> None:
        stop.ready()
        if restart:
            restart.ready()
        if start:
            start.make_ready()

    def run(command: Command) -> Callable[[], None]:
        def run() -> None:
            command.run()

        return run

    return Users(
        stop=run(stop),
        ready=ready,
        restart=run(restart) if restart else None,
        start=None if start is None else lambda: start.run(timeout),
        how_to_stop=stop.words,
        how_to_restart=restart.words if restart else "",
        how_to_start=start.command if start else "",
    )


def by_libvirt(domain: Domain, uri: str | None, start: WarmCommand | None, timeout: float) -> Users:
    """Return a guest that libvirt stops and starts.

    Args:
        domain: the guest.
        uri: of the libvirt that has it; None: its default.
        start: starts it on the target's side.
        timeout: seconds that the guest has to shut down, and that ``start`` may be silent for.
    """

    def ready() -> None:
        domain.state()  # there is such a domain, and libvirt answers
        if start:
            start.make_ready()

    where = f"virsh{f' -c {uri}' if uri else ''}"
    return Users(
        stop=lambda: domain.stop(timeout),
        ready=ready,
        restart=domain.start,
        start=None if start is None else lambda: start.run(timeout),
        how_to_stop=f"{where} shutdown {domain.name}",
        how_to_restart=f"{where} start {domain.name}",
        how_to_start=start.command if start else "",
        domain=domain.name,
        uri=uri or "",
    )


def require_success(command: WarmCommand, timeout: float) -> None:
    """Run a command to its end.

    Raises:
        CommandError: it failed, or what became of it is not known.
        TransportError: there is no way to it; it was not begun.
    """
    command.make_ready()
    ended = command.run(timeout)
    if ended.status is None:
        raise CommandError(f"'{command.command}' did not end in order: {ended.words}")
    if ended.status:
        raise CommandError(f"'{command.command}' failed with status {ended.status}: {ended.words or 'no reason'}")

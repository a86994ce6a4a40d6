"""What uses the volume: how it is stopped here and started there, by commands of the user's or through libvirt."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lvmsync.errors import CommandError
from lvmsync.jobs.migrate.move import Ended
from lvmsync.jobs.migrate.warm import WarmCommand

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


def by_commands(stop: WarmCommand, restart: WarmCommand | None, start: WarmCommand | None, timeout: float) -> Users:
    """Return a user that commands stop and start.

    Args:
        stop: stops it.
        restart: starts it again on the same side.
        start: starts it on the target's side.
        timeout: seconds that each may be silent for.
    """

    def ready() -> None:
        for command in (stop, start):
            if command:
                command.make_ready()

    return Users(
        stop=lambda: require_success(stop, "stop", timeout),
        ready=ready,
        # Not made ready before: a Ctrl-C that ends us would end its waiting shell, too.
        restart=None if restart is None else lambda: require_success(restart, "restart", timeout),
        start=None if start is None else lambda: start.run(timeout),
        how_to_stop=stop.command,
        how_to_restart=restart.command if restart else "",
        how_to_start=start.command if start else "",
    )


def by_libvirt(domain: Domain, start: WarmCommand | None, timeout: float) -> Users:
    """Return a guest that libvirt stops and starts.

    Args:
        domain: of libvirt on this machine.
        start: starts it on the target's side.
        timeout: seconds that the guest has to shut down, and that ``start`` may be silent for.
    """

    def ready() -> None:
        domain.state()  # there is such a domain, and libvirt answers
        if start:
            start.make_ready()

    where = f"virsh{f' -c {domain.uri}' if domain.uri else ''}"
    return Users(
        stop=lambda: domain.stop(timeout),
        ready=ready,
        restart=domain.start,
        start=None if start is None else lambda: start.run(timeout),
        how_to_stop=f"{where} shutdown {domain.name}",
        how_to_restart=f"{where} start {domain.name}",
        how_to_start=start.command if start else "",
        domain=domain.name,
        uri=domain.uri or "",
    )


def require_success(command: WarmCommand, what: str, timeout: float) -> None:
    """Run a command to its end.

    Raises:
        CommandError: it failed, or what became of it is not known.
        TransportError: there is no way to it; it was not begun.
    """
    command.make_ready()
    ended = command.run(timeout)
    if ended.status is None:
        raise CommandError(f"the {what} command '{command.command}' did not end in order: {ended.words}")
    if ended.status:
        raise CommandError(
            f"the {what} command '{command.command}' failed with status {ended.status}: {ended.words or 'no reason'}"
        )

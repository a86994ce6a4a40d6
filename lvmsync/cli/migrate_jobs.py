"""What ``lvmsync migrate`` sets in motion: the way there, the way back, and what is done after a crash."""

from __future__ import annotations

import os
import shlex
import sys
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

from lvmsync.cli.asked import Asked as SyncAsked
from lvmsync.cli.asked import Managing, Orders, Snapshots, Way
from lvmsync.cli.delivery import Delivery
from lvmsync.cli.files import stream_options
from lvmsync.cli.migrate import Commands
from lvmsync.cli.replica import pass_options
from lvmsync.errors import ConflictError, UsageError
from lvmsync.jobs.migrate.cutover import refuse_leftover
from lvmsync.jobs.migrate.drive import migrate
from lvmsync.jobs.migrate.move import Move, Options, Outcome, Tell
from lvmsync.jobs.migrate.settle import abort, finish, take_leave
from lvmsync.jobs.migrate.state import Journal, Note, only_migration, open_journal, refuse_others
from lvmsync.jobs.migrate.users import Users, by_commands, by_libvirt, far_command, local_command, require_success
from lvmsync.jobs.migrate.warm import Connect, WarmCommand
from lvmsync.jobs.progress import Receipt, ignore
from lvmsync.jobs.replica.snapshots import find_source
from lvmsync.jobs.send import StreamOptions
from lvmsync.jobs.standing import FENCED_TAG
from lvmsync.names import TargetName, Volume, parse_target, parse_volume
from lvmsync.system.identity import is_same_storage
from lvmsync.system.ledger import state_folder
from lvmsync.transport import Ssh, open_transport
from lvmsync.transport.pipe import Command as Child

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from lvmsync.system.lvm import LogicalVolume


@dataclass(frozen=True)
class Asked:
    """What is to go where, and how.

    Attributes:
        source: the volume of this machine, as the user named it.
        target: its other place, as the user named it.
        way: to that.
        commands: that stop and start what uses it.
        fence: what becomes of the side that is left: "readonly", "deactivate" or "none".
        compress: as the user wrote it; None where he said nothing.
        state: the state folder, as the user wrote it.
    """

    source: str
    target: str
    way: Way
    commands: Commands
    fence: str
    compress: str | None
    state: str | None

    @property
    def folder(self) -> Path:
        """The state folder."""
        return state_folder(self.state)

    def deliver(self) -> Delivery:
        """Return the way to the other place."""
        return Delivery(self.target, self.way, Orders(), ignore, compress=self.compress)


class Shells:
    """Where commands of the user's run: on this machine, and where the other side of the migration is."""

    def __init__(self, stack: ExitStack, place: TargetName, way: Way, source: str, target: str) -> None:
        self._stack = stack
        self._place = place
        self._way = way
        self._env = {"LVMSYNC_SOURCE": source, "LVMSYNC_TARGET": target}

    def users(self, asked: Commands, volume: LogicalVolume | None = None) -> Users:
        """Return the user of a volume of this machine, which goes to the other side."""
        start = self.there(asked.start) if asked.start else None
        if asked.domain:
            return self._guest(asked, start, volume)
        assert asked.stop
        restart = local_command(asked.restart, self._env, asked.timeout) if asked.restart else None
        return by_commands(local_command(asked.stop, self._env, asked.timeout), restart, start, asked.timeout)

    def users_there(self, asked: Commands) -> Users:
        """Return the user of a volume of the other side, which comes to this machine."""
        start = self.here(asked.start) if asked.start else None
        if asked.domain:
            return self._guest(asked, start, None)
        assert asked.stop
        restart = far_command(self.there(asked.restart), asked.timeout) if asked.restart else None
        return by_commands(far_command(self.there(asked.stop), asked.timeout), restart, start, asked.timeout)

    def _guest(self, asked: Commands, start: WarmCommand | None, volume: LogicalVolume | None) -> Users:
        from lvmsync.system.virsh import Domain

        assert asked.domain
        domain = self._stack.enter_context(Domain(asked.domain, asked.uri))
        if volume and not any(is_same_storage(disk.source, f"/dev/{volume.full_name}") for disk in domain.disks()):
            say(f"note: {volume.full_name} is no disk of {asked.domain} itself; is it the right guest?")
        return by_libvirt(domain, asked.uri, start, asked.timeout)

    def here(self, command: str) -> WarmCommand:
        """Return a command of this machine, which waits for its word."""
        return self._enter("this machine", command, lambda words, hear: Child(words, hear, name="this machine"), say)

    def there(self, command: str) -> WarmCommand:
        """Return a command of the other side's machine, reached as its lvmsync is."""
        way, host = self._way, self._place.host
        if host is None:
            return self.here(command)
        return self._enter(
            str(host),
            command,
            lambda words, hear: open_transport(
                host,
                [*(("sudo", "-n") if way.sudo else ()), *words],
                rsh=way.rsh_words,
                ssh=Ssh(port=way.port, identity=way.identity),
                on_stderr=hear,
            ),
            lambda line: say(f"{host}: {line}"),
        )

    def _enter(self, place: str, command: str, connect: Connect, hear: Callable[[str], None]) -> WarmCommand:
        return self._stack.enter_context(WarmCommand(place, command, connect, self._env, hear))


def go(
    asked: Asked,
    options: Options,
    tell: Tell,
    *,
    snapshots: Snapshots,
    create: bool,
    verify: bool,
    way_back: bool,
    dry_run: bool,
) -> Outcome | Receipt:
    """Move a volume of this machine to another place; in a dry run, say what its first pass would do."""
    from lvmsync.jobs.doctor.volumes import check_before
    from lvmsync.jobs.migrate.volume import Job, open_move
    from lvmsync.jobs.replica.run import foresee
    from lvmsync.system.lvm import list_around

    with ExitStack() as stack:
        delivery = stack.enter_context(asked.deliver())
        place = delivery.place
        told = list_around(parse_volume(asked.source))
        volume = find_source(asked.source, told)
        if place.host is None and is_same_storage(f"/dev/{volume.full_name}", Volume(place.name).path):
            raise UsageError(f"{volume.full_name} and the target are the same: name another target")
        for note in check_before(volume, told):
            say(f"note: {note}")
        shells = Shells(stack, place, asked.way, volume.full_name, str(place))
        managing = Managing(**asdict(snapshots))
        job = Job(
            volume=volume,
            target=place.name,
            place=str(place),
            state=asked.folder,
            options=pass_options(place, SyncAsked(asked.way, Orders(create=create), managing, compress=asked.compress)),
            connect=lambda: delivery.agent,
            users=shells.users(asked.commands, volume),
            fence=asked.fence,
            verify=verify,
            way_back=way_back,
            max_downtime=options.max_downtime,
        )
        if dry_run:
            job.users.ready()
            return replace(
                foresee(delivery.agent, volume, place.name, str(place), job.state, job.options), job="migrate"
            )
        journal = _open(stack, asked.folder, job.note)
        job.users.ready()  # what is not there is told before anything is sent
        move = stack.enter_context(open_move(job))
        if snapshots.full and delivery.agent.standing(place.name).fenced:
            _unfence_there(shells, place, asked.commands.timeout)
            say(f"note: {place} was read-only since 'migrate --back', and is writable again: all is copied anew")
        return migrate(move, options, journal, tell)


def go_back(asked: Asked, options: Options, tell: Tell) -> Outcome:
    """Bring a volume of this machine home from where it runs."""
    from lvmsync.jobs.migrate.back import WayBack, open_way_back

    if asked.fence == "deactivate":
        raise UsageError("--fence deactivate is not for --back: choose readonly or none")
    with ExitStack() as stack:
        delivery = stack.enter_context(asked.deliver())
        place = delivery.place
        volume = find_source(asked.source)
        name = Volume(place.name).lvm_name
        if name is None:
            raise UsageError(
                f"{place} is no volume of LVM (VG/LV), so no snapshot of it can be taken: stop what uses it, and run"
                f" 'lvmsync sync compare:{place.name} HOST:{volume.full_name}' there"
            )
        shells = Shells(stack, place, asked.way, str(place), volume.full_name)
        timeout = asked.commands.timeout
        fencing = shells.there(FENCE.format(name=shlex.quote(name))) if asked.fence != "none" else None
        job = WayBack(
            volume=volume,
            source=name,
            place=str(place),
            here=f"{os.uname().nodename}:{volume.full_name}",
            state=asked.folder,
            options={"level": _stream(place, asked.compress).level},
            connect=lambda: delivery.agent,
            users=shells.users_there(asked.commands),
            ready=fencing.make_ready if fencing else None,
            fence=(lambda: require_success(fencing, timeout)) if fencing else None,
            unfence=(lambda: _unfence_there(shells, place, timeout)) if fencing else None,
            remove=lambda snapshot: require_success(shells.there(REMOVE.format(name=shlex.quote(snapshot))), timeout),
        )
        journal = _open(stack, asked.folder, job.note)
        job.users.ready()
        move: Move = stack.enter_context(open_way_back(job))
        return migrate(move, options, journal, tell)


FENCE = (
    "tries=10; at=$(stat -Lc '0x%t 0x%T' /dev/{name}) || exit 16; set -- $at; while :; do"
    " open=$(dmsetup info -c --noheadings -o open -j $(($1)) -m $(($2))) || exit 16;"
    " if [ $open = 0 ]; then break; fi; tries=$((tries - 1));"
    " if [ $tries -lt 1 ]; then echo {name} is still in use >&2; exit 16; fi; sleep 0.1; done;"
    f" lvchange -y -pr --addtag {FENCED_TAG} {{name}}"
)
"""Makes a volume of another machine read-only, unless it is in use."""
UNFENCE = (
    "lvs --noheadings -o lv_permissions {name} | grep -q '^ *writeable' ||"
    f" lvchange -y -prw --deltag {FENCED_TAG} {{name}}"
)
"""Makes it writable, if it is not."""
REMOVE = "lvremove -q -y -S 'lv_tags={{lvmsync}}' {name}"
"""Removes a snapshot of another machine, if it carries our tag."""


def _unfence_there(shells: Shells, place: TargetName, timeout: float) -> None:
    name = shlex.quote(Volume(place.name).lvm_name or place.name)
    require_success(shells.there(UNFENCE.format(name=name)), timeout)


def settle(asked: Asked, *, is_abort: bool, is_back: bool, is_forced: bool) -> str:
    """Carry out ``--abort`` or ``--finish``: deal with what was left by a crash, and say what was done."""
    from lvmsync.jobs.migrate.back import unfence

    place = parse_target(asked.target)
    volume = find_source(asked.source)
    commands = asked.commands
    near, far = volume.full_name, str(place)
    key = Note(far, volume.id, near, is_back=True) if is_back else Note(near, volume.id, far)
    with ExitStack() as stack:
        stack.enter_context(only_migration(asked.folder, key))
        journal = stack.enter_context(open_journal(asked.folder, key))
        note = journal.before
        if note is None:
            return f"no migration of {key.source} to {key.target} was cut off: nothing is left"
        if not is_abort:
            return finish(journal, None if is_back else lambda: _take_leave(asked, volume, str(place)))
        shells = Shells(stack, place, asked.way, key.source, key.target)
        domain = commands.domain or (None if commands.restart else note.domain) or None
        wanted = Commands(
            stop=None if domain else "true",
            restart=None if domain else commands.restart or note.restart or None,
            domain=domain,
            uri=(commands.uri or note.uri or None) if domain else None,
            each=commands.each,
        )
        users = shells.users_there(wanted) if is_back else shells.users(wanted)
        is_volume = Volume(place.name).lvm_name is not None
        return abort(
            journal,
            (lambda: _unfence_there(shells, place, commands.timeout)) if is_back else lambda: unfence(volume),
            users,
            (lambda: _drop_way_back(asked, volume, str(place))) if is_volume else None,
            is_forced=is_forced,
        )


def _drop_way_back(asked: Asked, volume: LogicalVolume, place: str) -> None:
    """Remove the snapshots of the target that carry our tag and the replica's, and are for a way back."""
    from lvmsync.jobs.replica.record import find_record

    record = find_record(asked.folder, volume.id, place)
    if record is None:
        raise ConflictError("nothing here tells which it would be")
    with asked.deliver() as delivery:
        delivery.agent.drop_snapshot(delivery.place.name, record.id)


def _take_leave(asked: Asked, volume: LogicalVolume, place: str) -> list[str]:
    """Do what the end of a migration does on this side, when the volume is in use on the other."""

    def find_kept(replica: str) -> str:
        with asked.deliver() as delivery:
            return str(delivery.agent.find_snapshot(delivery.place.name, replica)["id"])

    return take_leave(volume, place, asked.folder, find_kept)


def _open(stack: ExitStack, folder: Path, note: Note) -> Journal:
    stack.enter_context(only_migration(folder, note))
    refuse_others(folder, note)
    journal = stack.enter_context(open_journal(folder, note))
    if journal.before and journal.before.has_stopped:
        refuse_leftover(journal.before)
    return journal


def _stream(place: TargetName, compress: str | None) -> StreamOptions:
    return stream_options(4, compress or ("zstd:1" if place.host else None))


def say(text: str) -> None:
    """Tell the user something on stderr."""
    print(text, file=sys.stderr, flush=True)

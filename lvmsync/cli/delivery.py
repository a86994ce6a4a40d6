"""Where changes go: the target of a sync, here or on another machine, and what its receiver is told."""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from types import TracebackType
from typing import Self

from lvmsync.cli import render
from lvmsync.cli.asked import Orders, Way
from lvmsync.cli.files import stream_options
from lvmsync.cli.limit import open_limit
from lvmsync.errors import UsageError
from lvmsync.interfaces import Transport
from lvmsync.jobs.agent.client import Agent, open_agent
from lvmsync.jobs.agent.peer import Peer
from lvmsync.jobs.itself import refuse_itself
from lvmsync.jobs.outlet import Outlet
from lvmsync.jobs.progress import Progress, Receipt, Report, ignore
from lvmsync.names import Comparison, TargetName, Volume, parse_target
from lvmsync.sources import Reading, Source, open_source
from lvmsync.system.device import Device
from lvmsync.system.identity import find_dm_uuid, is_same_storage
from lvmsync.system.lvm import parse_dm_uuid
from lvmsync.transport import SHORTEST_STALL, Ssh, open_transport
from lvmsync.transport.throttle import Limit, Throttled


def agent_words(way: Way, place: TargetName, orders: Orders) -> list[str]:
    """Return the words of the command that starts an agent where a target is."""
    words = ["agent", *(["--debug"] if way.debug else [])]
    if way.target_extend_cmd is not None:  # words of the command line, which a forced command does not hear
        words += ["--target-extend-cmd", way.target_extend_cmd]
    if place.host is None:  # lvmsync itself is found by the transport
        return words + (["--state", orders.state] if orders.state else [])
    return [*way.lvmsync_words, *words]


class Delivery:
    """The way to one target; a context manager that ends its lines at the end.

    One agent is started when it is first needed, and does all that is asked of it.

    Attributes:
        place: the target.
    """

    def __init__(
        self,
        target: str,
        way: Way,
        orders: Orders,
        report: Report,
        *,
        stream_format: int = 4,
        compress: str | None = None,
    ) -> None:
        """Read and check what the user said; nothing is opened yet.

        Raises:
            UsageError: options that do not go together, or no target.
        """
        self.place = parse_target(target)
        if orders.state and self.place.host:
            raise UsageError("--state is of this machine; set LVMSYNC_STATE on the far side")
        if orders.snapback and orders.no_undo:
            raise UsageError("--snapback and --no-undo do not go together")
        if way.patience is not None and way.patience < SHORTEST_STALL:
            raise UsageError(
                f"--stall-timeout {way.stall_timeout:g} is out of range: {SHORTEST_STALL:g} at least, or 0"
            )
        if way.streams > 1 and not self.place.host:
            raise UsageError("--streams is for a target on another machine")
        is_zipped = self.place.host is not None and stream_format == 4
        self._options = stream_options(stream_format, compress or ("zstd:1" if is_zipped else None))
        self._way = way
        self._orders = orders
        self._report = report
        self._stack = ExitStack()  # of the lines
        self._around = ExitStack()
        self._limit: Limit | None = None
        self._agent: Agent | None = None

    def __enter__(self) -> Self:
        way = self._way
        self._limit = self._around.enter_context(open_limit(way.bwlimit, way.bwlimit_file, self._orders.state))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._around, self._stack:
            if self._agent and kind is None:
                self._agent.close()

    @property
    def agent(self) -> Agent:
        """The agent on the target's machine; another one where the last one's session is over."""
        if self._agent is None or self._agent.is_over:
            self._stack.close()
            self._agent = self._open_agent()
        return self._agent

    def open_compared(self, name: Comparison, reading: Reading) -> AbstractContextManager[Source]:
        """Open where a device differs from the target, wherever that is.

        Args:
            name: of the comparison, without an old side.
            reading: how its new side is opened.

        Raises:
            UsageError: the target is yet to be made.
        """
        if self._orders.create:
            raise UsageError(
                f"--create makes the target, so there is nothing to compare with: use full:{name.new.word}"
            )
        self._report(Progress("comparing", 0, None))
        if self.place.host is None:
            return open_source(replace(name, old=Volume(self.place.name)), reading)
        return self.agent.compare(self.place.name, name, reading, self._report)

    def send(self, source: Source, *, require_base: bool = False) -> Receipt:
        """Send a source's changes to the target, and return the receipt of both sides; see `Agent.receive`.

        Args:
            source: what changed.
            require_base: refuse a target unless its ledger knows that it holds what the changes start from.

        Raises:
            UsageError: the target is where the data is read.
        """
        return self._send(source, self._orders, require_base=require_base)

    def check(self, source: Source, *, require_base: bool = False) -> None:
        """Refuse a target that `send` would be refused by, without a change: its receiver is asked, and let go.

        Args:
            source: what would be sent; its changes are, so it should have none.
            require_base: as of `send`.
        """
        self._send(source, replace(self._orders, dry_run=True), require_base=require_base, report=ignore)

    def refuse_itself(self, *names: str | None) -> None:
        """Refuse a target that is what is read, wherever it is said to be.

        Args:
            names: paths of that; of volumes of LVM it is known of a target on another machine, too.

        Raises:
            UsageError: it is one of them.
        """
        paths = [name for name in names if name]
        if self.place.host is None:
            path = Volume(self.place.name).path
            for name in paths:
                if is_same_storage(name, path):
                    raise UsageError(
                        f"{name} and the target {path} are the same: the copy would be itself; name another target",
                        device=path,
                    )
            return
        known = [(parsed[0], name) for name in paths if (parsed := parse_dm_uuid(find_dm_uuid(name)))]
        if known:
            refuse_itself(known, self.agent.standing(self.place.name), str(self.place))

    def _send(self, source: Source, orders: Orders, *, require_base: bool, report: Report | None = None) -> Receipt:
        self.refuse_itself(source.data.name if isinstance(source.data, Device) else None, source.origin)
        wanted = {**orders.options(), "require_base": require_base}
        return self.agent.receive(self.place.name, source, self._options, report or self._report, orders=wanted)

    def outlet(self, word: str) -> Outlet:
        """Return this as the way to the copy of a device, for a job that chooses by itself what is sent.

        Args:
            word: the device, as its user named it.
        """
        return Outlet(
            word,
            str(self.place),
            lambda source, require_base: self.send(source, require_base=require_base),
            self.open_compared,
            lambda source, require_base: self.check(source, require_base=require_base),
            is_new=self._orders.create,
        )

    def _open_agent(self) -> Agent:
        peer, line = self._open_line()
        peer.connect(self._limited(line))
        agent = open_agent(peer)
        agent.stall = self._way.patience
        if self._way.streams > 1:
            from lvmsync.jobs.agent.streams import widen

            striped = widen(agent, line, self._open_line, self._way.streams)
            peer.connect(self._limited(striped))
        return agent

    def _limited(self, line: Transport) -> Transport:
        return Throttled(line, self._limit) if self._limit else line

    def _open_line(self) -> tuple[Peer, Transport]:
        """Start an agent, and return it with the line to it."""
        peer = Peer(str(self.place))
        way, host = self._way, self.place.host
        transport = open_transport(
            host,
            agent_words(way, self.place, self._orders),
            rsh=way.rsh_words if host else None,
            ssh=Ssh(port=way.port, identity=way.identity),
            stall_timeout=way.patience,
            on_stderr=lambda line: render.hear(peer, line),
        )
        line = self._stack.enter_context(transport)
        peer.connect(line)
        return peer, line

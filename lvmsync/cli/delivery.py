"""Where changes go: the target of a sync, here or on another machine, and what its receiver is told."""

from __future__ import annotations

import shlex
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Self

from lvmsync.cli import render
from lvmsync.cli.files import stream_options
from lvmsync.errors import UsageError
from lvmsync.jobs.outlet import Outlet
from lvmsync.jobs.progress import Progress, Receipt, Report, ignore
from lvmsync.jobs.sync import Peer, far_words, leaves_words, sync
from lvmsync.names import Comparison, Volume, parse_target
from lvmsync.sources import Reading, Source, open_source
from lvmsync.system.device import Device
from lvmsync.system.identity import is_same_storage
from lvmsync.transport import Ssh, open_transport


@dataclass(frozen=True)
class Way:
    """How another machine is reached.

    Attributes:
        rsh: words of a command, as the user wrote them; None: the built-in ssh.
        port: where sshd listens.
        identity: path of a private key.
        sudo: run lvmsync with sudo there.
        remote_command: lvmsync there, as the user wrote it.
    """

    rsh: str | None = None
    port: int | None = None
    identity: str | None = None
    sudo: bool = False
    remote_command: str = "lvmsync"


@dataclass(frozen=True)
class Orders:
    """What the receiver is told; each is an option of ``lvmsync receive``."""

    snapback: str | None = None
    no_undo: bool = False
    create: bool = False
    atomic: bool = False
    allow_smaller: bool = False
    ignore_base: bool = False
    state: str | None = None
    dry_run: bool = False
    debug: bool = False

    def arguments(self) -> list[str]:
        """Return the words for its command line."""
        flags = {
            "--no-undo": self.no_undo, "--create": self.create, "--atomic": self.atomic, "--debug": self.debug,
            "--allow-smaller-target": self.allow_smaller, "--ignore-base": self.ignore_base, "--dry-run": self.dry_run,
        }  # fmt: skip
        words = [flag for flag, given in flags.items() if given]
        words += ["--snapback", self.snapback] if self.snapback else []
        return words + (["--state", self.state] if self.state else [])


class Delivery:
    """The way to one target; a context manager that cuts its lines at the end.

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
        is_zipped = self.place.host is not None and stream_format == 4
        self._options = stream_options(stream_format, compress or ("zstd:1" if is_zipped else None))
        self._way = way
        self._orders = orders
        self._report = report
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

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
        from lvmsync.jobs.leaves import open_far_comparison

        def connect(size: int, seed: int) -> Peer:
            return self._connect(leaves_words(self._command, self.place.name, size, seed, sudo=self._way.sudo))

        return open_far_comparison(name, reading, connect, self._report)

    def send(self, source: Source, *, require_base: bool = False) -> Receipt:
        """Send a source's changes to the target, and return the receipt of both sides; see `jobs.sync`.

        Args:
            source: what changed.
            require_base: refuse a target unless its ledger knows that it holds what the changes start from.

        Raises:
            UsageError: the target is where the data is read.
        """
        return self._send(source, self._orders, require_base=require_base, dry_run=self._orders.dry_run)

    def check(self, source: Source, *, require_base: bool = False) -> None:
        """Refuse a target that `send` would be refused by, without a change: its receiver is asked, and let go.

        Args:
            source: what would be sent; its changes are, so it should have none.
            require_base: as of `send`.
        """
        around = self._stack
        try:
            with ExitStack() as self._stack:
                self._send(source, replace(self._orders, dry_run=True), require_base=require_base, report=ignore)
        finally:
            self._stack = around

    def _send(
        self, source: Source, orders: Orders, *, require_base: bool, dry_run: bool = False, report: Report | None = None
    ) -> Receipt:
        if self.place.host is None:
            path = Volume(self.place.name).path
            for name in (source.data.name if isinstance(source.data, Device) else None, source.origin):
                if name and is_same_storage(name, path):
                    raise UsageError(
                        f"{name} and the target {path} are the same: the copy would be itself; name another target",
                        device=path,
                    )
        arguments = [*orders.arguments(), *(["--require-base"] if require_base else [])]
        sudo = self._way.sudo and self.place.host is not None
        peer = self._connect(far_words(self._command, arguments, self.place.name, sudo=sudo))
        return sync(source, peer, self._options, report or self._report, dry_run=dry_run)

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

    @property
    def _command(self) -> list[str]:
        """The words that are lvmsync on the target's machine; on this one there is no need for any."""
        return shlex.split(self._way.remote_command) if self.place.host else []

    def _connect(self, words: list[str]) -> Peer:
        peer = Peer(str(self.place))
        way, host = self._way, self.place.host
        transport = open_transport(
            host,
            words,
            rsh=shlex.split(way.rsh) if way.rsh and host else None,
            ssh=Ssh(port=way.port, identity=way.identity),
            on_stderr=lambda line: render.hear(peer, line),
        )
        peer.transport = self._stack.enter_context(transport)
        return peer

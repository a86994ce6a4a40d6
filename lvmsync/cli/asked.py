"""What a user has asked for: options that belong together, as one value; see `verbs.flat`."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lvmsync.cli.options import (
    AllowSmaller,
    Archive,
    Atomic,
    Bwlimit,
    BwlimitFile,
    ChunkSize,
    CowSize,
    Debug,
    DryRun,
    ExtendAt,
    ExtendCmd,
    Full,
    Identity,
    IgnoreBase,
    Json,
    NoUndo,
    PoolLimit,
    Port,
    ProgressStyle,
    Quiet,
    RemoteCommand,
    Rsh,
    Snapback,
    StallTimeout,
    State,
    Streams,
    Sudo,
    TargetExtendCmd,
    ThinPool,
    Verbose,
)
from lvmsync.errors import UsageError

if TYPE_CHECKING:
    from lvmsync.jobs.progress import Receipt, Report


@dataclass(frozen=True)
class Way:
    """How another machine is reached, and what may be run there.

    Attributes:
        rsh: words of a command, as the user wrote them; None: the built-in ssh.
        port: where sshd listens.
        identity: path of a private key.
        sudo: run lvmsync with sudo there.
        remote_command: lvmsync there, as the user wrote it.
        bwlimit: a rate, or rates by the time, as the user wrote them; None: no limit.
        bwlimit_file: path of a file that holds the same and may change.
        stall_timeout: seconds without a byte after which a line is given up; 0: never.
        streams: connections side by side.
        target_extend_cmd: command that makes more room where the target is.
        debug: tracebacks are shown, there as here.
    """

    rsh: Rsh = None
    port: Port = None
    identity: Identity = None
    sudo: Sudo = False
    remote_command: RemoteCommand = "lvmsync"
    bwlimit: Bwlimit = None
    bwlimit_file: BwlimitFile = None
    stall_timeout: StallTimeout = 120
    streams: Streams = 1
    target_extend_cmd: TargetExtendCmd = None
    debug: Debug = False

    def __post_init__(self) -> None:
        if self.target_extend_cmd is not None:
            _split("--target-extend-cmd", self.target_extend_cmd)

    @property
    def patience(self) -> float | None:
        """Seconds without a byte after which a line is given up; None: never."""
        return self.stall_timeout or None

    @property
    def rsh_words(self) -> list[str] | None:
        """The words of ``rsh``; None: the built-in ssh.

        Raises:
            UsageError: there are none, or a quote is open.
        """
        return None if self.rsh is None else _split("--rsh", self.rsh)

    @property
    def lvmsync_words(self) -> list[str]:
        """The words that start lvmsync there, as another user if that is wanted.

        Raises:
            UsageError: there are none, or a quote is open.
        """
        return [*(("sudo", "-n") if self.sudo else ()), *_split("--remote-command", self.remote_command)]


def _split(option: str, command: str) -> list[str]:
    """Return the words of a command that an option gives."""
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise UsageError(f"{option}: cannot split '{command}' into words: {error}") from error
    if not words:
        raise UsageError(f"{option}: the command is empty")
    return words


@dataclass(frozen=True)
class Orders:
    """What the receiver is told: options of a receive (see `ReceiveOptions`), and where its agent here keeps its state.

    ``create`` is for verbs that can fill a new target, which have that option themselves.
    """

    snapback: Snapback = None
    no_undo: NoUndo = False
    atomic: Atomic = False
    allow_smaller: AllowSmaller = False
    ignore_base: IgnoreBase = False
    pool_limit: PoolLimit = 95.0
    dry_run: DryRun = False
    state: State = None
    archive: Archive = None
    create: bool = False

    def __post_init__(self) -> None:
        for option, word in (("--snapback", self.snapback), ("--archive", self.archive)):
            if word == "":
                raise UsageError(f"{option} is empty: is a variable not set?")
        if self.archive is not None and (self.no_undo or self.snapback):
            raise UsageError("--archive keeps what is overwritten: go without --no-undo and --snapback")

    def options(self) -> dict[str, Any]:
        """Return what a request to receive holds."""
        return {key: value for key, value in asdict(self).items() if key != "state"}


@dataclass(frozen=True)
class Printing:
    """How the user is told of a result."""

    as_json: Json = False
    quiet: Quiet = False
    verbose: Verbose = False


@dataclass(frozen=True)
class View(Printing):
    """How the user is told of a job while it runs, and of its result."""

    progress: ProgressStyle = "auto"

    @property
    def style(self) -> str:
        """How progress is shown: "auto", "json" or "none"."""
        return "none" if self.quiet else self.progress

    def report(self) -> AbstractContextManager[Report]:
        """Return what yields a report function; see `render.progress`."""
        from lvmsync.cli import render

        return render.progress(self.style)

    def print_receipt(self, receipt: Receipt) -> None:
        """Say what was done."""
        from lvmsync.cli import render

        render.print_receipt(receipt, as_json=self.as_json, quiet=self.quiet)


@dataclass(frozen=True)
class Snapshots:
    """Options of the snapshots that a job takes, as the user wrote them; None where he said nothing.

    Attributes:
        thin_pool: VG/POOL for a target that is made.
        store: size of a classic snapshot's store.
        chunk: size of its chunks.
        extend_cmd: command that makes more room.
        extend_at: percent at which it is run.
        full: copy everything anew.
    """

    thin_pool: ThinPool = None
    store: CowSize = None
    chunk: ChunkSize = None
    extend_cmd: ExtendCmd = None
    extend_at: ExtendAt = None
    full: Full = False


@dataclass(frozen=True)
class Managing(Snapshots):
    """Options of a sync that makes its own snapshots.

    Attributes:
        managed: take snapshots of this volume, though it is a snapshot itself.
        freeze: freeze file systems on the volume while the snapshot is taken.
        retries: how often a failed line is tried again; None: the usual.
    """

    managed: Annotated[
        bool, typer.Option("--managed", help="take snapshots of SOURCE, though it is a thin snapshot itself")
    ] = False
    freeze: Annotated[
        bool, typer.Option("--freeze", help="freeze file systems on SOURCE while its snapshot is taken")
    ] = False
    retries: Annotated[
        int | None,
        typer.Option("--retries", metavar="N", help="open a failed line again so often  [default: 3]", min=0),
    ] = None

    @property
    def tries(self) -> int:
        """How often a failed line is tried again."""
        from lvmsync.jobs.replica.run import RETRIES

        return RETRIES if self.retries is None else self.retries

    def require_none(self, source: str) -> None:
        """Refuse them for a source of another kind."""
        words = {
            "--managed": self.managed,
            "--full": self.full,
            "--freeze": self.freeze,
            "--thin-pool": self.thin_pool,
            "--cow-size": self.store,
            "--chunk-size": self.chunk,
            "--extend-cmd": self.extend_cmd,
            "--extend-at": self.extend_at is not None,
            "--retries": self.retries is not None,
        }
        for word, value in words.items():
            if value:
                raise UsageError(f"{word} is for a volume whose snapshots lvmsync takes; {source} is none")


_NAME_LETTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-")
_LONGEST_NAME = 64


@dataclass(frozen=True)
class Grouping:
    """Options of a group, as the user wrote them.

    Attributes:
        name: of the group; None: there is none.
        freeze_cmd: freezes what lvmsync cannot see.
        thaw_cmd: undoes that.
        limit: seconds that anything stands still at most; None: the usual.
    """

    name: Annotated[
        str | None, typer.Option("--group", metavar="NAME", help="cut all volumes at one instant, commit all or none")
    ] = None
    freeze_cmd: Annotated[
        str | None,
        typer.Option("--freeze-cmd", metavar="CMD", help="with --group: freezes what lvmsync cannot see, in a guest"),
    ] = None
    thaw_cmd: Annotated[str | None, typer.Option("--thaw-cmd", metavar="CMD", help="undoes --freeze-cmd")] = None
    limit: Annotated[
        float | None,
        typer.Option("--freeze-limit", metavar="SECONDS", help="with --group: anything stands still  [default: 10]"),
    ] = None

    def require_none(self, words: Sequence[str]) -> None:
        """Refuse them, and more than one volume, where no group is named."""
        given = {"--freeze-cmd": self.freeze_cmd, "--thaw-cmd": self.thaw_cmd, "--freeze-limit": self.limit}
        for word, value in given.items():
            if value is not None:
                raise UsageError(f"{word} is for volumes that are cut together: give --group NAME as well")
        if words:
            raise UsageError(
                f"one SOURCE and one TARGET, and '{words[0]}' is one word more; to cut several volumes together give"
                " --group NAME, and the volume group of the copies as the last word"
            )

    def require_some(self) -> None:
        """Refuse what makes no group.

        Raises:
            UsageError: a name that does not fit in a tag of LVM, or options that do not go together.
        """
        from lvmsync.system.suspend import LIMIT

        name = self.name or ""
        if not name or len(name) > _LONGEST_NAME or not set(name) <= _NAME_LETTERS:
            raise UsageError(
                f"--group '{name}': a name of letters, digits, '_', '.' and '-', {_LONGEST_NAME} at the most"
            )
        if (self.freeze_cmd is None) != (self.thaw_cmd is None):
            raise UsageError("--freeze-cmd and --thaw-cmd: give both, or what was frozen would stay so")
        if self.limit is not None and not 0 < self.limit <= 30 * LIMIT:
            raise UsageError(f"--freeze-limit {self.limit:g} is out of range: up to {30 * LIMIT:g} seconds")


@dataclass(frozen=True)
class Asked:
    """How a volume whose snapshots lvmsync takes is to be copied.

    Attributes:
        way: to the other machine.
        orders: for the receiver.
        managing: of the snapshots.
        minimal: compare with the base, and take only the blocks that differ.
        compress: as the user wrote it; None where he said nothing.
    """

    way: Way
    orders: Orders
    managing: Managing
    minimal: bool = False
    compress: str | None = None

"""``lvmsync archive install-timer``: what starts runs by the time."""

from __future__ import annotations

import sys
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lvmsync.cli.archive.app import Access, ArchiveWord, app
from lvmsync.cli.archive.keeping import Keeping
from lvmsync.cli.archive.running import Jitter, Metrics, jitter_seconds
from lvmsync.cli.archive.taking import Taking
from lvmsync.cli.asked import Managing
from lvmsync.cli.files import print_text
from lvmsync.cli.options import Debug, DryRun, Quiet, SourceWord, State
from lvmsync.cli.refinement import Refinement
from lvmsync.cli.verbs import flat, words_of
from lvmsync.errors import UsageError
from lvmsync.names import SourceName, Volume, parse_source
from lvmsync.places import FolderPlace, parse_place

if TYPE_CHECKING:
    from lvmsync.jobs.archive.timer import Change, Wanted


@app.command("install-timer")
@flat
def install_timer(
    archive: ArchiveWord,
    source: SourceWord,
    every: Annotated[
        str,
        typer.Option("--every", metavar="TIME", help="15m, 6h, daily, or when: 'Mon..Fri 02:00' (systemd.time(7))"),
    ] = "daily",
    jitter: Jitter = "5m",
    metrics: Metrics = None,
    cron: Annotated[bool, typer.Option("--cron", help="a crontab in /etc/cron.d, and no timer of systemd")] = False,
    user: Annotated[
        str, typer.Option("--user", metavar="NAME", help="as whom it runs; another one than root needs --state")
    ] = "root",
    unit_dir: Annotated[Path | None, typer.Option("--unit-dir", metavar="DIR", help="where the files go")] = None,
    is_printing: Annotated[bool, typer.Option("--print", help="only print what would be written")] = False,
    is_removing: Annotated[bool, typer.Option("--remove", help="take the timer away again")] = False,
    dry_run: DryRun = False,
    state: State = None,
    quiet: Quiet = False,
    *,
    keeping: Keeping,
    taking: Taking,
    refinement: Refinement,
    managing: Managing,
    access: Access,
    debug: Debug = False,
) -> None:
    """Have 'archive run' started by the time: a service and a timer of systemd, or a line for cron.

    A second one for the same archive and source takes the place of the first.
    """
    from lvmsync.cli.archive.unlocking import write_down
    from lvmsync.formats.crontab import parse_every
    from lvmsync.jobs.archive import timer
    from lvmsync.jobs.archive.status import Task
    from lvmsync.system.ledger import state_folder

    if user != "root" and state is None:
        raise UsageError(f"--user {user}: say where its state folder is, with --state DIR")
    place, name = parse_place(archive), parse_source(source)
    _require_whole(name)
    task = Task.of(place, name)
    reached = access if is_removing else write_down(access)
    words = [*words_of(keeping), *words_of(taking), *words_of(refinement), *words_of(managing), *words_of(reached)]
    if metrics is not None:
        words.append(f"--metrics={metrics.absolute()}")
    wanted = timer.Wanted(
        task,
        ["archive", "run", task.archive, source, *words],
        parse_every(every),
        jitter_seconds(jitter),
        state_folder(state),
        is_cron=cron,
        user=user,
        folder=unit_dir.absolute() if unit_dir else None,
        is_remote=not isinstance(place, FolderPlace),
    )
    seconds = timer.find_seconds(wanted.every)
    if is_printing:
        _print(wanted)
    elif dry_run:
        change = timer.plan(wanted, is_removing=is_removing)
        _say(change, [], quiet=quiet)
        print("nothing was changed: that was a dry run", file=sys.stderr)
    elif is_removing:
        _say(*timer.remove(wanted), quiet=quiet)
    else:
        _say(*timer.install(wanted, seconds), quiet=quiet)


def _print(wanted: Wanted) -> None:
    from lvmsync.jobs.archive.timer import write_files

    files = write_files(wanted)
    print_text("\n".join(f"# {path}\n{text}" for path, text in files.items()))


def _say(change: Change, notes: list[str], *, quiet: bool) -> None:
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    if not quiet:
        for line in change.lines or ["all is as it is to be"]:
            print(line, file=sys.stderr)


def _require_whole(name: SourceName) -> None:
    """Refuse a source that is named from the folder that we are in: a timer is in another one.

    Raises:
        UsageError: it is.
    """
    parts = [name] if isinstance(name, Volume) else [getattr(name, one.name) for one in fields(name)]
    for part in parts:
        if is_dataclass(part) and isinstance(part, Volume) and part.word.startswith(("./", "../")):
            raise UsageError(f"{part.word}: a timer runs in another folder; write the whole path, from / on")

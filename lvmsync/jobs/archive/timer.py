"""What starts the runs of a task: a service and a timer of systemd, or a crontab; written, shown, removed."""

from __future__ import annotations

import difflib
import pwd
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

from lvmsync.errors import CommandError, DeviceError, UsageError
from lvmsync.formats.crontab import Every, require_one_line, write_line
from lvmsync.jobs import unit
from lvmsync.jobs.archive.status import Task, TimerNote, forget_timer, read_note, task_folder, write_json
from lvmsync.system.command import has_program, run
from lvmsync.system.ledger import make_folders

CRON = Path("/etc/cron.d")
ENVIRONMENT = "/etc/default/lvmsync-archive"
"""Variables for the runs: keys of an object store, for one."""

_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_ELAPSE = re.compile(
    r"^ *(?:Next elapse|Iter\S* #\d+): \w+ (\d{4}-\d\d-\d\d \d\d:\d\d:\d\d)(?:\.\d+)? UTC$", re.MULTILINE
)
_USER = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,63}\$?")  # useradd(8)
_TIMES = 32  # that are looked at, to see how far apart they are


@dataclass(frozen=True)
class Wanted:
    """A timer, as it is to be.

    Attributes:
        task: what its runs take.
        command: words of the run, without the program, ``--jitter`` and ``--state``.
        every: how often.
        jitter: seconds that each start is put off at the most.
        state: the state folder.
        is_cron: a crontab, and no timer of systemd.
        user: as whom it runs.
        folder: where the files go; None: where they are looked for.
        is_remote: the archive is on another machine.
    """

    task: Task
    command: Sequence[str]
    every: Every
    jitter: int
    state: Path
    is_cron: bool = False
    user: str = "root"
    folder: Path | None = None
    is_remote: bool = False

    @property
    def name(self) -> str:
        """Of its files, without what tells them apart."""
        return f"lvmsync-archive-{self.task.key}"


@dataclass(frozen=True)
class Change:
    """What installing or removing a timer changes.

    Attributes:
        files: paths of the files that it has then, with their text; none where it is removed.
        gone: paths of those that it had, and has no more.
        lines: what that is, a line each; none where all is as it was.
    """

    files: dict[Path, str]
    gone: list[Path]
    lines: list[str]


def write_files(wanted: Wanted) -> dict[Path, str]:
    """Return the files of a timer.

    Raises:
        UsageError: systemd or cron cannot do that.
    """
    for word in (*wanted.command, str(wanted.state), wanted.user):
        require_one_line(word)
    if not _USER.fullmatch(wanted.user):
        raise UsageError(f"--user '{wanted.user}': that is no name of a user")
    command = [*unit.own_command(), *wanted.command, f"--state={wanted.state}"]
    if wanted.is_cron:
        return {(wanted.folder or CRON) / wanted.name: _crontab(wanted, command)}
    folder = wanted.folder or unit.UNITS
    return {
        folder / f"{wanted.name}.service": _service(wanted, command),
        folder / f"{wanted.name}.timer": _timer(wanted),
    }


def plan(wanted: Wanted, *, is_removing: bool = False) -> Change:
    """Return what installing or removing a timer would change, without doing so.

    Raises:
        LvmsyncError: it cannot be as it is wanted, or what is there cannot be read.
    """
    files = {} if is_removing else write_files(wanted)
    note = read_note(task_folder(wanted.state, wanted.task) / "timer.json", TimerNote)
    gone = [path for path in _known(wanted, note) if path not in files and path.exists()]
    lines = []
    for path, text in files.items():
        old = _read(path)
        if old is None:
            lines.append(f"{path} is new")
        elif old != text:
            lines += [f"{path} changes:", *_difference(old, text)]
    lines += [f"{path} goes" for path in gone]
    return Change(files, gone, lines)


def install(wanted: Wanted, seconds: int | None) -> tuple[Change, list[str]]:
    """Install a timer in the place of the one that the task has; return what has changed, and what is left to do.

    Args:
        wanted: the timer.
        seconds: the longest between two of its starts; None: not known.

    Raises:
        LvmsyncError: a file cannot be written, or systemctl failed.
    """
    change, notes = plan(wanted), []
    _require_user(wanted.user)
    folder = task_folder(wanted.state, wanted.task)
    _make_folder(folder, wanted)
    # First what is remembered, so that what is written can be removed whatever happens.
    note = TimerNote(
        wanted.task.archive, wanted.task.source, tuple(map(str, [*change.files, *change.gone])), wanted.every.word,
        seconds, wanted.jitter, datetime.now(UTC).isoformat(timespec="seconds"),
    )  # fmt: skip
    path = folder / "timer.json"
    write_json(path, note)
    if change.gone:
        notes += unit.remove_timer(change.gone)
    if wanted.is_cron:
        for file, text in change.files.items():
            unit.write_file(file, text)
        if wanted.folder is None and not has_program("cron") and not has_program("crond"):
            notes.append("no cron was found on this machine: it is what reads that file")
    else:
        timer = next(file for file in change.files if file.suffix == ".timer")
        if not unit.write_timer(change.files, timer):
            notes.append(
                f"systemd does not look for units in {timer.parent}, or does not run: put them into {unit.UNITS}, and"
                f" run 'systemctl daemon-reload' and 'systemctl enable --now {timer.name}'"
            )
    write_json(path, TimerNote(**{**vars(note), "files": tuple(map(str, change.files))}))
    _give(path, wanted)
    return change, notes


def remove(wanted: Wanted) -> tuple[Change, list[str]]:
    """Remove the timer of a task; return what has changed, and what is left to do.

    Raises:
        LvmsyncError: a file cannot be removed, or systemctl failed.
    """
    change = plan(wanted, is_removing=True)
    notes = unit.remove_timer(change.gone) if change.gone else []
    forget_timer(wanted.state, wanted.task)
    return change, notes


def find_seconds(every: Every) -> int | None:
    """Return the longest between two times, as far as that can be known.

    Raises:
        UsageError: systemd does not understand when that is, or it never is.
    """
    if every.seconds is not None or every.calendar is None or not has_program("systemd-analyze"):
        return every.seconds
    # The zone does not matter but for an hour in spring; in UTC each time is one line.
    argv = ["env", "TZ=UTC", "systemd-analyze", "calendar", f"--iterations={_TIMES}", "--", every.calendar]
    try:
        told = run(argv)
    except CommandError as error:
        raise UsageError(f"--every '{every.word}': systemd does not understand that ({error})") from error
    times = [datetime.fromisoformat(time) for time in _ELAPSE.findall(told)]
    if not times:
        raise UsageError(f"--every '{every.word}': that is never again")
    return max((int((later - time).total_seconds()) for time, later in pairwise(times)), default=None)


def _known(wanted: Wanted, note: TimerNote | None) -> list[Path]:
    """Return the paths that files of the task's timer may be at."""
    units, cron = wanted.folder or unit.UNITS, wanted.folder or CRON
    usual = [units / f"{wanted.name}.service", units / f"{wanted.name}.timer", cron / wanted.name]
    return list(dict.fromkeys([*map(Path, note.files if note else ()), *usual]))


def _crontab(wanted: Wanted, command: Sequence[str]) -> str:
    if wanted.every.fields is None:
        raise UsageError(
            f"--every '{wanted.every.word}' has no form in a crontab: write 15m, 6h, daily, weekly, monthly, or five"
            " fields: '15 2 * * 1-5'"
        )
    words = [*command, "--quiet", *([f"--jitter={wanted.jitter}s"] if wanted.jitter else [])]
    return (
        f"# {wanted.task.word}; made by 'lvmsync archive install-timer'\n"
        f"SHELL=/bin/sh\nPATH={_PATH}\n" + write_line(wanted.every.fields, wanted.user, words, ENVIRONMENT) + "\n"
    )


def _service(wanted: Wanted, command: Sequence[str]) -> str:
    mounts = [str(wanted.state), *([] if wanted.is_remote else [wanted.task.archive])]
    needs = " ".join(unit.quote_path(path) for path in mounts if path.isprintable())
    network = " network-online.target" if wanted.is_remote else ""
    wants = f"Wants={network.strip()}\n" if network else ""
    return f"""[Unit]
Description=Take {unit.escape(_plain(wanted.task.word))} (lvmsync)
{wants}After=local-fs.target remote-fs.target lvm2-monitor.service{network}
RequiresMountsFor={needs}
# To be told of a failure, add OnFailure=UNIT by 'systemctl edit'; see systemd.unit(5).

[Service]
Type=oneshot
User={unit.escape(wanted.user)}
Environment=PATH={_PATH}
EnvironmentFile=-{ENVIRONMENT}
ExecStart={unit.command_line(command)}
# Commands of LVM and what thaws a file system are never killed with it: that could leave a volume suspended.
KillMode=process
TimeoutStopSec=10min
UMask=0077
LockPersonality=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
SystemCallArchitectures=native
"""


def _timer(wanted: Wanted) -> str:
    if wanted.every.calendar is None:
        raise UsageError(
            f"--every '{wanted.every.word}' is of a crontab: give --cron, or write it as systemd.time(7) has it"
        )
    return f"""[Unit]
Description=Take {unit.escape(_plain(wanted.task.word))}, every {unit.escape(wanted.every.word)} (lvmsync)

[Timer]
OnCalendar={unit.escape(wanted.every.calendar)}
RandomizedDelaySec={wanted.jitter}
Persistent=true

[Install]
WantedBy=timers.target
"""


def _plain(text: str) -> str:
    """Return text for people that is UTF-8, and in which no backslash could be taken for the end of a line."""
    return "".join(letter if letter.isprintable() and letter != "\\" else "?" for letter in text)


def _difference(old: str, new: str) -> list[str]:
    found = difflib.unified_diff(old.splitlines(), new.splitlines(), lineterm="", n=0)
    return [f"  {line[0]} {line[1:]}" for line in found if line[:1] in "+-" and line[:3] not in ("+++", "---")]


def _read(path: Path) -> str | None:
    try:
        return path.read_text("utf-8", "surrogateescape")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DeviceError(f"cannot read {path}: {error.strerror}", device=str(path)) from error


def _make_folder(folder: Path, wanted: Wanted) -> None:
    """Make the folder of the task, for the user that its runs are of."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        make_folders(folder)
    except OSError as error:
        raise DeviceError(
            f"cannot use the state folder {wanted.state}: {error.strerror}; choose another with --state",
            device=str(wanted.state),
        ) from error
    for path in missing:
        _give(path, wanted)


def _require_user(name: str) -> None:
    try:
        pwd.getpwnam(name)
    except KeyError as error:
        raise DeviceError(f"--user '{name}': there is no such user on this machine; nothing was written") from error


def _give(path: Path, wanted: Wanted) -> None:
    if wanted.user != "root":
        try:
            shutil.chown(path, wanted.user)
        except (OSError, LookupError) as error:
            raise DeviceError(f"cannot give {path} to {wanted.user}: {error}", device=str(path)) from error

"""What is held still for a moment, file systems and devices: a watchdog that lets go in any case, and a note of it.

    RUN/lvm.lock     held by whoever runs an LVM command that changes something
        holds/ID     one line of JSON: what is frozen or suspended, by whom, for how long

RUN is ``$LVMSYNC_STATE/run``, else ``/run/lvmsync`` for root, else ``run`` in the state folder. For root it is in
memory: what is noted does not outlive the boot either, and a note can be removed while a disk is frozen.

A hold is kept by a process of its own, the watchdog, that is started first and does the holding: it holds, says so
through a pipe, and lets go when it is told, when its limit is over, or when its pipe breaks because we are gone.
It leaves our session and process group, ignores signals that end programs, and is locked in memory, so that it
needs nothing of a root file system that is itself frozen.
"""

from __future__ import annotations

import json
import os
import secrets
import select
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from lvmsync.errors import ConflictError, DeviceError
from lvmsync.system import watchdog
from lvmsync.system.identity import boot_id
from lvmsync.system.ledger import make_folders, state_folder
from lvmsync.system.signals import signals_deferred

_START = 60.0  # seconds that a watchdog may take to start, before anything is held
_GRACE = 30.0  # and to hold and let go, besides the limit: the kernel writes back what is in its cache first


def run_folder() -> Path:
    """Return the folder RUN."""
    if os.geteuid() == 0 and not os.environ.get("LVMSYNC_STATE"):
        return Path("/run/lvmsync")
    return state_folder() / "run"


@dataclass(frozen=True)
class Hold:
    """The note of one hold.

    Attributes:
        id: names the note's file.
        kind: "frozen" or "suspended".
        what: mount points, or devices as ``MAJOR:MINOR``.
        pid: of the run that asked for it.
        watchdog: process that holds, and lets go; None: not started yet.
        boot: id of the boot that it is of.
        began: UTC, ISO 8601.
        limit: seconds after which the watchdog lets go.
    """

    id: str
    kind: str
    what: tuple[str, ...]
    pid: int
    watchdog: int | None
    boot: str
    began: str
    limit: float

    def __str__(self) -> str:
        return f"{self.kind} by lvmsync process {self.pid} ({self.began}): {', '.join(self.what)}"


def list_holds() -> list[Hold]:
    """Return the notes of this boot: of holds that are on, and of those whose watchdog could not remove its note."""
    return [hold for hold in _read_notes() if hold.boot == boot_id()]


def forget_old() -> None:
    """Remove the notes of earlier boots, after which nothing is held any more."""
    for hold in _read_notes():
        if hold.boot != boot_id():
            _note_path(hold).unlink(missing_ok=True)


def _read_notes() -> Iterator[Hold]:
    for path in sorted((run_folder() / "holds").glob("*.json")):
        try:
            values = json.loads(path.read_text())
            yield Hold(**{**values, "what": tuple(values["what"])})
        except (OSError, ValueError, TypeError, KeyError):
            continue  # it was removed just now


def is_kept(hold: Hold) -> bool:
    """Tell whether the watchdog of a hold still runs."""
    if hold.watchdog is None:
        return False
    try:
        os.kill(hold.watchdog, 0)
        return b"watchdog.py" in Path(f"/proc/{hold.watchdog}/cmdline").read_bytes()
    except OSError:
        return False


@contextmanager
def held(kind: str, what: Sequence[str], *, limit: float, lockfs: bool = True) -> Iterator[None]:
    """Hold file systems or devices, in this order, for the time of the block.

    Args:
        kind: "frozen" or "suspended".
        what: as in `Hold`.
        limit: seconds after which they are let go of, whatever happens.
        lockfs: of devices: whether the file systems on them are frozen, too.

    Raises:
        DeviceError: one of them could not be held or let go of, or the limit was over before the block ended, so
            that what was done in it was not done to things that stood still.
    """
    note = Hold(
        secrets.token_hex(8),
        kind,
        tuple(what),
        os.getpid(),
        None,
        boot_id(),
        datetime.now(UTC).isoformat(timespec="seconds"),
        limit,
    )
    dog = _Watchdog(note, lockfs=lockfs)
    try:
        dog.hold()
        yield
    except BaseException as error:
        trouble = dog.free()
        if trouble:
            error.add_note(trouble)
        raise
    trouble = dog.free()
    if trouble:
        raise DeviceError(trouble)


def mend(hold: Hold) -> None:
    """Let go of what a watchdog that is gone has left held, and remove its note.

    Raises:
        ConflictError: its watchdog runs, and will do so itself.
        DeviceError: it could not be let go of.
    """
    if is_kept(hold):
        raise ConflictError(f"{hold}: its watchdog (process {hold.watchdog}) runs, and lets go after {hold.limit:g} s")
    failures = []
    for one in hold.what:
        try:
            failures += watchdog.free_all(watchdog.open_held(hold.kind, [one]))
        except FileNotFoundError:
            continue
        except OSError as error:
            failures.append(f"{one}: {error.strerror}")
    if failures:
        raise DeviceError(f"cannot let go of what was {hold}: {'; '.join(failures)}")
    _note_path(hold).unlink(missing_ok=True)


class _Watchdog:
    """The process that holds; see `watchdog`."""

    def __init__(self, note: Hold, *, lockfs: bool) -> None:
        self._note = note
        self._is_over = False
        path = _note_path(note)
        with signals_deferred():
            try:
                self._process = subprocess.Popen(
                    # -I and -S: nothing of the user's is imported, and it starts quicker.
                    [sys.executable, "-I", "-S", watchdog.__file__],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    start_new_session=True,
                    env={"LVMSYNC_NOTE": str(path)},
                    cwd="/",
                )
            except OSError as error:
                raise DeviceError(f"cannot start {sys.executable}: {error.strerror}") from error
        try:
            make_folders(path.parent)
            path.write_text(json.dumps(asdict(replace(note, watchdog=self._process.pid))) + "\n")
        except OSError as error:
            self._kill()
            raise DeviceError(f"cannot write {path}: {error.strerror}", device=str(path)) from error
        order = {"kind": note.kind, "what": note.what, "limit": note.limit, "lockfs": lockfs}
        try:
            self._say(json.dumps(order))
            words = self._hear(_START)
        except BaseException:
            self._kill()
            path.unlink(missing_ok=True)
            raise
        if words != "ready":
            self._kill()
            path.unlink(missing_ok=True)
            why = words.removeprefix("failed: ") or "the watchdog ended"
            raise DeviceError(f"cannot be {note.kind}: {why}")

    def hold(self) -> None:
        """Let it hold everything; if it cannot, it has let go again and ended."""
        self._say("hold")
        words = self._hear(self._note.limit + _GRACE)
        if words == "held":
            return
        self._is_over = bool(words)
        what = ", ".join(self._note.what)
        if words == "late":
            raise DeviceError(f"{what} cannot be {self._note.kind} within {self._note.limit:g} s")
        raise DeviceError(f"cannot be {self._note.kind}: {words.removeprefix('failed: ') or 'the watchdog ended'}")

    def free(self) -> str:
        """Let go, and return what went wrong, empty if nothing; if the watchdog is gone, do its work."""
        what = ", ".join(self._note.what)
        with signals_deferred():
            if not self._is_over:
                self._say("free")
            words = "freed" if self._is_over else self._hear(self._note.limit + _GRACE)
            for end in (self._process.stdin, self._process.stdout):
                assert end is not None
                with suppress(OSError):
                    end.close()
            try:
                self._process.wait(_GRACE)
            except subprocess.TimeoutExpired:
                return f"{what}: the watchdog (process {self._process.pid}) does not answer; see 'lvmsync cleanup'"
            if words == "freed":
                return ""
            if words == "late":
                limit = self._note.limit
                return f"{what} stood still for {limit:g} s and had to go on before all was done: nothing of it counts"
            mend(self._note)
            return f"{what}: the watchdog failed ({words or 'it was killed'}); lvmsync did its work"

    def _say(self, text: str) -> None:
        assert self._process.stdin is not None
        with suppress(OSError):  # it is gone; its last words tell why
            os.write(self._process.stdin.fileno(), text.encode() + b"\n")

    def _hear(self, seconds: float) -> str:
        """Return its next line; empty: it is gone, or says nothing for too long."""
        assert self._process.stdout is not None
        fd, line, over = self._process.stdout.fileno(), bytearray(), time.monotonic() + seconds
        while not line.endswith(b"\n"):
            if not select.select([fd], [], [], max(0.0, over - time.monotonic()))[0]:
                return ""
            byte = os.read(fd, 1)
            if not byte:
                return ""
            line += byte
        return line.decode(errors="replace").strip()

    def _kill(self) -> None:
        """End it before it holds anything."""
        self._process.kill()
        self._process.communicate()


def _note_path(hold: Hold) -> Path:
    return run_folder() / "holds" / f"{hold.id}.json"

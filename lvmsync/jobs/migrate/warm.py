"""A command of the user's on another machine, ready to begin: the login is over before it is needed.

The far shell waits for a word. If the line is lost before "go" was sent, the command never begins; if it is lost
after that, what became of it is not known, and that is what is said.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack, suppress
from threading import Event
from types import TracebackType
from typing import Self

from lvmsync.errors import LvmsyncError, TransportError
from lvmsync.interfaces import Transport
from lvmsync.jobs.agent.protocol import Line, show, tame
from lvmsync.jobs.migrate.move import Ended

WAITING = "lvmsync WAITING"
ENDED = "lvmsync ENDED "
PATIENCE = 30.0
"""Seconds that a far shell may take to say that it waits."""

_LAST_WORDS = 1.0  # seconds that a command which failed may take to say why

# What the command says goes to stderr. It does not get the line's ends: what it leaves running does not hold them.
_SCRIPT = f"""while IFS= read -r word; do
case $word in
ping) printf '%s\\n' '{WAITING}' ;;
go) sh -c "$1" </dev/null >&2; printf '{ENDED}%s\\n' "$?"; exit ;;
esac
done"""

Connect = Callable[[list[str], Callable[[str], None]], AbstractContextManager[Transport]]
"""Opens the line to a program: its words, and who gets the lines of its stderr."""


class WarmCommand:
    """A command that waits for its word on another machine; a context manager that lets it go unbegun."""

    def __init__(self, place: str, command: str, connect: Connect, env: Mapping[str, str], hear: Callable[[str], None]):
        """Prepare; nothing is opened yet.

        Args:
            place: the machine, as messages call it.
            command: for its shell.
            connect: opens the line to a program there.
            env: for the command.
            hear: gets the lines that the command says.
        """
        self.command = command
        self._place = place
        self._connect = connect
        self._words = ["env", *(f"{key}={value}" for key, value in env.items()), "sh", "-c", _SCRIPT, "sh", command]
        self._hear = hear
        self._last_words = ""
        self._has_spoken = Event()
        self._stack = ExitStack()
        self._transport: Transport | None = None
        self._line: Line | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def make_ready(self) -> None:
        """Make sure that it waits: over the line that there is, or a new one if that has died.

        Raises:
            TransportError: there is no way to it.
        """
        if self._line is not None:
            with suppress(TransportError):
                self._ping(self._line)
                return
            self._close()
        self._transport = self._stack.enter_context(self._connect(self._words, self._listen))
        self._line = Line(self._transport)
        self._ping(self._line)

    def run(self, timeout: float) -> Ended:
        """Let it begin, and return how it ended. Once "go" is on its way, no failure of the line is raised.

        Args:
            timeout: seconds that it may be silent for.

        Raises:
            TransportError: it did not wait any more; it was not begun.
        """
        line, transport = self._line, self._transport
        if line is None or transport is None:
            raise TransportError(f"{self._place}: the command '{self.command}' was not made ready; it was not begun")
        self._ping(line)
        transport.stall_timeout = timeout
        try:
            line.send_all([b"go\n"])
            answer = line.read_line()
        except LvmsyncError as error:
            return Ended(None, str(error))
        finally:
            self._line = None
        if answer is None or not answer.startswith(ENDED) or not answer.removeprefix(ENDED).isdecimal():
            said = "the line ended" if answer is None else f"it said '{show(answer)}'"
            return Ended(None, f"{self._place}: {said} before the command had")
        status = int(answer.removeprefix(ENDED))
        if status:
            self._has_spoken.wait(_LAST_WORDS)  # they come on another way than the status
        return Ended(status, self._last_words)

    def _ping(self, line: Line) -> None:
        assert self._transport
        self._transport.stall_timeout = PATIENCE
        line.send_all([b"ping\n"])
        answer = line.read_line()
        if answer != WAITING:
            said = "it ended" if answer is None else f"it said '{show(answer)}'"
            raise TransportError(
                f"{self._place}: a shell should wait there with '{self.command}', but {said}"
                f"{f' ({self._last_words})' if self._last_words else ''}; can this user run commands there? Text at"
                " login must be silenced for sessions without a terminal"
            )

    def _listen(self, line: str) -> None:
        self._last_words = tame(line)
        self._has_spoken.set()
        self._hear(self._last_words)

    def _close(self) -> None:
        self._line = self._transport = None
        self._stack.close()

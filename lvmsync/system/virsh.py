"""Guests of libvirt, through one virsh that lives as long as they are worked with.

One process, since libvirt's test driver keeps its state in one, and since a new connection over ssh may take longer
than a whole cut-over. virsh reads commands from its standard input and may echo them behind a prompt; each command
is followed by words of our own on both outputs, which tell where its answer ends.
"""

from __future__ import annotations

import os
import re
import secrets
import select
import subprocess
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from lvmsync.errors import CommandError, UsageError
from lvmsync.system.command import search_path

STOP_TIMEOUT = 120.0
"""Seconds that a guest may take to shut down."""

_ANSWER = 60.0  # seconds that one command may take
_POLL = 0.1
_ASK_AGAIN = 10.0  # a guest that is just booting misses the first wish that it shut down
_PROMPT = "virsh # "
_OFF = "shut off"


@dataclass(frozen=True)
class Disk:
    """A disk of a guest: what it is (file, block, network), as what (disk, cdrom), its name there, and its source."""

    kind: str
    device: str
    target: str
    source: str


class Domain:
    """One guest; a context manager that ends its virsh.

    Raises:
        UsageError: a name that no guest can have.
        CommandError: virsh is missing, cannot connect, or there is no such guest.
    """

    def __init__(self, name: str, uri: str | None = None) -> None:
        """Connect, and find the guest.

        Args:
            name: of the guest, or its uuid.
            uri: as of ``virsh -c``; None: virsh's own default.
        """
        if not name or not name.isprintable():
            raise UsageError(f"{name!r} is no name of a guest")
        self.name = name
        argv = ["virsh", "-q", *(["-c", uri] if uri else [])]
        self._what = f"virsh of {uri}" if uri else "virsh"
        try:
            self._process = subprocess.Popen(
                argv,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env={
                    **os.environ,
                    "PATH": search_path(),
                    "LC_ALL": "C",
                    "TERM": "dumb",
                    "VIRSH_HISTSIZE": "0",
                },
                process_group=0,  # ^C is for us; virsh is needed to start the guest again
            )
        except OSError as error:
            raise CommandError(
                f"cannot run 'virsh': {error.strerror}; install libvirt's clients (Debian: libvirt-clients)"
            ) from error
        try:
            self.state()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End virsh; what the guest does is not changed."""
        self._process.kill()
        self._process.communicate()

    def state(self) -> str:
        """Return libvirt's word for its state: running, paused, shut off, ...

        Raises:
            CommandError: there is no such guest, or libvirt does not answer.
        """
        return self._ask("domstate")

    def is_off(self) -> bool:
        """Tell whether it does not run; a guest without a definition is gone when it is off."""
        try:
            return self.state() == _OFF
        except CommandError as error:
            if "failed to get domain" in str(error):
                return True
            raise

    def stop(self, timeout: float = STOP_TIMEOUT, *, destroy: bool = False) -> None:
        """Ask the guest to shut down, and wait until it is off.

        Args:
            timeout: seconds that it may take.
            destroy: switch it off then, as if its power failed.

        Raises:
            CommandError: it still runs.
        """
        over = time.monotonic() + timeout
        ask_at = 0.0
        while not self.is_off():
            now = time.monotonic()
            if now >= over:
                if not destroy:
                    raise CommandError(
                        f"guest '{self.name}' did not shut down within {timeout:g} s, and is '{self.state()}'; shut it"
                        " down by hand, or give it more time"
                    )
                self._order_off("destroy")
                destroy = False
                over = now + _ANSWER
            elif now >= ask_at:
                self._order_off("shutdown")
                ask_at = now + _ASK_AGAIN
                continue  # the test driver is off at once
            time.sleep(_POLL)

    def _order_off(self, command: str) -> None:
        """Run a command that fails if the guest goes off by itself just then."""
        try:
            self._ask(command)
        except CommandError:
            if not self.is_off():
                raise

    def start(self) -> None:
        """Start the guest; one that runs is left alone.

        Raises:
            CommandError: it could not be started.
        """
        if self.is_off():
            self._ask("start")
        if self.is_off():
            raise CommandError(f"guest '{self.name}' was started, and is off")

    def disks(self) -> list[Disk]:
        """Return the disks that the guest has now.

        Raises:
            CommandError: libvirt does not tell.
        """
        found = []
        for line in self._ask("domblklist", "--details").splitlines():
            words = line.split(None, 3)
            if len(words) == 4:
                found.append(Disk(*words))
        return found

    def _ask(self, command: str, option: str = "") -> str:
        """Run one of virsh's commands for this guest, and return what it printed."""
        quoted = self.name.replace("\\", "\\\\").replace('"', '\\"')
        line = " ".join(word for word in (command, option, f'--domain "{quoted}"') if word)
        mark = secrets.token_hex(8)
        text = f"{line}\necho --err {mark}\necho {mark}\n"
        try:
            assert self._process.stdin is not None
            os.write(self._process.stdin.fileno(), text.encode())
        except BrokenPipeError:
            pass  # why it ended is on its stderr
        out, err = self._read(command, mark)
        failures = [text for text in _errors(err) if text != mark]
        if failures:
            raise CommandError(f"{self._what}: {command} '{self.name}': {'; '.join(failures)}")
        lines = [one.removeprefix(_PROMPT).strip() for one in out.splitlines()]
        return "\n".join(one for one in lines if one and mark not in one and one != line)

    def _read(self, command: str, mark: str) -> tuple[str, str]:
        """Return what is on both outputs until the mark."""
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        texts = {self._process.stdout.fileno(): b"", self._process.stderr.fileno(): b""}
        is_end = re.compile(rb"(?<!echo )(?<!--err )" + mark.encode())
        open_ = set(texts)
        over = time.monotonic() + _ANSWER
        while open_:
            ready = select.select(list(open_), [], [], max(0.0, over - time.monotonic()))[0]
            if not ready:
                raise CommandError(f"{self._what}: '{command}' gave no answer within {_ANSWER:g} s; does libvirt hang?")
            for fd in ready:
                piece = os.read(fd, 65536)
                texts[fd] += piece
                if is_end.search(texts[fd]):
                    open_.discard(fd)
                elif not piece:
                    told = _errors(b"".join(texts.values()).decode(errors="replace"))
                    raise CommandError(f"{self._what} ended: {'; '.join(told) or 'it gave no reason'}")
        out, err = (text.decode(errors="replace") for text in texts.values())
        return out, err


def _errors(text: str) -> list[str]:
    return [line.removeprefix("error: ") for line in text.splitlines() if line.startswith("error: ")]

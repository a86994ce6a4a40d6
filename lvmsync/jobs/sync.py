"""Send to another place and believe only its receipt: the two ends of a line with a way back."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn

from lvmsync.errors import LvmsyncError, PeerError, TransportError, VerifyError
from lvmsync.interfaces import Transport
from lvmsync.jobs.progress import Receipt, Report
from lvmsync.jobs.send import Sender, StreamOptions
from lvmsync.sources.source import Source
from lvmsync.stream.frames import Buffer

READY = "lvmsync READY"
RECEIPT = "lvmsync RECEIPT "
_LONGEST_LINE = 1 << 20


@dataclass
class Peer:
    """The receiver at the far end of a transport, as its sender sees it.

    Attributes:
        place: what messages call it.
        transport: the line to it, set when it is open.
        last_words: its last line on stderr, for the message if it fails.
    """

    place: str
    transport: Transport = field(init=False)
    last_words: str = ""

    def send(self, buffers: Sequence[Buffer]) -> None:
        """Send to it; if the line breaks because it ended, that is the error."""
        try:
            self.transport.send_all(buffers)
        except TransportError as error:
            self.fail(str(error))

    def expect(self, prefix: str) -> str:
        """Read one line of its answers and return what is behind ``prefix``.

        Raises:
            PeerError: it ended without an answer.
            TransportError: something else talks on its line.
        """
        line = bytearray()
        byte = memoryview(bytearray(1))
        while not line.endswith(b"\n") and len(line) < _LONGEST_LINE:
            if not self.transport.receive_some(byte):
                self.fail("it ended without an answer")
            line += byte
        text = line.decode(errors="replace").rstrip("\n")
        if not text.startswith(prefix):
            shown = text[:80].encode("unicode_escape", "replace").decode()
            raise TransportError(
                f"{self.place} said '{shown}' where lvmsync should have answered: if its shell prints text at login,"
                " silence that for sessions without a terminal"
            )
        return text.removeprefix(prefix)

    def fail(self, what: str) -> NoReturn:
        """End the line, and raise what its exit status means."""
        status = self.transport.aclose()
        words = self.last_words.removeprefix("lvmsync: ")
        if status == 127:
            raise PeerError(
                f"{self.place}: lvmsync was not found there; install it, or name its path with --remote-command", status
            )
        if status:
            raise PeerError(f"{self.place} failed with status {status}: {words or what}", status)
        raise TransportError(f"{self.place}: {what}, though its status is 0; is it an lvmsync that can answer?")


def far_words(remote_command: Sequence[str], arguments: Sequence[str], target: str, *, sudo: bool) -> list[str]:
    """Return the words of the command that receives on the far side."""
    return [*(("sudo", "-n") if sudo else ()), *remote_command, "receive", "--reply", *arguments, "--", target]


def leaves_words(remote_command: Sequence[str], target: str, size: int, seed: int, *, sudo: bool) -> list[str]:
    """Return the words of the command that hashes on the far side."""
    options = ["--size", str(size), "--seed", str(seed)]
    return [*(("sudo", "-n") if sudo else ()), *remote_command, "leaves", *options, "--", target]


def sync(source: Source, peer: Peer, options: StreamOptions, report: Report, *, dry_run: bool = False) -> Receipt:
    """Send ``source`` to a receiver that answers, and return the receipt of both.

    In a dry run the target is checked, and no change is sent.

    Raises:
        PeerError: the receiver failed; its exit code is the error's.
        VerifyError: the receiver's receipt does not match what was sent.
        TransportError: the line failed.
    """
    sender = Sender(source, peer.send, options, report)
    sender.begin()
    peer.expect(READY)
    if dry_run:
        return sender.call_off(peer.place)
    try:
        receipt = sender.run()
    except LvmsyncError as error:
        if not isinstance(error, (TransportError, PeerError)):
            peer.transport.send_eof()  # it has been told; wait until it has brought its target back
            peer.transport.aclose()
            if peer.last_words:
                error.add_note(f"{peer.place}: {peer.last_words.removeprefix('lvmsync: ')}")
        raise
    peer.transport.send_eof()
    answer = parse_receipt(peer.expect(RECEIPT))
    status = peer.transport.aclose()
    if status:
        peer.fail("it failed after its receipt")
    for key in ("bytes", "extents", "digest"):
        if answer.get(key) != getattr(receipt, key):
            raise VerifyError(
                f"{peer.place} confirms {key} {answer.get(key)}, and {getattr(receipt, key)} were sent: do not use the"
                " target"
            )
    return replace(
        receipt,
        job="sync",
        target=peer.place,
        durable=bool(answer.get("durable")),
        confirmed=True,
        dropped=answer.get("dropped") or [],
        snapback=answer.get("snapback"),
        point=answer.get("point"),
        dry_run=bool(answer.get("dry_run")),
        notes=[*receipt.notes, *(answer.get("notes") or [])],
    )


def parse_receipt(text: str) -> dict[str, Any]:
    """Read a receipt as the far side prints it."""
    try:
        answer = json.loads(text)
    except ValueError as error:
        raise TransportError(f"the far side's receipt is not readable: {error}") from error
    if not isinstance(answer, dict):
        raise TransportError("the far side's receipt is not an object")
    return answer

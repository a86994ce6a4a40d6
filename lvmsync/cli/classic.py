"""The first look at the command line: verbs go to their command, the original's flags are put into verbs.

    lvmsync vg/snap [HOST:]TARGET        sync vg/snap [HOST:]TARGET
    lvmsync --stdout | --send vg/snap    send vg/snap
    lvmsync --apply FILE TARGET          apply FILE TARGET
    lvmsync --apply - TARGET             receive TARGET    (as an original on the other side starts it)
    lvmsync --receive | --server TARGET  receive TARGET

Other flags go along as they are. Nothing slow is imported here.
"""

from __future__ import annotations

import io
import os
import re
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from lvmsync.errors import LvmsyncError, UsageError

VERBS = (
    "send", "receive", "apply", "sync", "migrate", "changes", "inspect", "recover", "verify",
    "repair", "plan", "doctor", "cleanup", "serve", "era",
    "blksnap", "dattobd", "archive",
)  # fmt: skip

HIDDEN = ("agent",)
"""Verbs between two lvmsyncs, not for people."""

VALUED = frozenset(
    (
        "-a", "--apply", "-b", "--snapback", "-r", "--data-source", "-e", "--rsh", "-o", "--output", "-i", "--input",
        "-p", "--port", "-I", "--identity", "--format", "--compress", "--svg", "--state", "--progress",
        "--remote-command", "--width", "--release", "--audit", "--base-data",
        "--granularity", "--since", "--unit-dir", "--storage", "--limit", "--base",
        "--space", "--cache", "--minor", "--driver", "--cow", "--allow", "--allow-pull", "--permit", "--most-copies",
        "--bwlimit", "--bwlimit-file", "--pool-limit", "--stall-timeout", "--streams",
        "--max-downtime", "--stop-cmd", "--restart-cmd", "--start-cmd", "--libvirt", "--libvirt-uri", "--stop-time",
        "--start-time", "--command-timeout", "--max-passes", "--max-stops", "--on-no-convergence", "--on-overrun",
        "--fence", "--thin-pool", "--cow-size", "--chunk-size", "--extend-cmd", "--extend-at", "--retries",
        "--replica", "--at", "--to", "--from", "--mirror", "--label", "--keep-last", "--keep-hourly", "--keep-daily",
        "--keep-weekly", "--keep-monthly", "--keep-yearly", "--keep-within", "--target-extend-cmd", "--group",
        "--freeze-cmd", "--thaw-cmd", "--freeze-limit", "-F", "--ssh-config", "--metrics", "--jitter",
        "--from-snap", "--to-snap", "--every", "--user", "--nbd", "--archive", "--allow-archive",
        "--key-file", "--passphrase-file", "--new-key-file", "--new-passphrase-file", "--store", "--room",
    )
)  # fmt: skip
"""Every option of any verb that takes a value: its next word is not the first bare word."""


class _Interrupted(BaseException):
    """A signal asked us to end. Not a KeyboardInterrupt: typer would answer that itself, and drop what it says."""


_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f]")
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def _interrupt(number: int, _: object) -> None:
    _ignore_signals()  # the first is enough: what follows brings things back, and says so in one line
    raise _Interrupted(f"ended by {signal.Signals(number).name}" if number != signal.SIGINT else "interrupted")


def _ignore_signals() -> None:
    for number in _SIGNALS:
        # Not SIG_IGN: Python complains if it is set while such a signal is on its way.
        signal.signal(number, lambda *_: None)


def run(words: Sequence[str]) -> int:
    """Carry the command line out and return the exit status."""
    try:
        with _interrupted_by_signals():
            return _answer(words)
    except _Interrupted as error:  # one at the most, wherever it comes: also while another error is about to be told
        return _complain(error, str(error), 130, words)


@contextmanager
def _interrupted_by_signals() -> Iterator[None]:
    """Let each of them bring a half-changed target back before the program ends."""
    before: dict[signal.Signals, Any] = {}
    try:
        for number in _SIGNALS:
            before[number] = signal.signal(number, _interrupt)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _answer(words: Sequence[str]) -> int:
    try:
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")  # a map or a name must not fail in a plain locale
        return _run(words)
    except LvmsyncError as error:
        return _complain(error, str(error), error.exit_code, words)
    except BrokenPipeError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # so that the flush at exit finds no broken pipe
        return _complain(error, "the reader of the output is gone", 7, words)
    except MemoryError as error:
        return _complain(error, "out of memory: give this process more, or change less at a time", 3, words)
    except Exception as error:  # noqa: BLE001  # the last resort: one line, and where to get more
        message = f"unexpected {type(error).__name__}: {error}; this is a bug: run it again with -d and report it"
        return _complain(error, message, 1, words)


def _run(words: Sequence[str]) -> int:
    if any(word in ("-V", "--version") for word in words) and not bare_words(words):
        from lvmsync import __version__

        print(f"lvmsync {__version__}")
        return 0
    from lvmsync.cli.app import run_verb

    return run_verb(translate(words))


def _complain(error: BaseException, message: str, status: int, words: Sequence[str]) -> int:
    _ignore_signals()  # it ends already
    if "-d" in words or "--debug" in words:
        import traceback

        traceback.print_exception(error)
    text = "; ".join([message, *getattr(error, "__notes__", ())])
    text = _CONTROL.sub("?", " ".join(text.splitlines()))  # it may have come from another machine
    print(f"lvmsync: {text}", file=sys.stderr)
    return status


def translate(words: Sequence[str]) -> list[str]:
    """Return the words with a verb in front, whichever way they were written.

    Raises:
        UsageError: flags of the original that do not go together, or too few words.
    """
    bare = bare_words(words)
    if bare and words[bare[0]] in (*VERBS, *HIDDEN):
        verb = bare[0]
        return [words[verb], *words[:verb], *words[verb + 1 :]]
    if not words or any(word in ("--install-completion", "--show-completion") for word in words):
        return list(words) or ["--help"]
    if any(word in ("-h", "--help") for word in words):
        return ["--help"]
    return _translate_flags(words, bare)


def bare_words(words: Sequence[str]) -> list[int]:
    """Return the indexes of the words that are neither options nor their values."""
    found: list[int] = []
    at = 0
    while at < len(words):
        word = words[at]
        if word == "--":
            return found + list(range(at + 1, len(words)))
        if word in VALUED:
            at += 1
        elif not word.startswith("-") or word == "-":
            found.append(at)
        at += 1
    return found


def _translate_flags(words: Sequence[str], bare: Sequence[int]) -> list[str]:
    rest: list[str] = []
    verb = None
    file = None
    at = 0
    while at < len(words):
        word = words[at]
        name, equals, value = word.partition("=")
        if word == "--":
            rest += words[at:]
            break
        if name in ("-a", "--apply"):
            verb = _only(verb, "apply")
            if not equals:
                at += 1
                value = words[at] if at < len(words) else ""
            if not value:
                raise UsageError("--apply needs a file, or - for standard input")
            file = value
        elif word.startswith("-a") and not word.startswith("--"):
            verb, file = _only(verb, "apply"), word[2:]
        elif word in ("-s", "--stdout", "--send"):
            verb = _only(verb, "send")
        elif word in ("--receive", "--server"):
            verb = _only(verb, "receive")
        elif word in VALUED:
            rest += words[at : at + 2]
            at += 1
        else:
            rest.append(word)
        at += 1
    if verb == "apply" and file == "-":
        verb, file = "receive", None
    if verb is None:
        verb = "sync"
        if len(bare) == 1:
            raise UsageError(
                f"'{words[bare[0]]}' alone: name a target as well, or a verb before it ({', '.join(VERBS)})"
            )
    if file and file.startswith("-"):
        file = f"./{file}"  # a file, though it looks like an option
    return [verb, *([file] if file else []), *rest]


def _only(verb: str | None, new: str) -> str:
    if verb not in (None, new):
        raise UsageError(f"'{verb}' and '{new}' are both asked for; choose one")
    return new

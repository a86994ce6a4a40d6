"""Runs in the guest: lvmsync without the seconds that python and its modules take to start.

    python3 forks.py FOLDER[:FOLDER...] [MODULE...] &   serves; FOLDER/lvmsync and FOLDER/run are programs from then on

Each call is a fork of this process, which has imported everything, with the caller's standard input, output
and error, working folder, environment, and namespaces of network, mounts and host name: so one process serves
both sites, each in a folder of its own. ``FOLDER/run SCRIPT.py ARGUMENTS`` runs a python file that way.
MODULEs are imported as well. Signals do not reach the fork through the caller: FOLDER/NUMBER.pid names the process to
send them to while it runs (NUMBER is the caller's), and so does its children's $PPID.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import os
import pkgutil
import runpy
import select
import signal
import sys
from contextlib import redirect_stderr, redirect_stdout, suppress
from pathlib import Path

# Asks, and waits for the status. Its number stays its own until then, so that nothing is mixed up. Not bash: that
# takes four times as long to start.
_CLIENT = """#!/bin/busybox sh
mkfifo {folder}/$$.done
printf '%s\\0' $$ "$PWD" {program} "$@" >{folder}/$$.call
echo {folder} $$ >{calls}
read -r status <{folder}/$$.done
rm -f {folder}/$$.done
exit "$status"
"""


def import_all() -> None:
    """Import what any call may need."""
    import lvmsync

    for module in pkgutil.walk_packages(lvmsync.__path__, "lvmsync."):
        if not module.name.endswith(("__main__", "asyncssh")):
            importlib.import_module(module.name)
    from lvmsync.cli.classic import run

    # What is imported only when a command line is read; nothing is there to send.
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        run(["send", "--dry-run", "thin:/dev/null,id=1,base=2"])


def go_where(number: str) -> None:
    """Go to the namespaces of a process."""
    libc = ctypes.CDLL(None, use_errno=True)
    for kind in ("net", "uts", "mnt"):
        theirs = Path(f"/proc/{number}/ns/{kind}")
        if theirs.readlink() != Path(f"/proc/self/ns/{kind}").readlink():
            fd = os.open(theirs, os.O_RDONLY)
            if libc.setns(fd, 0):
                raise OSError(ctypes.get_errno(), f"setns to {theirs}")
            os.close(fd)


def call(folder: Path, number: str) -> int:
    """Be the program that a caller asked for, and return its status."""
    go_where(number)
    path = folder / f"{number}.call"
    _, where, *argv = path.read_bytes().decode().split("\0")[:-1]
    path.unlink()
    for at, mode in enumerate((os.O_RDONLY, os.O_WRONLY | os.O_APPEND, os.O_WRONLY | os.O_APPEND)):
        fd = os.open(f"/proc/{number}/fd/{at}", mode)
        os.dup2(fd, at)
        os.close(fd)
    pairs = (pair.partition("=") for pair in Path(f"/proc/{number}/environ").read_text().split("\0") if pair)
    os.environ.clear()
    os.environ.update({name: value for name, _, value in pairs})
    os.chdir(where)
    sys.argv = argv
    try:
        if argv[0] == "lvmsync":
            from lvmsync.cli import main

            main()
        else:
            runpy.run_path(argv[0], run_name="__main__")
    except SystemExit as ending:
        if isinstance(ending.code, str):
            print(ending.code, file=sys.stderr)
        return ending.code if isinstance(ending.code, int) else int(ending.code is not None)
    return 0


class Calls:
    """The calls that are running, and those that have ended and whose callers do not wait for that yet."""

    def __init__(self) -> None:
        self._running: dict[int, tuple[Path, str]] = {}
        self._ended: list[tuple[Path, str, int]] = []

    def begin(self, folder: Path, number: str) -> None:
        """Run a call in a child."""
        child = os.fork()
        if not child:
            status = 1
            try:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                status = call(folder, number)
                sys.stdout.flush()
                sys.stderr.flush()
            except BaseException as error:  # noqa: BLE001  # the end of this process
                print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
            finally:
                os._exit(status)
        (folder / f"{number}.pid").write_text(f"{child}\n")
        self._running[child] = folder, number

    def collect(self) -> None:
        """Let the children go that have ended."""
        with suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                folder, number = self._running.pop(ended[0])
                (folder / f"{number}.pid").unlink()
                code = os.waitstatus_to_exitcode(ended[1])
                self._ended.append((folder, number, code if code >= 0 else 128 - code))

    def tell(self) -> bool:
        """Tell the callers that wait how their calls ended; return whether there are others."""
        self._ended = [one for one in self._ended if not self._told(*one)]
        return bool(self._ended)

    def _told(self, folder: Path, number: str, status: int) -> bool:
        try:
            fd = os.open(folder / f"{number}.done", os.O_WRONLY | os.O_NONBLOCK)
        except OSError:  # nobody reads it
            return not Path(f"/proc/{number}").exists()
        os.write(fd, f"{status}\n".encode())
        os.close(fd)
        return True


def main() -> None:
    folders = [Path(folder) for folder in sys.argv[1].split(":")]
    calls_path = folders[0] / "calls"
    for folder in folders:
        folder.mkdir()
        for name, program in (("lvmsync", "lvmsync"), ("run", "")):
            (folder / name).write_text(_CLIENT.format(folder=folder, program=program, calls=calls_path))
            (folder / name).chmod(0o755)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in what a script starts with &
    import_all()
    for name in sys.argv[2:]:
        importlib.import_module(name)
    gc.freeze()  # else a fork that collects copies every page
    woken, wake = os.pipe()
    for end in woken, wake:
        os.set_blocking(end, False)
    signal.set_wakeup_fd(wake)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    os.mkfifo(calls_path)
    asked = os.open(calls_path, os.O_RDWR)  # no end of the file between two calls
    calls = Calls()
    rest = b""
    while True:
        ready = select.select([asked, woken], [], [], 0.01 if calls.tell() else None)[0]
        if woken in ready:
            os.read(woken, 4096)
            calls.collect()
        if asked in ready:
            *lines, rest = (rest + os.read(asked, 4096)).split(b"\n")
            for line in lines:
                where, number = line.decode().split()
                calls.begin(Path(where), number)


if __name__ == "__main__":
    main()

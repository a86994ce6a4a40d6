"""``lvmsync archive serve``: past states over NBD, where there is no device mapper, or for programs that speak it."""

from __future__ import annotations

import sys
import threading
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from urllib.parse import quote

import typer

from lvmsync.cli.archive.app import Access, ArchiveWord, At, MirrorWord, app, counted, open_archive, open_mirror
from lvmsync.cli.options import Debug, Quiet, State
from lvmsync.cli.verbs import flat
from lvmsync.errors import LvmsyncError, UsageError

if TYPE_CHECKING:
    from lvmsync.jobs.archive.served import ServedPoints

_BACKLOG = 64


@app.command()
@flat
def serve(
    archive: ArchiveWord,
    nbd: Annotated[str | None, typer.Option("--nbd", metavar="unix:PATH", help="the socket that is made")] = None,
    at: At = "latest",
    mirror: MirrorWord = None,
    writable: Annotated[
        bool, typer.Option("--writable", help="take writes, and throw them away at the end: nothing is touched")
    ] = False,
    overlays: Annotated[
        str | None,
        typer.Option("--store", metavar="FOLDER", help="where these are kept meanwhile  [default: the state folder]"),
    ] = None,
    quiet: Quiet = False,
    state: State = None,
    *,
    access: Access,
    debug: Debug = False,
) -> None:
    """Serve the points of an archive over NBD until Ctrl-C: --at by default, each of them by its number or label."""
    from lvmsync.chain.catalogue import find_point
    from lvmsync.jobs.archive.served import ServedPoints
    from lvmsync.jobs.nbd.server import serve as run
    from lvmsync.system.allocator import reuse_buffers
    from lvmsync.system.local_socket import allow_many_files, listening

    path = _parse_address(nbd)
    if overlays is not None and not writable:
        raise UsageError("--store is for what is written: give --writable as well")
    folder = _overlay_folder(overlays, state) if writable else None
    with ExitStack() as stack:
        shelf = stack.enter_context(open_archive(archive, access))
        point = find_point(shelf.catalogue, at)
        held = stack.enter_context(open_mirror(mirror, shelf, state))
        points = stack.enter_context(closing(ServedPoints(shelf, point, held, folder)))
        listener = stack.enter_context(listening(path, _BACKLOG))
        allow_many_files()
        reuse_buffers()
        if not quiet:
            print(
                _tell(path, shelf.store.name, point.number, points, is_writable=writable), file=sys.stderr, flush=True
            )
        run(listener, points.exports, points.open, _Notes())


class _Notes:
    """Tells what went wrong while the server goes on, once of each member or device."""

    def __init__(self) -> None:
        self._told: set[str] = set()
        self._lock = threading.Lock()

    def __call__(self, error: LvmsyncError) -> None:
        text = " ".join(str(error).splitlines())
        with self._lock:
            if (error.device or text) in self._told:
                return
            self._told.add(error.device or text)
            print(f"lvmsync: {text}", file=sys.stderr, flush=True)


def _parse_address(word: str | None) -> str:
    """Return the path of the socket.

    Raises:
        UsageError: it is none.
    """
    if word is None:
        raise UsageError("say where to serve: --nbd unix:PATH")
    kind, colon, path = word.partition(":")
    if kind != "unix" or not colon or not path or "\0" in path:
        raise UsageError(f"--nbd {word}: only unix:PATH is served; for another machine forward that socket with ssh -L")
    return str(Path(path).absolute())


def _overlay_folder(word: str | None, state: str | None) -> Path:
    """Return the folder for what is written.

    Raises:
        UsageError: it is no folder.
    """
    from lvmsync.system.ledger import make_folders, state_folder

    if word is None:
        folder = state_folder(state)
        make_folders(folder)
        return folder
    if not Path(word).is_dir():
        raise UsageError(f"--store {word} is no folder")
    return Path(word).absolute()


def _tell(path: str, archive: str, number: int, points: ServedPoints, *, is_writable: bool) -> str:
    """Return the line that says what is served, and how it is reached."""
    word = quote(path)
    others = len({export.description for export in points.exports.values()}) - 1
    more = f" and {counted(others, 'other point')}" if others else ""
    how = "writes are thrown away at the end" if is_writable else "read-only"
    return (
        f"nbd+unix:///?socket={word} is point #{number} of {archive}{more}, {how}; try: nbdinfo --list"
        f" 'nbd+unix:///?socket={word}', qemu-img convert 'nbd+unix:///{number}?socket={word}' FILE, nbd-client -unix"
        f" {path} -N {number} /dev/nbd0; Ctrl-C ends it"
    )

"""Mounting the file system on a device, read-only if need be past its journal, and unmounting it.

Source: Linux v6.1, Documentation/admin-guide/ext4.rst (noload) and xfs.rst (norecovery, nouuid); blkid(8), mount(8).
"""

from __future__ import annotations

from lvmsync.errors import CommandError
from lvmsync.system.command import run, run_to_end

_PAST_JOURNAL = {"ext3": "noload", "ext4": "noload", "xfs": "norecovery"}
_ALWAYS = {"xfs": "nouuid"}
"""Of xfs, the volume whose past it is may be mounted as well, and has the same uuid."""

_TIMEOUT = 600.0  # the replay of a journal may take long


def mount(path: str, directory: str, *, read_only: bool) -> str | None:
    """Mount the file system on a device; return what the user should know of it.

    Args:
        path: of the device.
        directory: where.
        read_only: the device cannot be written to, so that a journal cannot be replayed: then it is mounted without.

    Raises:
        CommandError: it has no file system that is known, or a damaged one.
    """
    kind = find_kind(path)
    words = ["ro" if read_only else "rw", *filter(None, [_ALWAYS.get(kind)])]
    try:
        _mount(path, directory, kind, words)
        return None
    except CommandError as error:
        if not kind:
            raise CommandError(
                f"{path} has no file system that blkid knows ({error}); of a disk with partitions mount one of"
                " those: leave the directory away, and see kpartx(8)",
                device=path,
            ) from error
        word = _PAST_JOURNAL.get(kind) if read_only else None
        if word is None:
            raise
    _mount(path, directory, kind, [*words, word])
    return (
        f"the file system's journal was not replayed (mounted with {word}), so it looks as it did in the middle of its"
        " last changes: with --writable it is replayed, and nothing else is touched"
    )


def unmount(directory: str) -> None:
    """Unmount what is mounted last on a directory.

    Raises:
        CommandError: it is in use.
    """
    run_to_end(["umount", directory], timeout=_TIMEOUT)


def find_kind(path: str) -> str:
    """Return the kind of the file system on a device, as blkid tells; empty where it knows none."""
    try:
        return run(["blkid", "-p", "-o", "value", "-s", "TYPE", path]).strip()
    except CommandError:
        return ""


def _mount(path: str, directory: str, kind: str, words: list[str]) -> None:
    argv = ["mount", *(["-t", kind] if kind else []), "-o", ",".join(words), path, directory]
    run_to_end(argv, timeout=_TIMEOUT)

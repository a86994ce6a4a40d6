"""What an agent does for whoever holds the other end of its line, and what it refuses before anything is opened.

`lvmsync agent` does all that its user may do: who can start it could do that anyway. `lvmsync serve` is for a
key that can do nothing else, so it takes the other side for an enemy. A target is matched by what its name
leads to, not by how it is spelt: VG/LV, /dev/VG/LV, /dev/mapper/VG-LV and links to them are one volume.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Self

from lvmsync.errors import UsageError
from lvmsync.names import Volume, parse_volume
from lvmsync.places import FolderPlace, parse_place
from lvmsync.system.lvm import parse_dm_uuid

RISKS = ("no_undo", "ignore_base", "allow_smaller", "accept")
"""Options that give up a safety; `serve` permits each by name."""

POOL_LIMIT = 95.0
"""Percent of a thin pool that an enemy may fill."""

_HARMLESS = frozenset(("atomic", "require_base", "dry_run", "resumable", "restart", "prepare", "group", "window"))
_HIDDEN = re.compile(  # lvm(8): reserved names, which may have a number behind them
    r".*_(cdata|cmeta|cvol|corig|mimage|mlog|rimage|rmeta|tdata|tmeta|vorigin|vdata|imeta|iorig|pmspare)(_\d+)?"
)
_WILD = re.compile(r"[*?\[]")


@dataclass(frozen=True)
class Place:
    """A volume, device or file that a word of a request leads to.

    Attributes:
        name: VG/LV of a volume, else the path with all links resolved.
        path: what is to be opened.
    """

    name: str
    path: str

    @property
    def is_volume(self) -> bool:
        """Whether it is an LVM volume."""
        return not self.name.startswith("/")


@dataclass(frozen=True)
class Policy:
    """What requests may name and ask for.

    Attributes:
        targets: patterns of what may be written to and looked at; None: everything.
        sources: patterns of what may be read, by a side that pulls; None: everything.
        words: words that targets may be called by, whatever they lead to: of the one who waits for a push.
        may_create: targets may be made.
        pools: thin pools, as the request may call them, that they may be made in; None: any of their own group.
        may_snapshot: snapshots may be made.
        may_compare: digests of targets may be asked for.
        files: where a request may want a file (a snapback) to be put; None: anywhere.
        archives: patterns of archives that a request may have what is overwritten put into; None: any.
        risks: which of `RISKS` are permitted.
        most_copies: targets of one source that may be kept up to date by pulls; None: any number.
        pool_limit: percent of a thin pool up to which a side that is not trusted may fill it.
        extend_cmd: command of this side's own user that makes more room where a target takes it; None: there is none.
        root: where /dev and /sys are.
    """

    targets: tuple[str, ...] | None = None
    sources: tuple[str, ...] | None = None
    words: frozenset[str] = frozenset()
    may_create: bool = True
    pools: frozenset[str] | None = None
    may_snapshot: bool = True
    may_compare: bool = True
    files: frozenset[str] | None = None
    archives: tuple[str, ...] | None = None
    risks: frozenset[str] = frozenset(RISKS)
    most_copies: int | None = None
    pool_limit: float = POOL_LIMIT
    extend_cmd: str | None = None
    root: Path = Path("/")

    @classmethod
    def of_word(
        cls,
        word: str,
        *,
        may_create: bool = False,
        risks: Iterable[str] = (),
        files: Iterable[str] = (),
        archive: str | None = None,
        pool_limit: float = POOL_LIMIT,
    ) -> Self:
        """Return the policy of one who waits for a push to a target: that is called so, and has what its user said."""
        return cls(
            targets=(),
            sources=(),
            words=frozenset([word]),
            may_create=may_create,
            may_snapshot=False,
            files=frozenset(files),
            archives=() if archive is None else (archive,),
            risks=frozenset(risks),
            pool_limit=pool_limit,
        )

    def find_target(self, word: str) -> Place:
        """Return what a target's word leads to.

        Raises:
            UsageError: it is no name of a target, or not one that is allowed.
        """
        if word in self.words:
            return _as_it_is(word)
        return self._find(word, self.targets, "target")

    def find_source(self, word: str) -> Place:
        """Return what the word of a source leads to, which the other side wants to have.

        Raises:
            UsageError: it is no name of a volume or file, or not one that is allowed.
        """
        return self._find(word, self.sources, "source")

    def require_options(self, options: Mapping[str, Any], *, is_new: Callable[[], bool] = lambda: False) -> None:
        """Refuse options of a receive that are not permitted.

        Args:
            options: their names and values.
            is_new: tells whether the target holds no copy yet; then there is nothing that an undo would bring back.

        Raises:
            UsageError: one of them is not.
        """
        for name, value in options.items():
            if not value:
                continue
            if name == "create":
                self.require(self.may_create, "makes no targets", "--allow-create")
            elif name == "snapback":
                if self.files is not None and value not in self.files:
                    raise UsageError("this server lets no request say where a file is put: go without --snapback")
            elif name == "archive":
                self._require_archive(value)
            elif name == "pool_limit":
                if self.targets is not None and value > self.pool_limit:
                    raise UsageError(f"this server lets no pool be filled beyond {self.pool_limit:g} %")
            elif name in RISKS:
                if name != "no_undo" or name in self.risks or not is_new():
                    self.require_risk(name)
            elif name not in _HARMLESS:
                raise UsageError(f"no such option of a receive: '{name}'")

    def _require_archive(self, word: str) -> None:
        """Refuse an archive that is not allowed: by its very word, or a folder by what its path leads to."""
        if self.archives is None or word in self.archives:
            return
        is_named = bool(self.words)  # then by what our own user said, and nothing else
        if is_named or not any(_has_archive(pattern, word, self.root) for pattern in self.archives):
            raise UsageError(f"'{word}' is no archive that this server allows: see --allow-archive")

    def require_risk(self, name: str) -> None:
        """Refuse one of `RISKS` that is not permitted."""
        if name not in self.risks:
            word = name.replace("_", "-")
            raise UsageError(f"this server does not permit '{word}': it was started without --permit {word}")

    def require(self, permitted: bool, what: str, option: str) -> None:
        """Refuse something that the server was not started for; ``option`` is what would permit it."""
        if not permitted:
            raise UsageError(f"this server {what}: it was started without {option}")

    def _find(self, word: str, patterns: tuple[str, ...] | None, kind: str) -> Place:
        if patterns is None:
            return _as_it_is(word)
        place = find_place(word, self.root)
        if not any(_matches(place, pattern, self.root) for pattern in patterns):
            raise UsageError(f"'{word}' is no {kind} that this server allows")
        return place


def parse_pattern(text: str) -> str:
    """Return a pattern of ``--allow``: VG/LV, or an absolute path; ``*``, ``?`` and ``[...]`` match within a part.

    Raises:
        UsageError: it is neither, or would match devices by the names of their nodes.
    """
    parts = text.split("/")
    if text.startswith("/"):
        if ".." in parts or "." in parts or "" in parts[1:]:
            raise UsageError(f"pattern '{text}': write the path without '.', '..' and empty parts")
        if parts[1] == "dev" and _WILD.search(text):
            raise UsageError(f"pattern '{text}': allow volumes as VG/LV, and other devices one by one")
        return text
    if len(parts) != 2 or not all(parts) or parts[0] in (".", ".."):
        raise UsageError(f"pattern '{text}' is neither VG/LV nor an absolute path: write 'vg0/*', or '/srv/*.img'")
    return text


def parse_archive_pattern(text: str) -> str:
    """Return a pattern of ``--allow-archive``: an absolute path, in which ``*`` matches within a part; or an address.

    Raises:
        UsageError: it is neither.
    """
    if text.startswith("/") and not text.startswith("/dev/"):
        return parse_pattern(text)
    place = parse_place(text)
    if isinstance(place, FolderPlace):
        raise UsageError(f"pattern '{text}': write the absolute path of the archive's folder")
    return text


def _has_archive(pattern: str, word: str, root: Path) -> bool:
    """Tell whether a pattern allows an archive; addresses are allowed by their very words."""
    parts = word.split("/")
    if not pattern.startswith("/") or not word.startswith("/") or ".." in parts or "\0" in word:
        return False
    real = _outside(Path(os.path.realpath(root / word.lstrip("/"))), root)
    folder, rest = _split_pattern(pattern) if _WILD.search(pattern) else (pattern, "")
    base = _outside(Path(os.path.realpath(root / folder.lstrip("/"))), root)
    return real == base if not rest else _fit(real, f"{base.rstrip('/')}/{rest}")


def find_place(word: str, root: Path = Path("/")) -> Place:
    """Return what a word leads to, links resolved; nothing is opened.

    Raises:
        UsageError: it is no name, or leads to something else than it says, or to what is LVM's own.
    """
    path = Volume(word).path if not word.startswith("/") and parse_volume(word) else word
    parts = path.split("/")
    if not path.startswith("/") or "\0" in path or ".." in parts:
        raise UsageError(f"'{word}': this server takes VG/LV, or an absolute path without '..'")
    inside = root / path.lstrip("/")
    real = Path(os.path.realpath(inside))
    try:
        state = real.stat()
    except FileNotFoundError:
        return _missing(word, real, root)
    except OSError as error:
        raise UsageError(f"'{word}' cannot be looked at: {error.strerror}") from error
    if not stat.S_ISBLK(state.st_mode):
        if not stat.S_ISREG(state.st_mode):
            raise UsageError(f"'{word}' is neither a block device nor a regular file")
        if not word.startswith("/"):
            raise UsageError(f"'{word}' is a volume's name and leads to a file")
        return Place(_outside(real, root), str(real))
    place = _device(word, real, state.st_rdev, root)
    if not word.startswith("/") and place.name != word:
        raise UsageError(f"'{word}' leads to another device, {place.name}")
    return place


def _as_it_is(word: str) -> Place:
    volume = parse_volume(word)
    return Place(word if volume.is_lvm_name else str(Path(word).absolute()), volume.path)


def _device(word: str, real: Path, number: int, root: Path) -> Place:
    """Return the place of a block device that is there."""
    folder = root / f"sys/dev/block/{os.major(number)}:{os.minor(number)}/dm"
    found = parse_dm_uuid(_read(folder / "uuid"))
    if found is None:
        return Place(_outside(real, root), str(real))
    mapped = _read(folder / "name")
    volume = split_mapped(mapped)
    if volume is None or found[1]:
        raise UsageError(f"'{word}' is a device of LVM's own, {mapped}")
    return _volume(word, volume, str(root / "dev/mapper" / mapped))


def _missing(word: str, real: Path, root: Path) -> Place:
    """Return the place of what is not there, by its name alone."""
    path = _outside(real, root)
    volume = None if word.startswith("/") else word
    if volume is None and path.startswith("/dev/mapper/"):
        volume = split_mapped(path.removeprefix("/dev/mapper/"))
    elif volume is None and path.startswith("/dev/") and path.count("/") == 3:
        volume = path.removeprefix("/dev/")
    if volume is None:
        return Place(path, str(real))
    return _volume(word, parse_volume(volume).word, str(real))


def _volume(word: str, name: str, path: str) -> Place:
    if _HIDDEN.fullmatch(name):
        raise UsageError(f"'{word}' is a volume of LVM's own")
    return Place(name, path)


def split_mapped(name: str) -> str | None:
    """Return the VG/LV that a name of the device mapper stands for (hyphens in it doubled); None for another's."""
    parts = name.replace("--", "\0").split("-")  # no name of a volume begins with a hyphen
    if len(parts) != 2 or not all(parts):
        return None
    return "/".join(part.replace("\0", "-") for part in parts)


def _matches(place: Place, pattern: str, root: Path) -> bool:
    """Tell whether a place is one that a pattern (as of `parse_pattern`) allows."""
    if not pattern.startswith("/"):
        return place.is_volume and _fit(place.name, pattern)
    if not _WILD.search(pattern):  # a device or file by its name, whatever that leads to now
        return find_place(pattern, root).name == place.name
    # Its folder, up to the first part with a wildcard, may be reached by links, too.
    folder, rest = _split_pattern(pattern)
    real = _outside(Path(os.path.realpath(root / folder.lstrip("/"))), root)
    return not place.is_volume and not _is_device(place) and _fit(place.name, f"{real.rstrip('/')}/{rest}")


def _split_pattern(pattern: str) -> tuple[str, str]:
    """Split a path with wildcards before the first part that has one."""
    parts = pattern.split("/")
    first = next(at for at, part in enumerate(parts) if _WILD.search(part))
    return "/".join(parts[:first]), "/".join(parts[first:])


def _fit(name: str, pattern: str) -> bool:
    parts, wanted = name.split("/"), pattern.split("/")
    return len(parts) == len(wanted) and all(map(fnmatchcase, parts, wanted))


def _is_device(place: Place) -> bool:
    return place.name.startswith("/dev/") or Path(place.path).is_block_device()


def _outside(real: Path, root: Path) -> str:
    """Return a path below ``root`` as it is called in there."""
    return f"/{'/'.join(real.relative_to(os.path.realpath(root)).parts)}"


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""

"""How RBD images of a Ceph cluster are named, and the snapshots that lvmsync makes of them.

rbd:POOL/[NAMESPACE/]IMAGE                     a target
rbd:POOL/[NAMESPACE/]IMAGE@SNAP[,base=SNAP]    a source: what a snapshot holds, or its changes since another one
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import xxhash

from lvmsync.errors import UsageError

PREFIX = "rbd:"
"""What the word of an image begins with."""
OWN = "lvmsync-"
"""What the names of our snapshots begin with."""

_PLAIN = re.compile(r"[A-Za-z0-9._:-]{1,100}")
_DIGEST = re.compile(r"\.[0-9a-f]{32}")


@dataclass(frozen=True)
class RbdImage:
    """An image of a Ceph cluster.

    Attributes:
        pool: its pool.
        namespace: in the pool; None: the default one.
        name: of the image.
    """

    pool: str
    namespace: str | None
    name: str

    @property
    def spec(self) -> str:
        """How ``rbd`` names it."""
        return "/".join(part for part in (self.pool, self.namespace, self.name) if part is not None)

    def __str__(self) -> str:
        return f"{PREFIX}{self.spec}"


@dataclass(frozen=True)
class RbdSnapshot:
    """A snapshot of an image, and the one that its changes are counted from.

    Attributes:
        image: the image.
        snap: name of the snapshot that is the head.
        base: name of an older one; None: all of it.
    """

    image: RbdImage
    snap: str
    base: str | None = None

    @property
    def word(self) -> str:
        """How a command line names it."""
        base = "" if self.base is None else f",base={self.base.replace(',', ',,')}"
        return f"{self.image}@{self.snap}".replace(",", ",,") + base


def parse_image(spec: str) -> RbdImage:
    """Read what names an image: ``POOL/[NAMESPACE/]IMAGE``.

    Raises:
        UsageError: it does not.
    """
    parts = spec.split("/")
    if "@" in spec:
        raise UsageError(f"'{PREFIX}{spec}' is a snapshot, where an image is wanted: leave '@...' away")
    if len(parts) not in (2, 3):
        raise UsageError(f"'{PREFIX}{spec}' names no image: write {PREFIX}POOL/IMAGE, or {PREFIX}POOL/NAMESPACE/IMAGE")
    for part in parts:
        _require_name(part, "pool, namespace or image")
    pool, *namespace, name = parts
    return RbdImage(pool, namespace[0] if namespace else None, name)


def find_image(word: str) -> RbdImage | None:
    """Read a target; None: it is no RBD image.

    Raises:
        UsageError: it is to be one, and names none.
    """
    return parse_image(word.removeprefix(PREFIX)) if word.startswith(PREFIX) else None


def build_snapshot(spec: str, base: str | None) -> RbdSnapshot:
    """Return a source of its two parts.

    Raises:
        UsageError: they do not name a snapshot.
    """
    image, at, snap = spec.partition("@")
    found = parse_image(image)
    if not at:
        raise UsageError(
            f"'{found}' names no snapshot, and an image that may change is no state of it: write {found}@SNAP"
        )
    for name in filter(None, (snap, base)):
        _require_name(name, "snapshot")
    if not snap or base == "":
        raise UsageError(f"'{PREFIX}{spec}' names an empty snapshot: write {found}@SNAP")
    return RbdSnapshot(found, snap, base)


def _require_name(name: str, kind: str) -> None:
    if not name or name.startswith("-") or not name.isprintable() or set(name) & set("@/"):
        raise UsageError(f"'{name}' is no name of a {kind}: no '/', '@', control characters, or '-' in front")


def snapshot_name(point: str) -> str:
    """Return what the snapshot is called that holds a point: always the same, and of no two points.

    Args:
        point: id of the point.
    """
    if _PLAIN.fullmatch(point) and not _DIGEST.fullmatch(point):
        return f"{OWN}{point}"
    return f"{OWN}.{xxhash.xxh3_128_hexdigest(point.encode(errors='surrogateescape'))}"


def point_id(name: str) -> str | None:
    """Return the id of the point that one of our snapshots holds; None where its name does not tell, or it is not ours.

    Args:
        name: of the snapshot.
    """
    rest = name.removeprefix(OWN)
    return rest if name.startswith(OWN) and not _DIGEST.fullmatch(rest) else None

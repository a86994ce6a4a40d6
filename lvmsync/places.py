"""Where an archive lies, as the command line says it.

./folder  /folder  folder                 a folder of this machine
ssh://[USER@]HOST[:PORT]/PATH             a folder of another machine, over SFTP; /~/PATH: below the home there
s3://BUCKET[/PREFIX]                      an object store; its address and keys come from the environment
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from lvmsync.errors import UsageError
from lvmsync.names import Host

_SCHEME = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]*)://(.*)", re.DOTALL)
_SSH = re.compile(
    r"(?:(?P<user>[^@\s:/]+)@)?(?:\[(?P<six>[0-9A-Fa-f:.%\w]+)\]|(?P<host>[^@\s:/\[\]]+))(?::(?P<port>[^/]*))?"
    r"(?P<path>/.*)?",
    re.DOTALL,
)
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_KEY = re.compile(r"[A-Za-z0-9!_.*'()-]+(?:/[A-Za-z0-9!_.*'()-]+)*")  # what every object store takes
_MOST_KEY = 800  # characters; an object's key may have 1024 bytes, and its name comes behind


@dataclass(frozen=True)
class FolderPlace:
    """A folder of this machine."""

    path: str


@dataclass(frozen=True)
class SshPlace:
    """``ssh://[USER@]HOST[:PORT]/PATH``.

    Attributes:
        host: the machine.
        port: where its sshd listens; None: what the user's config says.
        path: of the folder there: absolute, or relative to the home of the user.
    """

    host: Host
    port: int | None
    path: str

    def __str__(self) -> str:
        address = f"[{self.host.address}]" if ":" in self.host.address else self.host.address
        user = f"{self.host.user}@" if self.host.user else ""
        port = f":{self.port}" if self.port is not None else ""
        return f"ssh://{user}{address}{port}{'' if self.path.startswith('/') else '/~/'}{self.path}"


@dataclass(frozen=True)
class BucketPlace:
    """``s3://BUCKET[/PREFIX]``."""

    bucket: str
    prefix: str

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}" if self.prefix else f"s3://{self.bucket}"


Place = FolderPlace | SshPlace | BucketPlace


def parse_place(word: str) -> Place:
    """Read where an archive lies.

    Raises:
        UsageError: it is no such place.
    """
    if not word:
        raise UsageError("'' is no archive: name a folder, ssh://HOST/PATH or s3://BUCKET/PREFIX")
    scheme = _SCHEME.fullmatch(word)
    if scheme is None:
        if ":" in word.split("/")[0]:
            raise UsageError(
                f"'{word}': an archive on another machine is ssh://HOST/PATH; write ./{word} if that is a folder here"
            )
        return FolderPlace(word)
    kind, rest = scheme[1].lower(), scheme[2]
    if kind == "ssh":
        return _parse_ssh(word, rest)
    if kind == "s3":
        return _parse_bucket(word, rest)
    raise UsageError(f"'{word}': an archive is a folder, ssh://HOST/PATH or s3://BUCKET/PREFIX, not {kind}://")


def _parse_ssh(word: str, rest: str) -> SshPlace:
    match = _SSH.fullmatch(rest)
    if match is None:
        raise UsageError(f"'{word}' is not ssh://[USER@]HOST[:PORT]/PATH")
    port = match["port"]
    if port is not None and not (port.isascii() and port.isdecimal() and len(port) < 6 and 0 < int(port) < 65536):
        raise UsageError(f"'{word}': {port or 'nothing'} is no port: a number from 1 to 65535")
    address = match["six"] or match["host"]
    if address.startswith("-") or (match["user"] or "").startswith("-"):
        raise UsageError(f"'{word}': a host or user cannot start with '-'")
    path = (match["path"] or "").rstrip("/")
    path = path.removeprefix("/~/")
    if path in ("", "/~") or "\0" in path:
        raise UsageError(f"'{word}' names no folder: write ssh://{address}/PATH, or ssh://{address}/~/PATH in the home")
    return SshPlace(Host(match["user"], address), int(port) if port else None, path)


def _parse_bucket(word: str, rest: str) -> BucketPlace:
    bucket, _, prefix = rest.partition("/")
    prefix = prefix.rstrip("/")
    if not _BUCKET.fullmatch(bucket) or ".." in bucket:
        raise UsageError(
            f"'{word}': '{bucket}' is no name of a bucket: 3 to 63 lower-case letters, digits, dots and hyphens"
        )
    parts = prefix.split("/")
    if prefix and (not _KEY.fullmatch(prefix) or len(prefix) > _MOST_KEY or "." in parts or ".." in parts):
        raise UsageError(
            f"'{word}': '{prefix}' is no prefix for objects: letters, digits and !_.*'()- in parts between single"
            f" slashes, {_MOST_KEY} characters at the most"
        )
    return BucketPlace(bucket, prefix)

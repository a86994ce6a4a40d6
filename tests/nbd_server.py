"""``lvmsync archive serve`` as a process, and clients of it: nbdcopy, nbdinfo, qemu-img, qemu-io, and bytes by hand."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from socket import AF_UNIX
from socket import socket as Line
from typing import Any

LVMSYNC = str(Path(sys.executable).with_name("lvmsync"))


@dataclass
class Served:
    """An archive that is served, by a process."""

    process: subprocess.Popen[str]
    socket: Path
    line: str

    def uri(self, name: object = "") -> str:
        return f"nbd+unix:///{name}?socket={self.socket}"

    def copy(self, name: object = "") -> bytes:
        """Return what nbdcopy gets."""
        return subprocess.run(["nbdcopy", self.uri(name), "-"], check=True, stdout=subprocess.PIPE).stdout

    def convert(self, name: object, target: Path) -> bytes:
        """Return what qemu-img gets; it has sectors, and fills the last one up with zeros."""
        subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "raw", self.uri(name), str(target)], check=True)
        return target.read_bytes()

    def map(self, name: object = "") -> list[tuple[int, int, int]]:
        """Return offset, length and flags of what base:allocation tells."""
        told = subprocess.run(["nbdinfo", "--json", "--map", self.uri(name)], check=True, stdout=subprocess.PIPE).stdout
        return [(one["offset"], one["length"], one["type"]) for one in json.loads(told)]

    def exports(self) -> list[dict[str, Any]]:
        told = subprocess.run(["nbdinfo", "--json", "--list", self.uri()], check=True, stdout=subprocess.PIPE).stdout
        found: list[dict[str, Any]] = json.loads(told)["exports"]
        return found

    def io(self, *commands: str, name: object = "", status: int = 0, is_reading: bool = False) -> str:
        """Run commands of qemu-io, and return what it says."""
        words = [word for command in commands for word in ("-c", command)]
        done = subprocess.run(
            ["qemu-io", *(["-r"] if is_reading else []), "-f", "raw", *words, self.uri(name)],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout + done.stderr

    def connect(self) -> Line:
        line = Line(AF_UNIX)
        line.settimeout(60)
        line.connect(str(self.socket))
        return line

    def end(self, number: signal.Signals = signal.SIGINT) -> str:
        """End it, and return what it has said since it began."""
        self.process.send_signal(number)
        return self.process.communicate(timeout=60)[1]


def receive(line: Line, count: int) -> bytes:
    """Return so many bytes; fewer at the end of the line."""
    found = b""
    while len(found) < count and (piece := line.recv(count - len(found))):
        found += piece
    return found


def padded(data: bytes) -> bytes:
    """Return bytes with zeros up to a whole sector."""
    return data + bytes(-len(data) % 512)


@contextmanager
def serving(archive: object, path: Path, *options: object, state: Path | None = None) -> Iterator[Served]:
    """Serve an archive until the block ends, or `Served.end` is called."""
    process = subprocess.Popen(
        [LVMSYNC, "archive", "serve", str(archive), "--nbd", f"unix:{path}", *map(str, options)],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "LVMSYNC_STATE": str(state or path.parent / "state")},
    )
    assert process.stderr
    try:
        line = process.stderr.readline()
        assert "nbd+unix://" in line, line
        yield Served(process, path, line)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        process.stderr.close()

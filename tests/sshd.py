"""A real sshd on 127.0.0.1, with keys and files of its own, for the length of a ``with``."""

from __future__ import annotations

import getpass
import os
import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

SSHD = "/usr/sbin/sshd"


@dataclass(frozen=True)
class Sshd:
    """A running sshd, and the files that a client needs for it."""

    process: subprocess.Popen[str]
    port: int
    folder: Path  # every file below lies in it

    @property
    def config(self) -> Path:
        """An ssh config that leads ``127.0.0.1`` here: ``ssh -F CONFIG 127.0.0.1``."""
        return self.folder / "ssh_config"

    @property
    def known_hosts(self) -> Path:
        return self.folder / "known_hosts"

    @property
    def user_key(self) -> Path:
        return self.folder / "user"

    def cut(self) -> None:
        """Kill the sessions as a broken line would: no goodbye, no exit status."""
        for pid in children(self.process.pid):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@contextmanager
def run_sshd(folder: Path, *, env: Mapping[str, str] | None = None, sftp: bool = True) -> Iterator[Sshd]:
    """Start sshd with its files in ``folder``; the test is skipped where there is no sshd.

    Args:
        folder: an empty folder.
        env: what the far side's commands find in their environment, say PATH.
        sftp: it knows SFTP.
    """
    if not Path(SSHD).exists():
        if os.environ.get("CI") or os.environ.get("LVMSYNC_REQUIRE_LAB"):
            pytest.fail(f"no {SSHD}: install openssh-server")
        pytest.skip(f"no {SSHD}")
    for name in "host", "user":
        make_key(folder / name)
    shutil.copy(folder / "user.pub", folder / "authorized_keys")
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # sshd's empty folder; sshd does not start without it
    with _start(folder, env or {}, sftp=sftp) as (process, port):
        write_known_hosts(folder / "known_hosts", port, folder / "host.pub")
        sshd = Sshd(process, port, folder)
        write_config(sshd.config, port, known_hosts=sshd.known_hosts, key=sshd.user_key)
        yield sshd


def make_key(path: Path) -> None:
    """Make a key pair: ``path`` and ``path.pub``."""
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)], check=True)


def write_known_hosts(path: Path, port: int, key: Path) -> None:
    """Write a file that knows 127.0.0.1 by the public key in ``key``."""
    kind, blob = key.read_text().split()[:2]
    path.write_text(f"[127.0.0.1]:{port} {kind} {blob}\n")


def write_config(path: Path, port: int, *, known_hosts: Path, key: Path) -> None:
    """Write an ssh config that needs nothing of the user's own."""
    path.write_text(
        f"Host *\n  Port {port}\n  User {getpass.getuser()}\n  IdentityFile {key}\n  IdentitiesOnly yes\n"
        f"  UserKnownHostsFile {known_hosts}\n  StrictHostKeyChecking yes\n  BatchMode yes\n"
    )


def children(pid: int) -> list[int]:
    """Return the processes that ``pid`` started and that are there."""
    with suppress(FileNotFoundError):
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


@contextmanager
def _start(folder: Path, env: Mapping[str, str], *, sftp: bool) -> Iterator[tuple[subprocess.Popen[str], int]]:
    for _ in range(5):  # the port that was free may be taken by now
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        config = folder / "sshd_config"
        config.write_text(
            f"ListenAddress 127.0.0.1\nPort {port}\nHostKey {folder / 'host'}\nPidFile none\n"
            f"AuthorizedKeysFile {folder / 'authorized_keys'}\nPermitRootLogin yes\nStrictModes no\nUsePAM no\n"
            "PasswordAuthentication no\nKbdInteractiveAuthentication no\n"
            + ("Subsystem sftp internal-sftp\n" if sftp else "")
            + ("SetEnv " + " ".join(f'"{name}={value}"' for name, value in env.items()) + "\n" if env else "")
        )
        with_us = ["setpriv", "--pdeathsig", "TERM"] if shutil.which("setpriv") else []  # when pytest is killed, too
        argv = [*with_us, SSHD, "-D", "-e", "-f", str(config)]
        null = subprocess.DEVNULL
        process = subprocess.Popen(argv, stdin=null, stdout=null, stderr=subprocess.PIPE, text=True)
        assert process.stderr
        try:
            said = []
            for line in process.stderr:
                said.append(line)
                if line.startswith("Server listening on 127.0.0.1"):
                    threading.Thread(target=process.stderr.read, daemon=True).start()
                    yield process, port
                    return
        finally:
            sessions = children(process.pid)
            process.terminate()
            process.wait()
            for pid in sessions:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGTERM)
        if "Address already in use" not in "".join(said):
            break
    pytest.fail("sshd does not start: " + "".join(said))

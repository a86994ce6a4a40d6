"""The login of the built-in ssh: what the user's config says of it, whose key a host must have, and why it fails."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any

import asyncssh

from lvmsync.errors import TransportError
from lvmsync.names import Host
from lvmsync.transport import Ssh

_CIPHER = "aes256-gcm@openssh.com"  # twice as fast here as the default, chacha20-poly1305
_KNOWN_HOSTS = ["~/.ssh/known_hosts", "~/.ssh/known_hosts2", "/etc/ssh/ssh_known_hosts", "/etc/ssh/ssh_known_hosts2"]
_KEEPALIVE_SECONDS = 15
_KEEPALIVE_COUNT = 4
_HANGUP_TIMEOUT = 5.0  # seconds for a goodbye

for _name in "asyncio", "asyncssh":  # without a handler, their warnings go to stderr
    logging.getLogger(_name).addHandler(logging.NullHandler())


async def log_in(host: Host, options: Ssh) -> asyncssh.SSHClientConnection:
    """Log in, and return the connection.

    Raises:
        TransportError: an unknown host key.
        asyncssh.Error, OSError, ValueError: whatever else fails; see `explain`.
    """
    login = login_options(host, options)
    known_hosts, ciphers = read_config(login)
    client = Client(known_hosts)
    try:
        return await asyncssh.connect(
            **login,
            known_hosts=known_hosts,
            encryption_algs=ciphers,
            client_factory=lambda: client,
            keepalive_interval=_KEEPALIVE_SECONDS,
            keepalive_count_max=_KEEPALIVE_COUNT,
            connect_timeout=options.connect_timeout,
            agent_forwarding=False,
        )
    except asyncssh.HostKeyNotVerifiable as error:
        objection = client.objection or f"{error}; log in there once with ssh, or use -e ssh"
        raise TransportError(f"{host}: {objection}") from error


def wait_for_login(
    logging_in: Coroutine[Any, Any, None], loop: asyncio.AbstractEventLoop, host: Host, ssh: Ssh
) -> None:
    """Run what logs in, in its loop, and wait for it.

    Raises:
        TransportError: it failed; says why, and what to do.
    """
    waiter = asyncio.run_coroutine_threadsafe(logging_in, loop)
    try:
        waiter.result()
    except (asyncssh.Error, OSError, ValueError) as error:
        raise TransportError(f"{host}: {explain(error, ssh)}") from error
    except BaseException:  # interrupted: what is under way is cancelled, not left behind
        waiter.cancel()
        raise


def hang_up(connection: asyncssh.SSHClientConnection | None, loop: asyncio.AbstractEventLoop) -> None:
    """Close a connection, whatever its state; harmless when it is closed, or none."""
    if connection:
        with suppress(TimeoutError):
            asyncio.run_coroutine_threadsafe(_hang_up(connection), loop).result(2 * _HANGUP_TIMEOUT)


async def _hang_up(connection: asyncssh.SSHClientConnection) -> None:
    connection.close()
    try:
        await asyncio.wait_for(connection.wait_closed(), _HANGUP_TIMEOUT)
    except TimeoutError:
        connection.abort()


def login_options(host: Host, options: Ssh) -> dict[str, Any]:
    """Return the arguments of asyncssh that say where and as whom to log in."""
    config = Path(options.config or "~/.ssh/config").expanduser()
    return {
        "host": host.address,
        "port": () if options.port is None else options.port,
        "username": () if host.user is None else host.user,
        "client_keys": () if options.identity is None else [options.identity],
        "ignore_encrypted": True,  # the agent may have it
        "config": [config] if options.config or config.exists() else None,
    }


def read_config(login: dict[str, Any]) -> tuple[list[str] | bytes, list[str]]:
    """Return the files of known hosts and the ciphers, best first, that the user's config asks for.

    Args:
        login: as of `login_options`.
    """
    options = asyncssh.SSHClientConnectionOptions(**login)
    # asyncssh checks no key at all where the config says "UserKnownHostsFile none", and fails at a missing file
    files = options.known_hosts if isinstance(options.known_hosts, list) else []
    files = [Path(str(file)).expanduser() for file in files or _KNOWN_HOSTS]
    ciphers = [cipher.decode() for cipher in options.encryption_algs]
    ciphers.sort(key=lambda cipher: cipher != _CIPHER)
    return [str(file) for file in files if file.exists()] or b"", ciphers


class Client(asyncssh.SSHClient):
    """Says why a host key is refused."""

    def __init__(self, known_hosts: list[str] | bytes) -> None:
        self._known_hosts = known_hosts
        self.objection: str | None = None

    def validate_host_public_key(self, host: str, addr: str, port: int, key: asyncssh.SSHKey) -> bool:
        """Refuse a key that is not in known_hosts, and note why."""
        known = asyncssh.match_known_hosts(self._known_hosts, host, addr, None if port == 22 else port)
        option = "" if port == 22 else f"-p {port} "
        name = host if port == 22 else f"[{host}]:{port}"
        if known[0]:
            self.objection = (
                f"ITS HOST KEY HAS CHANGED, now {key.get_fingerprint()}: somebody may be listening, or it was "
                f"installed anew; if so, remove the old key with: ssh-keygen -R '{name}'"
            )
        else:
            self.objection = (
                f"unknown host: its key {key.get_fingerprint()} is not in known_hosts; "
                f"to check and add it, log in once with: ssh {option}{host} (or use -e ssh)"
            )
        return False


def explain(error: Exception, options: Ssh) -> str:
    """Say in one line what went wrong before the line was open, and what to do."""
    match error:
        case asyncssh.PermissionDenied():
            return (
                f"login refused: {error}; the built-in ssh asks for no password or passphrase: "
                "load the key into ssh-agent, name another with -i, or use -e ssh"
            )
        case asyncssh.ConnectionLost():
            return f"connection lost during the login: {error}"
        case asyncssh.ChannelOpenError(code=asyncssh.OPEN_CONNECT_FAILED):  # by the jump host
            return f"no connection: {error}"
        case asyncssh.ChannelOpenError():
            return f"logged in, but no command can be started: {error}"
        case asyncssh.Error():
            return f"{error}; the built-in ssh cannot do it, -e ssh may"
        case socket.gaierror():
            return f"no such host name: {error.strerror}"
        case UnicodeError():
            return "not a host name"
        case OSError(filename=str(file)):
            return f"{file}: {error.strerror}; needed for the login (or use -e ssh)"
        case ConnectionRefusedError():
            return "connection refused: does sshd listen there, on that port?"
        case TimeoutError():
            return f"no answer within {options.connect_timeout:g} s"
        case OSError():
            return f"no connection: {error.strerror or error}"
        case _:  # the config or a key: ValueError
            return f"{error}; the built-in ssh cannot use this config or key, -e ssh may"

"""A server of NBD at a socket that listens: each client gets threads of its own, until the server is told to end."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Mapping

from lvmsync.errors import DeviceError
from lvmsync.jobs.nbd.client import Client, Note, Open
from lvmsync.nbd.requests import Export

MOST_CLIENTS = 64
"""Lines at once; who comes then is sent away."""

_PATIENCE = 10.0  # seconds for the clients' threads to end
_LOOK = 0.5  # seconds after which a signal is heeded at the latest
_PAUSE = 1.0  # seconds without accepting anybody, when no line can be opened


def serve(listener: socket.socket, exports: Mapping[str, Export], open_volume: Open, note: Note) -> None:
    """Serve whoever comes, until an exception (a signal's) ends it; then all lines are cut.

    Args:
        listener: where clients come.
        exports: by their names, in the order in which they are listed.
        open_volume: opens what an export is of; called by several threads.
        note: takes what went wrong.
    """
    clients: dict[threading.Thread, Client] = {}
    # A signal may come to a client's thread, or just before we wait: nothing would wake us then.
    listener.settimeout(_LOOK)
    try:
        while True:
            try:
                line, _ = listener.accept()
            except TimeoutError:
                continue
            except OSError as error:  # no descriptor is left, or no memory
                note(DeviceError(f"cannot take one more client: {error.strerror}"))
                time.sleep(_PAUSE)
                continue
            clients = {thread: client for thread, client in clients.items() if thread.is_alive()}
            if len(clients) == MOST_CLIENTS:
                line.close()
                note(DeviceError(f"there are {MOST_CLIENTS} clients; one more was sent away"))
                continue
            client = Client(line, exports, open_volume, note)
            thread = threading.Thread(target=client.run, daemon=True)
            clients[thread] = client
            thread.start()
    finally:
        for client in clients.values():
            client.end()
        until = time.monotonic() + _PATIENCE
        for thread in clients:
            thread.join(max(0.0, until - time.monotonic()))

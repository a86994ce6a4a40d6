"""An HTTP proxy on 127.0.0.1 in front of one server, which can refuse and lose what goes through it."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

Decision = int | None


class Gate:
    """Passes requests on, until told otherwise.

    Attributes:
        url: where it listens.
        refuse: tells of a request (method, path) the status that it is answered with, without asking the server; None:
            it is passed on.
        lose: tells of a request whether it is passed on, and its answer replaced by a 500.
        seen: the requests, (method, path).
    """

    def __init__(self, to: str) -> None:
        self.refuse: Callable[[str, str], Decision] = lambda _method, _path: None
        self.lose: Callable[[str, str], bool] = lambda _method, _path: False
        self.seen: list[tuple[str, str]] = []
        gate, address = self, urlsplit(to).netloc

        class Passage(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def pass_on(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                gate.seen.append((self.command, self.path))
                status = gate.refuse(self.command, self.path)
                if status is not None:
                    return self.answer(status, [], b"<Error><Code>Refused</Code></Error>")
                line = http.client.HTTPConnection(address, timeout=60)
                line.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
                for name, value in self.headers.items():
                    line.putheader(name, value)
                line.endheaders(body)
                found = line.getresponse()
                data = found.read()
                line.close()
                if gate.lose(self.command, self.path):
                    return self.answer(500, [], b"<Error><Code>Lost</Code></Error>")
                left = [(key, value) for key, value in found.getheaders() if key.lower() not in _OURS]
                size = found.getheader("Content-Length") if self.command == "HEAD" else None
                return self.answer(found.status, left, data, size)

            def answer(self, status: int, headers: list[tuple[str, str]], body: bytes, size: str | None = None) -> None:
                self.send_response_only(status)
                for name, value in headers:
                    self.send_header(name, value)
                self.send_header("Content-Length", size or str(len(body)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

            do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = pass_on

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Passage)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


_OURS = {"content-length", "transfer-encoding", "connection", "keep-alive"}


@contextmanager
def run_gate(to: str) -> Iterator[Gate]:
    """Run a proxy in front of the server at ``to``, an http:// address."""
    gate = Gate(to)
    try:
        yield gate
    finally:
        gate.close()

"""The HTTP port for those who look after the service: `/metrics`, `/healthz` and `/readyz`.

`/healthz` answers while the process lives. `/readyz` answers 200 where calls are taken and written, else 503 and why.
"""

from __future__ import annotations

import logging
import socket
import sys
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from socketserver import TCPServer, ThreadingMixIn
from typing import Any

import msgspec
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from tailorbird.engine.errors import CallerError

LOG = logging.getLogger(__name__)

CONNECTIONS_MAX = 16
CONNECTION_S = 10.0  # a reader that is silent, or takes nothing, for so long is let go
JSON_TYPE = "application/json"

# Why no calls are taken: a reason and a text; None where they are.
Readiness = Callable[[], tuple[str, str] | None]


def always_ready() -> None:
    """Be ready at all times."""


class Endpoint:
    """Serves in threads of its own from `start` to `close`, so that a busy event loop hides nothing."""

    def __init__(self, registry: CollectorRegistry, readiness: Readiness = always_ready) -> None:
        self._registry = registry
        self._readiness = readiness
        self._server: _Server | None = None
        self._thread: threading.Thread | None = None

    def start(self, address: str) -> int:
        """Answer at `host:port`; return the port. Raises `CallerError` BAD_ADDRESS, LISTEN_FAILED."""
        host, _, port = address.rpartition(":")
        if not port.isdecimal() or address.startswith(("unix:", "fd:")):
            raise CallerError("BAD_ADDRESS", f"expected host:port for metrics, got {address!r} in --metrics")
        try:
            self._server = _Server((host.strip("[]"), int(port)), self._registry, self._readiness)
        except OSError as error:
            raise CallerError(
                "LISTEN_FAILED",
                f"expected a free address for metrics, got {address}: {error}; choose another with --metrics",
            ) from None
        self._thread = threading.Thread(target=self._server.serve_forever, name="tailorbird-metrics", daemon=True)
        self._thread.start()
        return int(self._server.server_address[1])

    def close(self) -> None:
        """Answer no more; idempotent."""
        if self._server is not None and self._thread is not None:
            self._server.shutdown()
            self._server.server_close()
            self._thread.join()
            self._server = self._thread = None


class _Server(ThreadingMixIn, TCPServer):  # the library's own HTTP server asks DNS for its name first
    allow_reuse_address = True
    daemon_threads = True
    block_on_close = False

    def __init__(self, address: tuple[str, int], registry: CollectorRegistry, readiness: Readiness) -> None:
        self.registry = registry
        self.readiness = readiness
        self._room = threading.BoundedSemaphore(CONNECTIONS_MAX)
        # A name is looked up, as for calls.
        found = socket.getaddrinfo(*address, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        self.address_family = found[0]
        super().__init__((str(found[4][0]), address[1]), _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._room.acquire(blocking=False):
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._room.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log what went wrong with a reader, unless it is that it left."""
        if not isinstance(error := sys.exception(), OSError):
            LOG.error("an answer over HTTP failed", exc_info=error)


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = CONNECTION_S
    server_version, sys_version = "tailorbird", ""

    def do_GET(self) -> None:
        match self.path.partition("?")[0]:
            case "/" | "/metrics":
                encode, kind = choose_encoder(self.headers.get("Accept", ""))
                self._answer(200, kind, encode(self.server.registry))
            case "/healthz":
                self._answer(200, JSON_TYPE, b'{"status":"alive"}')
            case "/readyz":
                found = self.server.readiness()
                if found is None:
                    self._answer(200, JSON_TYPE, b'{"status":"ready"}')
                else:
                    told = {"status": "not ready", "reason": found[0], "message": found[1]}
                    self._answer(503, JSON_TYPE, msgspec.json.encode(told))
            case _:
                self._answer(404, JSON_TYPE, b'{"message":"expected /metrics, /healthz or /readyz"}')

    def _answer(self, status: int, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: Any) -> None:
        """Say nothing: the standard library would write who asked."""

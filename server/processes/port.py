"""The address that workers share: a port each binds with SO_REUSEPORT, or one listening socket that all inherit."""

from __future__ import annotations

import contextlib
import socket
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

from tailorbird.engine.errors import CallerError
from tailorbird.server.face import ServeOptions
from tailorbird.server.transport.choice import GRPCIO, chosen
from tailorbird.server.transport.listeners import INHERITED, UNIX, bound, listen_failed


class Port:
    """Holds the address from `__enter__` on; `options` are those of a worker, `descriptors` what it inherits."""

    def __init__(self, options: ServeOptions) -> None:
        self._asked = options
        self.options = options
        self.descriptors: tuple[int, ...] = ()
        self._sockets: list[socket.socket] = []

    def __enter__(self) -> Self:
        """Take the address. Raises `CallerError` LISTEN_FAILED."""
        address = self._asked.listen
        try:
            if address.startswith((UNIX, INHERITED)):
                self._share(address)
            else:
                self._reserve(address)
        except OSError as error:
            raise listen_failed(address, error) from None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Let go of it."""
        for each in self._sockets:
            each.close()
        if self._asked.listen.startswith(UNIX):
            with contextlib.suppress(OSError):
                Path(self._asked.listen.removeprefix(UNIX)).unlink()

    def shown(self, address: str) -> str:
        """Return the address as people are told it, of that which a worker listens on."""
        return self._asked.listen if address.startswith(INHERITED) else address

    def _share(self, address: str) -> None:
        """Listen once; every worker accepts from the one socket."""
        if chosen(self._asked.transport)[0] == GRPCIO:
            raise CallerError(
                "LISTEN_FAILED",
                f"expected host:port for several processes on grpcio, got {address}; only the native transport shares one "
                "socket: use it, or --workers 0",
            )
        self._sockets = bound(address, reuse_port=False)
        descriptor = self._sockets[0].fileno()
        self.descriptors = (descriptor,)
        self.options = replace(self._asked, listen=f"{INHERITED}{descriptor}")

    def _reserve(self, address: str) -> None:
        """Choose the port, and hold it without listening, so that nobody else's server gets a share of the calls."""
        reuse_port = self._asked.sockets.reuse_port
        listeners = bound(address, reuse_port=reuse_port)  # Fails where somebody listens who does not share.
        port = listeners[0].getsockname()[1]
        for listener in listeners:
            listener.close()
        host = address.rpartition(":")[0]
        for family, _, _, _, where in socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM):
            held = socket.socket(family, socket.SOCK_STREAM)
            self._sockets.append(held)
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            if family == socket.AF_INET6:
                held.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(where[0] != "::"))
            held.bind(where[:2] if family == socket.AF_INET else where)
        self.options = replace(
            self._asked, listen=f"{host}:{port}", sockets=replace(self._asked.sockets, reuse_port=True)
        )

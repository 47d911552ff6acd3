"""Which transport serves: the native one where its kernel was built, else grpcio."""

from __future__ import annotations

import importlib.util
from typing import Protocol

from tailorbird.engine.errors import PreconditionFailed
from tailorbird.server.transport import HandlerTable, ServerLimits
from tailorbird.server.transport.listeners import PLAIN, ListenOptions

NATIVE, GRPCIO, AUTO = "native", "grpcio", "auto"
CHOICES = (AUTO, NATIVE, GRPCIO)
KERNEL = "tailorbird.native.http2"


class Server(Protocol):
    """What every transport is to the service."""

    async def start(self, address: str) -> int:
        """Bind `host:port` or `unix:PATH` and serve; return the port. Raises `CallerError` LISTEN_FAILED."""
        ...

    async def stop(self) -> None:
        """Refuse new calls, wait for those in flight for the grace time, then cancel them."""
        ...


def has_native() -> bool:
    """Tell whether the native transport's kernel was built. One that is there and does not load is an error later."""
    return importlib.util.find_spec(KERNEL) is not None


def chosen(choice: str) -> tuple[str, str]:
    """Return the transport for `auto`, `native` or `grpcio`, and a line that says which it is and why.

    Raises `PreconditionFailed` NO_NATIVE_TRANSPORT where it was asked for and not built.
    """
    if choice == GRPCIO:
        return GRPCIO, "grpcio (asked for)"
    if choice == NATIVE:
        if not has_native():
            raise PreconditionFailed(
                "NO_NATIVE_TRANSPORT",
                f"expected {KERNEL}, got a build without it; install libnghttp2 with its headers (Debian: "
                "libnghttp2-dev) and build again, or serve with --transport grpcio",
            )
        return NATIVE, "native (asked for)"
    if has_native():
        return NATIVE, "native (auto: its kernel is there)"
    return GRPCIO, f"grpcio (auto: this build has no {KERNEL}, libnghttp2 was missing)"


def make_server(
    choice: str, table: HandlerTable, limits: ServerLimits, listen: ListenOptions = PLAIN
) -> tuple[Server, str]:
    """Return the server of the chosen transport, not yet started, and the line of `chosen`."""
    name, line = chosen(choice)
    # Imported only when chosen: each loads a library that the other does without.
    if name == NATIVE:
        from tailorbird.server.transport.native import NativeServer

        return NativeServer(table, limits, listen), line
    from tailorbird.server.transport.grpcio import GrpcioServer

    return GrpcioServer(table, limits, listen), line

"""`grpc.health.v1.Health` as handler table entries, so that any transport serves it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable

from grpc_health.v1 import health_pb2

from tailorbird.engine.errors import NotFound
from tailorbird.server.messages.wire import decode
from tailorbird.server.transport import CallContext, HandlerTable, ServerStream, Unary

SERVICE = "grpc.health.v1.Health"


class Health:
    """The serving state of each service; the empty name stands for the whole server."""

    def __init__(self, services: Iterable[str]) -> None:
        self._services = frozenset({"", *services})
        self._serving = False
        self._changed = asyncio.Event()

    def set_serving(self, serving: bool) -> None:
        """Say that all services take calls, or that none does; watchers hear of it."""
        self._serving = serving
        self._changed.set()
        self._changed = asyncio.Event()

    def table(self) -> HandlerTable:
        """Return the handlers of the health service."""
        return {f"/{SERVICE}/Check": Unary(self._check, prompt=True), f"/{SERVICE}/Watch": ServerStream(self._watch)}

    async def _check(self, request_bytes: bytes, context: CallContext) -> bytes:
        request = decode(health_pb2.HealthCheckRequest, request_bytes)
        if request.service not in self._services:
            raise NotFound("UNKNOWN_SERVICE", f"expected a service of this server, got {request.service!r}")
        return self._answer()

    def _answer(self) -> bytes:
        response = health_pb2.HealthCheckResponse
        status = response.SERVING if self._serving else response.NOT_SERVING
        return response(status=status).SerializeToString()

    async def _watch(self, request_bytes: bytes, context: CallContext) -> AsyncIterator[bytes]:
        request = decode(health_pb2.HealthCheckRequest, request_bytes)
        if request.service not in self._services:
            # The protocol keeps a watch of an unknown service open, in case the service appears.
            yield health_pb2.HealthCheckResponse(
                status=health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
            ).SerializeToString()
            await asyncio.Event().wait()
        while True:
            changed = self._changed
            yield self._answer()
            await changed.wait()

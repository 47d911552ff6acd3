"""`grpc.health.v1.Health` as handler table entries, so that any transport serves it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from typing import Any

from grpc_health.v1 import health_pb2

from tailorbird.engine.consent import DataType
from tailorbird.engine.errors import NotFound
from tailorbird.server.messages.wire import decode
from tailorbird.server.transport import CallContext, HandlerTable, ServerStream, Unary

SERVICE = "grpc.health.v1.Health"


# The method is younger than the stubs of its package.
_LIST_REQUEST: Any = health_pb2.HealthListRequest  # type: ignore[attr-defined]
_LIST_RESPONSE: Any = health_pb2.HealthListResponse  # type: ignore[attr-defined]

LOOK_AGAIN_S = 1.0
FRESHNESS = "freshness."  # before a category of data: whether its newest event is as young as declared


class Health:
    """The serving state of each service; the empty name stands for the whole server.

    `freshness.behavioural` and the like are NOT_SERVING while `stale` tells of that category. They say nothing about calls:
    stale data is served, and said to be stale.
    """

    def __init__(self, services: Iterable[str], stale: Callable[[], Sequence[DataType]] = tuple) -> None:
        self._stale = stale
        self._services = frozenset({"", *services, *(FRESHNESS + category.name.lower() for category in DataType)})
        self._serving = False
        self._changed = asyncio.Event()

    def set_serving(self, serving: bool) -> None:
        """Say that all services take calls, or that none does; watchers hear of it."""
        self._serving = serving
        self._changed.set()
        self._changed = asyncio.Event()

    def table(self) -> HandlerTable:
        """Return the handlers of the health service."""
        return {
            f"/{SERVICE}/Check": Unary(self._check, prompt=True),
            f"/{SERVICE}/List": Unary(self._list, prompt=True),
            f"/{SERVICE}/Watch": ServerStream(self._watch),
        }

    async def _check(self, request_bytes: bytes, context: CallContext) -> bytes:
        request = decode(health_pb2.HealthCheckRequest, request_bytes)
        if request.service not in self._services:
            raise NotFound("UNKNOWN_SERVICE", f"expected a service of this server, got {request.service!r}")
        return self._answer(request.service)

    async def _list(self, request_bytes: bytes, context: CallContext) -> bytes:
        decode(_LIST_REQUEST, request_bytes)
        statuses = {service: self._status(service) for service in sorted(self._services)}
        answer: bytes = _LIST_RESPONSE(statuses=statuses).SerializeToString()
        return answer

    def _answer(self, service: str) -> bytes:
        return self._status(service).SerializeToString()

    def _status(self, service: str) -> health_pb2.HealthCheckResponse:
        response = health_pb2.HealthCheckResponse
        serving = self._serving
        if service.startswith(FRESHNESS):
            serving = service not in {FRESHNESS + category.name.lower() for category in self._stale()}
        status = response.SERVING if serving else response.NOT_SERVING
        return response(status=status)

    async def _watch(self, request_bytes: bytes, context: CallContext) -> AsyncIterator[bytes]:
        request = decode(health_pb2.HealthCheckRequest, request_bytes)
        if request.service not in self._services:
            # The protocol keeps a watch of an unknown service open, in case the service appears.
            yield health_pb2.HealthCheckResponse(
                status=health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
            ).SerializeToString()
            await asyncio.Event().wait()
        told = b""
        while True:
            changed = self._changed
            answer = self._answer(request.service)
            if answer != told:
                yield answer
                told = answer
            with contextlib.suppress(TimeoutError):  # what is stale only time tells
                await asyncio.wait_for(changed.wait(), LOOK_AGAIN_S if request.service.startswith(FRESHNESS) else None)

"""Which key a method asks for, and the handler table behind it."""

from __future__ import annotations

from collections.abc import AsyncIterator

from tailorbird.engine.errors import InternalError
from tailorbird.server.keys import Admission, Scope
from tailorbird.server.transport import (
    Bidirectional,
    CallContext,
    ClientStream,
    Handler,
    HandlerTable,
    ServerStream,
    Unary,
)

BEARER = "bearer "
OPEN = None
# By the longest prefix of the method's path. What a key is not asked for tells nothing about anybody.
RULES: dict[str, Scope | None] = {
    "/tailorbird.v1.CatalogService/": Scope.ADMIN,
    "/tailorbird.v1.ConfigurationService/": Scope.ADMIN,
    "/tailorbird.v1.DecisionService/": Scope.DECIDE,
    "/tailorbird.v1.FeatureService/BackfillFeatures": Scope.ADMIN,
    "/tailorbird.v1.FeatureService/GetFeatures": Scope.PROFILE,
    "/tailorbird.v1.FeatureService/PushFeatures": Scope.INGEST,
    "/tailorbird.v1.FeatureService/WatchSegments": Scope.PROFILE,
    "/tailorbird.v1.ProfileService/": Scope.PROFILE,
    "/tailorbird.v1.SignalService/": Scope.INGEST,
    "/grpc.health.v1.Health/": OPEN,
    "/grpc.reflection.v1.ServerReflection/": OPEN,
    "/grpc.reflection.v1alpha.ServerReflection/": OPEN,
}


def guarded(table: HandlerTable, gate: Admission) -> HandlerTable:
    """Return the table with a key asked for before each handler. Raises `InternalError` NO_RULE for a method without one."""
    return {path: _guarded(handler, gate, rule_of(path)) for path, handler in table.items()}


def rule_of(path: str) -> Scope | None:
    """Return the scope a method asks for, `OPEN` for none. Raises `InternalError` NO_RULE."""
    service = path[: path.rindex("/") + 1]
    for prefix in (path, service):
        if prefix in RULES:
            return RULES[prefix]
    raise InternalError("NO_RULE", f"expected a rule for {path} in guard.RULES, found none")


def key_of(context: CallContext) -> str | None:
    """Return the key a caller shows, None without one."""
    for name, value in context.metadata:
        if name == "authorization" and isinstance(value, str):
            return value[len(BEARER) :].strip() if value[: len(BEARER)].lower() == BEARER else value
    return None


def _admit(gate: Admission, scope: Scope, context: CallContext, size_bytes: int) -> None:
    key = gate.admit(key_of(context), scope, size_bytes)
    context.caller, context.tenant = key.name or key.id, key.tenant
    context.may_ingest = Scope.INGEST in key.scopes


def _guarded(handler: Handler, gate: Admission, scope: Scope | None) -> Handler:
    if scope is OPEN:
        return handler
    match handler:
        case Unary(unary, prompt):

            async def guarded_unary(request: bytes, context: CallContext) -> bytes:
                _admit(gate, scope, context, len(request))
                return await unary(request, context)

            return Unary(guarded_unary, prompt)
        case ServerStream(server_stream):

            async def guarded_server_stream(request: bytes, context: CallContext) -> AsyncIterator[bytes]:
                _admit(gate, scope, context, len(request))
                async for answer in server_stream(request, context):
                    gate.check(key_of(context), scope)  # a stream outlives a key that is revoked
                    yield answer

            return ServerStream(guarded_server_stream)
        case ClientStream(client_stream):

            async def guarded_client_stream(requests: AsyncIterator[bytes], context: CallContext) -> bytes:
                _admit(gate, scope, context, 0)
                return await client_stream(_each(requests, context, gate, scope), context)

            return ClientStream(guarded_client_stream)
        case Bidirectional(bidirectional):

            async def guarded_bidirectional(
                requests: AsyncIterator[bytes], context: CallContext
            ) -> AsyncIterator[bytes]:
                _admit(gate, scope, context, 0)
                async for answer in bidirectional(_each(requests, context, gate, scope), context):
                    yield answer

            return Bidirectional(guarded_bidirectional)


async def _each(
    requests: AsyncIterator[bytes], context: CallContext, gate: Admission, scope: Scope
) -> AsyncIterator[bytes]:
    """Yield the requests of a stream, asking for the key with each."""
    async for request in requests:
        gate.admit(key_of(context), scope, len(request))
        yield request

"""Several tenants in one service: each a data directory with its own log, state and keys, and a handler table over it.

One table stands before theirs. A caller's key says whose it is, and no other tenant is reached with it; without keys, which
is on this machine alone, the metadata `tailorbird-tenant` says it.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tailorbird.engine.errors import CallerError, Damaged, InternalError, NotFound, PermissionDenied
from tailorbird.server.keys import Gate, Key, Scope, id_in
from tailorbird.server.transport import (
    Bidirectional,
    CallContext,
    ClientStream,
    Handler,
    HandlerTable,
    ServerStream,
    Unary,
)

LOG = logging.getLogger(__name__)

METADATA = "tailorbird-tenant"
TENANTS_MAX = 64
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")

Choose = Callable[[CallContext], str]


def parse_tenants(texts: Sequence[str]) -> dict[str, Path]:
    """Return directories by tenant, of `NAME=DIR` each. Raises `CallerError` BAD_TENANT."""
    found: dict[str, Path] = {}
    for text in texts:
        name, equals, path = text.partition("=")
        if not _NAME.fullmatch(name) or not equals or not path:
            raise CallerError(
                "BAD_TENANT",
                f"expected NAME=DIR, the name of small letters, digits, - and _, got {text!r} in --tenant",
            )
        directory = Path(path)
        if name in found or any(directory.resolve() == other.resolve() for other in found.values()):
            raise CallerError("BAD_TENANT", f"expected each tenant and directory once, got {text!r} again in --tenant")
        found[name] = directory
    if len(found) > TENANTS_MAX:
        raise CallerError("BAD_TENANT", f"expected at most {TENANTS_MAX} tenants in one service, got {len(found)}")
    return found


def chooser(names: Sequence[str]) -> Choose:
    """Return what says whose call it is: the tenant of its key, else the one its metadata names, else the first.

    It raises `NotFound` UNKNOWN_TENANT, and `PermissionDenied` WRONG_TENANT for metadata that is not the key's tenant, there or not.
    """
    first, known = names[0], frozenset(names)

    def choose(context: CallContext) -> str:
        named = next((value for name, value in context.metadata if name == METADATA), None)
        if context.tenant:
            if named is not None and named != context.tenant:
                raise PermissionDenied(
                    "WRONG_TENANT", f"expected the tenant of your key in {METADATA}, or none, got another"
                )
            return context.tenant
        tenant = first if named is None else str(named)
        if tenant not in known:
            raise NotFound("UNKNOWN_TENANT", f"expected a tenant of this service in {METADATA}, got another")
        context.tenant = tenant
        return tenant

    return choose


def by_tenant(tables: Mapping[str, HandlerTable], choose: Choose) -> HandlerTable:
    """Return one table that hands each call to the handler of its tenant. Raises `InternalError` TABLES_DIFFER."""
    first = next(iter(tables.values()))
    dispatching = {}
    for path, handler in first.items():
        handlers = {tenant: table.get(path) for tenant, table in tables.items()}
        if len({type(other) for other in handlers.values()}) != 1 or any(len(t) != len(first) for t in tables.values()):
            raise InternalError("TABLES_DIFFER", f"expected the same methods of every tenant, got others at {path}")
        dispatching[path] = _dispatching(handler, handlers, choose)
    return dispatching


def _dispatching(first: Handler, handlers: Mapping[str, Handler | None], choose: Choose) -> Handler:
    # Nothing here awaits: what the chosen handler returns is handed on as it is, so that a prompt one stays prompt.
    match first:
        case Unary(_, prompt):
            unary = {tenant: handler.function for tenant, handler in handlers.items() if isinstance(handler, Unary)}
            return Unary(lambda request, context: unary[choose(context)](request, context), prompt)
        case ServerStream():
            answering = {
                tenant: handler.function for tenant, handler in handlers.items() if isinstance(handler, ServerStream)
            }
            return ServerStream(lambda request, context: answering[choose(context)](request, context))
        case ClientStream():
            taking = {
                tenant: handler.function for tenant, handler in handlers.items() if isinstance(handler, ClientStream)
            }
            return ClientStream(lambda requests, context: taking[choose(context)](requests, context))
        case Bidirectional():
            both = {
                tenant: handler.function for tenant, handler in handlers.items() if isinstance(handler, Bidirectional)
            }
            return Bidirectional(lambda requests, context: both[choose(context)](requests, context))


class Gates:
    """Lets calls in by the keys of several tenants: a key stands in the directory of its tenant, and in no other's.

    A key that says it is of another tenant than the directory it stands in is refused everywhere.
    """

    def __init__(self, gates: Sequence[Gate]) -> None:
        self._gates = tuple(gates)
        self._found: dict[str, Gate] = {}  # by the id of a key that was let in: no more than there are keys

    def admit(self, text: str | None, scope: Scope, size_bytes: int) -> Key:
        """Return the key of a call; raises as `Gate.admit`."""
        return self._gate_of(text).admit(text, scope, size_bytes)

    def check(self, text: str | None, scope: Scope) -> Key:
        """Return the key of a call that goes on; raises as `Gate.check`."""
        return self._gate_of(text).check(text, scope)

    def _gate_of(self, text: str | None) -> Gate:
        key_id = id_in(text)
        found = self._found.get(key_id)
        if found is not None and found.knows(key_id):
            return found
        # Where nobody is let in, whoever has the id says best why.
        fallback = self._gates[0]
        for gate in self._gates:
            try:
                if gate.knows(key_id):
                    self._found[key_id] = gate
                    return gate
                if gate.holds(key_id):
                    fallback = gate
            except Damaged as error:  # which is this tenant's trouble and no other's
                LOG.error("the keys of tenant %s cannot be read, nobody reaches it: %s", gate.tenant, error)
        return fallback

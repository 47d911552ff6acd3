"""What callers meet: the API's handlers with health, reflection, keys and metrics, on one transport."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from tailorbird.engine import Engine
from tailorbird.engine.feature_table import FeatureTable
from tailorbird.server import health as health_service
from tailorbird.server.guard import guarded
from tailorbird.server.handlers import SERVICES
from tailorbird.server.health import Health
from tailorbird.server.keys import DEFAULT_TENANT, Gate, KeyFile
from tailorbird.server.listening import DEFAULT, checked_address, is_local
from tailorbird.server.metrics import Metrics
from tailorbird.server.reflection import reflection_table
from tailorbird.server.transport import HandlerTable, ServerLimits
from tailorbird.server.transport.choice import AUTO, make_server
from tailorbird.server.transport.listeners import ListenOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeOptions:
    """Where to listen, whether that may be another address than loopback, on which transport, and the limits."""

    listen: str = DEFAULT
    transport: str = AUTO
    insecure_listen: bool = False
    sockets: ListenOptions = field(default_factory=ListenOptions)
    tenant: str = DEFAULT_TENANT
    metrics: str = ""
    limits: ServerLimits = field(default_factory=ServerLimits)


class Face:
    """Serves a handler table of the API to callers; `start` says SERVING, `stop` lets calls in flight finish first."""

    def __init__(
        self,
        engine: Engine,
        options: ServeOptions,
        api: Callable[[Callable[[FeatureTable], None] | None], HandlerTable],
    ) -> None:
        """`api` makes the table, given what is told of every table of features that is read."""
        keys = KeyFile(engine.directory.root)
        self.asks_for_keys = bool(keys.read())
        self._address = checked_address(options.listen, insecure=options.insecure_listen or self.asks_for_keys)
        self._health = Health(SERVICES, engine.stale_categories)
        self.metrics = Metrics(engine) if options.metrics else None
        table: HandlerTable = {
            **api(self.metrics.feature_ages.observe if self.metrics else None),
            **self._health.table(),
            **reflection_table((*SERVICES, health_service.SERVICE)),
        }
        if self.asks_for_keys:
            table = guarded(table, Gate(keys, options.tenant))
        if self.metrics is not None:
            table = self.metrics.metered(table)
        self._server, self.transport = make_server(options.transport, table, options.limits, options.sockets)

    async def start(self) -> str:
        """Listen and say SERVING; return the address with the port that was bound."""
        port = await self._server.start(self._address)
        self._health.set_serving(True)
        return f"{self._address.rpartition(':')[0]}:{port}" if port else self._address

    async def stop(self) -> None:
        """Say NOT_SERVING, then let calls in flight finish within the grace time."""
        self._health.set_serving(False)
        await self._server.stop()


def who_may_call(address: str, options: ServeOptions, asks_for_keys: bool) -> list[str]:
    """Return the lines an operator should read about who can reach what."""
    tls = options.sockets.tls
    if asks_for_keys:
        lines = ["every call needs a key"]
        if tls is None and not is_local(address):
            lines.append("WARNING: without TLS, keys and answers can be read on their way; see --tls-certificate")
        return lines
    if tls is not None and tls.client_authorities is not None:
        return ["every caller shows a certificate"]
    if is_local(address):
        return ["calls are not authenticated; only this machine can reach the address"]
    return ["WARNING: calls are not authenticated, and the address can be reached from other machines"]

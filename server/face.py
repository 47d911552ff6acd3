"""What callers meet: the API's handlers with health, reflection, keys, metrics and whoever watches, on one transport."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from tailorbird.engine import Engine
from tailorbird.engine.consent import DataType
from tailorbird.engine.feature_table import FeatureTable
from tailorbird.server import health as health_service
from tailorbird.server.endpoint import Readiness, always_ready
from tailorbird.server.guard import guarded
from tailorbird.server.handlers import SERVICES
from tailorbird.server.health import Health
from tailorbird.server.keys import DEFAULT_TENANT, Gate, KeyFile
from tailorbird.server.listening import DEFAULT, checked_address, is_local
from tailorbird.server.metrics import Metrics
from tailorbird.server.observers import ObserverOptions
from tailorbird.server.reflection import reflection_table
from tailorbird.server.tenants import Gates, by_tenant, chooser
from tailorbird.server.transport import HandlerTable, ServerLimits
from tailorbird.server.transport.choice import AUTO, make_server
from tailorbird.server.transport.listeners import ListenOptions
from tailorbird.server.watching import Begin, watched
from tailorbird.server.writer import GroupWriter


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeOptions:
    """Where to listen, whether that may be another address than loopback, on which transport, what tells of it, and the limits.

    `tenant` is whose keys are let in where there is one engine.
    """

    listen: str = DEFAULT
    transport: str = AUTO
    insecure_listen: bool = False
    sockets: ListenOptions = field(default_factory=ListenOptions)
    tenant: str = DEFAULT_TENANT
    metrics: str = ""
    observers: ObserverOptions = field(default_factory=ObserverOptions)
    limits: ServerLimits = field(default_factory=ServerLimits)


# Makes the API's table of a tenant, given what is told of every table of features that is read, None for nobody.
Api = Callable[[str, Callable[[FeatureTable], None] | None], HandlerTable]


class Face:
    """Serves the API of engines, by tenant, to callers; `start` says SERVING, `stop` lets calls in flight finish first.

    `watchers` are told of every call, the first of them first; `writers` are there in a process that writes.
    """

    def __init__(
        self,
        engines: Mapping[str, Engine],
        options: ServeOptions,
        api: Api,
        watchers: Sequence[Begin] = (),
        readiness: Readiness = always_ready,
        writers: Mapping[str, GroupWriter] | None = None,
    ) -> None:
        files = {tenant: KeyFile(engine.directory.root) for tenant, engine in engines.items()}
        keys = {tenant: file.read() for tenant, file in files.items()}
        self.asks_for_keys = any(keys.values())
        self.keyless_tenants = [
            tenant
            for tenant, found in keys.items()
            if not any(key.tenant == tenant and not key.revoked for key in found)
        ]
        self._address = checked_address(options.listen, insecure=options.insecure_listen or self.asks_for_keys)
        self._engines = engines
        self._health = Health(SERVICES, self._stale_categories)
        self.metrics = Metrics(engines, readiness, writers) if options.metrics else None
        tables = {
            tenant: api(tenant, self.metrics.feature_ages.of(tenant) if self.metrics else None) for tenant in engines
        }
        table: HandlerTable = {
            **(next(iter(tables.values())) if len(tables) == 1 else by_tenant(tables, chooser(list(tables)))),
            **self._health.table(),
            **reflection_table((*SERVICES, health_service.SERVICE)),
        }
        if self.asks_for_keys:
            gates = [Gate(file, tenant) for tenant, file in files.items()]
            table = guarded(table, gates[0] if len(gates) == 1 else Gates(gates))
        if self.metrics is not None:
            table = self.metrics.metered(table)
        for begin in reversed(watchers):
            table = watched(table, begin)
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

    def _stale_categories(self) -> list[DataType]:
        return [category for engine in self._engines.values() for category in engine.stale_categories()]


def who_may_call(
    address: str, options: ServeOptions, asks_for_keys: bool, keyless_tenants: Sequence[str] = ()
) -> Iterator[str]:
    """Yield the lines an operator should read about who can reach what."""
    tls = options.sockets.tls
    if asks_for_keys:
        yield "every call needs a key"
        for tenant in keyless_tenants:
            yield (
                f"WARNING: tenant {tenant} has no key of its own, so nobody reaches it; "
                f"see `tailorbird keys create --tenant {tenant}`"
            )
        if tls is None and not is_local(address):
            yield "WARNING: without TLS, keys and answers can be read on their way; see --tls-certificate"
    elif tls is not None and tls.client_authorities is not None:
        yield "every caller shows a certificate"
    elif is_local(address):
        yield "calls are not authenticated; only this machine can reach the address"
    else:
        yield "WARNING: calls are not authenticated, and the address can be reached from other machines"

"""The service: one engine, its writer thread, and the handler table on a transport."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from tailorbird.engine import Engine
from tailorbird.engine.consent import DataType
from tailorbird.engine.errors import TailorbirdError
from tailorbird.server import health as health_service
from tailorbird.server.guard import guarded
from tailorbird.server.handlers import SERVICES, build_table
from tailorbird.server.health import Health
from tailorbird.server.keys import DEFAULT_TENANT, Gate, KeyFile
from tailorbird.server.listening import DEFAULT, checked_address, is_local
from tailorbird.server.metrics import Metrics
from tailorbird.server.reflection import reflection_table
from tailorbird.server.tenants import Gates, by_tenant, chooser
from tailorbird.server.transport import HandlerTable, ServerLimits
from tailorbird.server.transport.choice import AUTO, make_server
from tailorbird.server.transport.listeners import ListenOptions
from tailorbird.server.upkeep import Upkeep
from tailorbird.server.watching import Begin, watched
from tailorbird.server.writer import GroupWriter

LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeOptions:
    """Where to listen, whether that may be another address than loopback, on which transport, and the limits.

    `tenant` is whose keys are let in where there is one engine.
    """

    listen: str = DEFAULT
    transport: str = AUTO
    insecure_listen: bool = False
    sockets: ListenOptions = field(default_factory=ListenOptions)
    tenant: str = DEFAULT_TENANT
    metrics: str = ""
    limits: ServerLimits = field(default_factory=ServerLimits)


class State(StrEnum):
    """What the service is at, as `/readyz` tells it."""

    STARTING = "STARTING"
    SERVING = "SERVING"
    STOPPING = "STOPPING"


class Service:
    """Everything that runs beside an engine, or beside several, by tenant. They are the caller's: opened before, closed after.

    `watchers` are told of every call, the first of them first.
    """

    def __init__(
        self, engines: Engine | Mapping[str, Engine], options: ServeOptions, watchers: Sequence[Begin] = ()
    ) -> None:
        self._engines = engines if isinstance(engines, Mapping) else {options.tenant: engines}
        self._state = State.STARTING
        files = {tenant: KeyFile(engine.directory.root) for tenant, engine in self._engines.items()}
        keys = {tenant: file.read() for tenant, file in files.items()}
        self.asks_for_keys = any(keys.values())
        self.keyless_tenants = [
            tenant
            for tenant, found in keys.items()
            if not any(key.tenant == tenant and not key.revoked for key in found)
        ]
        self._address = checked_address(options.listen, insecure=options.insecure_listen or self.asks_for_keys)
        self._writers = {
            tenant: GroupWriter(engine, options.limits.pending_write_bytes_max)
            for tenant, engine in self._engines.items()
        }
        self._health = Health(SERVICES, self._stale_categories)
        self._metrics = Metrics(self._engines, self.unreadiness) if options.metrics else None
        table: HandlerTable = {
            **self._api(),
            **self._health.table(),
            **reflection_table((*SERVICES, health_service.SERVICE)),
        }
        if self.asks_for_keys:
            gates = [Gate(file, tenant) for tenant, file in files.items()]
            table = guarded(table, gates[0] if len(gates) == 1 else Gates(gates))
        if self._metrics is not None:
            self._metrics.watch_writers(self._writers)
            self._metrics_address = checked_address(
                options.metrics, insecure=options.insecure_listen, option="--metrics"
            )
            table = self._metrics.metered(table)
        for begin in reversed(watchers):
            table = watched(table, begin)
        self._server, self.transport = make_server(options.transport, table, options.limits, options.sockets)
        self._upkeep: list[asyncio.Task[None]] = []
        self.metrics_port = 0

    def _api(self) -> HandlerTable:
        tables = {
            tenant: build_table(
                engine, self._writers[tenant], self._metrics.feature_ages.of(tenant) if self._metrics else None
            )
            for tenant, engine in self._engines.items()
        }
        return next(iter(tables.values())) if len(tables) == 1 else by_tenant(tables, chooser(list(tables)))

    def _stale_categories(self) -> list[DataType]:
        return [category for engine in self._engines.values() for category in engine.stale_categories()]

    def unreadiness(self) -> tuple[str, str] | None:
        """Return reason and text why not every call can be answered, None where it can. From any thread."""
        if self._state is not State.SERVING:
            return str(self._state), "expected a service that takes calls; ask again"
        for tenant, writer in self._writers.items():
            if not writer.is_alive:
                return "WRITER_STOPPED", f"decisions go on, writes fail, of tenant {tenant}; see the log, then restart"
        return None

    async def start(self) -> str:
        """Warm up, listen, say SERVING; return the address with the port that was bound."""
        if self._metrics is not None:
            self.metrics_port = self._metrics.serve(self._metrics_address)
        for engine in self._engines.values():
            engine.warm()
            engine.log_decisions()
        port = await self._server.start(self._address)
        loop = asyncio.get_running_loop()
        self._upkeep = [
            loop.create_task(Upkeep(engine, self._writers[tenant]).run()) for tenant, engine in self._engines.items()
        ]
        self._health.set_serving(True)
        self._state = State.SERVING
        return f"{self._address.rpartition(':')[0]}:{port}" if port else self._address

    async def stop(self) -> None:
        """Say NOT_SERVING, let calls in flight finish within the grace time, write what waits."""
        self._state = State.STOPPING
        self._health.set_serving(False)
        await self._server.stop()
        for task in self._upkeep:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        for tenant, writer in self._writers.items():
            try:
                await writer.call(self._engines[tenant].flush)
            except TailorbirdError as error:
                LOG.error("what was served last could not be written: %s", error)
            await writer.close()
        if self._metrics is not None:
            self._metrics.close()


async def serve(
    engines: Engine | Mapping[str, Engine],
    options: ServeOptions,
    announce: Callable[[str], None],
    watchers: Sequence[Begin] = (),
) -> None:
    """Serve until SIGTERM or SIGINT; `announce` gets the lines an operator should read."""
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(_log_stray)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    service = Service(engines, options, watchers)
    try:
        address = await service.start()
        if isinstance(engines, Mapping):
            standing = ", ".join(f"{tenant} at {engine.position}" for tenant, engine in engines.items())
            announce(f"listening on {address}, transport {service.transport}, log positions {standing}")
        else:
            announce(f"listening on {address}, transport {service.transport}, log position {engines.position}")
        if options.metrics:
            announce(f"metrics at http://{options.metrics.rpartition(':')[0]}:{service.metrics_port}/metrics")
        for line in _who_is_let_in(service, options, address):
            announce(line)
        await stopping.wait()
        announce("stopping: calls in flight finish first")
    finally:
        await service.stop()


def _who_is_let_in(service: Service, options: ServeOptions, address: str) -> Iterator[str]:
    if service.asks_for_keys:
        yield "every call needs a key"
        for tenant in service.keyless_tenants:
            yield (
                f"WARNING: tenant {tenant} has no key of its own, so nobody reaches it; "
                f"see `tailorbird keys create --tenant {tenant}`"
            )
        if options.sockets.tls is None and not is_local(address):
            yield "WARNING: without TLS, keys and answers can be read on their way; see --tls-certificate"
    elif options.sockets.tls is not None and options.sockets.tls.client_authorities is not None:
        yield "every caller shows a certificate"
    elif is_local(address):
        yield "calls are not authenticated; only this machine can reach the address"
    else:
        yield "WARNING: calls are not authenticated, and the address can be reached from other machines"


def _log_stray(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Log what nobody awaited, without the values asyncio would show."""
    error = context.get("exception")
    LOG.error("an exception that nobody awaited", exc_info=error if isinstance(error, BaseException) else None)

"""The service: one engine, its writer thread, and the handler table on a transport."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import Callable
from dataclasses import dataclass, field

from tailorbird.engine import Engine
from tailorbird.engine.errors import TailorbirdError
from tailorbird.server import health as health_service
from tailorbird.server.guard import guarded
from tailorbird.server.handlers import SERVICES, build_table
from tailorbird.server.health import Health
from tailorbird.server.keys import DEFAULT_TENANT, Gate, KeyFile
from tailorbird.server.listening import DEFAULT, checked_address, is_local
from tailorbird.server.metrics import Metrics
from tailorbird.server.reflection import reflection_table
from tailorbird.server.transport import HandlerTable, ServerLimits
from tailorbird.server.transport.choice import AUTO, make_server
from tailorbird.server.transport.listeners import ListenOptions
from tailorbird.server.upkeep import Upkeep
from tailorbird.server.writer import GroupWriter

LOG = logging.getLogger(__name__)


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


class Service:
    """Everything that runs beside the engine. The engine is the caller's: opened before, closed after."""

    def __init__(self, engine: Engine, options: ServeOptions) -> None:
        self._engine = engine
        keys = KeyFile(engine.directory.root)
        self.asks_for_keys = bool(keys.read())
        self._address = checked_address(options.listen, insecure=options.insecure_listen or self.asks_for_keys)
        self._writer = GroupWriter(engine, options.limits.pending_write_bytes_max)
        self._health = Health(SERVICES, engine.stale_categories)
        self._metrics = Metrics(engine) if options.metrics else None
        table: HandlerTable = {
            **build_table(engine, self._writer, self._metrics.feature_ages.observe if self._metrics else None),
            **self._health.table(),
            **reflection_table((*SERVICES, health_service.SERVICE)),
        }
        if self.asks_for_keys:
            table = guarded(table, Gate(keys, options.tenant))
        if self._metrics is not None:
            self._metrics_address = checked_address(
                options.metrics, insecure=options.insecure_listen, option="--metrics"
            )
            table = self._metrics.metered(table)
        self._server, self.transport = make_server(options.transport, table, options.limits, options.sockets)
        self._upkeep: asyncio.Task[None] | None = None
        self.metrics_port = 0

    async def start(self) -> str:
        """Warm up, listen, say SERVING; return the address with the port that was bound."""
        self._engine.warm()
        self._engine.log_decisions()
        if self._metrics is not None:
            self.metrics_port = self._metrics.serve(self._metrics_address)
        port = await self._server.start(self._address)
        self._upkeep = asyncio.get_running_loop().create_task(Upkeep(self._engine, self._writer).run())
        self._health.set_serving(True)
        return f"{self._address.rpartition(':')[0]}:{port}" if port else self._address

    async def stop(self) -> None:
        """Say NOT_SERVING, let calls in flight finish within the grace time, write what waits."""
        self._health.set_serving(False)
        await self._server.stop()
        if self._upkeep is not None:
            self._upkeep.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._upkeep
        try:
            await self._writer.call(self._engine.flush)
        except TailorbirdError as error:
            LOG.error("what was served last could not be written: %s", error)
        await self._writer.close()
        if self._metrics is not None:
            self._metrics.close()


async def serve(engine: Engine, options: ServeOptions, announce: Callable[[str], None]) -> None:
    """Serve until SIGTERM or SIGINT; `announce` gets the lines an operator should read."""
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    service = Service(engine, options)
    try:
        address = await service.start()
        announce(f"listening on {address}, transport {service.transport}, log position {engine.position}")
        if options.metrics:
            announce(f"metrics at http://{options.metrics.rpartition(':')[0]}:{service.metrics_port}/metrics")
        if service.asks_for_keys:
            announce("every call needs a key")
            if options.sockets.tls is None and not is_local(address):
                announce("WARNING: without TLS, keys and answers can be read on their way; see --tls-certificate")
        elif options.sockets.tls is not None and options.sockets.tls.client_authorities is not None:
            announce("every caller shows a certificate")
        elif is_local(address):
            announce("calls are not authenticated; only this machine can reach the address")
        else:
            announce("WARNING: calls are not authenticated, and the address can be reached from other machines")
        await stopping.wait()
        announce("stopping: calls in flight finish first")
    finally:
        await service.stop()

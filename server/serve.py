"""The service as one process: one engine, its writer thread, and the face. As several: processes/."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import Callable

from tailorbird.engine import Engine
from tailorbird.engine.errors import TailorbirdError
from tailorbird.server.face import Face, ServeOptions, who_may_call
from tailorbird.server.handlers import build_table
from tailorbird.server.listening import checked_address
from tailorbird.server.upkeep import Upkeep
from tailorbird.server.writer import GroupWriter

LOG = logging.getLogger(__name__)

__all__ = ["ServeOptions", "Service", "serve"]


class Service:
    """Everything that runs beside the engine. The engine is the caller's: opened before, closed after."""

    def __init__(self, engine: Engine, options: ServeOptions) -> None:
        self._engine = engine
        self._options = options
        self._writer = GroupWriter(engine, options.limits)
        self._face = Face(engine, options, lambda observe: build_table(engine, self._writer, observe))
        self.asks_for_keys, self.transport = self._face.asks_for_keys, self._face.transport
        self._upkeep: asyncio.Task[None] | None = None
        self.metrics_port = 0

    async def start(self) -> str:
        """Warm up, listen, say SERVING; return the address with the port that was bound."""
        self._engine.warm()
        self._engine.log_decisions()
        if self._face.metrics is not None:
            self.metrics_port = self._face.metrics.serve(
                checked_address(self._options.metrics, insecure=self._options.insecure_listen, option="--metrics")
            )
        address = await self._face.start()
        self._upkeep = asyncio.get_running_loop().create_task(Upkeep(self._engine, self._writer).run())
        return address

    async def stop(self) -> None:
        """Say NOT_SERVING, let calls in flight finish within the grace time, write what waits."""
        await self._face.stop()
        if self._upkeep is not None:
            self._upkeep.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._upkeep
        try:
            await self._writer.call(self._engine.flush)
        except TailorbirdError as error:
            LOG.error("what was served last could not be written: %s", error)
        await self._writer.close()
        if self._face.metrics is not None:
            self._face.metrics.close()


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
        for line in who_may_call(address, options, service.asks_for_keys):
            announce(line)
        await stopping.wait()
        announce("stopping: calls in flight finish first")
    finally:
        await service.stop()

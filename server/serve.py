"""The service as one process: engines by tenant, their writer threads, and the face. As several processes: processes/."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from typing import Any

from tailorbird.engine import Engine
from tailorbird.engine.errors import TailorbirdError
from tailorbird.server.face import Face, ServeOptions, who_may_call
from tailorbird.server.handlers import build_table
from tailorbird.server.listening import checked_address
from tailorbird.server.upkeep import Upkeep
from tailorbird.server.watching import Begin
from tailorbird.server.writer import GroupWriter

LOG = logging.getLogger(__name__)

__all__ = ["ServeOptions", "Service", "serve"]


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
        self._options = options
        self._state = State.STARTING
        self._writers = {tenant: GroupWriter(engine, options.limits) for tenant, engine in self._engines.items()}
        self.face = Face(
            self._engines,
            options,
            lambda tenant, observe: build_table(self._engines[tenant], self._writers[tenant], observe),
            watchers,
            self.unreadiness,
            self._writers,
        )
        self._upkeep: list[asyncio.Task[None]] = []
        self.metrics_port = 0

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
        if self.face.metrics is not None:
            self.metrics_port = self.face.metrics.serve(
                checked_address(self._options.metrics, insecure=self._options.insecure_listen, option="--metrics")
            )
        for engine in self._engines.values():
            engine.warm()
            engine.log_decisions()
        address = await self.face.start()
        loop = asyncio.get_running_loop()
        self._upkeep = [
            loop.create_task(Upkeep(engine, self._writers[tenant]).run()) for tenant, engine in self._engines.items()
        ]
        self._state = State.SERVING
        return address

    async def stop(self) -> None:
        """Say NOT_SERVING, let calls in flight finish within the grace time, write what waits."""
        self._state = State.STOPPING
        await self.face.stop()
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
        if self.face.metrics is not None:
            self.face.metrics.close()


async def serve(
    engines: Mapping[str, Engine],
    options: ServeOptions,
    announce: Callable[[str], None],
    watchers: Sequence[Begin] = (),
) -> None:
    """Serve until SIGTERM or SIGINT; `announce` gets the lines an operator should read."""
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(log_stray)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    service = Service(engines, options, watchers)
    try:
        address = await service.start()
        face = service.face
        announce(f"listening on {address}, transport {face.transport}, {standing(engines)}")
        if options.metrics:
            announce(f"metrics at http://{options.metrics.rpartition(':')[0]}:{service.metrics_port}/metrics")
        for line in who_may_call(address, options, face.asks_for_keys, face.keyless_tenants):
            announce(line)
        await stopping.wait()
        announce("stopping: calls in flight finish first")
    finally:
        await service.stop()


def standing(engines: Mapping[str, Engine]) -> str:
    """Return where the logs stand, as people read it."""
    if len(engines) == 1:
        return f"log position {next(iter(engines.values())).position}"
    return "log positions " + ", ".join(f"{tenant} at {engine.position}" for tenant, engine in engines.items())


def log_stray(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Log what nobody awaited, without the values asyncio would show."""
    error = context.get("exception")
    LOG.error("an exception that nobody awaited", exc_info=error if isinstance(error, BaseException) else None)

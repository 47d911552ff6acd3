"""A worker: `python -m tailorbird.server.processes.worker PLAN`. Decides on engines it only reads, and relays writes."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
from collections.abc import Callable, Mapping, Sequence

import uvloop

from tailorbird.engine import Engine
from tailorbird.engine.errors import TailorbirdError
from tailorbird.engine.feature_table import FeatureTable
from tailorbird.server.face import Face
from tailorbird.server.handlers import read_table
from tailorbird.server.handlers.served import LeftBehind
from tailorbird.server.lanes import INGEST
from tailorbird.server.observers import observing
from tailorbird.server.positions import Positions
from tailorbird.server.processes.gathering import Figures
from tailorbird.server.processes.parent import Parent, Report, tell_failure
from tailorbird.server.processes.plan import Plan, read_plan
from tailorbird.server.processes.relay import Relay
from tailorbird.server.processes.servings import ServingsRelay
from tailorbird.server.serve import log_stray, standing
from tailorbird.server.transport import HandlerTable, Unary
from tailorbird.server.transport.choice import NATIVE, chosen
from tailorbird.server.upkeep import FLUSH_S
from tailorbird.server.watching import Begin

LOG = logging.getLogger("tailorbird.server.processes.worker")  # run as `__main__`

CONNECT_S = 2.0  # a worker that starts while the writer is down decides all the same


class Reader:
    """One tenant's engine, which it only reads, and its writer at the other end of a relay."""

    def __init__(self, engine: Engine, plan: Plan, tenant: str, outdated: Callable[[], None]) -> None:
        """`outdated` is called where the engine reads a state that is no longer in its place."""
        self._engine = engine
        self._number = plan.number
        self._outdated = outdated
        self._state = engine.directory.state_stamp()
        self._configuration = engine.configuration_version
        self.connected = asyncio.Event()
        self._positions = Positions(lambda: engine.position)
        self._relay = Relay(plan.relay(tenant), plan.options.limits, self._stands, self._connect)
        self._servings = ServingsRelay(engine, self._relay)
        self.running: list[asyncio.Task[None]] = []

    def table(self, observe: Callable[[FeatureTable], None] | None) -> HandlerTable:
        """Return the API's handlers; `observe` is told of every table of features that is read."""
        writes = self._relay.table()
        ingest = writes[INGEST]
        assert isinstance(ingest, Unary)
        left_behind = LeftBehind(self._servings.write, ingest.function)
        return {**read_table(self._engine, self._positions, left_behind, observe), **writes}

    def start(self) -> None:
        """Warm up, and look for the writer."""
        self._engine.collect_servings()
        self._engine.warm()
        self._engine.log_decisions(self._number)
        create = asyncio.get_running_loop().create_task
        self.running = [create(self._relay.run()), create(self._servings.run()), create(self._write_decisions())]

    async def stop(self) -> None:
        """Hand over what was served last."""
        try:
            await asyncio.wait_for(self._servings.write(), CONNECT_S)
        except Exception as error:  # whatever it is, this process ends now
            LOG.error("what was served last could not be written: %s", error)
        for task in self.running:
            task.cancel()
        await asyncio.gather(*self.running, return_exceptions=True)

    def _connect(self) -> None:
        self.connected.set()
        if self._engine.directory.state_stamp() != self._state:
            # The writer did not trust the state and has built another.
            self._outdated()

    def _stands(self, position: int, configuration: int) -> None:
        if configuration != self._configuration:
            self._engine.follow_configuration()
            self._configuration = configuration
        self._positions.moved()

    async def _write_decisions(self) -> None:
        """Write the decision log by the clock, on another thread than the one that decides."""
        while True:
            await asyncio.sleep(FLUSH_S)
            await asyncio.to_thread(self._engine.flush)


class Worker:
    """Everything that runs beside a worker's engines."""

    def __init__(self, engines: Mapping[str, Engine], plan: Plan, parent: Parent, watchers: Sequence[Begin]) -> None:
        self._engines = engines
        self._parent = parent
        self._readers = {
            tenant: Reader(engine, plan, tenant, lambda: parent.tell(Report(kind="outdated")))
            for tenant, engine in engines.items()
        }
        self._face = Face(engines, plan.options, lambda tenant, observe: self._readers[tenant].table(observe), watchers)
        self._figures = Figures(self._face.metrics, plan.figures)

    async def start(self) -> None:
        """Warm up, find the writers, listen, say SERVING."""
        for reader in self._readers.values():
            reader.start()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CONNECT_S):
                for reader in self._readers.values():
                    await reader.connected.wait()
        await self._figures.start()
        address = await self._face.start()
        self._parent.tell(
            Report(
                kind="ready",
                address=address,
                transport=self._face.transport,
                standing=standing(self._engines),
                asks_for_keys=self._face.asks_for_keys,
                keyless_tenants=self._face.keyless_tenants,
            )
        )

    def running(self) -> list[asyncio.Task[None]]:
        """Return the tasks it cannot do without."""
        return [task for reader in self._readers.values() for task in reader.running]

    async def stop(self) -> None:
        """Say NOT_SERVING, let calls in flight finish within the grace time, hand over what was served last."""
        await self._face.stop()
        await asyncio.gather(*(reader.stop() for reader in self._readers.values()))
        await self._figures.stop()


async def work(engines: Mapping[str, Engine], plan: Plan, watchers: Sequence[Begin]) -> int:
    """Serve until the supervisor says so or is gone; return the exit code."""
    asyncio.get_running_loop().set_exception_handler(log_stray)
    parent = Parent(plan.parent)
    worker = Worker(engines, plan, parent, watchers)
    try:
        await worker.start()
        return 0 if await parent.until_told(worker.running()) else 1
    finally:
        await worker.stop()


def main(arguments: list[str]) -> int:
    """Run as the module's docstring says."""
    plan = read_plan(arguments)
    loop_factory = uvloop.new_event_loop if chosen(plan.options.transport)[0] == NATIVE else None
    with contextlib.ExitStack() as stack:
        watchers = stack.enter_context(observing(plan.options.observers, plan.name))
        try:
            engines = {
                tenant: stack.enter_context(Engine.open(data, read_only=True)) for tenant, data in plan.tenants.items()
            }
            return stack.enter_context(asyncio.Runner(loop_factory=loop_factory)).run(work(engines, plan, watchers))
        except TailorbirdError as error:
            tell_failure(plan.parent, error)
            LOG.error("the worker cannot work", exc_info=error)
            return 1
        except Exception as error:  # told while there still is a log without values
            LOG.critical("an exception that nobody caught", exc_info=error)
            return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv))

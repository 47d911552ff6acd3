"""A worker: `python -m tailorbird.server.processes.worker PLAN`. Decides on an engine it only reads, and relays writes."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys

import uvloop

from tailorbird.engine import Engine
from tailorbird.engine.errors import TailorbirdError
from tailorbird.server.face import Face
from tailorbird.server.handlers import read_table
from tailorbird.server.handlers.served import LeftBehind
from tailorbird.server.lanes import INGEST
from tailorbird.server.positions import Positions
from tailorbird.server.processes.gathering import Figures
from tailorbird.server.processes.parent import Parent, Report, tell_failure
from tailorbird.server.processes.plan import Plan, log_as, read_plan
from tailorbird.server.processes.relay import Relay
from tailorbird.server.processes.servings import ServingsRelay
from tailorbird.server.transport import Unary
from tailorbird.server.transport.choice import NATIVE, chosen
from tailorbird.server.upkeep import FLUSH_S

LOG = logging.getLogger(__name__)

CONNECT_S = 2.0  # a worker that starts while the writer is down decides all the same


class Worker:
    """Everything that runs beside a worker's engine."""

    def __init__(self, engine: Engine, plan: Plan, parent: Parent) -> None:
        self._engine = engine
        self._plan = plan
        self._parent = parent
        self._state = engine.directory.state_stamp()
        self._configuration = engine.configuration_version
        self._connected = asyncio.Event()
        self._positions = Positions(lambda: engine.position)
        limits = plan.options.limits
        self._relay = Relay(plan.relay, limits, self._stands, self._connect)
        self._servings = ServingsRelay(engine, self._relay)
        writes = self._relay.table()
        ingest = writes[INGEST]
        assert isinstance(ingest, Unary)
        left_behind = LeftBehind(self._servings.write, ingest.function)
        self._face = Face(
            engine,
            plan.options,
            lambda observe: {**read_table(engine, self._positions, left_behind, observe), **writes},
        )
        self._figures = Figures(self._face.metrics, plan.figures)
        self.running: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Warm up, find the writer, listen, say SERVING."""
        self._engine.collect_servings()
        self._engine.warm()
        self._engine.log_decisions(self._plan.number)
        create = asyncio.get_running_loop().create_task
        self.running = [create(self._relay.run()), create(self._servings.run()), create(self._write_decisions())]
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._connected.wait(), CONNECT_S)
        await self._figures.start()
        address = await self._face.start()
        self._parent.tell(
            Report(
                kind="ready",
                address=address,
                transport=self._face.transport,
                position=self._engine.position,
                asks_for_keys=self._face.asks_for_keys,
            )
        )

    async def stop(self) -> None:
        """Say NOT_SERVING, let calls in flight finish within the grace time, hand over what was served last."""
        await self._face.stop()
        try:
            await asyncio.wait_for(self._servings.write(), CONNECT_S)
        except Exception as error:  # whatever it is, this process ends now
            LOG.error("what was served last could not be written: %s", error)
        for task in self.running:
            task.cancel()
        await asyncio.gather(*self.running, return_exceptions=True)
        await self._figures.stop()

    def _connect(self) -> None:
        self._connected.set()
        if self._engine.directory.state_stamp() != self._state:
            # The writer did not trust the state and has built another.
            self._parent.tell(Report(kind="outdated"))

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


async def work(engine: Engine, plan: Plan) -> int:
    """Serve until the supervisor says so or is gone; return the exit code."""
    parent = Parent(plan.parent)
    worker = Worker(engine, plan, parent)
    try:
        await worker.start()
        return 0 if await parent.until_told(worker.running) else 1
    finally:
        await worker.stop()


def main(arguments: list[str]) -> int:
    """Run as the module's docstring says."""
    plan = read_plan(arguments)
    log_as(plan.name)
    loop_factory = uvloop.new_event_loop if chosen(plan.options.transport)[0] == NATIVE else None
    try:
        with Engine.open(plan.data, read_only=True) as engine, asyncio.Runner(loop_factory=loop_factory) as runner:
            return runner.run(work(engine, plan))
    except TailorbirdError as error:
        tell_failure(plan.parent, error)
        LOG.error("%s", error)
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv))

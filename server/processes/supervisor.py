"""The supervisor: starts one writer a tenant and the workers, starts them again when they die, and stops them in order.

It opens no engine. It holds each directory's lock, which the writer inherits: whichever of them dies, nobody else can write while
one of ours may. It holds the port as well, without listening, so that port 0 is chosen once.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import shutil
import signal
import tempfile
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from prometheus_client import CollectorRegistry

from tailorbird.engine.directory import Directory
from tailorbird.engine.errors import TailorbirdError
from tailorbird.server.endpoint import Endpoint
from tailorbird.server.face import ServeOptions, who_may_call
from tailorbird.server.listening import checked_address
from tailorbird.server.processes.child import Child
from tailorbird.server.processes.gathering import GatheredFigures
from tailorbird.server.processes.parent import Report
from tailorbird.server.processes.plan import NO_DESCRIPTOR, WORKER, WRITER, Plan
from tailorbird.server.processes.port import Port

LOG = logging.getLogger(__name__)

BACKOFF_S_MIN, BACKOFF_S_MAX = 0.1, 10.0
STEADY_S = 10.0  # a process that lived that long begins anew with the shortest wait
KILL_S = 30.0  # beyond the grace time, after which a process that does not end is killed


@dataclass(slots=True, eq=False)
class _Place:
    """Where a process belongs: whichever runs there now, and what came of the earlier ones."""

    role: str
    name: str
    child: Child
    changing: asyncio.Lock
    tenant: str = ""  # of a writer
    restart_count: int = 0
    backoff_s: float = BACKOFF_S_MIN


class Supervisor:
    """Runs the processes of data directories, by tenant, until it is told to stop."""

    def __init__(
        self, tenants: dict[str, Path], options: ServeOptions, worker_count: int, announce: Callable[[str], None]
    ) -> None:
        """`announce` gets the lines an operator should read."""
        self._tenants = tenants
        self._options = options
        self._worker_count = worker_count
        self._announce = announce
        self._places: list[_Place] = []
        self._children: set[Child] = set()
        self._stopping = asyncio.Event()
        self._replace = asyncio.Event()

    async def run(self) -> None:
        """Serve until SIGTERM or SIGINT; SIGHUP replaces the workers one by one. Raises what a process could not start for."""
        options = self._options
        metrics = ""
        if options.metrics:
            metrics = checked_address(options.metrics, insecure=options.insecure_listen, option="--metrics")
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stopping.set)
        loop.add_signal_handler(signal.SIGHUP, self._replace.set)
        self._locks: dict[str, int] = {}
        run = Path(tempfile.mkdtemp(prefix="tailorbird-"))  # its owner's alone
        stop_metrics: Callable[[], None] | None = None
        try:
            for tenant, data in self._tenants.items():
                self._locks[tenant] = Directory(data).lock()
            self._run = run
            with Port(self._options) as port:
                self._port = port
                ready = await self._start()
                if ready is None:
                    return
                if metrics:
                    stop_metrics = self._serve_metrics(metrics)
                for line in who_may_call(ready.address, options, ready.asks_for_keys, ready.keyless_tenants):
                    self._announce(line)
                await self._keep_all()
        finally:
            if stop_metrics is not None:
                stop_metrics()
            await self._stop()
            shutil.rmtree(run, ignore_errors=True)
            for lock in self._locks.values():
                os.close(lock)

    # ---- starting and stopping -------------------------------------------------------------------------------------

    async def _start(self) -> Report | None:
        """Start all and say where they listen; None where it was told to stop meanwhile."""
        for tenant in self._tenants:
            name = WRITER if len(self._tenants) == 1 else f"{WRITER} {tenant}"
            self._places.append(_Place(WRITER, name, await self._spawn(WRITER, name, tenant), asyncio.Lock(), tenant))
        if await self._unless_stopping(_all_ready([place.child for place in self._places])) is None:
            return None
        for number in range(1, self._worker_count + 1):
            name = f"{WORKER} {number}"
            self._places.append(_Place(WORKER, name, await self._spawn(WORKER, name), asyncio.Lock()))
        ready = await self._unless_stopping(_all_ready(self._children_of(WORKER)))
        if ready is None:
            return None
        self._announce(
            f"listening on {self._port.shown(ready.address)}, transport {ready.transport}, {ready.standing}, "
            f"{self._worker_count} worker(s)"
        )
        return msgspec.structs.replace(ready, address=self._port.shown(ready.address))

    async def _unless_stopping(self, ready: Coroutine[Any, Any, Report]) -> Report | None:
        waiting = asyncio.ensure_future(ready)
        stopping = asyncio.ensure_future(self._stopping.wait())
        await asyncio.wait((waiting, stopping), return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if waiting.done():
            return waiting.result()
        waiting.cancel()
        return None

    async def _stop(self) -> None:
        """Stop the workers, then the writer."""
        for role in (WORKER, WRITER):
            children = [child for child in self._children if child.plan.role == role]
            for child in children:
                child.stop()
            if children:
                await asyncio.gather(*(self._ended(child) for child in children))

    async def _ended(self, child: Child) -> None:
        """Wait for the end of a process that was asked for it; one that does not heed is killed."""
        try:
            await asyncio.wait_for(child.ended(), self._options.limits.grace_s + KILL_S)
        except TimeoutError:
            LOG.error("%s did not end within the grace time and is killed", child.plan.name)
            child.kill()
            await child.ended()
        self._children.discard(child)

    def _children_of(self, role: str) -> list[Child]:
        return [place.child for place in self._places if place.role == role]

    async def _spawn(self, role: str, name: str, tenant: str = "") -> Child:
        is_writer = role == WRITER
        taken = {child.plan.number for child in self._children if child.plan.role == WORKER}
        number = (
            list(self._tenants).index(tenant)
            if is_writer
            else next(n for n in range(1, len(taken) + 2) if n not in taken)
        )
        plan = Plan(
            role=role,
            name=name,
            number=number,
            tenants=self._tenants,
            tenant=tenant,
            run=self._run,
            options=self._port.options,
            parent=NO_DESCRIPTOR,
            lock=self._locks[tenant] if is_writer else NO_DESCRIPTOR,
        )
        child = Child(plan, self._replace.set)
        self._children.add(child)
        try:
            await child.start(() if is_writer else self._port.descriptors)
        except BaseException:
            self._children.discard(child)
            raise
        LOG.info("%s is process %d", plan.name, child.pid)
        return child

    # ---- keeping them running --------------------------------------------------------------------------------------

    async def _keep_all(self) -> None:
        """Keep all running until it is time to stop. Raises what only a bug of ours can be."""
        create = asyncio.get_running_loop().create_task
        keeping = {create(self._replace_when_asked()), *(create(self._keep(place)) for place in self._places)}
        stopping = create(self._stopping.wait())
        done, _ = await asyncio.wait([stopping, *keeping], return_when=asyncio.FIRST_COMPLETED)
        self._announce("stopping: calls in flight finish first")
        for task in keeping:
            task.cancel()
        await asyncio.gather(*keeping, return_exceptions=True)
        for task in keeping & done:
            task.result()

    async def _keep(self, place: _Place) -> None:
        """Start a process again whenever it has ended, later and later while it does not live long."""
        while True:
            child = place.child
            code = await child.ended()
            self._children.discard(child)
            async with place.changing:
                if place.child is not child:
                    continue
                if child.lived_s > STEADY_S:
                    place.backoff_s = BACKOFF_S_MIN
                LOG.warning("%s ended with %d and is started again in %.1f s", place.name, code, place.backoff_s)
                await asyncio.sleep(place.backoff_s)
                place.backoff_s = min(BACKOFF_S_MAX, place.backoff_s * random.uniform(1.5, 2.5))
                place.restart_count += 1
                try:
                    place.child = await self._spawn(place.role, place.name, place.tenant)
                except OSError as error:  # Too little memory, too many processes: perhaps not for long.
                    LOG.error("%s could not be started: %s", place.name, error)

    async def _replace_when_asked(self) -> None:
        while True:
            await self._replace.wait()
            self._replace.clear()
            self._announce("replacing the workers one by one")
            try:
                for place in self._places:
                    if place.role == WORKER:
                        await self._replace_one(place)
            except TailorbirdError as error:
                LOG.error("a new worker could not start, the others stay: %s", error)
            else:
                self._announce("the workers are replaced")

    async def _replace_one(self, place: _Place) -> None:
        """Put a new worker in the place of another, which goes on until the new one serves."""
        async with place.changing:
            child = await self._spawn(WORKER, place.name)
            try:
                await child.ready()
            except BaseException:
                child.kill()
                await child.ended()
                self._children.discard(child)
                raise
            former, place.child = place.child, child
            former.stop()
            await self._ended(former)

    def _serve_metrics(self, address: str) -> Callable[[], None]:
        registry = CollectorRegistry()
        registry.register(
            GatheredFigures(
                lambda: {place.name: place.child.plan.figures for place in self._places},
                lambda: {place.name: place.restart_count for place in self._places},
            )
        )
        endpoint = Endpoint(registry, self._unreadiness)
        port = endpoint.start(address)
        self._announce(f"metrics at http://{address.rpartition(':')[0]}:{port}/metrics")
        return endpoint.close

    def _unreadiness(self) -> tuple[str, str] | None:
        """Return reason and text why not every call can be answered, None where it can. From any thread."""
        if self._stopping.is_set():
            return "STOPPING", "expected a service that takes calls; ask another"
        if not any(child.is_ready for child in self._children_of(WORKER)):
            return "STARTING", "expected a worker that takes calls, got none; ask again"
        for place in self._places:
            if place.role == WRITER and not place.child.is_ready:
                return "WRITER_STOPPED", f"decisions go on, writes fail until the {place.name} is back; see the log"
        return None


async def _all_ready(children: list[Child]) -> Report:
    reports = await asyncio.gather(*(child.ready() for child in children))
    return reports[0]

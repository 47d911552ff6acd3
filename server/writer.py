"""The one writer of the service: writes on one thread, ingest calls in groups, in two lanes.

There is no timer: the next group is whatever arrived while the last one was being written, so that one sync of the log
serves all of it. The live lane goes first; the bulk lane gets a turn whenever nothing live waits, and after `LIVE_IN_A_ROW`
turns of the live one at the latest. Within a lane writes keep their order. Decisions stay on the event loop and never wait for
this thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

from tailorbird.engine import Engine
from tailorbird.engine.errors import CallerError, ResourceExhausted, Unavailable
from tailorbird.engine.signals import IngestReport, Signal
from tailorbird.server.lanes import Lane
from tailorbird.server.positions import Positions
from tailorbird.server.transport import ServerLimits

T = TypeVar("T")

LIVE_IN_A_ROW = 4
BULK_GROUP_SIGNALS_MAX = 1_000  # live writes wait for a bulk group under way; one batch may be larger


@dataclass(slots=True)
class _Batch:
    signals: Sequence[Signal]
    done: asyncio.Future[IngestReport]
    size_bytes: int
    arrived_s: float = field(default_factory=time.monotonic)


@dataclass(slots=True)
class _Call:
    function: Callable[[], object]
    done: asyncio.Future[object]
    size_bytes: int
    arrived_s: float = field(default_factory=time.monotonic)


@dataclass(slots=True)
class _Queue:
    """The writes of a lane, in their order; `size_bytes` of them wait or are being written."""

    bytes_max: int
    group_signals_max: int
    jobs: deque[_Batch | _Call] = field(default_factory=deque)
    size_bytes: int = 0


_Result = IngestReport | Exception


class GroupWriter:
    """Owns the thread every write of the engine runs on. Made and used on one event loop; `close` writes what waits."""

    def __init__(self, engine: Engine, limits: ServerLimits) -> None:
        self._engine = engine
        signals_max = engine.configuration.limits.batch_signals_max
        self._lanes = {
            Lane.LIVE: _Queue(limits.live_lane_bytes_max, signals_max),
            Lane.BULK: _Queue(limits.bulk_lane_bytes_max, min(signals_max, BULK_GROUP_SIGNALS_MAX)),
        }
        self._live_in_a_row = 0
        self._busy_since_s = 0.0  # when the oldest of what is being written arrived
        self._closed = False
        self._wake = asyncio.Event()
        self.positions = Positions(lambda: engine.position)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="tailorbird-writer")
        self._task = asyncio.get_running_loop().create_task(self._run())

    @property
    def is_alive(self) -> bool:
        """Whether writes are taken and can succeed. From any thread, as `lag_s`."""
        return not self._closed and not self._task.done() and not self._engine.writer.failed

    @property
    def lag_s(self) -> float:
        """How long the oldest write has waited that no decision sees yet, 0 without one."""
        arrived_s = [self._busy_since_s] if self._busy_since_s else []
        for queue in self._lanes.values():
            with contextlib.suppress(IndexError):  # taken meanwhile
                arrived_s.append(queue.jobs[0].arrived_s)
        return max(0.0, time.monotonic() - min(arrived_s)) if arrived_s else 0.0

    async def ingest(self, signals: Sequence[Signal], size_bytes: int = 0, lane: Lane = Lane.LIVE) -> IngestReport:
        """Write a batch with whatever else arrived; return its own outcomes once decisions see it.

        `size_bytes` counts towards the bound on what waits in the lane. Raises `ResourceExhausted` WRITER_BUSY past it.
        """
        batch = _Batch(signals, asyncio.get_running_loop().create_future(), size_bytes)
        self._enqueue(batch, lane)
        return await batch.done

    async def call(self, function: Callable[[], T], size_bytes: int = 0, lane: Lane = Lane.LIVE) -> T:
        """Run another write in its turn; return its result."""
        done: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._enqueue(_Call(function, done, size_bytes), lane)  # type: ignore[arg-type]
        return await done

    def waiting_bytes(self, lane: Lane) -> int:
        """Return how many bytes of a lane wait or are being written."""
        return self._lanes[lane].size_bytes

    async def close(self) -> None:
        """Take no more, write what waits, and end the thread; idempotent."""
        if not self._closed:
            self._closed = True
            self._wake.set()
        await self._task
        self._thread.shutdown()

    def _enqueue(self, job: _Batch | _Call, lane: Lane) -> None:
        if self._closed:
            raise Unavailable("STOPPING", "expected a running server, got one that is stopping; send it again")
        queue = self._lanes[lane]
        if queue.jobs and queue.size_bytes + job.size_bytes > queue.bytes_max:
            raise ResourceExhausted(
                "WRITER_BUSY",
                f"expected at most {lane}_lane_bytes_max = {queue.bytes_max} bytes waiting to be written in the {lane} lane, "
                f"got {queue.size_bytes + job.size_bytes}; send it again a little later",
            )
        queue.size_bytes += job.size_bytes
        queue.jobs.append(job)
        self._wake.set()

    def _next_queue(self) -> _Queue | None:
        """Return the lane whose turn it is, None where nothing waits."""
        live, bulk = self._lanes[Lane.LIVE], self._lanes[Lane.BULK]
        if live.jobs and (not bulk.jobs or self._live_in_a_row < LIVE_IN_A_ROW):
            self._live_in_a_row += 1
            return live
        self._live_in_a_row = 0
        return bulk if bulk.jobs else None

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            queue = self._next_queue()
            if queue is None:
                if self._closed:
                    return
                self._wake.clear()
                await self._wake.wait()
                continue
            job = queue.jobs.popleft()
            self._busy_since_s = job.arrived_s
            if isinstance(job, _Call):
                await self._run_call(job)
                queue.size_bytes -= job.size_bytes
            else:
                group = _group_from(queue, job)
                results = await loop.run_in_executor(self._thread, self._write, [batch.signals for batch in group])
                for batch, result in zip(group, results, strict=True):
                    _finish(batch.done, result)
                queue.size_bytes -= sum(batch.size_bytes for batch in group)
            self._busy_since_s = 0.0
            self.positions.moved()

    async def _run_call(self, job: _Call) -> None:
        result: object
        try:
            result = await asyncio.get_running_loop().run_in_executor(self._thread, job.function)
        except Exception as error:  # handed to whoever asked
            result = error
        _finish(job.done, result)

    def _write(self, batches: list[Sequence[Signal]]) -> list[_Result]:
        """Write a group as one; on the writer's thread."""
        try:
            report = self._engine.ingest([signal for signals in batches for signal in signals])
        except CallerError as error:
            # Nothing of the group was written. One batch is at fault, and the others must not pay for it.
            return [error] if len(batches) == 1 else [self._write([signals])[0] for signals in batches]
        except Exception as error:  # handed to whoever asked
            return [error] * len(batches)
        results: list[_Result] = []
        start = 0
        for signals in batches:
            results.append(IngestReport(report.outcomes[start : start + len(signals)], report.position))
            start += len(signals)
        return results


def _group_from(queue: _Queue, first: _Batch) -> list[_Batch]:
    """Return `first` and the batches right behind it, up to the lane's limit of signals."""
    group = [first]
    signal_count = len(first.signals)
    while queue.jobs and isinstance(following := queue.jobs[0], _Batch):
        signal_count += len(following.signals)
        if signal_count > queue.group_signals_max:
            break
        queue.jobs.popleft()
        group.append(following)
    return group


def _finish(done: asyncio.Future[T], result: object) -> None:
    """Hand over a result; a caller who gave up has cancelled its future."""
    if done.done():
        return
    if isinstance(result, Exception):
        done.set_exception(result)
    else:
        done.set_result(result)  # type: ignore[arg-type]

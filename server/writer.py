"""The one writer of the service: writes in their order on one thread, ingest calls in groups.

There is no timer: the next group is whatever arrived while the last one was being written, so that one sync of the log
serves all of it. Decisions stay on the event loop and never wait for this thread.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

from tailorbird.engine import Engine
from tailorbird.engine.errors import CallerError, ResourceExhausted, Unavailable
from tailorbird.engine.signals import IngestReport, Signal

T = TypeVar("T")


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


_Result = IngestReport | Exception


class GroupWriter:
    """Owns the thread every write of the engine runs on. Made and used on one event loop; `close` writes what waits."""

    def __init__(self, engine: Engine, pending_bytes_max: int) -> None:
        self._engine = engine
        self._pending_bytes_max = pending_bytes_max
        self._group_signals_max = engine.configuration.limits.batch_signals_max
        self._queue: deque[_Batch | _Call] = deque()
        self._pending_bytes = 0
        self._busy_since_s = 0.0  # when the oldest of what is being written arrived
        self._waiting: list[tuple[int, asyncio.Future[None]]] = []
        self._closed = False
        self._wake = asyncio.Event()
        self._written = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="tailorbird-writer")
        self._task = asyncio.get_running_loop().create_task(self._run())

    @property
    def is_alive(self) -> bool:
        """Whether writes are taken and can succeed. From any thread, as the two below."""
        return not self._closed and not self._task.done() and not self._engine.writer.failed

    @property
    def lag_s(self) -> float:
        """How long the oldest write has waited that no decision sees yet, 0 without one."""
        since_s = self._busy_since_s
        if not since_s:
            try:
                since_s = self._queue[0].arrived_s
            except IndexError:
                return 0.0
        return max(0.0, time.monotonic() - since_s)

    @property
    def waiting_bytes(self) -> int:
        """What waits to be written."""
        return self._pending_bytes

    async def ingest(self, signals: Sequence[Signal], size_bytes: int = 0) -> IngestReport:
        """Write a batch with whatever else arrived; return its own outcomes once decisions see it.

        `size_bytes` counts towards the bound on what waits. Raises `ResourceExhausted` WRITER_BUSY past the bound.
        """
        batch = _Batch(signals, asyncio.get_running_loop().create_future(), size_bytes)
        self._enqueue(batch)
        return await batch.done

    async def call(self, function: Callable[[], T], size_bytes: int = 0) -> T:
        """Run another write in its turn; return its result."""
        done: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._enqueue(_Call(function, done, size_bytes))  # type: ignore[arg-type]
        return await done

    async def reach(self, position: int, timeout_s: float) -> None:
        """Wait until the state has reached `position`. Raises `Unavailable` POSITION_NOT_REACHED after `timeout_s`."""
        if self._engine.position >= position:
            return
        reached: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((position, reached))
        try:
            await asyncio.wait_for(reached, timeout_s)
        except TimeoutError:
            raise Unavailable(
                "POSITION_NOT_REACHED",
                f"expected the state to reach min_position {position} within {timeout_s:.3g} s, got "
                f"{self._engine.position}; ask again, or with a longer deadline",
            ) from None
        finally:
            self._waiting = [entry for entry in self._waiting if entry[1] is not reached]

    async def changed(self) -> None:
        """Wait until something more was written."""
        await self._written.wait()

    async def close(self) -> None:
        """Take no more, write what waits, and end the thread; idempotent."""
        if not self._closed:
            self._closed = True
            self._wake.set()
        await self._task
        self._thread.shutdown()

    def _enqueue(self, job: _Batch | _Call) -> None:
        if self._closed:
            raise Unavailable("STOPPING", "expected a running server, got one that is stopping; send it again")
        if self._queue and self._pending_bytes + job.size_bytes > self._pending_bytes_max:
            raise ResourceExhausted(
                "WRITER_BUSY",
                f"expected at most pending_write_bytes_max = {self._pending_bytes_max} bytes waiting to be written, "
                f"got {self._pending_bytes + job.size_bytes}; send it again a little later",
            )
        self._pending_bytes += job.size_bytes
        self._queue.append(job)
        self._wake.set()

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while self._queue or not self._closed:
            if not self._queue:
                self._wake.clear()
                await self._wake.wait()
                continue
            job = self._queue.popleft()
            self._busy_since_s = job.arrived_s
            if isinstance(job, _Call):
                await self._run_call(job)
            else:
                group = self._group_from(job)
                results = await loop.run_in_executor(self._thread, self._write, [batch.signals for batch in group])
                for batch, result in zip(group, results, strict=True):
                    _finish(batch.done, result)
                self._pending_bytes -= sum(batch.size_bytes for batch in group)
            self._busy_since_s = 0.0
            self._tell_waiting()

    def _group_from(self, first: _Batch) -> list[_Batch]:
        """Return `first` and the batches right behind it, up to the engine's own limit of signals."""
        group = [first]
        signal_count = len(first.signals)
        while self._queue and isinstance(following := self._queue[0], _Batch):
            signal_count += len(following.signals)
            if signal_count > self._group_signals_max:
                break
            self._queue.popleft()
            group.append(following)
        return group

    async def _run_call(self, job: _Call) -> None:
        result: object
        try:
            result = await asyncio.get_running_loop().run_in_executor(self._thread, job.function)
        except Exception as error:  # handed to whoever asked
            result = error
        self._pending_bytes -= job.size_bytes
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

    def _tell_waiting(self) -> None:
        self._written.set()
        self._written = asyncio.Event()
        for position, reached in self._waiting:
            if position <= self._engine.position and not reached.done():
                reached.set_result(None)


def _finish(done: asyncio.Future[T], result: object) -> None:
    """Hand over a result; a caller who gave up has cancelled its future."""
    if done.done():
        return
    if isinstance(result, Exception):
        done.set_exception(result)
    else:
        done.set_result(result)  # type: ignore[arg-type]

"""Calls that were read and have not begun: one queue for all connections of the native transport, so that it knows its load.

While the loop has time, a call runs as soon as it was read. Once calls have run for `SLICE_S` without a pause, those that are
read wait here, and the loop turns to its sockets between slices. So a call's time starts when it arrives, not when others have
been answered, and one that cannot begin within its deadline, or is too many, is refused where it is read (`http2.Intake`), for
a fraction of what it would cost. Why, and what it brings: docs/adr/0014-calls-wait-in-one-queue.md.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

from tailorbird.native import http2
from tailorbird.server.statuses import CallStatus, Code
from tailorbird.server.transport import ServerLimits

LOG = logging.getLogger(__name__)

SLICE_S = 0.002
# Without a call for so long the loop has slept, and a slice begins anew.
PAUSE_S = 0.0001
# What a slice begins before it is known what a call takes, and at least.
SLICE_CALLS, SLICE_CALLS_MIN = 100, 4
# How many calls or seconds the mean time of a call is taken over, the last half of them weighing most.
MEAN_CALLS, MEAN_S = 256, 0.05
TELL_S = 10.0
NS_PER_S = 1_000_000_000


class Runner(Protocol):
    """A connection, as its waiting calls see it."""

    def waits(self, stream_id: int) -> bool: ...

    def begin(self, event: tuple[Any, ...], read_s: float) -> None: ...

    def flush(self) -> None: ...


class Backlog:
    """The queue, and what a call takes. `intake` is shared with the connections' sessions, which count calls into it.

    `clock` is steady, in seconds.
    """

    def __init__(self, limits: ServerLimits, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        status = overloaded(limits)
        trailers = [(name.encode(), value.encode()) for name, value in status.trailers()]
        self.intake = http2.Intake(
            limits.waiting_calls_max, limits.waiting_bytes_max, (status.code, status.message.encode(), trailers)
        )
        self._queue: deque[tuple[Runner, tuple[Any, ...], float]] = deque()
        self._until_s = self._ended_s = self._began_s = 0.0
        self._spent_s, self._spent_calls = 0.0, 0
        self._left = SLICE_CALLS
        self._told_count, self._told_s = 0, float("-inf")

    def run(self, connection: Runner, event: tuple[Any, ...], read_s: float) -> None:
        """Begin a call now, or let it wait. `read_s` is when it was read, `event` is a CALL with its message."""
        if not self._queue:
            now_s = self._clock()
            if now_s - self._ended_s > PAUSE_S:
                self._begin_slice(now_s)
            if now_s < self._until_s and self._left > 0:
                self._left -= 1
                self.intake.leave(len(event[5]))
                connection.begin(event, read_s)
                self._ended_s = self._clock()
                return
            self._began_s = now_s
            asyncio.get_running_loop().call_soon(self._run_slice)
        self._queue.append((connection, event, read_s))

    def tell(self, now_s: float) -> None:
        """Log that calls were refused, at most every `TELL_S`; called every so often."""
        count = self.intake.refused_count
        if count > self._told_count and now_s - self._told_s >= TELL_S:
            LOG.warning(
                "refused %d calls as too many, now %d wait; a call takes %.3g ms",
                count - self._told_count,
                self.intake.calls,
                self.intake.call_ns / 1e6,
            )
            self._told_count, self._told_s = count, now_s

    def _run_slice(self) -> None:
        queue, intake = self._queue, self.intake
        touched: dict[Runner, None] = {}
        self._begin_slice(self._clock())
        count = len(queue)
        try:
            while queue:
                connection, event, read_s = queue.popleft()
                intake.leave(len(event[5]))
                if connection.waits(event[1]):
                    connection.begin(event, read_s)
                    touched[connection] = None
                self._left -= 1
                if self._left <= 0 or self._clock() >= self._until_s:
                    break
            for connection in touched:
                connection.flush()
        finally:
            self._ended_s = self._clock()
            self._learn(count - len(queue))
            if queue:
                asyncio.get_running_loop().call_soon(self._run_slice)

    def _begin_slice(self, now_s: float) -> None:
        # By number as well: a call that runs in a task has taken no time when it has begun.
        call_s = self.intake.call_ns / NS_PER_S
        self._until_s = now_s + SLICE_S
        self._left = SLICE_CALLS if call_s == 0 else max(SLICE_CALLS_MIN, round(2 * SLICE_S / call_s))

    def _learn(self, call_count: int) -> None:
        """Take the time since the slice before, reading included, for what these calls took."""
        self._spent_s += self._ended_s - self._began_s
        self._spent_calls += call_count
        self._began_s = self._ended_s
        if self._spent_calls >= MEAN_CALLS or (self._spent_s >= MEAN_S and self._spent_calls):
            self.intake.call_ns = round(self._spent_s / self._spent_calls * NS_PER_S)
            self._spent_s, self._spent_calls = self._spent_s / 2, self._spent_calls // 2


def overloaded(limits: ServerLimits) -> CallStatus:
    """Return the status of a call that is refused because others wait."""
    return CallStatus(
        Code.RESOURCE_EXHAUSTED,
        f"expected at most waiting_calls_max = {limits.waiting_calls_max} calls and waiting_bytes_max = "
        f"{limits.waiting_bytes_max} bytes before it, and a deadline that they leave time for; send it again a little later",
        "OVERLOADED",
    )

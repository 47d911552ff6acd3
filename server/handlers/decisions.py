"""DecisionService."""

from __future__ import annotations

import asyncio
import contextlib
import time

from tailorbird.engine import Engine
from tailorbird.engine.errors import TailorbirdError, Unavailable
from tailorbird.engine.requests import Decision
from tailorbird.server.handlers.waiting import reach
from tailorbird.server.messages.decisions import (
    read_batch,
    read_page,
    read_request,
    write_batch,
    write_decision,
    write_page,
)
from tailorbird.server.transport import CallContext
from tailorbird.server.writer import GroupWriter

SLICE_S = 500e-6  # of a batch, before other calls have their turn


class DecisionHandlers:
    """Decides on the event loop itself: a hand-over to a thread would cost more than the decision."""

    def __init__(self, engine: Engine, writer: GroupWriter) -> None:
        self._engine = engine
        self._writer = writer
        self._candidates_max = engine.configuration.limits.candidates_max
        self._one_batch = asyncio.Lock()

    async def decide(self, request_bytes: bytes, context: CallContext) -> bytes:
        """Answer Decide."""
        answer = self._engine.decide_encoded(request_bytes)
        if answer is not None:
            return answer
        request = read_request(request_bytes, self._candidates_max)
        if request.min_position > 0:
            await reach(self._writer, request.min_position, context)
        return write_decision(self._engine.decide(request))

    async def decide_page(self, request_bytes: bytes, context: CallContext) -> bytes:
        """Answer DecidePage."""
        request = read_page(request_bytes)
        await reach(self._writer, request.min_position, context)
        return write_page(self._engine.decide_page(request))

    async def decide_batch(self, request_bytes: bytes, context: CallContext) -> bytes:
        """Answer DecideBatch, one batch at a time, in slices between other calls."""
        parsed = read_batch(request_bytes, self._candidates_max)
        requests = [request for request in parsed if not isinstance(request, TailorbirdError)]
        with contextlib.suppress(Unavailable):  # Told by each request that asked for the position.
            await reach(self._writer, max((request.min_position for request in requests), default=0), context)
        outcomes: list[Decision | tuple[str, str]] = []
        async with self._one_batch:
            with contextlib.closing(self._engine.decide_each(requests)) as decisions:
                began_s = time.perf_counter()
                for request in parsed:
                    outcome = request if isinstance(request, TailorbirdError) else next(decisions)
                    if isinstance(outcome, TailorbirdError):
                        outcomes.append((outcome.reason, outcome.message))
                    else:
                        outcomes.append(outcome)
                    if time.perf_counter() - began_s > SLICE_S:
                        await asyncio.sleep(0)
                        began_s = time.perf_counter()
        return write_batch(outcomes)

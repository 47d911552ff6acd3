"""DecisionService."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Sequence

import msgspec

from tailorbird.engine import Engine
from tailorbird.engine.errors import TailorbirdError, Unavailable
from tailorbird.engine.requests import Decision
from tailorbird.server.handlers.served import LeftBehind
from tailorbird.server.handlers.waiting import reach
from tailorbird.server.messages.decisions import (
    read_asked,
    read_batch,
    read_page,
    write_batch,
    write_decision,
    write_page,
)
from tailorbird.server.positions import Positions
from tailorbird.server.transport import CallContext

SLICE_S = 500e-6  # of a batch, before other calls have their turn
NOT_WRITTEN = "SERVING_NOT_WRITTEN"


class DecisionHandlers:
    """Decides on the event loop itself: a hand-over to a thread would cost more than the decision."""

    def __init__(self, engine: Engine, positions: Positions, left_behind: LeftBehind) -> None:
        self._engine = engine
        self._positions = positions
        self._left_behind = left_behind
        self._candidates_max = engine.configuration.limits.candidates_max
        self._one_batch = asyncio.Lock()

    async def decide(self, request_bytes: bytes, context: CallContext) -> bytes:
        """Answer Decide."""
        answer = self._engine.decide_encoded(request_bytes)
        if answer is not None:
            return answer
        request, waits_for_served, events = read_asked(request_bytes, self._candidates_max)
        if request.min_position > 0:
            await reach(self._positions, request.min_position, context)
        decision = self._engine.decide(request)
        self._left_behind.write_events(events, context)
        if waits_for_served:
            (decision,) = await self._served([decision], context)
        return write_decision(decision)

    async def decide_page(self, request_bytes: bytes, context: CallContext) -> bytes:
        """Answer DecidePage."""
        request, waits_for_served, events = read_page(request_bytes)
        await reach(self._positions, request.min_position, context)
        decisions = self._engine.decide_page(request)
        self._left_behind.write_events(events, context)
        return write_page(await self._served(decisions, context) if waits_for_served else decisions)

    async def decide_batch(self, request_bytes: bytes, context: CallContext) -> bytes:
        """Answer DecideBatch, one batch at a time, in slices between other calls."""
        parsed = read_batch(request_bytes, self._candidates_max)
        asked = [each for each in parsed if not isinstance(each, TailorbirdError)]
        requests = [each.request for each in asked]
        with contextlib.suppress(Unavailable):  # Told by each request that asked for the position.
            await reach(self._positions, max((request.min_position for request in requests), default=0), context)
        outcomes: list[Decision | tuple[str, str]] = []
        waiting: list[int] = []
        async with self._one_batch:
            with contextlib.closing(self._engine.decide_each(requests)) as decisions:
                began_s = time.perf_counter()
                for each in parsed:
                    outcome = each if isinstance(each, TailorbirdError) else next(decisions)
                    if isinstance(outcome, TailorbirdError):
                        outcomes.append((outcome.reason, outcome.message))
                    else:
                        assert not isinstance(each, TailorbirdError)
                        self._left_behind.write_events(each.events, context)
                        if each.waits_for_served:
                            waiting.append(len(outcomes))
                        outcomes.append(outcome)
                    if time.perf_counter() - began_s > SLICE_S:
                        await asyncio.sleep(0)
                        began_s = time.perf_counter()
        if waiting:
            served = await self._served([d for i in waiting if isinstance(d := outcomes[i], Decision)], context)
            for index, decision in zip(waiting, served, strict=True):
                outcomes[index] = decision
        return write_batch(outcomes)

    async def _served(self, decisions: Sequence[Decision], context: CallContext) -> list[Decision]:
        """Return the decisions once what they served is written, with the position of that or the reason why there is none."""
        position = await self._left_behind.served_position(context)
        if position:
            return [msgspec.structs.replace(decision, served_position=position) for decision in decisions]
        return [msgspec.structs.replace(decision, degraded=(*decision.degraded, NOT_WRITTEN)) for decision in decisions]

"""DecisionService."""

from __future__ import annotations

from tailorbird.engine import Engine
from tailorbird.server.handlers.waiting import reach
from tailorbird.server.messages.decisions import read_request, write_decision
from tailorbird.server.transport import CallContext
from tailorbird.server.writer import GroupWriter


class DecisionHandlers:
    """Decides on the event loop itself: a hand-over to a thread would cost more than the decision."""

    def __init__(self, engine: Engine, writer: GroupWriter) -> None:
        self._engine = engine
        self._writer = writer
        self._candidates_max = engine.configuration.limits.candidates_max

    async def decide(self, request_bytes: bytes, context: CallContext) -> bytes:
        """Answer Decide."""
        request = read_request(request_bytes, self._candidates_max)
        if request.min_position > 0:
            await reach(self._writer, request.min_position, context)
        return write_decision(self._engine.decide(request))

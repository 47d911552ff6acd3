"""DecisionService."""

from __future__ import annotations

from tailorbird.engine import Engine
from tailorbird.engine.errors import CallerError
from tailorbird.server.handlers.waiting import reach
from tailorbird.server.messages.decisions import decision_message, request_from
from tailorbird.server.messages.wire import decode
from tailorbird.server.transport import CallContext
from tailorbird.server.writer import GroupWriter
from tailorbird.v1 import decision_service_pb2


class DecisionHandlers:
    """Decides on the event loop itself: a hand-over to a thread would cost more than the decision."""

    def __init__(self, engine: Engine, writer: GroupWriter) -> None:
        self._engine = engine
        self._writer = writer
        self._candidates_max = engine.configuration.limits.candidates_max

    async def decide(self, request_bytes: bytes, context: CallContext) -> bytes:
        """Answer Decide."""
        message = decode(decision_service_pb2.DecideRequest, request_bytes)
        if len(message.candidate_ids) > self._candidates_max:
            # The engine says the same; asked here, a million ids are not made into a tuple first.
            raise CallerError(
                "TOO_MANY_CANDIDATES",
                f"expected at most limits.candidates_max = {self._candidates_max} candidate_ids, got "
                f"{len(message.candidate_ids)}; send fewer, or none to let the placement find its own",
            )
        request = request_from(message)
        await reach(self._writer, request.min_position, context)
        return decision_message(self._engine.decide(request)).SerializeToString()

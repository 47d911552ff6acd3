"""Waiting for a log position, within a call's deadline."""

from __future__ import annotations

from tailorbird.server.positions import Positions
from tailorbird.server.transport import CallContext

WITHOUT_DEADLINE_S = 1.0
# What must be left of the deadline for the answer itself.
ANSWER_S = 0.005


async def reach(positions: Positions, position: int, context: CallContext) -> None:
    """Return once the state has reached `position`, or raise `Unavailable` POSITION_NOT_REACHED before the deadline."""
    if position > 0:
        await positions.reach(position, patience_s(context))


def patience_s(context: CallContext) -> float:
    """Return how long a call may wait before it must answer."""
    remaining = context.remaining_s()
    return WITHOUT_DEADLINE_S if remaining is None else max(0.0, remaining - ANSWER_S)

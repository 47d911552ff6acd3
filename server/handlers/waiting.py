"""Waiting for a log position, within a call's deadline."""

from __future__ import annotations

from tailorbird.server.transport import CallContext
from tailorbird.server.writer import GroupWriter

WITHOUT_DEADLINE_S = 1.0
# What must be left of the deadline for the answer itself.
ANSWER_S = 0.005


async def reach(writer: GroupWriter, position: int, context: CallContext) -> None:
    """Return once the state has reached `position`, or raise `Unavailable` POSITION_NOT_REACHED before the deadline."""
    if position <= 0:
        return
    remaining = context.remaining_s()
    await writer.reach(position, WITHOUT_DEADLINE_S if remaining is None else max(0.0, remaining - ANSWER_S))

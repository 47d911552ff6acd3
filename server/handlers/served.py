"""What decisions leave to be written: what they served, and the events that came with the question."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable

from tailorbird.engine.errors import TailorbirdError
from tailorbird.server.handlers.waiting import patience_s
from tailorbird.server.lanes import INGEST
from tailorbird.server.statuses import CallFailed
from tailorbird.server.transport import CallContext, UnaryFunction

LOG = logging.getLogger(__name__)

EVENTS_CALLS_MAX = 1_000  # decisions whose events are being written; those of others are dropped and counted


class LeftBehind:
    """Writes in this process or through another. `write_servings` returns the position from which all that was served before
    is not served again; `ingest` answers an encoded IngestRequest."""

    def __init__(self, write_servings: Callable[[], Awaitable[int]], ingest: UnaryFunction) -> None:
        self._write_servings = write_servings
        self._ingest = ingest
        self._writing: set[asyncio.Task[None]] = set()
        self.events_dropped_count = 0

    async def served_position(self, context: CallContext) -> int:
        """Wait until what was served is written; return its position, 0 where that fails or takes longer than the call has."""
        with contextlib.suppress(TailorbirdError, CallFailed, TimeoutError):
            return await asyncio.wait_for(self._write_servings(), patience_s(context))
        return 0

    def write_events(self, request: bytes, context: CallContext) -> None:
        """Write the events of a decision behind its answer, unless the caller may not or too many are under way."""
        if not request or not context.may_ingest:
            return
        if len(self._writing) >= EVENTS_CALLS_MAX:
            self._drop(f"more than EVENTS_CALLS_MAX = {EVENTS_CALLS_MAX} are under way")
            return
        task = asyncio.get_running_loop().create_task(self._write_events(request, context))
        self._writing.add(task)
        task.add_done_callback(self._writing.discard)

    async def _write_events(self, request: bytes, context: CallContext) -> None:
        try:
            await self._ingest(request, CallContext(method=INGEST, peer=context.peer))
        except (TailorbirdError, CallFailed) as error:
            self._drop(error)  # a text of it may repeat what was sent; the log names it

    def _drop(self, why: str | Exception) -> None:
        self.events_dropped_count += 1
        if self.events_dropped_count.bit_count() == 1:  # 1, 2, 4, 8, ...: seldom enough to be read
            LOG.warning("events of %d decisions were not written, the last because %s", self.events_dropped_count, why)

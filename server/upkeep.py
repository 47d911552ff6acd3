"""What the service does by the clock: publishes statistics, and writes down what was served."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from tailorbird.engine import Engine
from tailorbird.engine.durations import duration_ms
from tailorbird.engine.errors import TailorbirdError
from tailorbird.server.writer import GroupWriter

LOG = logging.getLogger(__name__)

FLUSH_S = 0.1
READERS_S = 5.0


class Upkeep:
    """Runs `Engine.flush`, `tick` and `check_readers` on the writer's thread until it is cancelled.

    A failure is logged once and tried again: the caller of a write hears of a full disk by itself.
    """

    def __init__(self, engine: Engine, writer: GroupWriter) -> None:
        self._engine = engine
        self._writer = writer
        self._tick_s = duration_ms(engine.configuration.statistics.tick, "statistics.tick") / 1_000
        self._ticked_at = -1
        self._failing: set[str] = set()

    async def run(self) -> None:
        """Do all of it for ever."""
        await asyncio.gather(
            self._every(FLUSH_S, "flush", self._engine.flush),
            self._every(self._tick_s, "tick", self._tick),
            self._every(READERS_S, "check_readers", self._engine.check_readers),
        )

    async def _every(self, interval_s: float, name: str, work: Callable[[], object]) -> None:
        while True:
            await asyncio.sleep(interval_s)
            try:
                await self._writer.call(work)
            except TailorbirdError as error:
                if name not in self._failing:
                    LOG.error("%s failed and is tried again: %s", name, error)
                self._failing.add(name)
            else:
                self._failing.discard(name)

    def _tick(self) -> None:
        """Publish statistics when something was written since the last time."""
        if self._engine.position != self._ticked_at:
            self._engine.tick()
            self._ticked_at = self._engine.position

"""What a worker has served, until the writer has written it."""

from __future__ import annotations

import asyncio
import contextlib
import logging

import msgspec

from tailorbird.engine import Engine
from tailorbird.server.processes.frames import POSITION
from tailorbird.server.processes.intake import SERVINGS
from tailorbird.server.processes.relay import Relay

LOG = logging.getLogger(__name__)

EVERY_S = 0.02
AGAIN_S = 0.2  # after a failure


class ServingsRelay:
    """Sends what was served, a batch after the other, and forgets a batch once it is written.

    One that may not have been written, because the writer went away meanwhile, is sent again: a serving may then stand in the log
    twice, and is excluded once. What waits is bounded by the engine, which counts what it drops.
    """

    def __init__(self, engine: Engine, relay: Relay) -> None:
        self._engine = engine
        self._relay = relay
        self._under_way: asyncio.Task[int] | None = None
        self._next: asyncio.Task[int] | None = None

    async def run(self) -> None:
        """Send what waits, for ever."""
        while True:
            await asyncio.sleep(EVERY_S)
            if self._engine.servings_waiting_count and self._relay.is_connected:
                try:
                    await self.write()
                except Exception as error:  # also a bug of the writer: what was served waits
                    LOG.debug("servings were not written and wait: %s", error)
                    await asyncio.sleep(AGAIN_S)

    async def write(self) -> int:
        """Have all that was served so far written; return the position from which it is not served again. Raises as `Relay.call`."""
        # What is under way was taken before this was asked. All who wait for the next batch share it.
        if self._next is None:
            self._next = asyncio.get_running_loop().create_task(self._send_next())
            self._next.add_done_callback(
                lambda sent: sent.cancelled() or sent.exception()
            )  # though nobody waits any more
        return await asyncio.shield(self._next)

    async def _send_next(self) -> int:
        if self._under_way is not None:
            with contextlib.suppress(Exception):  # told to whoever waited for it
                await self._under_way
        self._under_way, self._next = self._next, None
        taken = self._engine.take_servings()
        if not taken:
            return self._engine.position
        try:
            answer = await self._relay.call(SERVINGS, msgspec.msgpack.encode(taken))
        except BaseException:
            self._engine.servings_given_back()
            raise
        position: int = POSITION.unpack(answer)[0]
        self._engine.servings_written(position)
        return position

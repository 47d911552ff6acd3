"""Who waits until the state has reached a log position, and who until anything more was written."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from tailorbird.engine.errors import Unavailable


class Positions:
    """Made and used on one event loop. `position` tells where the state stands; whoever knows that it moved says `moved`."""

    def __init__(self, position: Callable[[], int]) -> None:
        self._position = position
        self._waiting: list[tuple[int, asyncio.Future[None]]] = []
        self._moved = asyncio.Event()
        self._listeners: list[Callable[[], None]] = []

    async def reach(self, position: int, timeout_s: float) -> None:
        """Wait until the state has reached `position`. Raises `Unavailable` POSITION_NOT_REACHED after `timeout_s`."""
        if self._position() >= position:
            return
        reached: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((position, reached))
        try:
            await asyncio.wait_for(reached, timeout_s)
        except TimeoutError:
            raise Unavailable(
                "POSITION_NOT_REACHED",
                f"expected the state to reach min_position {position} within {timeout_s:.3g} s, got "
                f"{self._position()}; ask again, or with a longer deadline",
            ) from None
        finally:
            self._waiting = [entry for entry in self._waiting if entry[1] is not reached]

    async def changed(self) -> None:
        """Wait until something more was written."""
        await self._moved.wait()

    def listen(self, listener: Callable[[], None]) -> None:
        """Call `listener` whenever the state has moved."""
        self._listeners.append(listener)

    def moved(self) -> None:
        """The state has moved: wake whoever waited for that."""
        self._moved.set()
        self._moved = asyncio.Event()
        if self._waiting:
            position = self._position()
            for wanted, reached in self._waiting:
                if wanted <= position and not reached.done():
                    reached.set_result(None)
        for listener in self._listeners:
            listener()

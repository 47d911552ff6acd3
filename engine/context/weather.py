"""Weather from a provider that no decision ever waits for."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable

LOG = logging.getLogger(__name__)
PLACES_KEPT = 10_000
WAITING_MAX = 1_000
REFRESH_S = 900.0  # weather is asked for again after a quarter of an hour
MAX_AGE_S = 3_600.0  # and not used past an hour

# Takes a country, a region and a city (empty where unknown) and returns a word such as `rain`, or None. It may block and fail.
WeatherProvider = Callable[[str, str, str], str | None]
Place = tuple[str, str, str]


class Weather:
    """What is known of places, filled by a thread of its own. Past `WAITING_MAX` places that wait, more are asked for later."""

    def __init__(self, provider: WeatherProvider, clock: Callable[[], float] = time.monotonic) -> None:
        self._provider = provider
        self._clock = clock
        self._known: dict[Place, tuple[float, str]] = {}  # since when
        self._tried: dict[Place, float] = {}
        self._asked: dict[Place, None] = {}
        self._queue: queue.Queue[Place | None] = queue.Queue(WAITING_MAX)
        self._thread = threading.Thread(target=self._run, name="tailorbird-weather", daemon=True)
        self._thread.start()

    def of(self, country: str, region: str = "", city: str = "") -> str | None:
        """Return the weather of a place where it is known and young enough, at once; what is not is asked for."""
        if not country:
            return None
        place = (country, region, city)
        now = self._clock()
        if now - self._tried.get(place, float("-inf")) > REFRESH_S and place not in self._asked:
            try:
                self._asked[place] = None
                self._queue.put_nowait(place)
            except queue.Full:
                self._asked.pop(place, None)
        known = self._known.get(place)
        return known[1] if known is not None and now - known[0] <= MAX_AGE_S else None

    def close(self) -> None:
        """Ask no more; a call of the provider that is under way is left to end by itself."""
        while True:
            try:
                self._queue.put_nowait(None)
                return
            except queue.Full:
                self._queue.get()

    def _run(self) -> None:
        while (place := self._queue.get()) is not None:
            weather = None
            try:
                weather = self._provider(*place)
                if weather is not None and type(weather) is not str:
                    raise TypeError(f"expected a word, got {type(weather).__name__}")
            except Exception:  # the provider's own, which must not end the thread
                LOG.exception("the weather provider failed")
                weather = None
            if len(self._tried) >= PLACES_KEPT:
                oldest = next(iter(self._tried))
                self._tried.pop(oldest)
                self._known.pop(oldest, None)
            if weather is not None:  # where it fails, what was known grows old
                self._known[place] = self._clock(), weather
            self._tried[place] = self._clock()
            self._asked.pop(place, None)

"""From what was sent to what is used."""

from __future__ import annotations

import threading
from collections.abc import Collection, Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

from tailorbird.engine.context.devices import device_of
from tailorbird.engine.context.locations import NOWHERE, Locations
from tailorbird.engine.context.moments import MOMENTS, moment_value
from tailorbird.engine.context.referrers import campaign_of, referrer_class
from tailorbird.engine.context.weather import Weather, WeatherProvider

if TYPE_CHECKING:
    from tailorbird.engine.compiled import CompiledConfiguration

USER_AGENT, IP, TIME_ZONE, REFERRER_URL, PAGE_URL = RAW_NAMES = (
    "user_agent", "ip", "time_zone", "referrer_url", "page_url",
)  # fmt: skip
RAW = frozenset(RAW_NAMES)


class ContextDeriver:
    """Derives context for one configuration: `zone` is the shop's, `own_hosts` are its sites', `wanted` the names that are used.

    Of the moment only what is wanted is derived; of what was sent, everything. Raises `ConfigurationError`
    BAD_LOCATION_DATABASE.
    """

    def __init__(
        self, zone: str, own_hosts: Collection[str], wanted: Collection[str], location_database: str = ""
    ) -> None:
        self._zone = zone
        self._own_hosts = tuple(host.lower() for host in own_hosts)
        self._moments = tuple(name for name in MOMENTS if name in wanted)
        self._wants_weather = "weather" in wanted
        self._locations = Locations(Path(location_database)) if location_database else None
        self.weather: Weather | None = None

    @property
    def asks_weather(self) -> bool:
        """Whether the weather is asked for where nobody says it."""
        return self._wants_weather and self.weather is not None

    @property
    def depends_on_time(self) -> bool:
        """Whether what is derived differs from one quarter of an hour to the next."""
        return bool(self._moments)

    def derive(self, sent: Mapping[str, str], at: int, *, now: bool = True) -> Mapping[str, str]:
        """Return the context of a request or an event at `at` (ms), without what is raw; of the past the weather is not known."""
        raw = not RAW.isdisjoint(sent)
        asks_weather = now and self.asks_weather and "weather" not in sent
        if not raw and not asks_weather and all(name in sent for name in self._moments):
            return sent
        context = {name: value for name, value in sent.items() if name not in RAW} if raw else dict(sent)
        zone = self._derive_from_raw(sent, context) if raw else self._zone
        for name in self._moments:
            if name not in context:
                context[name] = moment_value(name, at, zone)
        if asks_weather and self.weather is not None:
            weather = self.weather.of(context.get("country", ""), context.get("region", ""), context.get("city", ""))
            if weather:
                context["weather"] = weather
        return context

    def _derive_from_raw(self, sent: Mapping[str, str], context: dict[str, str]) -> str:
        """Add what the raw values say and nobody said; return the zone of local time."""

        def add(name: str, value: str) -> None:
            if value:
                context.setdefault(name, value)

        if USER_AGENT in sent:
            for name, value in device_of(sent[USER_AGENT])._asdict().items():
                add(name, value)
        location = NOWHERE
        if IP in sent and self._locations is not None:
            location = self._locations.location_of(sent[IP])
            add("country", location.country)
            if (
                context.get("country") == location.country
            ):  # where the caller names another, the address is not believed
                add("region", location.region)
                add("city", location.city)
        if REFERRER_URL in sent:
            add("referrer", referrer_class(sent[REFERRER_URL], self._own_hosts))
        if PAGE_URL in sent:
            campaign, medium = campaign_of(sent[PAGE_URL])
            add("campaign", campaign)
            add("campaign_medium", medium)
        for zone in (sent.get(TIME_ZONE, ""), location.time_zone):
            if zone and _is_zone(zone):
                return zone
        return self._zone


class Contexts:
    """The derivers of the configurations in force, one for all who derive, and the weather they share."""

    def __init__(self) -> None:
        self.weather: Weather | None = None
        self._lock = threading.Lock()
        # The newest first: the writer's and the readers' copies of a configuration, and those of the one before.
        self._derivers: list[tuple[CompiledConfiguration, ContextDeriver]] = []

    def of(self, compiled: CompiledConfiguration) -> ContextDeriver:
        """Return what derives context under a configuration. Raises `ConfigurationError` BAD_LOCATION_DATABASE."""
        for known, deriver in self._derivers:
            if known is compiled:
                return deriver
        configuration = compiled.configuration
        with self._lock:
            deriver = ContextDeriver(
                configuration.zone,
                configuration.context.own_hosts,
                compiled.context_names,
                configuration.context.location_database,
            )
            deriver.weather = self.weather
            self._derivers = [(compiled, deriver), *self._derivers[:3]]
        return deriver

    def use_weather(self, provider: WeatherProvider | None) -> None:
        """Ask a provider for the weather from now on, or nobody."""
        with self._lock:
            self.close()
            self.weather = Weather(provider) if provider is not None else None
            for _, deriver in self._derivers:
                deriver.weather = self.weather

    def close(self) -> None:
        """End the provider's thread."""
        if self.weather is not None:
            self.weather.close()
            self.weather = None


@lru_cache(maxsize=1_024)
def _is_zone(name: str) -> bool:
    try:
        ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        return False
    return True

"""Locations from addresses, by a MaxMind database of the user's own."""

from __future__ import annotations

import ipaddress
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from tailorbird.engine.errors import ConfigurationError


class Location(NamedTuple):
    """A country (ISO 3166-1 alpha-2), a region (ISO 3166-2, without the country), a city and a time zone; empty where unknown."""

    country: str = ""
    region: str = ""
    city: str = ""
    time_zone: str = ""


NOWHERE = Location()
ADDRESSES_KEPT = 8_192  # addresses whose place is remembered


class Locations:
    """An open database. Raises `ConfigurationError` BAD_LOCATION_DATABASE."""

    def __init__(self, path: Path) -> None:
        import maxminddb

        try:
            # The reader in Python: the one in C follows what a damaged file says out of its memory.
            self._reader = maxminddb.open_database(str(path), maxminddb.MODE_MMAP)
        except Exception as error:  # what a broken file leads a reader to is not limited to its own errors
            raise ConfigurationError(
                "BAD_LOCATION_DATABASE",
                f"expected a MaxMind database in context.location_database, got {path}: {error}; name another, or leave it out",
            ) from None
        self.location_of = lru_cache(maxsize=ADDRESSES_KEPT)(self._location_of)

    def _location_of(self, address: str) -> Location:
        """Return where an address is, as far as the database knows; of what is no public address nothing."""
        try:
            parsed = ipaddress.ip_address(address.strip())
            mapped = getattr(parsed, "ipv4_mapped", None)  # how a socket for both kinds shows the older one
            parsed = mapped if mapped is not None else parsed
            found = self._reader.get(parsed) if parsed.is_global else None
        except Exception:  # no address, or a database that is damaged at that place
            return NOWHERE
        if not isinstance(found, dict):
            return NOWHERE
        regions = found.get("subdivisions")
        region = regions[0] if isinstance(regions, list) and regions else {}
        return Location(
            _text(found.get("country"), "iso_code"),
            _text(region, "iso_code"),
            _text(_part(found.get("city"), "names"), "en"),
            _text(found.get("location"), "time_zone"),
        )


def _part(value: Any, name: str) -> Any:
    return value.get(name) if isinstance(value, dict) else None


def _text(value: Any, name: str) -> str:
    found = _part(value, name)
    return found if isinstance(found, str) else ""

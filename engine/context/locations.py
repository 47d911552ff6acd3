"""Locations from addresses, by a MaxMind database of the user's own."""

from __future__ import annotations

import ipaddress
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


class Locations:
    """An open database. Raises `ConfigurationError` BAD_LOCATION_DATABASE."""

    def __init__(self, path: Path) -> None:
        import maxminddb

        try:
            self._reader = maxminddb.open_database(str(path))
        except (OSError, maxminddb.InvalidDatabaseError, ValueError) as error:
            raise ConfigurationError(
                "BAD_LOCATION_DATABASE",
                f"expected a MaxMind database in context.location_database, got {path}: {error}",
            ) from None

    def location_of(self, address: str) -> Location:
        """Return where an address is, as far as the database knows; of what is no public address nothing."""
        try:
            if not ipaddress.ip_address(address.strip()).is_global:
                return NOWHERE
            found = self._reader.get(address.strip())
        except (ValueError, OSError):  # no address, or a database that is damaged at that place
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

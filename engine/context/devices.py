"""Devices from user agents."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

USER_AGENT_BYTES_MAX = 1_024
AGENTS_KEPT = 8_192  # user agents whose device is remembered

_DESKTOPS = frozenset({"Windows", "Mac OS X", "Linux", "Ubuntu", "Fedora", "Debian", "Chrome OS", "FreeBSD", "OpenBSD"})
_TV = (
    "smart-tv",
    "smarttv",
    "appletv",
    "apple tv",
    "googletv",
    "hbbtv",
    "roku",
    "aft",
    "netcast",
    "web0s",
    "webos.tv",
    "bravia",
)


class Device(NamedTuple):
    """A class of device, an operating system and a browser; empty where unknown."""

    device: str
    os: str
    browser: str


def device_of(user_agent: str) -> Device:
    """Return what a user agent says. Takes anything; what is not known is `other` and empty."""
    return _device_of(user_agent[:USER_AGENT_BYTES_MAX].encode("utf-8", "replace").decode())


@lru_cache(maxsize=AGENTS_KEPT)
def _device_of(user_agent: str) -> Device:
    # Imported at first use: the tables of patterns take some megabytes that many sites never need.
    from ua_parser import parse

    found = parse(user_agent)
    family = found.device.family if found.device is not None else ""
    system = found.os.family if found.os is not None else ""
    browser = found.user_agent.family if found.user_agent is not None else ""
    return Device(_class_of(user_agent.lower(), family or "", system or ""), _plain(system), _plain(browser))


def _class_of(lowered: str, family: str, system: str) -> str:
    if family == "Spider" or "bot/" in lowered or "crawler" in lowered or "headless" in lowered:
        return "bot"
    if any(token in lowered for token in _TV if token != "aft") or "; aft" in lowered:
        return "tv"
    if (
        "ipad" in lowered
        or "tablet" in lowered
        or "kindle" in lowered
        or ("silk/" in lowered and "mobile" not in lowered)
    ):
        return "tablet"
    if system == "Android":
        return "mobile" if "mobile" in lowered else "tablet"
    if "iphone" in lowered or "ipod" in lowered or "windows phone" in lowered or "mobile" in lowered:
        return "mobile"
    return "desktop" if system in _DESKTOPS else "other"


def _plain(family: str | None) -> str:
    """Return a family as a context value: lower case, underscores for blanks."""
    return "" if not family or family == "Other" else family.lower().replace(" ", "_")

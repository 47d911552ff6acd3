"""Where the service listens. Without keys of callers, more than loopback must be asked for by name."""

from __future__ import annotations

import ipaddress
import re

from tailorbird.engine.errors import CallerError

DEFAULT = "127.0.0.1:50051"
_ADDRESS = re.compile(r"(?:\[(?P<v6>[0-9A-Fa-f:.]+)\]|(?P<host>[^:\[\]]+)):(?P<port>\d{1,5})")
# A path, or a listening socket that whoever starts this process has opened and answers for.
_LOCAL = re.compile(r"unix:.+|fd:\d{1,9}")


def checked_address(text: str, *, insecure: bool, option: str = "--listen") -> str:
    """Return `host:port`, `unix:PATH` or `fd:N` when it may be listened on.

    Raises `CallerError` BAD_ADDRESS, or LISTEN_NOT_LOOPBACK unless `insecure` says that it is meant.
    """
    if _LOCAL.fullmatch(text):
        return text
    match = _ADDRESS.fullmatch(text)
    if match is None or int(match["port"]) > 65_535:
        raise CallerError(
            "BAD_ADDRESS",
            f"expected host:port, such as {DEFAULT} or [::1]:50051, unix:PATH or fd:N, got {text!r} in {option}",
        )
    if not insecure and not is_loopback(match["v6"] or match["host"]):
        raise CallerError(
            "LISTEN_NOT_LOOPBACK",
            f"expected a loopback address, got {text!r} in {option}: calls are not authenticated, so whoever reaches "
            f"the port can read every profile; make a key (`tailorbird keys create`), listen on {DEFAULT} behind a proxy "
            "that authenticates, or say --insecure-listen",
        )
    return text


def is_loopback(host: str) -> bool:
    """Tell whether a host is this machine alone; of names only `localhost` is taken for that."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def is_local(address: str) -> bool:
    """Tell whether only this machine reaches an address of `checked_address`; of an inherited socket that is not known."""
    return address.startswith("unix:") or is_loopback(address.rpartition(":")[0].strip("[]"))

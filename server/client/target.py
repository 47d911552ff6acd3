"""Where a channel connects to."""

from __future__ import annotations

from dataclasses import dataclass

UNIX = "unix:"


@dataclass(frozen=True, slots=True)
class Target:
    """A host and a port, or the path of a Unix socket. `authority` is what requests are addressed to."""

    host: str
    port: int
    path: str

    @classmethod
    def parse(cls, text: str) -> Target:
        """Return `HOST:PORT`, `[IPV6]:PORT` or `unix:PATH`. Raises `ValueError`."""
        if text.startswith(UNIX) and len(text) > len(UNIX):
            return cls("", 0, text[len(UNIX) :])
        host, colon, port = text.rpartition(":")
        host = host.removeprefix("[").removesuffix("]")
        if not (colon and host and port.isdecimal() and 0 < int(port) < 65_536):
            raise ValueError(f"expected HOST:PORT or unix:PATH as the target, got {text!r}")
        return cls(host, int(port), "")

    @property
    def authority(self) -> str:
        """The :authority of requests."""
        if self.path:
            return "localhost"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

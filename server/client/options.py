"""How a channel behaves: connections, deadlines, retries, TLS."""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field
from pathlib import Path

from grpc import StatusCode


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """When and how often a call is made again: up to `attempts_max` times in all, within its deadline.

    Only a call that the service certainly did not begin, or one that failed with one of `codes`, is repeated; of calls with a
    stream of requests only the former, and none once an answer came. The service's writes carry message ids, so that a repeated
    one counts once. The wait before attempt n is drawn evenly from 0 to min(`backoff_max_s`, `backoff_s` * `multiplier` ** (n - 1)),
    or is what the service asked for (`grpc-retry-pushback-ms`). A channel that fails more than it succeeds stops repeating:
    `budget` failures are free, each success gives back `budget_ratio` of one (the retry throttling of gRPC's A6).
    """

    attempts_max: int = 6
    backoff_s: float = 0.02
    backoff_max_s: float = 1.0
    multiplier: float = 2.0
    codes: frozenset[StatusCode] = frozenset({StatusCode.UNAVAILABLE})
    budget: float = 50.0
    budget_ratio: float = 0.1


NEVER = RetryPolicy(attempts_max=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """Encrypt, and believe certificates of `authorities` (PEM; default: the system's). `certificate` and `key` are ours
    for mutual TLS; `server_name` is the name to expect where it is not the target's host."""

    authorities: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    server_name: str = ""

    def context(self) -> ssl.SSLContext:
        """Return them read. Raises `OSError` and `ssl.SSLError` for what cannot be."""
        context = ssl.create_default_context(cafile=self.authorities)
        context.set_alpn_protocols(["h2"])
        if self.certificate is not None:
            context.load_cert_chain(self.certificate, self.key)
        return context


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelOptions:
    """The bounds and habits of a channel.

    `connections_max`: a call goes to the connection with the fewest in flight; another is opened while all are busy.
    `timeout_s` is the deadline of calls with one answer that name none; a stream has none by itself. `key` is shown with
    each call. `message_bytes_max` bounds an answer, `buffered_bytes_max` all unfinished ones of a connection,
    `window_bytes` what may arrive on a stream before it is taken, `drain_bytes` what waits to be sent.
    """

    connections_max: int = 4
    timeout_s: float | None = 30.0
    connect_timeout_s: float = 5.0
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    tls: Tls | None = None
    key: str = ""
    user_agent: str = "tailorbird-python"
    message_bytes_max: int = 32 * 1024**2
    buffered_bytes_max: int = 128 * 1024**2
    window_bytes: int = 1024**2
    drain_bytes: int = 256 * 1024
    headers_bytes_max: int = 16 * 1024

"""A client of the service on the native transport: `Client` and `AsyncClient`, or channels for generated stubs."""

try:
    from tailorbird.native import http2_client as http2_client
except ModuleNotFoundError as missing:
    raise ImportError(
        "expected tailorbird.native.http2_client, got a build without it; install libnghttp2 with its headers (Debian: "
        "libnghttp2-dev) and build again, or call the service through grpcio"
    ) from missing

from tailorbird.client.aio import AsyncChannel
from tailorbird.client.channel import Channel
from tailorbird.client.client import AsyncClient, Client
from tailorbird.client.errors import CallError
from tailorbird.client.options import NEVER, ChannelOptions, RetryPolicy, Tls

__all__ = [
    "NEVER",
    "AsyncChannel",
    "AsyncClient",
    "CallError",
    "Channel",
    "ChannelOptions",
    "Client",
    "RetryPolicy",
    "Tls",
]

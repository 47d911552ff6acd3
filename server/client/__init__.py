"""A client of the service on the native transport: `Client` and `AsyncClient`, or channels for generated stubs."""

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

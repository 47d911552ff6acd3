"""The service as an object: one attribute a method, called with its request message and answering with its response."""

from __future__ import annotations

from types import TracebackType

from tailorbird.client import api
from tailorbird.client.aio import AsyncChannel
from tailorbird.client.channel import Channel
from tailorbird.client.options import ChannelOptions


class Client:
    """Calls a service. Safe for threads; close it, or use it as a context manager.

    Each method takes `timeout` (seconds) and `metadata` beside its request, and raises `CallError`.
    """

    def __init__(self, target: str, options: ChannelOptions | None = None) -> None:
        self.channel = channel = Channel(target, options)
        self.decide = channel.unary(api.DECIDE)
        self.decide_page = channel.unary(api.DECIDE_PAGE)
        self.decide_batch = channel.unary(api.DECIDE_BATCH)
        self.ingest = channel.unary(api.INGEST)
        self.ingest_stream = channel.bidirectional(api.INGEST_STREAM)
        self.get_profile = channel.unary(api.GET_PROFILE)
        self.get_features = channel.unary(api.GET_FEATURES)
        self.push_features = channel.unary(api.PUSH_FEATURES)
        self.backfill_features = channel.server_stream(api.BACKFILL_FEATURES)
        self.watch_segments = channel.server_stream(api.WATCH_SEGMENTS)
        self.put_items = channel.unary(api.PUT_ITEMS)
        self.delete_items = channel.unary(api.DELETE_ITEMS)
        self.put_configuration = channel.unary(api.PUT_CONFIGURATION)

    def close(self) -> None:
        """End all connections; idempotent."""
        self.channel.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class AsyncClient:
    """The same on an event loop: methods are awaited, streams iterated with `async for`."""

    def __init__(self, target: str, options: ChannelOptions | None = None) -> None:
        self.channel = channel = AsyncChannel(target, options)
        self.decide = channel.unary(api.DECIDE)
        self.decide_page = channel.unary(api.DECIDE_PAGE)
        self.decide_batch = channel.unary(api.DECIDE_BATCH)
        self.ingest = channel.unary(api.INGEST)
        self.ingest_stream = channel.bidirectional(api.INGEST_STREAM)
        self.get_profile = channel.unary(api.GET_PROFILE)
        self.get_features = channel.unary(api.GET_FEATURES)
        self.push_features = channel.unary(api.PUSH_FEATURES)
        self.backfill_features = channel.server_stream(api.BACKFILL_FEATURES)
        self.watch_segments = channel.server_stream(api.WATCH_SEGMENTS)
        self.put_items = channel.unary(api.PUT_ITEMS)
        self.delete_items = channel.unary(api.DELETE_ITEMS)
        self.put_configuration = channel.unary(api.PUT_CONFIGURATION)

    async def close(self) -> None:
        """End all connections; idempotent."""
        await self.channel.close()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

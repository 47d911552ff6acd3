"""Both faces of the client behind one blocking interface, so that one suite holds them to the same behaviour."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable
from typing import Any, TypeVar

from tailorbird.client import AsyncChannel, Channel, ChannelOptions

T = TypeVar("T")
LONG_S = 30


class Blocking:
    """The blocking channel as it is."""

    def __init__(self, target: str, options: ChannelOptions | None = None) -> None:
        self.channel = Channel(target, options)

    def unary(self, path: str, request: bytes = b"", **options: Any) -> bytes:
        answer: bytes = self.channel.unary_unary(path)(request, **options)
        return answer

    def with_call(self, path: str, request: bytes = b"", **options: Any) -> Any:
        return self.channel.unary_unary(path).with_call(request, **options)

    def many(self, path: str, requests: list[bytes]) -> list[bytes]:
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(16) as pool:
            return list(pool.map(self.channel.unary_unary(path), requests))

    def server_stream(
        self, path: str, request: bytes = b"", into: list[bytes] | None = None, **options: Any
    ) -> list[bytes]:
        found = [] if into is None else into
        for answer in self.channel.unary_stream(path)(request, **options):
            found.append(answer)
        return found

    def client_stream(self, path: str, requests: Iterable[bytes], **options: Any) -> bytes:
        answer: bytes = self.channel.stream_unary(path)(requests, **options)
        return answer

    def bidirectional(self, path: str, requests: Iterable[bytes], **options: Any) -> list[bytes]:
        return list(self.channel.stream_stream(path)(requests, **options))

    def first_then_cancel(self, path: str) -> bytes:
        with self.channel.unary_stream(path)(b"") as answers:
            first: bytes = next(answers)
        return first

    def close(self) -> None:
        self.channel.close()


class Awaited:
    """The asyncio channel, each call run to its end on a loop kept for it."""

    def __init__(self, target: str, options: ChannelOptions | None = None) -> None:
        self._runner = asyncio.Runner()
        self.channel = AsyncChannel(target, options)

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return self._runner.run(asyncio.wait_for(work, LONG_S))

    def unary(self, path: str, request: bytes = b"", **options: Any) -> bytes:
        return self._run(self.channel.unary_unary(path)(request, **options))

    def with_call(self, path: str, request: bytes = b"", **options: Any) -> Any:
        return self._run(self.channel.unary_unary(path).with_call(request, **options))

    def many(self, path: str, requests: list[bytes]) -> list[bytes]:
        async def work() -> list[bytes]:
            return list(await asyncio.gather(*map(self.channel.unary_unary(path), requests)))

        return self._run(work())

    def server_stream(
        self, path: str, request: bytes = b"", into: list[bytes] | None = None, **options: Any
    ) -> list[bytes]:
        async def work() -> list[bytes]:
            found = [] if into is None else into
            async for answer in self.channel.unary_stream(path)(request, **options):
                found.append(answer)
            return found

        return self._run(work())

    def client_stream(self, path: str, requests: Iterable[bytes], **options: Any) -> bytes:
        return self._run(self.channel.stream_unary(path)(requests, **options))

    def bidirectional(self, path: str, requests: Iterable[bytes], **options: Any) -> list[bytes]:
        async def work() -> list[bytes]:
            return [answer async for answer in self.channel.stream_stream(path)(requests, **options)]

        return self._run(work())

    def first_then_cancel(self, path: str) -> bytes:
        async def work() -> bytes:
            async with self.channel.unary_stream(path)(b"") as answers:
                first: bytes = await anext(answers)
            return first

        return self._run(work())

    def close(self) -> None:
        self._run(self.channel.close())
        self._runner.close()


Face = Blocking | Awaited

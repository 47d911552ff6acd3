"""The channel for event loops: the same calls, options and errors as `channel`, awaited. Used on one loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable
from types import TracebackType
from typing import Any, Generic

from tailorbird.client.aio_connection import AsyncConnection, News
from tailorbird.client.channel import UNAVAILABLE, answered
from tailorbird.client.connection import CANCELLED, DEADLINE, ConnectFailed
from tailorbird.client.errors import Metadata
from tailorbird.client.exchange import Exchange, Outcome, Start
from tailorbird.client.method import A, Calls, Method, Pairs, Q, StubFaces
from tailorbird.client.options import ChannelOptions
from tailorbird.client.retries import Attempts
from tailorbird.client.spread import least_busy
from tailorbird.client.target import Target

Requests = Iterable[Q] | AsyncIterable[Q]


class AsyncChannel(StubFaces):
    """Calls the service at `target` (HOST:PORT or unix:PATH). Connects when first called, and again when needed.

    Generated stubs take it in place of grpcio's asyncio channel.
    """

    def __init__(self, target: str, options: ChannelOptions | None = None) -> None:
        self.options = options or ChannelOptions()
        self.calls = Calls(self.options)
        self._target = Target.parse(target)
        self._connections: list[AsyncConnection] = []
        self._opening: set[asyncio.Future[None]] = set()
        self._is_closed = False

    def unary(self, method: Method[Q, A]) -> AsyncUnaryCall[Q, A]:
        """Return the callable of a method with one request and one answer."""
        return AsyncUnaryCall(self, method)

    def server_stream(self, method: Method[Q, A]) -> AsyncServerStreamCall[Q, A]:
        """Return the callable of a method with one request and many answers."""
        return AsyncServerStreamCall(self, method)

    def client_stream(self, method: Method[Q, A]) -> AsyncClientStreamCall[Q, A]:
        """Return the callable of a method with many requests and one answer."""
        return AsyncClientStreamCall(self, method)

    def bidirectional(self, method: Method[Q, A]) -> AsyncBidirectionalCall[Q, A]:
        """Return the callable of a method with many requests and many answers."""
        return AsyncBidirectionalCall(self, method)

    async def begin(self, start: Start, attempts: Attempts) -> tuple[AsyncConnection, Exchange]:
        """Begin an attempt on the connection with the fewest in flight. Raises `CallError` where none can be made."""
        while True:
            try:
                connection = await self._lease(start.deadline_s)
            except ConnectFailed as error:
                await self.again(attempts, Outcome(UNAVAILABLE, str(error), is_unprocessed=True))
                continue
            if connection.link.is_open:
                return connection, connection.begin(start)

    async def again(self, attempts: Attempts, outcome: Outcome) -> None:
        """Wait until the next attempt. Raises the failure where there is none."""
        wait_s = attempts.wait_s(outcome)
        if wait_s is None:
            raise outcome.error() from None
        await asyncio.sleep(wait_s)

    async def close(self) -> None:
        """End all connections and what runs on them; idempotent."""
        self._is_closed = True
        connections, self._connections = self._connections, []
        for connection in connections:
            connection.close()
        await asyncio.sleep(0)

    async def __aenter__(self) -> AsyncChannel:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _lease(self, deadline_s: float | None) -> AsyncConnection:
        while True:
            self._check_open()
            found, self._connections, ended = least_busy(
                self._connections, self.options.connections_max, len(self._opening)
            )
            for connection in ended:
                connection.close()
            if found is not None:
                return found
            timeout_s = self.options.connect_timeout_s
            if deadline_s is not None:
                timeout_s = min(timeout_s, deadline_s - time.monotonic())
            if timeout_s <= 0:
                raise DEADLINE.error()
            if len(self._opening) < self.options.connections_max:
                return await self._open(timeout_s)
            await asyncio.wait(self._opening, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)

    async def _open(self, timeout_s: float) -> AsyncConnection:
        opening: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._opening.add(opening)
        try:
            made = await AsyncConnection.open(self._target, self.options, timeout_s)
        finally:
            self._opening.remove(opening)
            opening.set_result(None)
        self._connections.append(made)
        try:
            self._check_open()
        except ValueError:
            made.close()
            raise
        return made

    def _check_open(self) -> None:
        if self._is_closed:
            raise ValueError("expected an open channel, got one that was closed")


class _Callable(Generic[Q, A]):
    def __init__(self, channel: AsyncChannel, method: Method[Q, A]) -> None:
        self._channel, self._calls, self._method = channel, channel.calls, method


class AsyncUnaryCall(_Callable[Q, A]):
    """Calls a method with one request and one answer; failures of the retry policy's kinds are tried again."""

    async def __call__(self, request: Q, timeout: float | None = None, metadata: Pairs | None = None, **_: Any) -> A:
        """Return the answer. `timeout` in seconds. Raises `CallError`."""
        return (await self.with_call(request, timeout, metadata))[0]

    async def with_call(
        self, request: Q, timeout: float | None = None, metadata: Pairs | None = None, **_: Any
    ) -> tuple[A, Outcome]:
        """Return the answer and what came around it. Raises `CallError`."""
        start, attempts = self._calls.start(
            self._method, self._method.write(request), metadata, timeout, has_one_answer=True
        )
        while True:
            connection, exchange = await self._channel.begin(start, attempts)
            outcome = await finished(connection, exchange, News(exchange), start.deadline_s)
            if outcome.code == 0 and outcome.message is not None:
                self._calls.budget.note(succeeded=True)
                return self._method.read(outcome.message), outcome
            await self._channel.again(attempts, answered(outcome))


class AsyncServerStreamCall(_Callable[Q, A]):
    """Calls a method with one request and many answers; tried again only before the first of them."""

    def __call__(
        self, request: Q, timeout: float | None = None, metadata: Pairs | None = None, **_: Any
    ) -> AsyncAnswers[A]:
        """Return the answers as they come. Iterating raises `CallError`."""
        start, attempts = self._calls.start(
            self._method, self._method.write(request), metadata, timeout, has_one_answer=False
        )
        return AsyncAnswers(self._channel, start, attempts, self._method.read)


class AsyncBidirectionalCall(_Callable[Q, A]):
    """Calls a method with many requests and many answers. The requests are taken in a task of their own."""

    def __call__(
        self, requests: Requests[Q], timeout: float | None = None, metadata: Pairs | None = None, **_: Any
    ) -> AsyncAnswers[A]:
        """Return the answers as they come. Iterating raises `CallError`."""
        start, attempts = self._calls.start(self._method, None, metadata, timeout, has_one_answer=False)
        return AsyncAnswers(self._channel, start, attempts, self._method.read, requests, self._method.write)


class AsyncClientStreamCall(_Callable[Q, A]):
    """Calls a method with many requests and one answer. Not repeated once begun: the requests are gone."""

    async def __call__(
        self, requests: Requests[Q], timeout: float | None = None, metadata: Pairs | None = None, **_: Any
    ) -> A:
        """Return the answer. Raises `CallError`."""
        start, attempts = self._calls.start(self._method, None, metadata, timeout, has_one_answer=True)
        connection, exchange = await self._channel.begin(start, attempts)
        news = News(exchange)
        feeding = asyncio.create_task(feed(connection, exchange, news, requests, self._method.write))
        try:
            outcome = answered(await finished(connection, exchange, news, start.deadline_s))
        finally:
            feeding.cancel()
        if outcome.code != 0 or outcome.message is None:
            raise outcome.error()
        return self._method.read(outcome.message)


class AsyncAnswers(Generic[A]):
    """The answers of a call as they come: an asynchronous iterator, and a context manager that gives the call up at its end."""

    def __init__(
        self,
        channel: AsyncChannel,
        start: Start,
        attempts: Attempts,
        read: Callable[[bytes], A],
        requests: Requests[Any] | None = None,
        write: Callable[[Any], bytes] = bytes,
    ) -> None:
        self._channel, self._start, self._attempts, self._read = channel, start, attempts, read
        self._requests, self._write = requests, write
        self._has_answered = False
        self._begun: tuple[AsyncConnection, Exchange, News] | None = None
        self._feeding: asyncio.Task[None] | None = None

    def __aiter__(self) -> AsyncIterator[A]:
        return self

    async def __anext__(self) -> A:
        while True:
            connection, exchange, news = self._begun or await self._begin()
            if not await news.wait(exchange.has_news, self._start.deadline_s):
                connection.cancel(exchange, DEADLINE)
            if exchange.inbox:
                self._has_answered = True
                return self._read(connection.take(exchange))
            outcome = exchange.outcome
            assert outcome is not None
            if self._feeding is not None:
                self._feeding.cancel()
            if outcome.code == 0:
                self._channel.calls.budget.note(succeeded=True)
                raise StopAsyncIteration
            if self._has_answered or self._requests is not None:
                raise outcome.error()
            self._begun = None
            await self._channel.again(self._attempts, outcome)

    async def initial_metadata(self) -> Metadata:
        """Return what came ahead of the answers, once it came."""
        _, exchange, news = self._begun or await self._begin()
        await news.wait(lambda: exchange.initial is not None, self._start.deadline_s)
        return exchange.initial or ()

    async def trailing_metadata(self) -> Metadata:
        """Return what came behind the last answer, once the call ended."""
        _, exchange, news = self._begun or await self._begin()
        await news.wait(lambda: exchange.outcome is not None, self._start.deadline_s)
        return () if exchange.outcome is None else exchange.outcome.trailing

    def cancel(self) -> None:
        """Give the call up; iterating then raises CANCELLED."""
        if self._begun is not None:
            connection, exchange, _ = self._begun
            connection.cancel(exchange, CANCELLED)
        if self._feeding is not None:
            self._feeding.cancel()

    async def __aenter__(self) -> AsyncAnswers[A]:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancel()

    async def _begin(self) -> tuple[AsyncConnection, Exchange, News]:
        connection, exchange = await self._channel.begin(self._start, self._attempts)
        self._begun = (connection, exchange, News(exchange))
        if self._requests is not None:
            self._feeding = asyncio.create_task(feed(*self._begun, self._requests, self._write))
        return self._begun


async def feed(
    connection: AsyncConnection,
    exchange: Exchange,
    news: News,
    requests: Requests[Q],
    write: Callable[[Q], bytes],
) -> None:
    """Send requests until their end or the call's, waiting whenever the service is slow to take them."""
    try:
        async for request in each(requests):
            if exchange.outcome is not None:
                return
            if connection.send(exchange, write(request)):
                await news.wait(lambda: connection.has_room(exchange), None)
        connection.end(exchange)
    except Exception as error:  # told where the answers are awaited
        text = f"the iterator of requests raised {type(error).__name__}: {error}"
        connection.cancel(exchange, Outcome(1, text))


async def each(requests: Requests[Q]) -> AsyncIterator[Q]:
    """Yield the requests of either kind of iterable."""
    if isinstance(requests, AsyncIterable):
        async for request in requests:
            yield request
    else:
        for request in requests:
            yield request


async def finished(connection: AsyncConnection, exchange: Exchange, news: News, deadline_s: float | None) -> Outcome:
    """Wait for the end of an attempt, or end it at its deadline; a wait that is cancelled gives the call up."""
    try:
        if not await news.wait(lambda: exchange.outcome is not None, deadline_s):
            connection.cancel(exchange, DEADLINE)
    except asyncio.CancelledError:
        connection.cancel(exchange, CANCELLED)
        raise
    assert exchange.outcome is not None
    return exchange.outcome

"""The blocking channel: several connections, calls spread over them, safe for threads."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Any, Generic

from tailorbird.client.connection import DEADLINE, ConnectFailed, Connection
from tailorbird.client.errors import Metadata
from tailorbird.client.exchange import Exchange, Outcome, Start
from tailorbird.client.method import A, Calls, Method, Pairs, Q, StubFaces
from tailorbird.client.options import ChannelOptions
from tailorbird.client.retries import Attempts
from tailorbird.client.spread import least_busy
from tailorbird.client.target import Target

UNAVAILABLE = 14


class Channel(StubFaces):
    """Calls the service at `target` (HOST:PORT or unix:PATH). Connects when first called, and again when needed.

    Generated stubs take it in place of grpcio's channel.
    """

    def __init__(self, target: str, options: ChannelOptions | None = None) -> None:
        self.options = options or ChannelOptions()
        self.calls = Calls(self.options)
        self._target = Target.parse(target)
        self._lock = threading.Lock()
        self._opened = threading.Condition(self._lock)
        self._opening = 0
        self._connections: list[Connection] = []
        self._process = os.getpid()
        self._is_closed = False

    def unary(self, method: Method[Q, A]) -> UnaryCall[Q, A]:
        """Return the callable of a method with one request and one answer."""
        return UnaryCall(self, method)

    def server_stream(self, method: Method[Q, A]) -> ServerStreamCall[Q, A]:
        """Return the callable of a method with one request and many answers."""
        return ServerStreamCall(self, method)

    def client_stream(self, method: Method[Q, A]) -> ClientStreamCall[Q, A]:
        """Return the callable of a method with many requests and one answer."""
        return ClientStreamCall(self, method)

    def bidirectional(self, method: Method[Q, A]) -> BidirectionalCall[Q, A]:
        """Return the callable of a method with many requests and many answers."""
        return BidirectionalCall(self, method)

    def begin(self, start: Start, attempts: Attempts) -> tuple[Connection, Exchange]:
        """Begin an attempt on the connection with the fewest in flight. Raises `CallError` where none can be made."""
        while True:
            connection = self._lease(start, attempts)
            exchange = connection.begin(start)
            if exchange is not None:
                return connection, exchange

    def call(self, start: Start, attempts: Attempts) -> Outcome:
        """Make an attempt that has one answer, likewise."""
        while True:
            outcome = self._lease(start, attempts).call(start)
            if outcome is not None:
                return outcome

    def again(self, attempts: Attempts, outcome: Outcome) -> None:
        """Wait until the next attempt. Raises the failure where there is none."""
        wait_s = attempts.wait_s(outcome)
        if wait_s is None:
            raise outcome.error() from None
        time.sleep(wait_s)

    def close(self) -> None:
        """End all connections and what runs on them; idempotent."""
        with self._lock:
            self._is_closed = True
            connections, self._connections = self._connections, []
        for connection in connections:
            connection.close()

    def __enter__(self) -> Channel:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _lease(self, start: Start, attempts: Attempts) -> Connection:
        while True:
            try:
                return self._connection(start.deadline_s)
            except ConnectFailed as error:
                self.again(attempts, Outcome(UNAVAILABLE, str(error), is_unprocessed=True))

    def _connection(self, deadline_s: float | None) -> Connection:
        options = self.options
        until_s = time.monotonic() + options.connect_timeout_s
        if deadline_s is not None:
            until_s = min(until_s, deadline_s)
        with self._lock:
            while True:
                self._check_open()
                found, self._connections, ended = least_busy(self._connections, options.connections_max, self._opening)
                for connection in ended:
                    connection.close()
                if found is not None:
                    return found
                timeout_s = until_s - time.monotonic()
                if timeout_s <= 0:
                    raise DEADLINE.error()
                if self._opening < options.connections_max:
                    break
                self._opened.wait(timeout_s)
            self._opening += 1
        return self._open(timeout_s)

    def _open(self, timeout_s: float) -> Connection:
        """Connect without the lock, so that calls on other connections go on meanwhile."""
        made: Connection | None = None
        try:
            made = Connection(self._target, self.options, timeout_s)
        finally:
            with self._lock:
                self._opening -= 1
                if made is not None:
                    self._connections.append(made)
                self._opened.notify_all()
        with self._lock:
            self._check_open()
        return made

    def _check_open(self) -> None:
        """Raise where the channel is closed; in a process that was forked off, forget its parent's connections."""
        if self._process != os.getpid():
            # A child that spoke on its parent's sockets would break the parent's calls.
            self._connections, self._opening, self._process = [], 0, os.getpid()
        if self._is_closed:
            for connection in self._connections:
                connection.close()
            raise ValueError("expected an open channel, got one that was closed")


class _Callable(Generic[Q, A]):
    def __init__(self, channel: Channel, method: Method[Q, A]) -> None:
        self._channel, self._calls, self._method = channel, channel.calls, method


class UnaryCall(_Callable[Q, A]):
    """Calls a method with one request and one answer; failures of the retry policy's kinds are tried again."""

    def __call__(self, request: Q, timeout: float | None = None, metadata: Pairs | None = None, **_: Any) -> A:
        """Return the answer. `timeout` in seconds. Raises `CallError`."""
        return self.with_call(request, timeout, metadata)[0]

    def with_call(
        self, request: Q, timeout: float | None = None, metadata: Pairs | None = None, **_: Any
    ) -> tuple[A, Outcome]:
        """Return the answer and what came around it. Raises `CallError`."""
        start, attempts = self._calls.start(
            self._method, self._method.write(request), metadata, timeout, has_one_answer=True
        )
        while True:
            outcome = self._channel.call(start, attempts)
            if outcome.code == 0 and outcome.message is not None:
                self._calls.budget.note(succeeded=True)
                return self._method.read(outcome.message), outcome
            self._channel.again(attempts, answered(outcome))


class ServerStreamCall(_Callable[Q, A]):
    """Calls a method with one request and many answers; tried again only before the first of them."""

    def __call__(self, request: Q, timeout: float | None = None, metadata: Pairs | None = None, **_: Any) -> Answers[A]:
        """Return the answers as they come. Iterating raises `CallError`."""
        start, attempts = self._calls.start(
            self._method, self._method.write(request), metadata, timeout, has_one_answer=False
        )
        return Answers(self._channel, start, attempts, self._method.read)


class BidirectionalCall(_Callable[Q, A]):
    """Calls a method with many requests and many answers. The requests are taken in a thread of their own."""

    def __call__(
        self, requests: Iterable[Q], timeout: float | None = None, metadata: Pairs | None = None, **_: Any
    ) -> Answers[A]:
        """Return the answers as they come. Iterating raises `CallError`."""
        start, attempts = self._calls.start(self._method, None, metadata, timeout, has_one_answer=False)
        answers = Answers(self._channel, start, attempts, self._method.read)
        Feeder(answers, requests, self._method.write).start()
        return answers


class ClientStreamCall(_Callable[Q, A]):
    """Calls a method with many requests and one answer. Not repeated once begun: the requests are gone."""

    def __call__(
        self, requests: Iterable[Q], timeout: float | None = None, metadata: Pairs | None = None, **_: Any
    ) -> A:
        """Return the answer. Raises `CallError`."""
        start, attempts = self._calls.start(self._method, None, metadata, timeout, has_one_answer=True)
        connection, exchange = self._channel.begin(start, attempts)
        feed(connection, exchange, requests, self._method.write, start.deadline_s)
        outcome = answered(connection.finish(exchange, start.deadline_s))
        if outcome.code != 0 or outcome.message is None:
            raise outcome.error()
        return self._method.read(outcome.message)


class Answers(Generic[A]):
    """The answers of a call as they come: an iterator, and a context manager that gives the call up at its end."""

    def __init__(self, channel: Channel, start: Start, attempts: Attempts, read: Callable[[bytes], A]) -> None:
        self._channel, self._start, self._attempts, self._read = channel, start, attempts, read
        self._has_answered = False
        self.connection, self.exchange = channel.begin(start, attempts)

    def __iter__(self) -> Iterator[A]:
        return self

    def __next__(self) -> A:
        while True:
            exchange = self.exchange
            if not self.connection.wait(exchange.has_news, self._start.deadline_s):
                self.connection.cancel(exchange, DEADLINE)
            if exchange.inbox:
                self._has_answered = True
                return self._read(self.connection.take(exchange))
            outcome = exchange.outcome
            assert outcome is not None
            if outcome.code == 0:
                self._channel.calls.budget.note(succeeded=True)
                raise StopIteration
            if self._has_answered or self._start.message is None:
                raise outcome.error()
            self._channel.again(self._attempts, outcome)
            self.connection, self.exchange = self._channel.begin(self._start, self._attempts)

    def initial_metadata(self) -> Metadata:
        """Return what came ahead of the answers, once it came."""
        exchange = self.exchange
        self.connection.wait(lambda: exchange.initial is not None, self._start.deadline_s)
        return exchange.initial or ()

    def trailing_metadata(self) -> Metadata:
        """Return what came behind the last answer; () before."""
        return () if self.exchange.outcome is None else self.exchange.outcome.trailing

    def cancel(self) -> None:
        """Give the call up; iterating then raises CANCELLED."""
        self.connection.cancel(self.exchange)

    def __enter__(self) -> Answers[A]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancel()


class Feeder(threading.Thread):
    """Takes a call's requests and sends them. A request that cannot be made ends the call."""

    def __init__(self, answers: Answers[A], requests: Iterable[Q], write: Callable[[Q], bytes]) -> None:
        super().__init__(name="tailorbird-client-requests", daemon=True)
        self._work = (answers.connection, answers.exchange, requests, write)

    def run(self) -> None:
        """Send them all."""
        try:
            feed(*self._work, None)
        except Exception as error:  # told where the answers are awaited
            connection, exchange = self._work[:2]
            connection.cancel(exchange, Outcome(1, f"the iterator of requests raised {type(error).__name__}: {error}"))


def feed(
    connection: Connection,
    exchange: Exchange,
    requests: Iterable[Q],
    write: Callable[[Q], bytes],
    deadline_s: float | None,
) -> None:
    """Send requests until their end or the call's, waiting whenever the service is slow to take them."""
    for request in requests:
        if exchange.outcome is not None:
            return
        if connection.send(exchange, write(request)):
            connection.wait(lambda: connection.has_room(exchange), deadline_s)
    connection.end(exchange)


def answered(outcome: Outcome) -> Outcome:
    """Return the outcome, or what it is where one answer was due and OK came without."""
    if outcome.code == 0 and outcome.message is None:
        return Outcome(13, "expected one answer, got the status OK without any", outcome.initial, outcome.trailing)
    return outcome

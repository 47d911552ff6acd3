"""One call that runs in a task of its own: its requests as they arrive, its answers as the peer takes them."""

from __future__ import annotations

import asyncio
import sys
import types
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Generator
from typing import Any, Protocol

from tailorbird.native.http2 import ServerSession
from tailorbird.server.statuses import CallStatus, status_of
from tailorbird.server.transport import CallContext, Metadata
from tailorbird.server.transport.faults import CANCELLED, DEADLINE


class CallOwner(Protocol):
    """The connection as its calls see it."""

    session: ServerSession

    def answer(self, stream_id: int, message: bytes, context: CallContext) -> None: ...

    def finish(self, stream_id: int, status: CallStatus) -> None: ...

    def flush_soon(self) -> None: ...

    def forget(self, call: Call) -> None: ...


class Call:
    """Runs one handler. `end` may come at any time: from the peer, the deadline or the server's stop."""

    __slots__ = ("_context", "_inbox", "_is_ended", "_owner", "_task", "_timer", "_waiter", "is_over", "stream_id")

    def __init__(self, owner: CallOwner, stream_id: int, context: CallContext) -> None:
        self._owner = owner
        self._context = context
        self._inbox: deque[bytes] = deque()
        self._is_ended = False
        self._waiter: asyncio.Future[None] | None = None
        self._task: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self.stream_id = stream_id
        self.is_over = False

    def run(self, work: Coroutine[Any, Any, None], remaining_s: float | None) -> None:
        """Start `work` (one of the two below) with what is left of the deadline."""
        loop = asyncio.get_running_loop()
        self._task = loop.create_task(work)
        self._task.add_done_callback(self._leave)
        if remaining_s is not None:
            self._timer = loop.call_later(remaining_s, self.end, DEADLINE)

    async def answer_once(self, begin: Callable[[], Awaitable[bytes]], *, is_new: bool = True) -> None:
        """Send the one answer of a call; `is_new` says that its handler has not begun yet."""
        if is_new and self._is_late():
            return
        try:
            message = await begin()
            if not self.is_over:
                self._owner.answer(self.stream_id, message, self._context)
        except asyncio.CancelledError:
            self._fail(CANCELLED)
        except Exception as error:  # every failure becomes a status; the caller never sees a Python text
            if not self.is_over:
                self._fail(status_of(error, self._context.method))

    async def answer_each(self, begin: Callable[[], AsyncIterator[bytes]]) -> None:
        """Send every answer, waiting whenever the peer is slow to take them."""
        if self._is_late():
            return
        session = self._owner.session
        answers = begin()
        has_begun = False
        try:
            async for message in answers:
                if self.is_over:
                    return
                if (initial := self._context.initial) and not has_begun:
                    session.announce(self.stream_id, wire_pairs(initial))
                has_begun = True
                must_wait = session.send(self.stream_id, message)
                self._owner.flush_soon()
                while must_wait:
                    await self._wait()
                    must_wait = session.must_wait(self.stream_id)
            if not self.is_over:
                session.finish(self.stream_id, 0, None, wire_pairs(self._context.trailing))
        except asyncio.CancelledError:
            self._fail(CANCELLED)
        except Exception as error:  # as above
            if not self.is_over:
                self._fail(status_of(error, self._context.method))
        finally:
            if isinstance(answers, types.AsyncGeneratorType):
                await answers.aclose()

    async def requests(self) -> AsyncIterator[bytes]:
        """Yield the requests in their order; the peer may send more as they are taken."""
        while True:
            if self._inbox:
                message = self._inbox.popleft()
                self._owner.session.take(self.stream_id)
                self._owner.flush_soon()
                yield message
            elif self._is_ended:
                return
            else:
                await self._wait()

    def receive(self, message: bytes | None) -> None:
        """Take one more request, or None at their end."""
        if message is None:
            self._is_ended = True
        else:
            self._inbox.append(message)
        self.wake()

    def wake(self) -> None:
        """Let the handler go on: there is a request, or room for an answer."""
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def end(self, status: CallStatus | None) -> None:
        """Stop the handler; the peer is told `status`, or nothing where it is the one that left."""
        if self.is_over:
            return
        if status is not None:
            self._fail(status)
        self.is_over = True
        if self._task is not None:
            self._task.cancel()

    def _is_late(self) -> bool:
        """Tell whether the deadline went by while other tasks ran, and then the caller."""
        if self._context.remaining_s() == 0.0:
            self._fail(DEADLINE)
            self.is_over = True
        return self.is_over

    async def _wait(self) -> None:
        # A bidirectional handler may wait for requests and for room at once, in two tasks of its own: both look again.
        if self._waiter is None:
            self._waiter = asyncio.get_running_loop().create_future()
        await asyncio.shield(self._waiter)

    def _fail(self, status: CallStatus) -> None:
        if not self.is_over:
            self._owner.finish(self.stream_id, status)
            self._owner.flush_soon()

    def _leave(self, task: asyncio.Task[None]) -> None:
        self.is_over = True
        if self._timer is not None:
            self._timer.cancel()
        self._owner.flush_soon()
        self._owner.forget(self)


def wire_pairs(metadata: Metadata) -> list[tuple[bytes, bytes]]:
    """Return metadata as the session sends it."""
    return [(key.encode(), value if isinstance(value, bytes) else value.encode()) for key, value in metadata]


def run_promptly(coroutine: Coroutine[Any, Any, bytes]) -> bytes | Awaitable[bytes]:
    """Return the answer of a prompt handler that did not have to wait, else what to await for it in a task.

    It is driven right here: a task costs more than many an answer.
    """
    if sys.version_info >= (3, 12):
        task = asyncio.Task(coroutine, loop=asyncio.get_running_loop(), eager_start=True)
        return task.result() if task.done() else task
    try:
        waited = coroutine.send(None)
    except StopIteration as stop:
        answer: bytes = stop.value
        return answer
    return _resumed(coroutine, waited)


@types.coroutine
def _resumed(coroutine: Coroutine[Any, Any, bytes], waited: Any) -> Generator[Any, Any, bytes]:
    """Go on with a coroutine that has been driven up to where it waits for `waited`."""
    while True:
        try:
            try:
                value = yield waited
            except BaseException as error:  # a cancellation is the coroutine's to handle
                waited = coroutine.throw(error)
            else:
                waited = coroutine.send(value)
        except StopIteration as stop:
            answer: bytes = stop.value
            return answer

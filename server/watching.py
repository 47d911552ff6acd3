"""Watching calls from their beginning to their end, whatever their kind: what metrics, the access log and traces stand on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from tailorbird.server.statuses import Code, code_of
from tailorbird.server.transport import (
    Bidirectional,
    CallContext,
    ClientStream,
    Handler,
    HandlerTable,
    ServerStream,
    Unary,
)


@dataclass(slots=True)
class Sizes:
    """The messages of a call so far, both ways, in bytes without their framing."""

    request_bytes: int = 0
    answer_bytes: int = 0


Ended = Callable[[Sizes, BaseException | None], None]
# Told of a call that begins; returns what is told of its end, None where that call is not watched.
Begin = Callable[[CallContext], Ended | None]


def watched(table: HandlerTable, begin: Begin) -> HandlerTable:
    """Return the table with `begin` told of every call. Neither it nor what it returns may raise."""
    return {path: _watched(handler, begin) for path, handler in table.items()}


def code_name(context: CallContext, error: BaseException | None) -> str:
    """Return the gRPC code a call ended with. One cancelled past its deadline is DEADLINE_EXCEEDED."""
    if error is None or isinstance(error, GeneratorExit):
        return "OK"
    if isinstance(error, asyncio.CancelledError) and context.remaining_s() == 0.0:
        return Code.DEADLINE_EXCEEDED.name
    return code_of(error).name


def _watched(handler: Handler, begin: Begin) -> Handler:
    match handler:
        case Unary(unary, prompt):

            async def watched_unary(request: bytes, context: CallContext) -> bytes:
                if (ended := begin(context)) is None:
                    return await unary(request, context)
                sizes = Sizes(len(request))
                try:
                    answer = await unary(request, context)
                except BaseException as error:
                    ended(sizes, error)
                    raise
                sizes.answer_bytes = len(answer)
                ended(sizes, None)
                return answer

            return Unary(watched_unary, prompt)
        case ClientStream(client_stream):

            async def watched_client_stream(requests: AsyncIterator[bytes], context: CallContext) -> bytes:
                if (ended := begin(context)) is None:
                    return await client_stream(requests, context)
                sizes = Sizes()
                try:
                    answer = await client_stream(_weighed(requests, sizes), context)
                except BaseException as error:
                    ended(sizes, error)
                    raise
                sizes.answer_bytes = len(answer)
                ended(sizes, None)
                return answer

            return ClientStream(watched_client_stream)
        case ServerStream(server_stream):

            async def watched_server_stream(request: bytes, context: CallContext) -> AsyncIterator[bytes]:
                ended, sizes = begin(context), Sizes(len(request))
                async for answer in _until_its_end(server_stream(request, context), sizes, ended):
                    yield answer

            return ServerStream(watched_server_stream)
        case Bidirectional(bidirectional):

            async def watched_bidirectional(
                requests: AsyncIterator[bytes], context: CallContext
            ) -> AsyncIterator[bytes]:
                ended, sizes = begin(context), Sizes()
                answers = bidirectional(_weighed(requests, sizes), context)
                async for answer in _until_its_end(answers, sizes, ended):
                    yield answer

            return Bidirectional(watched_bidirectional)


async def _weighed(requests: AsyncIterator[bytes], sizes: Sizes) -> AsyncIterator[bytes]:
    async for request in requests:
        sizes.request_bytes += len(request)
        yield request


async def _until_its_end(answers: AsyncIterator[bytes], sizes: Sizes, ended: Ended | None) -> AsyncIterator[bytes]:
    try:
        async for answer in answers:
            sizes.answer_bytes += len(answer)
            yield answer
    except BaseException as error:
        if ended is not None:
            ended(sizes, error)
        raise
    if ended is not None:
        ended(sizes, None)

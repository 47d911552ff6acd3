"""The portable transport: any handler table over `grpc.aio`, in raw bytes."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import grpc.aio

from tailorbird.engine.errors import CallerError, ResourceExhausted
from tailorbird.server.statuses import status_of
from tailorbird.server.transport import (
    Bidirectional,
    CallContext,
    ClientStream,
    HandlerTable,
    ServerLimits,
    ServerStream,
    Unary,
)
from tailorbird.server.transport.listeners import INHERITED, PLAIN, UNIX, ListenOptions, TlsFiles, listen_failed

LOG = logging.getLogger(__name__)

# grpcio refuses what is over its own limit without our reason, so its limit is wider and ours answers first.
LIBRARY_LIMIT_FACTOR = 2
CODES = {code.value[0]: code for code in grpc.StatusCode}

Context = grpc.aio.ServicerContext[Any, Any]


class GrpcioServer:
    """Serves one handler table on one address. `start` returns the port; `stop` lets calls in flight finish."""

    def __init__(self, table: HandlerTable, limits: ServerLimits, listen: ListenOptions = PLAIN) -> None:
        self._listen_options = listen
        self._limits = limits
        library_max = LIBRARY_LIMIT_FACTOR * limits.message_bytes_max
        self._server = grpc.aio.server(
            handlers=[_TableHandler(table, limits)],
            maximum_concurrent_rpcs=limits.calls_max,
            options=[
                ("grpc.max_receive_message_length", library_max),
                ("grpc.max_send_message_length", library_max),
                # Two servers on one port would each get half of the calls; better that the second says so.
                ("grpc.so_reuseport", int(listen.reuse_port)),
            ],
        )

    async def start(self, address: str) -> int:
        """Bind `host:port` (port 0: any) or `unix:PATH` and serve; return the port, 0 of a Unix socket.

        Raises `CallerError` LISTEN_FAILED when it cannot be had, BAD_TLS_FILES.
        """
        tls = self._listen_options.tls
        if address.startswith(INHERITED):
            raise listen_failed(address, "only the native transport takes a socket it inherits")
        try:
            port = (
                self._server.add_insecure_port(address)
                if tls is None
                else self._server.add_secure_port(address, _reloaded_credentials(tls))
            )
        except RuntimeError as error:
            raise listen_failed(address, error) from None
        await self._server.start()
        return 0 if address.startswith(UNIX) else port

    async def stop(self) -> None:
        """Refuse new calls, wait for those in flight for the grace time, then cancel them."""
        await self._server.stop(self._limits.grace_s)


def _reloaded_credentials(tls: TlsFiles) -> grpc.ServerCredentials:
    """Return credentials that follow the files: each handshake looks whether they changed, and bad ones leave the former.

    Raises `CallerError` BAD_TLS_FILES.
    """

    def configuration() -> grpc.ServerCertificateConfiguration:
        certificate, key, authorities = tls.contents()
        return grpc.ssl_server_certificate_configuration([(key, certificate)], authorities)

    # Read before the files are: what changes in between is read again.
    known = tls.stamp()

    def changed() -> grpc.ServerCertificateConfiguration | None:
        nonlocal known
        if (stamp := tls.stamp()) == known:
            return None
        known = stamp
        try:
            found = configuration()
        except CallerError as error:
            LOG.error("the TLS files changed and cannot be used, the former ones stay: %s", error)
            return None
        LOG.info("the TLS files changed: new connections get the new ones")
        return found

    return grpc.dynamic_ssl_server_credentials(
        configuration(),
        changed,  # type: ignore[arg-type]  # the library documents None for no change
        require_client_authentication=tls.client_authorities is not None,
    )


class _TableHandler(grpc.GenericRpcHandler):
    """Finds the handler of a path; grpcio itself answers UNIMPLEMENTED where there is none."""

    def __init__(self, table: HandlerTable, limits: ServerLimits) -> None:
        self._methods = {path: _method_handler(path, handler, limits) for path, handler in table.items()}

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        return self._methods.get(handler_call_details.method)


def _method_handler(
    path: str, handler: Unary | ClientStream | ServerStream | Bidirectional, limits: ServerLimits
) -> Any:
    match handler:
        case Unary(unary):

            async def call(request: bytes, context: Context) -> bytes | None:
                return await _answer(path, context, lambda ours: unary(_checked(request, limits), ours))

            return grpc.unary_unary_rpc_method_handler(call)
        case ClientStream(client_stream):

            async def collect(requests: AsyncIterator[bytes], context: Context) -> bytes | None:
                checked = _each_checked(requests, limits)
                return await _answer(path, context, lambda ours: client_stream(checked, ours))

            return grpc.stream_unary_rpc_method_handler(collect)
        case ServerStream(server_stream):

            async def stream(request: bytes, context: Context) -> AsyncIterator[bytes]:
                answers = _stream(path, context, lambda ours: server_stream(_checked(request, limits), ours))
                async for answer in answers:
                    yield answer

            return grpc.unary_stream_rpc_method_handler(stream)
        case Bidirectional(bidirectional):

            async def converse(requests: AsyncIterator[bytes], context: Context) -> AsyncIterator[bytes]:
                checked = _each_checked(requests, limits)
                async for answer in _stream(path, context, lambda ours: bidirectional(checked, ours)):
                    yield answer

            return grpc.stream_stream_rpc_method_handler(converse)


async def _answer(path: str, context: Context, call: Callable[[CallContext], Awaitable[bytes]]) -> bytes | None:
    try:
        ours = _context(path, context)
        answer = await call(ours)
        if ours.initial:
            await context.send_initial_metadata(ours.initial)
        context.set_trailing_metadata(ours.trailing)
        return answer
    except asyncio.CancelledError:
        raise
    except Exception as error:  # every failure becomes a status; the caller never sees a Python text
        await _abort(path, context, error)
    return None


async def _stream(
    path: str, context: Context, call: Callable[[CallContext], AsyncIterator[bytes]]
) -> AsyncIterator[bytes]:
    try:
        ours, has_begun = _context(path, context), False
        async for answer in call(ours):
            if ours.initial and not has_begun:
                await context.send_initial_metadata(ours.initial)
            has_begun = True
            yield answer
        context.set_trailing_metadata(ours.trailing)
    except (asyncio.CancelledError, GeneratorExit):
        raise
    except Exception as error:  # as above
        await _abort(path, context, error)


async def _abort(path: str, context: Context, error: Exception) -> None:
    status = status_of(error, path)
    await context.abort(CODES[status.code], status.message, trailing_metadata=status.trailers())


def _context(path: str, context: Context) -> CallContext:
    remaining = context.time_remaining()
    return CallContext(
        method=path,
        peer=context.peer(),
        metadata=tuple((key, value) for key, value in context.invocation_metadata() or ()),
        deadline_s=None if remaining is None else time.monotonic() + remaining,
    )


def _checked(request: bytes, limits: ServerLimits) -> bytes:
    if len(request) > limits.message_bytes_max:
        raise ResourceExhausted(
            "MESSAGE_TOO_LARGE",
            f"expected a message of at most message_bytes_max = {limits.message_bytes_max} bytes, got {len(request)}; "
            "send several smaller ones",
        )
    return request


async def _each_checked(requests: AsyncIterator[bytes], limits: ServerLimits) -> AsyncIterator[bytes]:
    async for request in requests:
        yield _checked(request, limits)

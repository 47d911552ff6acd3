"""gRPC's interoperability test service (`grpc.testing.TestService`) as a handler table of ours."""

from __future__ import annotations

import asyncio
import importlib
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from tailorbird.server.statuses import CallFailed, CallStatus
from tailorbird.server.transport import Bidirectional, CallContext, ClientStream, HandlerTable, ServerStream, Unary

HERE = Path(__file__).parent
INITIAL, TRAILING = "x-grpc-test-echo-initial", "x-grpc-test-echo-trailing-bin"


def messages(folder: Path) -> Any:
    """Compile testing.proto into `folder` and return its module."""
    from grpc_tools import protoc

    folder.mkdir(parents=True, exist_ok=True)
    if protoc.main(["protoc", f"-I{HERE}", f"--python_out={folder}", (HERE / "testing.proto").as_posix()]) != 0:
        raise SystemExit("protoc could not compile testing.proto; its message is above")
    sys.path.insert(0, folder.as_posix())
    return importlib.import_module("testing_pb2")


def interop_table(pb: Any) -> HandlerTable:
    """Return the service's methods; what it does not list is UNIMPLEMENTED, which the tests ask for as well."""

    def echo_metadata(context: CallContext) -> None:
        context.initial = tuple(pair for pair in context.metadata if pair[0] == INITIAL)
        context.trailing = tuple(pair for pair in context.metadata if pair[0] == TRAILING)

    def refuse_if_asked(request: Any) -> None:
        if request.response_status.code:
            status = request.response_status
            raise CallFailed(CallStatus(status.code, status.message, "ASKED_FOR"))

    def payload(size: int) -> Any:
        return pb.Payload(body=bytes(size))

    async def empty(request: bytes, context: CallContext) -> bytes:
        return b""

    async def unary(request: bytes, context: CallContext) -> bytes:
        asked = pb.SimpleRequest.FromString(request)
        echo_metadata(context)
        refuse_if_asked(asked)
        return pb.SimpleResponse(payload=payload(asked.response_size)).SerializeToString()

    async def inputs(requests: AsyncIterator[bytes], context: CallContext) -> bytes:
        sizes = [len(pb.StreamingInputCallRequest.FromString(each).payload.body) async for each in requests]
        return pb.StreamingInputCallResponse(aggregated_payload_size=sum(sizes)).SerializeToString()

    async def outputs(request: bytes, context: CallContext) -> AsyncIterator[bytes]:
        asked = pb.StreamingOutputCallRequest.FromString(request)
        refuse_if_asked(asked)
        for each in asked.response_parameters:
            await asyncio.sleep(each.interval_us / 1e6)
            yield pb.StreamingOutputCallResponse(payload=payload(each.size)).SerializeToString()

    async def duplex(requests: AsyncIterator[bytes], context: CallContext) -> AsyncIterator[bytes]:
        echo_metadata(context)
        async for request in requests:
            async for answer in outputs(request, context):
                yield answer

    return {
        "/grpc.testing.TestService/EmptyCall": Unary(empty),
        "/grpc.testing.TestService/UnaryCall": Unary(unary, prompt=True),
        "/grpc.testing.TestService/StreamingInputCall": ClientStream(inputs),
        "/grpc.testing.TestService/StreamingOutputCall": ServerStream(outputs),
        "/grpc.testing.TestService/FullDuplexCall": Bidirectional(duplex),
    }

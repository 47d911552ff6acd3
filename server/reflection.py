"""Server reflection, v1 and v1alpha, as handler table entries: what `grpcurl` and its like ask first.

The two versions differ in their package alone, so one set of message classes reads and writes both; the descriptor that
is handed out for v1 is made from v1alpha's.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable

from google.protobuf import descriptor_pb2
from google.protobuf.descriptor_pool import Default
from grpc_reflection.v1alpha import reflection_pb2

from tailorbird.server.messages.wire import decode
from tailorbird.server.statuses import Code
from tailorbird.server.transport import Bidirectional, CallContext, HandlerTable

ALPHA = "grpc.reflection.v1alpha"
V1 = "grpc.reflection.v1"
V1_FILE = "grpc/reflection/v1/reflection.proto"
SERVICES = (f"{V1}.ServerReflection", f"{ALPHA}.ServerReflection")


def reflection_table(services: Iterable[str]) -> HandlerTable:
    """Return the handlers that describe `services` and reflection itself."""
    reflection = _Reflection((*services, *SERVICES))
    return {f"/{service}/ServerReflectionInfo": Bidirectional(reflection.info) for service in SERVICES}


class _Reflection:
    def __init__(self, services: Iterable[str]) -> None:
        self._services = sorted(services)
        self._pool = Default()

    async def info(self, requests: AsyncIterator[bytes], context: CallContext) -> AsyncIterator[bytes]:
        async for request_bytes in requests:
            request = decode(reflection_pb2.ServerReflectionRequest, request_bytes)
            yield self._answer(request).SerializeToString()

    def _answer(self, request: reflection_pb2.ServerReflectionRequest) -> reflection_pb2.ServerReflectionResponse:
        response = reflection_pb2.ServerReflectionResponse(valid_host=request.host, original_request=request)
        try:
            match request.WhichOneof("message_request"):
                case "list_services":
                    for service in self._services:
                        response.list_services_response.service.add(name=service)
                case "file_by_filename":
                    self._describe(request.file_by_filename, response)
                case "file_containing_symbol":
                    self._describe(self._file_of(request.file_containing_symbol), response)
                case "file_containing_extension":
                    asked = request.file_containing_extension
                    extended = self._pool.FindMessageTypeByName(asked.containing_type)
                    extension = self._pool.FindExtensionByNumber(extended, asked.extension_number)
                    self._describe(self._pool.FindFileContainingSymbol(extension.full_name).name, response)
                case "all_extension_numbers_of_type":
                    message = self._pool.FindMessageTypeByName(request.all_extension_numbers_of_type)
                    numbers = response.all_extension_numbers_response
                    numbers.base_type_name = message.full_name
                    numbers.extension_number.extend(sorted(e.number for e in self._pool.FindAllExtensions(message)))
                case _:
                    response.error_response.error_code = Code.INVALID_ARGUMENT
                    response.error_response.error_message = "expected one of the fields of message_request, got none"
        except KeyError:
            response.error_response.error_code = Code.NOT_FOUND
            response.error_response.error_message = "expected a name this server knows"
        return response

    def _file_of(self, symbol: str) -> str:
        if symbol.startswith(f"{V1}."):
            self._pool.FindFileContainingSymbol(symbol.replace(V1, ALPHA, 1))
            return V1_FILE
        return self._pool.FindFileContainingSymbol(symbol).name

    def _describe(self, filename: str, response: reflection_pb2.ServerReflectionResponse) -> None:
        """Add the file and everything it imports, imports last; raises `KeyError` for a file nobody knows."""
        files = response.file_descriptor_response.file_descriptor_proto
        if filename == V1_FILE:
            files.append(_v1_file(reflection_pb2.DESCRIPTOR.serialized_pb))
            return
        waiting = [self._pool.FindFileByName(filename)]
        seen = {filename}
        while waiting:
            file = waiting.pop(0)
            files.append(file.serialized_pb)
            for imported in file.dependencies:
                if imported.name not in seen:
                    seen.add(imported.name)
                    waiting.append(imported)


def _v1_file(alpha: bytes) -> bytes:
    """Return v1alpha's descriptor with v1's names."""
    file = descriptor_pb2.FileDescriptorProto.FromString(alpha)
    file.name, file.package = V1_FILE, V1
    for message in file.message_type:
        for field in filter(lambda field: field.type_name, message.field):
            field.type_name = field.type_name.replace(f".{ALPHA}.", f".{V1}.")
    for method in file.service[0].method:
        method.input_type = method.input_type.replace(f".{ALPHA}.", f".{V1}.")
        method.output_type = method.output_type.replace(f".{ALPHA}.", f".{V1}.")
    return file.SerializeToString()

"""OpenTelemetry traces: a span a call, sent by OTLP over gRPC. Needs `tailorbird[traces]`.

A caller's `traceparent` (https://www.w3.org/TR/trace-context/) says whose child the span is and whether it is kept; a part of
the calls without one begin a trace of their own. A span has the method, how it ended and the tenant: no address, no key, no
message. Spans wait in a bounded queue for a thread that sends them; where the collector is slow or gone they are dropped.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from importlib import metadata
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

from tailorbird.engine.errors import CallerError, PreconditionFailed, TailorbirdError
from tailorbird.server.access_log import trace_parent
from tailorbird.server.statuses import Code
from tailorbird.server.transport import CallContext
from tailorbird.server.watching import Ended, Sizes, code_name

SPANS_WAITING_MAX = 2_048
SPANS_SENT_MAX = 512
SEND_EVERY_MS = 1_000
SEND_S = 5
OK_NUMBER = 0
# Which codes are the server's failure, by the semantic conventions for gRPC servers.
FAILURES = frozenset({"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"})


class Traces:
    """Makes the spans of calls, of `ratio` of those whose caller does not say; left as a context, sends what waits."""

    def __init__(
        self, endpoint: str, ratio: float, process: str = "", draw: Callable[[], float] = random.random
    ) -> None:
        url = urlsplit(endpoint)
        if url.scheme not in ("http", "https") or not url.netloc or url.username or url.password:
            raise CallerError("BAD_ARGUMENT", "expected http://HOST:PORT of an OTLP collector, got another in --traces")
        try:
            from opentelemetry import trace
            from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
            from opentelemetry.sdk.trace.sampling import ALWAYS_ON
        except ImportError as error:
            raise PreconditionFailed(
                "NO_TRACES",
                f"expected an install with tailorbird[traces], got one without {error.name}; install it, or leave --traces out",
            ) from None
        self._api = trace
        exporter = OTLPSpanExporter(endpoint=endpoint, insecure=url.scheme == "http", timeout=SEND_S)
        instance = {"service.instance.id": process} if process else {}
        version = metadata.version("tailorbird")
        resource = Resource({"service.name": "tailorbird", "service.version": version, **instance})
        self._provider = TracerProvider(resource=resource, sampler=ALWAYS_ON, shutdown_on_exit=False)
        self._provider.add_span_processor(
            BatchSpanProcessor(
                exporter,
                max_queue_size=SPANS_WAITING_MAX,
                max_export_batch_size=SPANS_SENT_MAX,
                schedule_delay_millis=SEND_EVERY_MS,
            )
        )
        self._tracer = self._provider.get_tracer("tailorbird.server")
        self._ratio = ratio
        self._draw = draw

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._provider.shutdown()

    def begin(self, context: CallContext) -> Ended | None:
        """Begin the span of a call; None for one that is not kept, at the cost of looking for `traceparent`."""
        parent = trace_parent(context)
        if not (parent[2] if parent is not None else self._draw() < self._ratio):
            return None
        api, surroundings = self._api, None
        if parent is not None:
            trace_id, span_id = int(parent[0], 16), int(parent[1], 16)
            kept = api.TraceFlags(api.TraceFlags.SAMPLED)
            caller = api.SpanContext(trace_id, span_id, is_remote=True, trace_flags=kept)
            surroundings = api.set_span_in_context(api.NonRecordingSpan(caller))
        service, _, method = context.method[1:].partition("/")
        span = self._tracer.start_span(
            context.method[1:],
            surroundings,
            api.SpanKind.SERVER,
            {"rpc.system": "grpc", "rpc.service": service, "rpc.method": method},
            start_time=time.time_ns(),
        )
        context.trace_id = f"{span.get_span_context().trace_id:032x}"

        def ended(sizes: Sizes, error: BaseException | None) -> None:
            code = code_name(context, error)
            span.set_attribute("rpc.grpc.status_code", OK_NUMBER if code == "OK" else Code[code].value)
            span.set_attribute("tailorbird.request_bytes", sizes.request_bytes)
            span.set_attribute("tailorbird.answer_bytes", sizes.answer_bytes)
            if context.tenant:
                span.set_attribute("tailorbird.tenant", context.tenant)
            if isinstance(error, TailorbirdError):
                span.set_attribute("tailorbird.reason", error.reason)
            if code in FAILURES:
                span.set_status(api.Status(api.StatusCode.ERROR))
            span.end()

        return ended

"""The access log: a line a call, of what it was and how it ended, and nothing of what it said or who it was about."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable

from tailorbird.engine.errors import CallerError, TailorbirdError
from tailorbird.server.logs import Field, LineWriter
from tailorbird.server.transport import CallContext
from tailorbird.server.watching import Ended, Sizes, code_name

LOGGER = "tailorbird.access"
TRACEPARENT = "traceparent"
# https://www.w3.org/TR/trace-context/ version 00; later versions may have more behind it.
_TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(?:-.*)?")


def trace_parent(context: CallContext) -> tuple[str, str, bool] | None:
    """Return trace id, span id and whether they are sampled, as a caller's `traceparent` says; None without a good one."""
    for name, value in context.metadata:
        if name == TRACEPARENT and isinstance(value, str):
            found = _TRACEPARENT.fullmatch(value)
            return None if found is None else (found[1], found[2], bool(int(found[3], 16) & 1))
    return None


def checked_ratio(text: str, option: str) -> float:
    """Return how many of all, 0 to 1. Raises `CallerError` BAD_ARGUMENT."""
    try:
        ratio = float(text)
    except ValueError:
        ratio = -1.0
    if not 0.0 <= ratio <= 1.0:
        raise CallerError("BAD_ARGUMENT", f"expected a part of all calls from 0 to 1, got {text!r} in {option}")
    return ratio


class AccessLog:
    """Writes a line for `ratio` of the calls. `tenant` is whose calls are where the call itself does not say."""

    def __init__(
        self,
        lines: LineWriter,
        ratio: float,
        tenant: str,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._lines = lines
        self._ratio = ratio
        self._tenant = tenant
        self._draw = draw

    def begin(self, context: CallContext) -> Ended | None:
        """Note when a call began; None for one that is not sampled."""
        if self._draw() >= self._ratio:
            return None
        began_ns = time.perf_counter_ns()

        def ended(sizes: Sizes, error: BaseException | None) -> None:
            duration_us = (time.perf_counter_ns() - began_ns) // 1_000
            fields: dict[str, Field] = {
                "method": context.method,
                "status": code_name(context, error),
                "duration_us": duration_us,
                "request_bytes": sizes.request_bytes,
                "answer_bytes": sizes.answer_bytes,
                "key": context.caller,
                "tenant": context.tenant or self._tenant,
                "trace_id": context.trace_id or (parent[0] if (parent := trace_parent(context)) else ""),
            }
            if isinstance(error, TailorbirdError):
                fields["reason"] = error.reason
            self._lines.write(time.time(), "INFO", LOGGER, "call", fields)

        return ended

"""What tells of a process that serves: its logging, and what watches its calls. Plain options, so that processes hand them on."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace

from tailorbird.server.access_log import AccessLog
from tailorbird.server.logs import LogFormat, Logging
from tailorbird.server.watching import Begin


@dataclass(frozen=True, slots=True, kw_only=True)
class ObserverOptions:
    """How lines are written and from which level on, and which part of the calls, 0 to 1, is logged and traced.

    `traces` is the URL of an OTLP collector, empty for none. `tenant` is whose calls are, where they do not say.
    """

    log_format: LogFormat = LogFormat.JSON
    log_level: str = "info"
    access_log: float = 0.0
    traces: str = ""
    traces_ratio: float = 0.0
    tenant: str = ""

    def of_no_calls(self) -> ObserverOptions:
        """Return the same for a process that answers no calls."""
        return replace(self, access_log=0.0, traces="")


@contextlib.contextmanager
def observing(options: ObserverOptions, process: str = "") -> Iterator[tuple[Begin, ...]]:
    """Log on standard error until the block is left, in the name of a process if there are several; give what is told of
    every call, traces before the access log, whose lines name them. Raises `CallerError`, `PreconditionFailed` NO_TRACES."""
    with contextlib.ExitStack() as stack:
        logging = Logging(options.log_format, options.log_level, sys.stderr, process)
        stack.callback(logging.close)
        watchers: list[Begin] = []
        if options.traces:
            # Imported only when asked for: it brings a library that most do without.
            from tailorbird.server.traces import Traces

            watchers.append(stack.enter_context(Traces(options.traces, options.traces_ratio, process)).begin)
        if options.access_log > 0.0:
            watchers.append(AccessLog(logging, options.access_log, options.tenant).begin)
        yield tuple(watchers)

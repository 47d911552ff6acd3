"""The figures of all processes on one port: each tells its own at a Unix socket, the supervisor asks them all and labels them."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from prometheus_client import generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from tailorbird.server.metrics import Metrics

ANSWER_S = 1.0  # a process that does not answer is left out and told as not up
LABEL = "process"


class Figures:
    """Tells the metrics of this process to whoever connects to a Unix socket, once, in Prometheus' text format."""

    def __init__(self, metrics: Metrics | None, path: Path) -> None:
        self._metrics = metrics
        self._path = path
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Listen, where there are metrics."""
        if self._metrics is not None:
            self._path.unlink(missing_ok=True)
            self._server = await asyncio.start_unix_server(self._answer, str(self._path))
            os.chmod(self._path, 0o600)

    async def stop(self) -> None:
        """Answer no more."""
        if self._server is not None:
            self._server.close()
            self._path.unlink(missing_ok=True)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert self._metrics is not None
        try:
            writer.write(generate_latest(self._metrics.registry))
            await writer.drain()
        except OSError:  # Whoever asked has left.
            return
        finally:
            writer.close()


class GatheredFigures(Collector):
    """The figures of all processes, with the process as a label, and how each of them is."""

    def __init__(self, sockets: Callable[[], dict[str, Path]], restarts: Callable[[], dict[str, int]]) -> None:
        """`sockets` are those of the processes that run now, by name; `restarts` how often each had to be started again."""
        self._sockets = sockets
        self._restarts = restarts

    def collect(self) -> Iterator[Metric]:
        """Yield the figures."""
        up = GaugeMetricFamily("tailorbird_process_up", "1 where a process answers.", labels=[LABEL])
        restarts = CounterMetricFamily(
            "tailorbird_process_restarts", "How often a process died and was started again.", labels=[LABEL]
        )
        gathered: dict[str, Metric] = {}
        for name, path in self._sockets().items():
            try:
                text = _read(path)
            except OSError:
                up.add_metric([name], 0.0)
                continue
            up.add_metric([name], 1.0)
            for family in text_string_to_metric_families(text):
                _add(gathered, family, name)
        for name, count in self._restarts().items():
            restarts.add_metric([name], count)
        yield up
        yield restarts
        yield from gathered.values()

    def describe(self) -> Iterable[Metric]:
        """Return nothing: what there is only the processes know."""
        return ()


def _add(gathered: dict[str, Metric], family: Metric, process: str) -> None:
    into = gathered.setdefault(family.name, Metric(family.name, family.documentation, family.type))
    for sample in family.samples:
        into.add_sample(sample.name, {**sample.labels, LABEL: process}, sample.value, sample.timestamp)


def _read(path: Path) -> str:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asked:
        asked.settimeout(ANSWER_S)
        asked.connect(str(path))
        parts = []
        while part := asked.recv(1 << 16):
            parts.append(part)
        return b"".join(parts).decode()

"""A small shop, and the service over it in a thread of its own, as a client in another process would find it."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest

from tailorbird.engine import Engine
from tailorbird.server.serve import ServeOptions, Service
from tailorbird.server.watching import Begin

# Opt-in: nothing is stored without a basis. The tick is short, so that a test need not wait for popularity.
CONFIGURATION = """\
version: 1
jurisdiction: opt_in
statistics:
  tick: 20ms
features:
  - {name: orders, aggregate: count, signal: order_completed}
placements:
  - name: home
    k: 3
    retrieve: {whole_catalogue: true}
"""
START_S = 30


@dataclass(frozen=True, slots=True)
class Running:
    """A service that runs: a channel to it, its address, and the port of its metrics, 0 without."""

    channel: grpc.Channel
    address: str
    metrics_port: int = 0


Serving = Callable[[], AbstractContextManager[Running]]


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """Return a data directory with a configuration and nothing else."""
    directory = tmp_path / "shop"
    directory.mkdir()
    (directory / "tailorbird.yaml").write_text(CONFIGURATION)
    return directory


@pytest.fixture
def serving(shop: Path) -> Serving:
    """Return what starts the service over the shop, as often as a test wants to."""
    return lambda: running_service(shop)


@pytest.fixture
def running(serving: Serving) -> Iterator[Running]:
    """Return the service over the shop."""
    with serving() as service:
        yield service


@contextmanager
def running_service(
    directory: Path | Mapping[str, Path], watchers: Sequence[Begin] = (), **options: Any
) -> Iterator[Running]:
    """Run the service over a data directory, or several by tenant, until the block is left; `options` are of `ServeOptions`."""
    directories = directory if isinstance(directory, Mapping) else {"": directory}
    started = threading.Event()
    stop: list[Callable[[], None]] = []
    found: list[str | BaseException] = []
    metrics_ports: list[int] = []

    async def main() -> None:
        stopping = asyncio.Event()
        loop = asyncio.get_running_loop()
        # Opened here: the thread that decides is the one that opened.
        with ExitStack() as stack:
            engines = {name: stack.enter_context(Engine.open(path)) for name, path in directories.items()}
            served = engines if isinstance(directory, Mapping) else engines[""]
            service = Service(served, ServeOptions(**{"listen": "127.0.0.1:0", **options}), watchers)
            try:
                address = await service.start()
                metrics_ports.append(service.metrics_port)
                stop.append(lambda: loop.call_soon_threadsafe(stopping.set))
                found.append(address)
                started.set()
                await stopping.wait()
            finally:
                await service.stop()

    def run() -> None:
        try:
            asyncio.run(main())
        except BaseException as error:  # told to the test, which waits
            found.append(error)
            started.set()
            raise

    thread = threading.Thread(target=run, name="service")
    thread.start()
    assert started.wait(START_S)
    address = found[0]
    if isinstance(address, BaseException):
        thread.join()
        raise address
    try:
        options = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
        with grpc.insecure_channel(address, options) as channel:
            yield Running(channel, address, metrics_ports[0])
    finally:
        stop[0]()
        thread.join()


@dataclass(frozen=True, slots=True)
class Process:
    """`tailorbird serve` in a process of its own: where it listens, where its metrics are, and what it writes."""

    popen: subprocess.Popen[str]
    address: str
    metrics: str
    output: Path
    errors: Path

    def told(self) -> str:
        """Return what it has written by now, both ways."""
        return self.output.read_text() + self.errors.read_text()


@contextmanager
def serving_process(folder: Path, *arguments: str) -> Iterator[Process]:
    """Run `tailorbird serve` with a metrics port until the block is left, then end it by SIGTERM and expect a clean end."""
    script = "import sys; from tailorbird.server.cli import main; sys.exit(main())"
    output, errors = folder / "serve.out", folder / "serve.err"
    command = [sys.executable, "-c", script, "serve", "--listen", "127.0.0.1:0", "--metrics", "127.0.0.1:0", *arguments]
    with output.open("w") as out, errors.open("w") as err:
        popen = subprocess.Popen(command, stdout=out, stderr=err, text=True)
    try:
        ends_s = time.monotonic() + START_S
        while not (found := re.search(r"listening on (\S+),.*\nmetrics at (\S+)/metrics\n", output.read_text())):
            assert popen.poll() is None, errors.read_text()
            assert time.monotonic() < ends_s, "the service did not start"
            time.sleep(0.02)
        yield Process(popen, found[1], found[2], output, errors)
    finally:
        popen.terminate()
        code = popen.wait(START_S)
    assert code == 0, errors.read_text()

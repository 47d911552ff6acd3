"""A small shop, and the service over it in a thread of its own, as a client in another process would find it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest

from tailorbird.engine import Engine
from tailorbird.server.serve import ServeOptions, Service

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
    """A service that runs: a channel to it, and its address."""

    channel: grpc.Channel
    address: str


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
def running_service(directory: Path) -> Iterator[Running]:
    """Run the service over a data directory until the block is left."""
    started = threading.Event()
    stop: list[Callable[[], None]] = []
    found: list[str | BaseException] = []

    async def main() -> None:
        stopping = asyncio.Event()
        loop = asyncio.get_running_loop()
        # Opened here: the thread that decides is the one that opened.
        with Engine.open(directory) as engine:
            service = Service(engine, ServeOptions(listen="127.0.0.1:0"))
            try:
                address = await service.start()
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
            yield Running(channel, address)
    finally:
        stop[0]()
        thread.join()

"""The supervisor as one of its processes sees it: whom it tells that it is ready, and without whom it ends."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
from collections.abc import Iterable

import msgspec

from tailorbird.engine.errors import TailorbirdError
from tailorbird.server.processes.frames import pack_error

LOG = logging.getLogger(__name__)

BYTES_MAX = 64 * 1024


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """A line to the supervisor: `ready` where it listens and where the logs stand, `failed` with an error, or `outdated`:
    another state is in the place of the one this process reads, and a new process is needed."""

    kind: str
    address: str = ""
    transport: str = ""
    standing: str = ""
    asks_for_keys: bool = False
    keyless_tenants: list[str] = []
    error: str = ""


class Parent:
    """The end of a socket pair that the supervisor holds the other of. `stopping` is set when this process is to end: on SIGTERM,
    and when the supervisor is gone, however it died."""

    def __init__(self, descriptor: int) -> None:
        self._socket = socket.socket(fileno=os.dup(descriptor))
        self._socket.setblocking(False)
        self.stopping = asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self.stopping.set)
        loop.add_signal_handler(signal.SIGINT, lambda: None)  # of a terminal: the supervisor hears it too, and decides
        loop.add_signal_handler(signal.SIGHUP, lambda: None)
        loop.add_reader(self._socket.fileno(), self._ended)

    def _ended(self) -> None:
        asyncio.get_running_loop().remove_reader(self._socket.fileno())
        self.stopping.set()

    async def until_told(self, tasks: Iterable[asyncio.Task[None]]) -> bool:
        """Wait until this process is to end; return False where a task that it cannot do without ended before that."""
        stopping = asyncio.create_task(self.stopping.wait())
        done, _ = await asyncio.wait([stopping, *tasks], return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        for task in done - {stopping}:
            LOG.error("a task ended, and this process with it", exc_info=None if task.cancelled() else task.exception())
        return stopping in done

    def tell(self, report: Report) -> None:
        """Tell the supervisor, if it is still there."""
        tell(self._socket, report)


def tell(parent: socket.socket, report: Report) -> None:
    """Send a report; one that nobody reads is dropped."""
    try:
        parent.send(msgspec.json.encode(report)[: BYTES_MAX - 1] + b"\n")
    except OSError:
        return


def tell_failure(descriptor: int, error: TailorbirdError) -> None:
    """Tell the supervisor why this process cannot start."""
    with socket.socket(fileno=descriptor) as parent:
        tell(parent, Report(kind="failed", error=pack_error(error, "start").decode()))

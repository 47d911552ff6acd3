"""A process as the supervisor sees it: started, ready, ended."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
import time
from collections.abc import Callable

import msgspec

from tailorbird.engine.errors import InternalError
from tailorbird.server.processes.frames import unpack_error
from tailorbird.server.processes.parent import BYTES_MAX, Report
from tailorbird.server.processes.plan import NO_DESCRIPTOR, Plan


class Child:
    """A process that was spawned: it shares nothing with this one but the descriptors of its plan."""

    def __init__(self, plan: Plan, outdated: Callable[[], None]) -> None:
        """`outdated` is called when the process says that a new one is needed in its place."""
        self.plan = plan
        self.report: asyncio.Future[Report] = asyncio.get_running_loop().create_future()
        self._outdated = outdated
        self._process: asyncio.subprocess.Process | None = None
        self._socket: socket.socket | None = None
        self._ended = asyncio.Event()
        self._began_s = time.monotonic()

    @property
    def pid(self) -> int:
        """The process's id."""
        assert self._process is not None
        return self._process.pid

    @property
    def lived_s(self) -> float:
        """How long ago it was started."""
        return time.monotonic() - self._began_s

    @property
    def has_ended(self) -> bool:
        """Whether it is gone."""
        return self._ended.is_set()

    @property
    def is_ready(self) -> bool:
        """Whether it said that it serves, and is there. From any thread."""
        report = self.report
        return report.done() and not report.cancelled() and report.result().kind == "ready" and not self.has_ended

    async def start(self, descriptors: tuple[int, ...]) -> None:
        """Spawn it; it inherits `descriptors` beside those of the plan."""
        ours, theirs = socket.socketpair()
        with theirs:
            plan = msgspec.structs.replace(self.plan, parent=theirs.fileno())
            held = [plan.parent, *descriptors, *([plan.lock] if plan.lock != NO_DESCRIPTOR else [])]
            module = f"tailorbird.server.processes.{plan.role}"
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", module, plan.encoded(), stdin=asyncio.subprocess.DEVNULL, pass_fds=held
            )
        self._socket = ours
        loop = asyncio.get_running_loop()
        self._tasks = [loop.create_task(self._watch(self._process)), loop.create_task(self._listen(ours))]

    async def ready(self) -> Report:
        """Wait until it serves; return its report. Raises what it raised, `InternalError` PROCESS_ENDED where it only ended."""
        ended = asyncio.ensure_future(self._ended.wait())
        try:
            await asyncio.wait((self.report, ended), return_when=asyncio.FIRST_COMPLETED)
            if not self.report.done():
                with contextlib.suppress(TimeoutError):  # What it said last may still be on its way.
                    await asyncio.wait_for(asyncio.shield(self.report), 0.5)
        finally:
            ended.cancel()
        if not self.report.done():
            raise InternalError(
                "PROCESS_ENDED", f"expected the {self.plan.name} to get ready, got its end; its log says why"
            )
        report = self.report.result()
        if report.kind == "failed":
            raise unpack_error(report.error.encode())
        return report

    async def ended(self) -> int:
        """Wait until it is gone; return its exit code, or the negative number of the signal that killed it."""
        await self._ended.wait()
        assert self._process is not None
        return self._process.returncode or 0

    def stop(self) -> None:
        """Ask it to end in good order."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it at once."""
        self._signal(signal.SIGKILL)

    def _signal(self, number: int) -> None:
        if self._process is not None and not self._ended.is_set():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process.pid, number)

    async def _watch(self, process: asyncio.subprocess.Process) -> None:
        await process.wait()
        self._ended.set()

    async def _listen(self, ours: socket.socket) -> None:
        reader, writer = await asyncio.open_connection(sock=ours, limit=BYTES_MAX)
        try:
            while line := await reader.readline():
                report = msgspec.json.decode(line, type=Report)
                if report.kind == "outdated":
                    self._outdated()
                elif not self.report.done():
                    self.report.set_result(report)
        except OSError:
            return
        finally:
            await self._ended.wait()  # Until then our end says that this process is there.
            writer.close()

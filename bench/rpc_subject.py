"""The server that benches load: one transport, the API and two echoes in one handler table, on one core, in its own process.

The engine's clock runs an hour a second: in half a second what was served may be served again, so that answers stay full
however often the same requests come round. The echoes answer with the bytes of a real Decide answer, made beforehand; one
runs as soon as a call is there, the other in a task. Standard output begins with {"port"} in JSON; each line of standard
input is answered by what the process holds (`Holdings`) once the connections that its peers ended are gone, and its end ends
the server.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import uvloop

from tailorbird.bench import workload
from tailorbird.bench.load import Target
from tailorbird.bench.measure import mapped_bytes, private_bytes
from tailorbird.bench.servers import server_that_tells
from tailorbird.bench.stages import encoded_request
from tailorbird.bench.workload import AT, CONTEXT, WorkloadR
from tailorbird.engine import DecideRequest, Engine
from tailorbird.server.handlers import build_table
from tailorbird.server.transport import CallContext, Handler, HandlerTable, ServerLimits, Unary
from tailorbird.server.transport.choice import NATIVE, make_server
from tailorbird.server.upkeep import Upkeep
from tailorbird.server.writer import GroupWriter

# How many different requests there are, by their candidates.
REQUESTS = {100: 10_000, 1_000: 2_000}
K = 10
CLOCK_SPEED = 3_600
# A busy server sees the end of its connections late; what is open after so long was left open.
QUIET_S, QUIET_CHECK_S = 20.0, 0.02
DECIDE, INGEST = "/tailorbird.v1.DecisionService/Decide", "/tailorbird.v1.SignalService/Ingest"
UnaryFunction = Callable[[bytes, CallContext], Coroutine[Any, Any, bytes]]


@dataclass(frozen=True, slots=True)
class Holdings:
    """What a server's process holds: its own pages, those of them that are its state's files', and those that are no file's, in
    bytes; open descriptors, slots of LMDB's reader table, live Python objects that the collector sees."""

    private_bytes: int
    mapped_bytes: int
    anonymous_bytes: int
    descriptors: int
    reader_slots: int
    objects: int


class Subject:
    """A running server, as the bench sees it."""

    def __init__(self, port: int, commands: IO[str], answers: IO[str]) -> None:
        self.port = port
        self._commands, self._answers = commands, answers

    def holdings(self) -> Holdings:
        """Ask the server what it holds."""
        self._commands.write("\n")
        self._commands.flush()
        return Holdings(**json.loads(self._answers.readline()))

    def target(self, kind: str, candidate_count: int, requests: list[bytes]) -> Target:
        """Return a target of `kind` Echo, EchoInTask or Decide that sends `requests` in turn."""
        path = path_of(kind, candidate_count)
        return Target(self.port, [(path, request) for request in requests])


@contextlib.contextmanager
def served(transport: str, size: WorkloadR, core: int) -> Iterator[Subject]:
    """Run a server in its own process until the block ends. Raises `InternalError` SERVER_FAILED."""
    command = [sys.executable, "-m", "tailorbird.bench.rpc_subject", "--transport", transport]
    command += ["--people", str(size.people), "--items", str(size.items)]
    with server_that_tells(command, core) as told:
        yield Subject(told["port"], told["commands"], told["answers"])


def fast_clock() -> Callable[[], int]:
    """Return a clock of the workload's time, in ms, `CLOCK_SPEED` times as fast as the machine's."""
    began_ns = time.monotonic_ns()
    return lambda: AT + (time.monotonic_ns() - began_ns) * CLOCK_SPEED // 1_000_000


def path_of(kind: str, candidate_count: int) -> str:
    """Return the path of a method; `kind` is Echo, EchoInTask or Decide."""
    return DECIDE if kind == "Decide" else f"/bench.{kind}/Of{candidate_count}"


def requests(size: WorkloadR, candidate_count: int) -> list[bytes]:
    """Return Decide requests, each of a random person with random candidates."""
    rng = np.random.default_rng([size.seed, 5, candidate_count])
    made = []
    for _ in range(REQUESTS[candidate_count]):
        person = workload.identifiers(int(rng.integers(0, size.people)))["user_id"]
        request = DecideRequest(
            placement="ranked",
            identifiers={"user_id": person},
            context=CONTEXT,
            candidates=[workload.item_id(item) for item in rng.integers(0, size.items, candidate_count).tolist()],
            k=K,
        )
        made.append(encoded_request(request))
    return made


async def bench_table(table: HandlerTable, size: WorkloadR) -> dict[str, Handler]:
    """Return the API's handlers and the echoes."""
    decide: Any = table[DECIDE]
    added: dict[str, Handler] = {}
    for count in REQUESTS:
        answer = await decide.function(requests(size, count)[0], CallContext(method=DECIDE, peer="bench"))

        async def echo(request: bytes, context: CallContext, answer: bytes = answer) -> bytes:
            return answer

        added[path_of("Echo", count)] = Unary(echo, prompt=True)
        added[path_of("EchoInTask", count)] = Unary(echo)
    return {**table, **added}


def own_holdings(engine: Engine) -> Holdings:
    """Return what this process holds."""
    gc.collect()
    private, anonymous = private_bytes()
    return Holdings(
        private_bytes=private,
        mapped_bytes=mapped_bytes(engine.directory.root),
        anonymous_bytes=anonymous,
        descriptors=len(os.listdir("/proc/self/fd")),
        reader_slots=engine._store.environment.info()["num_readers"],
        objects=len(gc.get_objects()),
    )


def socket_count() -> int:
    """Return how many sockets this process has open."""
    count = 0
    for descriptor in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the one the folder is listed through is closed by now
            count += os.readlink(f"/proc/self/fd/{descriptor}").startswith("socket:")
    return count


async def quiet(idle_socket_count: int) -> None:
    """Wait until no more sockets are open than of an idle server, for `QUIET_S` at most."""
    ends_s = time.monotonic() + QUIET_S
    while socket_count() > idle_socket_count and time.monotonic() < ends_s:
        await asyncio.sleep(QUIET_CHECK_S)


async def serve(transport: str, engine: Engine, size: WorkloadR) -> None:
    """Serve until standard input ends, which is when the parent is gone."""
    limits = ServerLimits()
    writer = GroupWriter(engine, limits)
    upkeep = asyncio.create_task(Upkeep(engine, writer).run())
    table = await bench_table(build_table(engine, writer), size)
    server, _ = make_server(transport, table, limits)
    port = await server.start("127.0.0.1:0")
    gc.collect()
    gc.freeze()
    idle_socket_count = socket_count()
    print(json.dumps({"port": port}), flush=True)
    while await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline):
        await quiet(idle_socket_count)
        print(json.dumps(asdict(own_holdings(engine))), flush=True)
    await server.stop()
    upkeep.cancel()
    await asyncio.gather(upkeep, return_exceptions=True)
    await writer.close()


def main() -> None:
    """Fill an engine, then serve."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--transport", required=True)
    parser.add_argument("--people", type=int, required=True)
    parser.add_argument("--items", type=int, required=True)
    arguments = parser.parse_args()
    size = WorkloadR(arguments.people, arguments.items)
    loop_factory = uvloop.new_event_loop if arguments.transport == NATIVE else None
    with tempfile.TemporaryDirectory(prefix="tailorbird-bench-") as directory:
        engine = Engine.open(Path(directory), workload.configuration_text(), clock=fast_clock())
        with engine, asyncio.Runner(loop_factory=loop_factory) as runner:
            size.load(engine)
            engine.tick()
            runner.run(serve(arguments.transport, engine, size))


if __name__ == "__main__":
    main()

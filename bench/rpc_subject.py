"""The server that `tailorbird bench rpc` loads: one transport, echo and Decide in one handler table, on one core.

The engine's clock runs an hour a second: in half a second what was served may be served again, so that answers stay full
however often the same requests come round. h2load sends one body to many paths. So path number n stands for request number
n, made here beforehand: the body that came is read and dropped, and the handler gets the n-th. Echo answers with the bytes of
a real Decide answer.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import numpy as np
import uvloop

from tailorbird.bench import workload
from tailorbird.bench.stages import encoded_request
from tailorbird.bench.workload import AT, CONTEXT, WorkloadR
from tailorbird.engine import DecideRequest, Engine
from tailorbird.server.handlers import build_table
from tailorbird.server.transport import CallContext, Handler, ServerLimits, Unary
from tailorbird.server.transport.choice import NATIVE, make_server
from tailorbird.server.upkeep import Upkeep
from tailorbird.server.writer import GroupWriter

# How many different requests there are, by their candidates.
REQUESTS = {100: 10_000, 1_000: 2_000}
K = 10
CLOCK_SPEED = 3_600
DECIDE = "/tailorbird.v1.DecisionService/Decide"
UnaryFunction = Callable[[bytes, CallContext], Coroutine[Any, Any, bytes]]


def fast_clock() -> Callable[[], int]:
    """Return a clock of the workload's time, in ms, `CLOCK_SPEED` times as fast as the machine's."""
    began_ns = time.monotonic_ns()
    return lambda: AT + (time.monotonic_ns() - began_ns) * CLOCK_SPEED // 1_000_000


def path_of(kind: str, candidate_count: int, number: int) -> str:
    """Return the path that stands for a request; `kind` is Echo, EchoInTask or Decide."""
    return f"/bench.{kind}{candidate_count}/{number}"


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


async def bench_table(decide: UnaryFunction, size: WorkloadR) -> dict[str, Handler]:
    """Return the handlers of all paths."""
    table: dict[str, Handler] = {}
    for count in REQUESTS:
        bodies = requests(size, count)
        answer = await decide(bodies[0], CallContext(method=DECIDE, peer="bench"))

        async def echo(request: bytes, context: CallContext, answer: bytes = answer) -> bytes:
            return answer

        for number, body in enumerate(bodies):

            def decide_it(request: bytes, context: CallContext, body: bytes = body) -> Coroutine[Any, Any, bytes]:
                return decide(body, context)

            table[path_of("Echo", count, number)] = Unary(echo, prompt=True)
            table[path_of("EchoInTask", count, number)] = Unary(echo)
            table[path_of("Decide", count, number)] = Unary(decide_it, prompt=True)
    return table


async def serve(transport: str, engine: Engine, size: WorkloadR) -> None:
    """Serve until standard input ends, which is when the parent is gone."""
    limits = ServerLimits()
    writer = GroupWriter(engine, limits)
    upkeep = asyncio.create_task(Upkeep(engine, writer).run())
    decide: Any = build_table(engine, writer)[DECIDE]
    table = await bench_table(decide.function, size)
    server, _ = make_server(transport, table, limits)
    port = await server.start("127.0.0.1:0")
    gc.collect()
    gc.freeze()
    print(port, flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await server.stop()
    upkeep.cancel()
    await asyncio.gather(upkeep, return_exceptions=True)
    await writer.close()


def main() -> None:
    """Fill an engine, then serve."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--transport", required=True)
    parser.add_argument("--core", type=int, required=True)
    parser.add_argument("--people", type=int, required=True)
    parser.add_argument("--items", type=int, required=True)
    arguments = parser.parse_args()
    os.sched_setaffinity(0, {arguments.core})
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
